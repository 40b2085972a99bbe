//! What a repository holds of one lineage, at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use wal::{
    Coverage, Gap, Lsn, PgTime, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId, TimelinePath, WalRange,
};

use crate::{Backup, BackupId, UnreadableBackup};

/// Name of a lineage: one cluster's unbroken history. Printed `<system identifier>-<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageId {
    /// The identifier that initdb gave; clones share it.
    pub system_identifier: SystemIdentifier,
    /// Counts the lineages of one cluster that share the identifier, from 1.
    pub number: u32,
}

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.system_identifier, self.number)
    }
}

/// The text is not the name of a lineage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a lineage: expected <system identifier>-<number>")]
pub struct ParseLineageIdError(String);

impl FromStr for LineageId {
    type Err = ParseLineageIdError;

    fn from_str(text: &str) -> Result<Self, ParseLineageIdError> {
        let error = || ParseLineageIdError(text.to_owned());
        let (system_identifier, number) = text.split_once('-').ok_or_else(error)?;
        let id = Self {
            system_identifier: system_identifier.parse().map_err(|_| error())?,
            number: number.parse().ok().filter(|&n| n > 0).ok_or_else(error)?,
        };
        if id.to_string() == text { Ok(id) } else { Err(error()) }
    }
}

impl serde::Serialize for LineageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LineageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How far the tail of an incomplete segment reaches: it starts where `start` says, the segment's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailEnd {
    /// The timeline.
    pub timeline: TimelineId,
    /// First byte of the segment.
    pub start: Lsn,
    /// First byte that is not stored.
    pub end: Lsn,
}

/// WAL that is known to be lost for ever, and why. It only explains: what is missing is told by the coverage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostWal {
    /// What was lost.
    pub gap: Gap,
    /// Why, in words for a person.
    pub reason: String,
    /// When it was found, where that can be read.
    pub found_at: Option<PgTime>,
}

/// An immutable snapshot of what the repository holds of one lineage.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The cluster's name in the configuration.
    pub cluster: String,
    /// The lineage.
    pub lineage: LineageId,
    /// Size of its WAL segments.
    pub segment_size: SegmentSize,
    /// Committed backups, oldest first, with `Ok` or `WaitingForWal` by `coverage`.
    pub backups: Vec<Backup>,
    /// Committed backups whose manifest cannot be read, by name. While there is one, what nothing in `backups` needs is not
    /// known to be needed by nothing.
    pub unreadable: Vec<UnreadableBackup>,
    /// Whole segments that are stored, as ranges, plus the tails (see `tails`) where the segment itself is absent.
    pub coverage: Coverage,
    /// Stored tails of segments that are not stored whole.
    pub tails: Vec<TailEnd>,
    /// Stored history files. Timelines without one are roots.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Recorded losses, by timeline and position. One that was filled after all explains nothing any more.
    pub lost: Vec<LostWal>,
}

impl Catalog {
    /// The history of `timeline`: the stored one, or a root.
    pub fn history(&self, timeline: TimelineId) -> TimelineHistory {
        self.histories.get(&timeline).cloned().unwrap_or_else(|| TimelineHistory::root(timeline))
    }

    /// Whether the history file of `timeline` should be stored and is not. PostgreSQL recovers to no timeline but the first
    /// without its history file (`validateRecoveryParameters` in xlogrecovery.c), and pgvault stores it before any WAL.
    pub fn lacks_history(&self, timeline: TimelineId) -> bool {
        timeline > TimelineId::FIRST && !self.histories.contains_key(&timeline)
    }

    /// Which segments recovery reads on the way to `timeline`.
    pub fn path_to(&self, timeline: TimelineId) -> TimelinePath {
        TimelinePath::new(&self.history(timeline), self.segment_size)
    }

    /// Stored WAL of each ancestor of the newest timeline beyond where it was left: after a failover to a server that lacked it,
    /// perhaps nowhere else. Recovery with that timeline's number replays it.
    pub fn fork_tails(&self) -> Vec<WalRange> {
        let Some(newest) = self.histories.last_key_value().map(|(_, history)| history) else { return Vec::new() };
        newest
            .reigns()
            .filter_map(|(timeline, left)| {
                let end = self.coverage.ranges(timeline).map(|range| range.end).max()?;
                (end > left).then_some(WalRange { timeline, start: left, end })
            })
            .collect()
    }

    /// Why the WAL of this hole is missing: what was recorded of it.
    pub fn reason_of(&self, hole: &Gap) -> String {
        let known: Vec<&LostWal> = self.lost.iter().filter(|lost| overlap(&lost.gap, hole)).collect();
        let Some(first) = known.first() else { return "not in the repository".to_owned() };
        let mut reasons = vec![first.reason.as_str()];
        reasons.extend(known.iter().skip(1).map(|lost| lost.reason.as_str()).filter(|reason| *reason != first.reason));
        let reason = reasons.join("; ");
        match self.unexplained(hole).first() {
            None => reason,
            Some(rest) => format!("{reason}; from {} to {} it is not in the repository", rest.start, rest.end),
        }
    }

