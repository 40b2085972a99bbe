//! Asks one member who it is, again and again, over a connection that is kept.

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::REPLY;
use super::choose::Seen;
use crate::primary::{ConnectOptions, PgError};
use crate::receiver::contact::{Contact, contact};

/// What a scout is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// Counts the questions: an answer tells which one it answers.
    pub(super) round: u64,
    /// Whether to let go of the connection and wait.
    pub(super) rest: bool,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Report {
    /// Which member.
    pub(super) member: usize,
    /// The question that it answers; what was asked later is not answered yet.
    pub(super) round: u64,
    /// What it says, or why it says nothing.
    pub(super) seen: Result<Seen, PgError>,
}

/// Answers orders until nobody gives any. `options` names the one member.
pub(super) async fn scout(
    member: usize,
    options: ConnectOptions,
    mut orders: watch::Receiver<Order>,
    reports: mpsc::UnboundedSender<Report>,
) {
    let mut kept = None;
    while orders.changed().await.is_ok() {
        let Order { round, rest } = *orders.borrow_and_update();
        if rest {
            kept = None;
            continue;
        }
        let seen = look(&options, &mut kept).await;
        if reports.send(Report { member, round, seen }).is_err() {
            return;
        }
    }
}

/// Asks over the kept connection; over a new one when there is none any more.
async fn look(options: &ConnectOptions, kept: &mut Option<Contact>) -> Result<Seen, PgError> {
    if let Some(mut met) = kept.take()
        && let Ok(Ok(())) = timeout(REPLY, met.look_again()).await
    {
        return Ok(seen(kept.insert(met)));
    }
    let met = contact(options).await?;
    Ok(seen(kept.insert(met)))
}

fn seen(met: &Contact) -> Seen {
    Seen { system_identifier: met.system_identifier, in_recovery: met.in_recovery, position: met.position.clone() }
}
