//! Which WAL is there, and where the first gap is.

use std::collections::BTreeMap;

use crate::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};

/// A piece of WAL on one timeline, from `start` up to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline in the segments' names.
    pub timeline: TimelineId,
    /// First byte.
    pub start: Lsn,
    /// First byte after the range.
    pub end: Lsn,
}

/// WAL that is missing on one timeline, from `start` up to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The timeline on which the WAL is missing.
    pub timeline: TimelineId,
    /// First missing byte.
    pub start: Lsn,
    /// First byte that is there again, or the end of what was asked for.
    pub end: Lsn,
}

/// Which WAL is there: per timeline, ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    ranges: BTreeMap<TimelineId, Vec<(Lsn, Lsn)>>,
}

impl Coverage {
    /// Nothing is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range; ranges that touch or overlap become one.
    pub fn insert(&mut self, range: WalRange) {
        if range.start >= range.end {
            return;
        }
        let ranges = self.ranges.entry(range.timeline).or_default();
        let first = ranges.partition_point(|&(_, end)| end < range.start);
        let last = ranges.partition_point(|&(start, _)| start <= range.end);
        let merged = ranges[first..last]
            .iter()
            .fold((range.start, range.end), |(start, end), &(s, e)| (start.min(s), end.max(e)));
        ranges.splice(first..last, [merged]);
    }

    /// Timelines of which anything is there, in increasing order.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.ranges.keys().copied()
    }

    /// What is there of one timeline, in increasing order.
    pub fn ranges(&self, timeline: TimelineId) -> impl Iterator<Item = WalRange> + '_ {
        self.ranges.get(&timeline).into_iter().flatten().map(move |&(start, end)| WalRange { timeline, start, end })
    }

    /// Where the unbroken WAL of `timeline` that contains or starts at `from` ends; `None` when `from` is not there.
    pub fn contiguous_end(&self, timeline: TimelineId, from: Lsn) -> Option<Lsn> {
        self.ranges(timeline).find(|r| r.start <= from && from < r.end).map(|r| r.end)
    }

    /// The first WAL that is missing on the way along `path` from `from` to `to`; `None` when all of it is there.
    pub fn first_gap(&self, path: &TimelinePath, from: Lsn, to: Lsn) -> Option<Gap> {
        path.legs(from, to).find_map(|leg| self.first_gap_on_leg(leg))
    }

    /// Where the unbroken WAL along `path` that starts at `from` ends (equal to `from` when nothing is there).
    pub fn reachable_end(&self, path: &TimelinePath, from: Lsn) -> Lsn {
        self.first_gap(path, from, Lsn::new(u64::MAX)).map_or(Lsn::new(u64::MAX), |gap| gap.start)
    }

    fn first_gap_on_leg(&self, leg: PathLeg) -> Option<Gap> {
        let mut position = leg.start;
        for range in self.ranges(leg.timeline) {
            if range.end <= position {
                continue;
            }
            if range.start > position {
                return Some(Gap { timeline: leg.timeline, start: position, end: range.start.min(leg.end) });
            }
            position = range.end;
            if position >= leg.end {
                return None;
            }
        }
        (position < leg.end).then_some(Gap { timeline: leg.timeline, start: position, end: leg.end })
    }
}

/// Part of a [`TimelinePath`]: WAL that recovery reads from the segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathLeg {
    /// The timeline in the names of the segments.
    pub timeline: TimelineId,
    /// First byte.
    pub start: Lsn,
    /// First byte after the leg.
    pub end: Lsn,
}

/// From which timeline's segments recovery reads each part of the log, on the way to one target timeline.
///
/// The segment in which a timeline begins carries a copy of its parent's bytes up to the switch point, and recovery
/// reads it under the new timeline's name (`XLogFileReadAnyTLI` tries the newest timeline first): so a leg starts at
/// the first byte of that segment, not at the switch point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelinePath {
    /// `(timeline, first byte of its leg)`, in the order of the log. Two switches in one segment leave an empty leg: recovery
    /// reads that segment under the newest name.
    legs: Vec<(TimelineId, Lsn)>,
}

impl TimelinePath {
    /// The path that ends on the timeline of `history`.
    pub fn new(history: &TimelineHistory, size: SegmentSize) -> Self {
        let mut legs: Vec<(TimelineId, Lsn)> = Vec::new();
        let mut begin = Lsn::new(0);
        let timelines = history.reigns().map(|(parent, left)| (parent, Some(left)));
        for (timeline, switch_point) in timelines.chain([(history.timeline(), None)]) {
            legs.push((timeline, begin));
            if let Some(switch_point) = switch_point {
                begin = SegmentNumber::containing(switch_point, size).start(size);
            }
        }
        Self { legs }
    }

    /// The legs between `from` and `to`, cut to that range.
    pub fn legs(&self, from: Lsn, to: Lsn) -> impl Iterator<Item = PathLeg> + '_ {
        self.legs.iter().enumerate().filter_map(move |(index, &(timeline, start))| {
            let end = self.legs.get(index + 1).map_or(Lsn::new(u64::MAX), |&(_, next)| next);
            let leg = PathLeg { timeline, start: start.max(from), end: end.min(to) };
            (leg.start < leg.end).then_some(leg)
        })
    }

    /// The timeline under whose name the segment with the byte at `lsn` is read.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let index = self.legs.partition_point(|&(_, start)| start <= lsn);
        self.legs[index.saturating_sub(1)].0
    }
}

#[cfg(test)]
mod tests;
