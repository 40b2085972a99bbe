//! How a segment that fills slowly is cut into tails: many small pieces soon, few large ones to read. Pure.
//!
//! A busy cluster with a small `max_rpo` can cut thousands of pieces from one segment. Every [`FAN`]th one therefore begins
//! where the [`FAN`] before it began, and every [`FAN`]th of those reaches back as far again: all are written once, each
//! byte at most [`LEVELS`] times, and a reader needs about `LEVELS * FAN` pieces, however many there are.

use wal::{Lsn, PgTime, WalEvent, XactIndex};

/// So many pieces become one.
const FAN: u32 = 32;
/// Sizes of pieces.
const LEVELS: usize = 3;
/// No piece is made larger than this by joining: bounds memory whatever the size of segments.
const LARGEST: u64 = 16 << 20;

/// Where the next pieces of each size begin, and what was found since.
#[derive(Debug)]
pub(super) struct Pieces {
    levels: [Level; LEVELS],
}

#[derive(Clone, Debug)]
struct Level {
    from: Lsn,
    index: XactIndex,
    /// Pieces of the size below that were cut since.
    cuts: u32,
}

impl Pieces {
    /// Nothing was cut yet; the first piece begins at `from`. `max_time` is the running maximum so far.
    pub(super) fn new(from: Lsn, max_time: Option<PgTime>) -> Self {
        let level = Level { from, index: XactIndex::start(max_time), cuts: 0 };
        Self { levels: std::array::from_fn(|_| level.clone()) }
    }

    /// The repository holds everything up to `end` from an earlier run. Its transaction ends are not counted again.
    pub(super) fn skip(&mut self, end: Lsn) {
        self.levels.iter_mut().for_each(|level| level.from = end);
    }

    /// Takes in one event, after which the running maximum is `max_time`.
    pub(super) fn record(&mut self, event: &WalEvent, max_time: Option<PgTime>) {
        for level in &mut self.levels {
            // A record that ends within pieces of an earlier run is in their index.
            if event.end() > level.from {
                level.index.record(event);
            }
            level.index.max_time = max_time;
        }
    }

    /// Start and index of what was not cut yet.
    pub(super) fn uncut(&self) -> (Lsn, &XactIndex) {
        let [smallest, ..] = &self.levels;
        (smallest.from, &smallest.index)
    }

    /// Start and index of the piece to cut now, up to `to`: the largest that is due.
    pub(super) fn next(&self, to: Lsn) -> (Lsn, &XactIndex) {
        let [smallest, larger @ ..] = &self.levels;
        let due = larger.iter().take_while(|level| level.cuts + 1 == FAN);
        let joined = due.filter(|level| to.bytes_since(level.from) <= LARGEST).last().unwrap_or(smallest);
        (joined.from, &joined.index)
    }

    /// The piece up to `to` was cut, where the running maximum is `max_time`.
    pub(super) fn cut(&mut self, to: Lsn, max_time: Option<PgTime>) {
        let fresh = || Level { from: to, index: XactIndex::start(max_time), cuts: 0 };
        let [smallest, larger @ ..] = &mut self.levels;
        *smallest = fresh();
        for level in larger {
            level.cuts += 1;
            if level.cuts < FAN {
                return;
            }
            *level = fresh();
        }
    }
}

#[cfg(test)]
mod tests {
    use wal::XactEnd;

    use super::*;

    fn commit(xid: u32) -> WalEvent {
        let lsn = u64::from(xid) * 100 - 40;
        WalEvent::Commit(XactEnd {
            lsn: Lsn::new(lsn),
            end: Lsn::new(lsn + 40),
            xid,
            time: PgTime::from_micros(i64::from(xid)),
            prepared: false,
        })
    }

    /// Cuts after each commit; the pieces and the transactions in their indexes.
    fn cut_after_each(commits: u32) -> Vec<(u64, u64, u32, u32)> {
        let mut pieces = Pieces::new(Lsn::new(0), None);
        (1..=commits)
            .map(|xid| {
                let max = Some(PgTime::from_micros(i64::from(xid)));
                pieces.record(&commit(xid), max);
                let to = Lsn::new(u64::from(xid) * 100);
                let (from, index) = pieces.next(to);
                assert_eq!(index.max_time, max);
                let cut = (from.as_u64(), to.as_u64(), index.xid_min.unwrap(), index.xid_max.unwrap());
                pieces.cut(to, max);
                cut
            })
            .collect()
    }

    #[test]
    fn every_so_many_pieces_one_reaches_back_over_them() {
        let cut = cut_after_each(2100);
        assert_eq!(cut[0], (0, 100, 1, 1));
        assert_eq!(cut[30], (3000, 3100, 31, 31));
        assert_eq!(cut[31], (0, 3200, 1, 32));
        assert_eq!(cut[32], (3200, 3300, 33, 33));
        assert_eq!(cut[63], (3200, 6400, 33, 64));
        assert_eq!(cut[1023], (0, 102_400, 1, 1024));
        assert_eq!(cut[1055], (102_400, 105_600, 1025, 1056));
        assert_eq!(cut[2047], (102_400, 204_800, 1025, 2048));
    }

    #[test]
    fn no_byte_is_stored_more_often_than_there_are_sizes() {
        let stored: u64 = cut_after_each(5000).iter().map(|(from, to, ..)| to - from).sum();
        assert!(stored <= 5000 * 100 * LEVELS as u64, "{stored}");
    }

    #[test]
    fn what_would_become_too_large_stays_apart() {
        let mut pieces = Pieces::new(Lsn::new(0), None);
        for number in 1..=2000 {
            let to = Lsn::new(number << 20);
            let (from, _) = pieces.next(to);
            assert!(to.bytes_since(from) <= LARGEST);
            pieces.cut(to, None);
        }
    }

    #[test]
    fn what_an_earlier_run_stored_is_not_counted_again() {
        let mut pieces = Pieces::new(Lsn::new(0), None);
        pieces.skip(Lsn::new(200));
        (1..=3).for_each(|xid| pieces.record(&commit(xid), None));
        let (from, index) = pieces.uncut();
        assert_eq!((from, index.commits, index.xid_min), (Lsn::new(200), 1, Some(3)));
    }
}
