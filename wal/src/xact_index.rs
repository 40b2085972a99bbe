//! The sparse index of transaction ends that each stored piece of WAL carries.

use crate::{Lsn, PgTime, WalEvent, XactEnd};

/// A transaction's end, as written in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct XactMark {
    /// When it ended, by the primary's clock.
    pub time: PgTime,
    /// Where its record starts.
    pub lsn: Lsn,
    /// The transaction.
    pub xid: u32,
}

impl From<&XactEnd> for XactMark {
    fn from(end: &XactEnd) -> Self {
        Self { time: end.time, lsn: end.lsn, xid: end.xid }
    }
}

/// A restore point, as written in an index.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestorePointMark {
    /// Its name; names may occur more than once, recovery stops at the first.
    pub name: String,
    /// Where its record starts.
    pub lsn: Lsn,
    /// When it was made.
    pub time: PgTime,
}

/// The transaction ends and restore points of one stored piece of WAL: `index` of FORMAT.md 4.2.
///
/// A record counts in the piece in which it *ends*. Commit times are not monotone in WAL, and PostgreSQL's recovery
/// stops before the first transaction end that is later than the target: so the *running* maximum is kept, which the
/// piece before hands over to [`XactIndex::start`]. The first piece whose `max_time` is later than a target holds the stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct XactIndex {
    /// The first transaction end.
    pub first: Option<XactMark>,
    /// The last transaction end.
    pub last: Option<XactMark>,
    /// Latest time of any transaction end since the lineage began, this piece included; none when there was none yet.
    pub max_time: Option<PgTime>,
    /// Number of transaction ends.
    pub commits: u64,
    /// Smallest transaction id among them.
    pub xid_min: Option<u32>,
    /// Largest transaction id among them.
    pub xid_max: Option<u32>,
    /// The last transaction end that is a commit.
    pub last_commit: Option<XactMark>,
    /// Restore points, in the order of their records.
    pub restore_points: Vec<RestorePointMark>,
}

impl XactIndex {
    /// The index of a piece in which nothing was found yet; `previous_max` is `max_time` of the piece before.
    pub fn start(previous_max: Option<PgTime>) -> Self {
        Self { max_time: previous_max, ..Self::default() }
    }

    /// Takes in one event of this piece; those that are neither transaction ends nor restore points change nothing.
    pub fn record(&mut self, event: &WalEvent) {
        match event {
            WalEvent::Commit(end) => {
                self.transaction_end(end);
                self.last_commit = Some(end.into());
            }
            WalEvent::Abort(end) => self.transaction_end(end),
            WalEvent::RestorePoint(point) => {
                self.restore_points.push(RestorePointMark {
                    name: point.name.clone(),
                    lsn: point.lsn,
                    time: point.time,
                });
            }
            WalEvent::Prepare(_)
            | WalEvent::Switch { .. }
            | WalEvent::Checkpoint(_)
            | WalEvent::Parameters(_)
            | WalEvent::EndOfRecovery(_)
            | WalEvent::Overwrite { .. }
            | WalEvent::Record(_) => {}
        }
    }

    fn transaction_end(&mut self, end: &XactEnd) {
        let mark = XactMark::from(end);
        self.first.get_or_insert(mark);
        self.last = Some(mark);
        self.max_time = self.max_time.max(Some(end.time));
        self.commits += 1;
        self.xid_min = Some(self.xid_min.map_or(end.xid, |xid| xid.min(end.xid)));
        self.xid_max = self.xid_max.max(Some(end.xid));
    }
}
