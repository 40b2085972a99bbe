//! What the spool takes, and how long that can go on: told whether or not the repository can be reached.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::{SpoolLevel, StatusBoard, WalState};
use crate::error::Error;
use crate::spool::{FillRate, Spool, SpoolError};

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// Tells it for as long as it is polled.
pub(super) async fn keep_telling(spool: Spool, board: StatusBoard) {
    let mut rate = FillRate::default();
    let mut said = (SpoolLevel::Normal, String::new());
    loop {
        tell(&spool, &board, &mut rate, &mut said).await;
        tokio::time::sleep(EVERY).await;
    }
}

async fn tell(spool: &Spool, board: &StatusBoard, rate: &mut FillRate, said: &mut (SpoolLevel, String)) {
    let looking = spool.clone();
    let looked = spawn_blocking(move || looking.usage()).await;
    let usage = match looked.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string()))) {
        Ok(usage) => usage,
        Err(error) => {
            let text = error.to_string();
            if text != said.1 {
                tracing::error!(%error, "cannot look at the spool");
                said.1 = text;
            }
            board.update(|status| {
                *status.counters.archive_errors.entry("spool").or_default() += 1;
                status.archive_error = Some(Error::from(error));
            });
            return;
        }
    };
    said.1.clear();
    rate.look(Instant::now().into_std(), usage.used);
    let left = rate.time_left(usage);
    let level = usage.level();
    if level != said.0 {
        let stalled = board.read(|status| status.state) == WalState::Stalled;
        tracing::warn!(
            ?level,
            used = usage.used,
            capacity = usage.capacity,
            ?left,
            stalled,
            "the spool's level changed"
        );
        said.0 = level;
    }
    board.update(|status| {
        status.spool_segments = spool.count() as u64;
        status.spool_bytes = usage.used;
        status.spool_free_bytes = Some(usage.free());
        status.spool_level = level;
        status.spool_time_left = left;
    });
}
