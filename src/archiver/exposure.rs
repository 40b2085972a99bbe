//! Which commits are only here: the age of the oldest is what losing this machine *and* the primary would cost. Pure.

use std::collections::VecDeque;

use wal::{Lsn, PgTime};

/// Commits closer together than this share an entry.
const GRAIN_MICROS: i64 = 50_000;
/// More entries than this are merged two by two.
const MOST: usize = 8192;

/// Commits that the repository does not hold yet, coarsely: memory stays bounded however long it is away.
#[derive(Clone, Debug, Default)]
pub(super) struct Exposure {
    entries: VecDeque<Entry>,
}

/// Commits whose records end at `end` or before, the oldest of which happened at `oldest`.
#[derive(Clone, Copy, Debug)]
struct Entry {
    end: Lsn,
    oldest: PgTime,
}

impl Exposure {
    /// A commit became durable here.
    pub(super) fn committed(&mut self, end: Lsn, time: PgTime) {
        if let Some(last) = self.entries.back_mut()
            && (time.as_micros().saturating_sub(last.oldest.as_micros())).abs() < GRAIN_MICROS
        {
            last.end = end;
            last.oldest = last.oldest.min(time);
            return;
        }
        self.entries.push_back(Entry { end, oldest: time });
        if self.entries.len() > MOST {
            self.merge();
        }
    }

    /// The repository holds everything before `lsn`.
    pub(super) fn shipped(&mut self, lsn: Lsn) {
        while self.entries.front().is_some_and(|entry| entry.end <= lsn) {
            self.entries.pop_front();
        }
    }

    /// When the oldest commit happened that only we hold.
    pub(super) fn oldest(&self) -> Option<PgTime> {
        self.entries.iter().map(|entry| entry.oldest).min()
    }

    /// Pairs become one: coarser, never younger.
    fn merge(&mut self) {
        let merged = self.entries.make_contiguous().chunks(2).map(|pair| Entry {
            end: pair.iter().map(|entry| entry.end).max().unwrap_or_default(),
            oldest: pair.iter().map(|entry| entry.oldest).min().unwrap_or(PgTime::from_micros(0)),
        });
        self.entries = merged.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposure(commits: impl IntoIterator<Item = (u64, i64)>) -> Exposure {
        let mut exposure = Exposure::default();
        for (end, second) in commits {
            exposure.committed(Lsn::new(end), PgTime::from_micros(second * 1_000_000));
        }
        exposure
    }

    #[test]
    fn the_oldest_commit_that_is_not_stored_counts() {
        let mut exposure = exposure([(10, 1), (20, 2), (30, 3)]);
        assert_eq!(exposure.oldest(), Some(PgTime::from_micros(1_000_000)));
        exposure.shipped(Lsn::new(20));
        assert_eq!(exposure.oldest(), Some(PgTime::from_micros(3_000_000)));
        exposure.shipped(Lsn::new(29));
        assert!(exposure.oldest().is_some(), "its record is not whole there");
        exposure.shipped(Lsn::new(30));
        assert_eq!(exposure.oldest(), None);
    }

    #[test]
    fn times_that_go_back_do_not_hide_the_oldest() {
        let exposure = exposure([(10, 9), (20, 2), (30, 5)]);
        assert_eq!(exposure.oldest(), Some(PgTime::from_micros(2_000_000)));
    }

    #[test]
    fn memory_is_bounded_and_nothing_gets_younger() {
        let mut exposure = exposure((1..50_000).map(|n| (n, i64::try_from(n).unwrap())));
        assert!(exposure.entries.len() <= MOST);
        assert_eq!(exposure.oldest(), Some(PgTime::from_micros(1_000_000)));
        exposure.shipped(Lsn::new(49_999));
        assert_eq!(exposure.oldest(), None);
    }
}