    /// The parts of a hole of which no loss was recorded: stored once perhaps, and gone since.
    pub fn unexplained(&self, hole: &Gap) -> Vec<Gap> {
        let mut known = Coverage::new();
        for Gap { timeline, start, end } in self.lost.iter().map(|lost| lost.gap) {
            known.insert(WalRange { timeline, start, end });
        }
        let mut rest = Vec::new();
        let mut position = hole.start;
        for range in known.ranges(hole.timeline).filter(|range| range.end > hole.start && range.start < hole.end) {
            if position < range.start {
                rest.push(Gap { timeline: hole.timeline, start: position, end: range.start });
            }
            position = position.max(range.end);
        }
        if position < hole.end {
            rest.push(Gap { timeline: hole.timeline, start: position, end: hole.end });
        }
        rest
    }

    /// The same without the tail of the segment that starts at `start`: as if its WAL had not come yet.
    #[must_use]
    pub fn without_tail(&self, timeline: TimelineId, start: Lsn) -> Self {
        let mut rest = self.clone();
        rest.tails.retain(|tail| (tail.timeline, tail.start) != (timeline, start));
        rest.coverage = Coverage::new();
        for of_timeline in self.coverage.timelines() {
            for range in self.coverage.ranges(of_timeline) {
                let has_it = of_timeline == timeline && range.start <= start && start < range.end;
                let end = if has_it { start } else { range.end };
                if range.start < end {
                    rest.coverage.insert(WalRange { end, ..range });
                }
            }
        }
        rest
    }

    /// The backup of this name, if its manifest cannot be read.
    pub fn unreadable(&self, id: &BackupId) -> Option<&UnreadableBackup> {
        self.unreadable.iter().find(|backup| backup.id == *id)
    }

    /// Every timeline of which WAL or a history is stored, or a backup was taken.
    pub fn timelines(&self) -> Vec<TimelineId> {
        let mut timelines: Vec<TimelineId> = self.coverage.timelines().collect();
        timelines.extend(self.histories.keys());
        timelines.extend(self.backups.iter().map(|backup| backup.timeline));
        timelines.sort_unstable();
        timelines.dedup();
        timelines
    }
}

fn overlap(one: &Gap, other: &Gap) -> bool {
    one.timeline == other.timeline && one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_beyond_the_forks_of_the_newest_timeline_is_listed_and_nothing_else() {
        let timeline = |number: u32| TimelineId::new(number).unwrap();
        let range = |number: u32, start: u64, end: u64| WalRange {
            timeline: timeline(number),
            start: Lsn::new(start),
            end: Lsn::new(end),
        };
        let mut coverage = Coverage::new();
        for stored in [range(1, 0x100, 0x500), range(2, 0x300, 0x600), range(3, 0x500, 0x800), range(4, 0x200, 0x900)] {
            coverage.insert(stored);
        }
        let history = |number: u32, text: &str| TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap();
        // 3 came from 2 exactly at its end; 2 left 1 before its end; 4 is a branch of its own until it is the newest.
        let histories = [history(2, "1\t0/400\tx\n"), history(3, "1\t0/400\tx\n2\t0/600\ty\n")];
        let mut catalog = Catalog {
            cluster: "main".to_owned(),
            lineage: LineageId { system_identifier: SystemIdentifier::new(7), number: 1 },
            segment_size: SegmentSize::DEFAULT,
            backups: Vec::new(),
            unreadable: Vec::new(),
            coverage,
            tails: Vec::new(),
            histories: histories.into_iter().map(|history| (history.timeline(), history)).collect(),
            lost: Vec::new(),
        };
        assert_eq!(catalog.fork_tails(), [range(1, 0x400, 0x500)]);
        catalog.histories.insert(timeline(4), history(4, "1\t0/200\tz\n"));
        assert_eq!(catalog.fork_tails(), [range(1, 0x200, 0x500)]);
        catalog.histories.clear();
        assert_eq!(catalog.fork_tails(), []);

        let tail = TailEnd { timeline: timeline(3), start: Lsn::new(0x700), end: Lsn::new(0x800) };
        catalog.tails = vec![tail];
        let without = catalog.without_tail(tail.timeline, tail.start);
        assert_eq!(without.coverage.ranges(timeline(3)).collect::<Vec<_>>(), [range(3, 0x500, 0x700)]);
        assert_eq!(without.coverage.ranges(timeline(2)).collect::<Vec<_>>(), [range(2, 0x300, 0x600)]);
        assert_eq!(without.tails, []);
    }
}
