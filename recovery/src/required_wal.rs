//! Which WAL a recovery reads: the one rule that backup, recovery, retention and verification share.

use wal::{Gap, Lsn, PathLeg, SegmentName, SegmentNumber, SegmentSize, TimelineId, TimelinePath};

use crate::{Backup, Branch, Catalog};

/// The whole segments that recovery reads between two positions on one path of timelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredWal {
    /// Ends on segment boundaries, in the order in which they are read.
    legs: Vec<PathLeg>,
    size: SegmentSize,
}

/// The WAL that is needed to replay from `from` (a backup's start LSN) until everything before `until` is replayed.
pub fn required_wal(from: Lsn, until: Lsn, path: &TimelinePath, size: SegmentSize) -> RequiredWal {
    let start = SegmentNumber::containing(from, size).start(size);
    let end = SegmentNumber::containing_end(until.max(from.saturating_add(1)), size).end(size);
    RequiredWal { legs: path.legs(start, end).collect(), size }
}

impl RequiredWal {
    /// The pieces, one per timeline, in the order in which they are read.
    pub fn legs(&self) -> &[PathLeg] {
        &self.legs
    }

    /// The segments, in the order in which they are read.
    pub fn segments(&self) -> impl Iterator<Item = SegmentName> + '_ {
        let size = self.size;
        self.legs.iter().flat_map(move |leg| {
            let first = SegmentNumber::containing(leg.start, size).get();
            let last = SegmentNumber::containing_end(leg.end, size).get();
            (first..=last).map(move |number| SegmentName::new(leg.timeline, SegmentNumber::new(number), size))
        })
    }

    /// Number of segments.
    pub fn count(&self) -> u64 {
        self.legs.iter().map(|leg| leg.end.bytes_since(leg.start) / self.size.bytes()).sum()
    }

    /// The first segment.
    pub fn first(&self) -> Option<SegmentName> {
        self.legs.first().map(|leg| SegmentName::containing(leg.timeline, leg.start, self.size))
    }

    /// The last segment.
    pub fn last(&self) -> Option<SegmentName> {
        self.legs.last().map(|leg| SegmentName::containing(leg.timeline, leg.end.saturating_sub(1), self.size))
    }

    /// Whether `segment` is one of them.
    pub fn contains(&self, segment: SegmentName) -> bool {
        let Some(number) = segment.number(self.size) else { return false };
        let start = number.start(self.size);
        self.legs.iter().any(|leg| leg.timeline == segment.timeline() && leg.start <= start && start < leg.end)
    }
}

impl Catalog {
    /// The first WAL that is missing for `backup` to be usable, on its own timeline; `None` when it is usable.
    pub fn missing_wal_of(&self, backup: &Backup) -> Option<Gap> {
        Branch::new(self, backup.timeline).missing_for(backup)
    }

    /// The WAL that keeps `backup` restorable until `until` on the way to `timeline`.
    pub fn wal_of(&self, backup: &Backup, timeline: TimelineId, until: Lsn) -> RequiredWal {
        required_wal(backup.start_lsn, until, &self.path_to(timeline), self.segment_size)
    }
}
