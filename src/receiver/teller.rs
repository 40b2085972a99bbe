//! Tells the server where we are.

use std::sync::Arc;

use wal::{Lsn, PgTime};

use super::cadence::report;
use super::syncer::{Positions, Tell};
use crate::clock::Clock;
use crate::fault_point;
use crate::primary::{PgError, StatusUpdate, StatusWriter};
use crate::wal_pipeline::StatusBoard;

/// Reports positions to the server, from the read loop and from the syncing thread.
///
/// A report is made of the positions as they are when it is its turn to be written, so what the server gets never goes back.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) writer: StatusWriter,
    pub(super) positions: Positions,
    /// Where what is received counts from.
    pub(super) from: Lsn,
    pub(super) report_apply: bool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) board: StatusBoard,
}

impl Teller {
    /// Reports now; with `ask`, the server is to answer.
    pub(super) async fn tell(&self, ask: bool) -> Result<(), PgError> {
        self.writer.send_status(|| self.now(ask)).await?;
        fault_point!("receiver.acknowledged");
        Ok(())
    }

    fn now(&self, ask: bool) -> (StatusUpdate, PgTime) {
        let update = report(self.positions.get(), self.from, self.report_apply, ask);
        (update, PgTime::from(self.clock.now()))
    }

    /// Notes on the board what is durable.
    pub(super) fn note(&self) {
        self.board.update_quietly(|status| {
            // Asked for in here, so that of two notes the later one is the younger one.
            let (received, durable) = self.positions.get();
            status.received = Some(received.max(durable));
            status.flushed = Some(durable);
            if let Some(followed) = &mut status.followed {
                followed.durable = durable;
            }
        });
    }
}

impl Tell for Teller {
    fn try_tell(&self) -> bool {
        self.note();
        // What goes wrong here goes wrong again for the read loop, which draws the consequences.
        let told = self.writer.try_send_status(|| self.now(false)).unwrap_or(false);
        fault_point!("receiver.acknowledged");
        told
    }
}
