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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RestorePoint;

    fn end(lsn: u64, xid: u32, micros: i64) -> XactEnd {
        XactEnd { lsn: Lsn::new(lsn), end: Lsn::new(lsn + 40), xid, time: PgTime::from_micros(micros), prepared: false }
    }

    #[test]
    fn an_index_without_events_hands_on_the_maximum() {
        let index = XactIndex::start(Some(PgTime::from_micros(5)));
        assert_eq!((index.max_time, index.commits, index.first), (Some(PgTime::from_micros(5)), 0, None));
        assert_eq!(XactIndex::start(None), XactIndex::default());
    }

    #[test]
    fn the_maximum_runs_on_while_first_and_last_follow_the_log() {
        let mut index = XactIndex::start(Some(PgTime::from_micros(100)));
        index.record(&WalEvent::Commit(end(1, 20, 90)));
        index.record(&WalEvent::Commit(end(2, 10, 300)));
        index.record(&WalEvent::Abort(end(3, 30, 200)));
        assert_eq!(index.first.unwrap().time, PgTime::from_micros(90));
        assert_eq!(index.last.unwrap().lsn, Lsn::new(3));
        assert_eq!(index.last_commit.unwrap().lsn, Lsn::new(2));
        assert_eq!(index.max_time, Some(PgTime::from_micros(300)));
        assert_eq!((index.commits, index.xid_min, index.xid_max), (3, Some(10), Some(30)));
    }

    #[test]
    fn an_abort_raises_the_maximum_too() {
        let mut index = XactIndex::start(None);
        index.record(&WalEvent::Abort(end(3, 30, 200)));
        assert_eq!((index.max_time, index.last_commit), (Some(PgTime::from_micros(200)), None));
    }

    #[test]
    fn it_is_written_as_the_format_says() {
        let mut index = XactIndex::start(None);
        let empty = r#"{"first":null,"last":null,"max_time":null,"commits":0,"xid_min":null,"xid_max":null,"last_commit":null,"restore_points":[]}"#;
        assert_eq!(serde_json::to_string(&index).unwrap(), empty);
        index.record(&WalEvent::Commit(end(0x0500_0148, 731, 0)));
        index.record(&WalEvent::RestorePoint(RestorePoint {
            lsn: Lsn::new(0x16_0000_0028),
            end: Lsn::new(0x16_0000_0090),
            time: PgTime::from_micros(1),
            name: "before \"it\"".to_owned(),
        }));
        let mark = r#"{"time":"2000-01-01T00:00:00.000000Z","lsn":"0/5000148","xid":731}"#;
        let point = r#"{"name":"before \"it\"","lsn":"16/28","time":"2000-01-01T00:00:00.000001Z"}"#;
        let expected = format!(
            r#"{{"first":{mark},"last":{mark},"max_time":"2000-01-01T00:00:00.000000Z","commits":1,"xid_min":731,"xid_max":731,"last_commit":{mark},"restore_points":[{point}]}}"#
        );
        assert_eq!(serde_json::to_string(&index).unwrap(), expected);
        assert_eq!(serde_json::from_str::<XactIndex>(&expected).unwrap(), index);
    }
}
