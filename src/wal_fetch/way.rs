//! The way of a recovery over timelines, as far as a single request tells it.

use std::collections::BTreeMap;

use wal::{Lsn, PathLeg, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, TimelinePath};

use crate::repository::{LineageRepository, RepositoryResult};

/// Where a recovery can be going.
#[derive(Clone, Debug)]
pub(super) struct Way {
    size: SegmentSize,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The one timeline that it goes to, if that is known.
    target: Option<TimelineId>,
}

/// How much of a segment belongs to the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    Whole,
    /// The way leaves the segment's timeline in it, here.
    UpTo(Lsn),
    /// The way left the timeline before.
    Never,
}

impl Way {
    /// The way to `target`, or to wherever the stored histories lead. No history is read yet.
    pub(super) fn to(target: Option<TimelineId>, size: SegmentSize) -> Self {
        Self { size, histories: BTreeMap::new(), target }
    }

    /// The same, with the history that says how much of a segment of `timeline` belongs to it. On the target's own
    /// timeline that is all, and no request is needed: so it is for nearly every segment.
    pub(super) async fn knowing(mut self, lineage: &LineageRepository, timeline: TimelineId) -> RepositoryResult<Self> {
        if let Some(target) = self.target.filter(|&target| target != timeline) {
            self.histories.insert(target, lineage.history(target).await?);
        }
        Ok(self)
    }

    /// The same, with every history that counts: to find out what comes behind a missing segment.
    pub(super) async fn knowing_all(mut self, lineage: &LineageRepository) -> RepositoryResult<Self> {
        match self.target {
            None => self.histories = lineage.histories().await?,
            Some(target) if self.histories.is_empty() => {
                self.histories.insert(target, lineage.history(target).await?);
            }
            Some(_) => {}
        }
        Ok(self)
    }

    /// How much of segment `number` under the name of `timeline` may be replayed.
    ///
    /// PostgreSQL asks for a segment under each name from the newest timeline on and takes the first that exists
    /// (`XLogFileReadAnyTLI`), even one that the way has left long before. Only where a timeline is left in the segment
    /// itself does the older file stand in, up to that point.
    pub(super) fn serves(&self, timeline: TimelineId, number: SegmentNumber) -> Served {
        let Some(history) = self.target.and_then(|target| self.histories.get(&target)) else { return Served::Whole };
        let start = number.start(self.size);
        let path = TimelinePath::new(history, self.size);
        match history.switch_point_of(timeline) {
            _ if path.timeline_at(start) == timeline => Served::Whole,
            Some(left) if start < left && left <= number.end(self.size) => Served::UpTo(left),
            _ => Served::Never,
        }
    }

    /// Where WAL must not be if segment `number` of `timeline`, which is missing, is where the log ends.
    pub(super) fn legs_behind(&self, timeline: TimelineId, number: SegmentNumber) -> Vec<PathLeg> {
        let (start, end) = (number.start(self.size), number.end(self.size));
        let own = TimelineHistory::root(timeline);
        let own = self.histories.get(&timeline).unwrap_or(&own);
        let histories: Vec<&TimelineHistory> = match self.target.and_then(|target| self.histories.get(&target)) {
            Some(history) => vec![history],
            None => self.histories.values().filter(|h| h.timeline() != timeline).chain([own]).collect(),
        };
        let mut legs: Vec<PathLeg> = Vec::new();
        for history in histories {
            let path = TimelinePath::new(history, self.size);
            // A file that only stands in for another one's beginning is followed by nothing of its own.
            let leads_over_it = path.timeline_at(start) == timeline
                || history.switch_point_of(timeline).is_some_and(|left| start < left && left <= end);
            if leads_over_it {
                for leg in path.legs(end, Lsn::new(u64::MAX)) {
                    if !legs.contains(&leg) {
                        legs.push(leg);
                    }
                }
            }
        }
        legs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    /// 1 is left for 2 in segment 4; 2 for 3 in segment 6.
    fn way(target: Option<u32>) -> Way {
        let parse = |number, text: &str| (tli(number), TimelineHistory::parse(tli(number), text.as_bytes()).unwrap());
        let histories = [parse(2, "1\t0/480000\tx\n"), parse(3, "1\t0/480000\tx\n2\t0/600100\tx\n")];
        Way {
            size: SegmentSize::new(MIB).unwrap(),
            histories: histories.into_iter().filter(|(t, _)| target.is_none_or(|n| *t == tli(n))).collect(),
            target: target.map(tli),
        }
    }

    fn legs(way: &Way, timeline: u32, number: u64) -> Vec<(u32, u64)> {
        let legs = way.legs_behind(tli(timeline), SegmentNumber::new(number));
        legs.iter().map(|leg| (leg.timeline.get(), leg.start.as_u64() / MIB)).collect()
    }

    #[test]
    fn what_a_branch_left_behind_is_not_served() {
        let serves = |target, timeline, number| way(target).serves(tli(timeline), SegmentNumber::new(number));
        assert_eq!(serves(Some(3), 1, 3), Served::Whole);
        assert_eq!(serves(Some(3), 2, 4), Served::Whole);
        assert_eq!(serves(Some(3), 1, 4), Served::UpTo(Lsn::new(0x48_0000)));
        assert_eq!(serves(Some(3), 1, 5), Served::Never);
        assert_eq!(serves(Some(3), 2, 6), Served::UpTo(Lsn::new(0x60_0100)));
        assert_eq!(serves(Some(3), 3, 9), Served::Whole);
        assert_eq!(serves(Some(2), 3, 9), Served::Never);
        assert_eq!(serves(Some(2), 2, 9), Served::Whole);
        assert_eq!(serves(None, 1, 9), Served::Whole, "who is asked without a way asks for what exists");
    }

    #[test]
    fn what_lies_behind_a_missing_segment_is_known() {
        assert_eq!(legs(&way(Some(3)), 2, 5), [(3, 6)]);
        assert_eq!(legs(&way(Some(3)), 1, 3), [(2, 4), (3, 6)]);
        assert_eq!(legs(&way(Some(3)), 3, 8), [(3, 9)]);
        assert_eq!(legs(&way(Some(3)), 1, 4), [(2, 5), (3, 6)]);
        assert_eq!(legs(&way(None), 1, 2), [(1, 3), (2, 4), (2, 4), (3, 6), (1, 3)]);
        assert_eq!(legs(&way(None), 1, 7), [(1, 8)], "an abandoned end goes on on its own timeline only");
        assert_eq!(legs(&way(None), 2, 2), [], "a timeline has nothing before it begins");
    }
}
