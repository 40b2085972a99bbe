//! One branch of a cluster's history: the way to one timeline, and how far its stored WAL reaches.

use wal::{Gap, Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, TimelinePath};

use crate::{Backup, BackupId, Catalog, NotRecoverable, RecoveryTarget, UnreadableBackup};

/// The way from the beginning of the log to one timeline, in what a catalog holds.
#[derive(Clone, Debug)]
pub struct Branch<'a> {
    catalog: &'a Catalog,
    history: TimelineHistory,
    path: TimelinePath,
}

/// WAL without a hole, and the backups that can be replayed into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline that the branch leads to.
    pub branch: TimelineId,
    /// Usable backups in it, by stop LSN; never empty.
    pub backups: Vec<Backup>,
    /// First byte that is not stored: the next hole, or the end of the stored WAL. The last record before it may be cut.
    pub end: Lsn,
    /// The hole after it, when WAL is stored beyond.
    pub gap: Option<Gap>,
}

impl Stretch {
    /// The first backup: moments from its stop LSN on can be recovered.
    pub fn first_backup(&self) -> &Backup {
        &self.backups[0]
    }

    /// The first position that can be recovered.
    pub fn from_lsn(&self) -> Lsn {
        self.first_backup().stop_lsn
    }
}

/// The file from which recovery reads a segment, and how much of it belongs to the branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSource {
    /// The file.
    pub name: SegmentName,
    /// Bytes from here on belong to a timeline that the branch has left: they must not be replayed.
    pub limit: Option<Lsn>,
}

impl<'a> Branch<'a> {
    /// The branch that leads to `timeline`.
    pub fn new(catalog: &'a Catalog, timeline: TimelineId) -> Self {
        Self { catalog, history: catalog.history(timeline), path: catalog.path_to(timeline) }
    }

    /// The timeline that it leads to.
    pub fn timeline(&self) -> TimelineId {
        self.history.timeline()
    }

    /// Size of the cluster's segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.catalog.segment_size
    }

    /// The backup of this name, on whatever branch.
    pub fn backup(&self, id: &BackupId) -> Option<&'a Backup> {
        self.catalog.backups.iter().find(|backup| backup.id == *id)
    }

    /// Why the backup of this name is none that can be read.
    pub fn not_a_backup(&self, id: &BackupId) -> NotRecoverable {
        match self.catalog.unreadable(id) {
            Some(UnreadableBackup { id, reason, .. }) => {
                NotRecoverable::UnreadableBackup { id: id.clone(), reason: reason.clone() }
            }
            None => NotRecoverable::UnknownBackup(id.clone()),
        }
    }

    /// Backups that began after `chosen`, might lead to `target` and cannot be read.
    pub fn passed_over(&self, chosen: &Backup, target: &RecoveryTarget) -> impl Iterator<Item = BackupId> + '_ {
        let later = self.catalog.unreadable.iter().filter(|other| other.id > chosen.id);
        later.filter(|other| other.may_lead_to(target)).map(|other| other.id.clone()).collect::<Vec<_>>().into_iter()
    }

    /// Its ancestry.
    pub fn history(&self) -> &TimelineHistory {
        &self.history
    }

    /// Under which names its segments are read.
    pub fn path(&self) -> &TimelinePath {
        &self.path
    }

    /// The file from which PostgreSQL reads segment `number` on this branch; `None` when none is stored.
    ///
    /// `XLogFileReadAnyTLI` (xlogrecovery.c) tries the newest timeline that begins in the segment or before it, then
    /// older ones. In the segment in which a timeline begins, its parent's file holds the same bytes up to the switch
    /// point: it stands in while nothing of the new timeline is stored, right after a failover. Beyond the switch point
    /// it holds what the branch has left behind.
    pub fn source_of(&self, number: SegmentNumber) -> Option<SegmentSource> {
        let size = self.catalog.segment_size;
        let start = number.start(size);
        let stored = |timeline| self.catalog.coverage.contiguous_end(timeline, start).is_some();
        let source = |timeline, limit| SegmentSource { name: SegmentName::new(timeline, number, size), limit };
        let newest = self.path.timeline_at(start);
        if stored(newest) {
            return Some(source(newest, None));
        }
        let mut left_here: Vec<(TimelineId, Lsn)> = self.history.reigns().collect();
        left_here.retain(|&(_, left)| start < left && left <= number.end(size));
        left_here.iter().rev().find(|&&(parent, _)| stored(parent)).map(|&(parent, left)| source(parent, Some(left)))
    }

    /// Where the unbroken WAL of this branch that starts at `from` ends; `from` itself when nothing is there.
    pub fn reachable_end(&self, from: Lsn) -> Lsn {
        let size = self.catalog.segment_size;
        let end = self.catalog.coverage.reachable_end(&self.path, from);
        let number = SegmentNumber::containing(end, size);
        let at_segment_start = end == number.start(size) || end == from;
        match self.source_of(number) {
            Some(SegmentSource { name, limit: Some(limit) }) if at_segment_start => {
                let stored = self.catalog.coverage.contiguous_end(name.timeline(), end).unwrap_or(end);
                stored.min(limit).max(end)
            }
            _ => end,
        }
    }

    /// Where WAL of this branch is stored next, from `lsn` on.
    pub fn next_stored(&self, lsn: Lsn) -> Option<(TimelineId, Lsn)> {
        self.path.legs(lsn, Lsn::new(u64::MAX)).find_map(|leg| {
            self.catalog
                .coverage
                .ranges(leg.timeline)
                .find(|range| range.end > leg.start && range.start < leg.end)
                .map(|range| (leg.timeline, range.start.max(leg.start)))
        })
    }

    /// Whether `backup` was taken on this branch: on its timeline, or on an ancestor before it was left.
    pub fn holds(&self, backup: &Backup) -> bool {
        let left = self.history.switch_point_of(backup.timeline);
        backup.timeline == self.timeline() || left.is_some_and(|switch_point| backup.stop_lsn <= switch_point)
    }

    /// What is missing for `backup` to become consistent on this branch; `None` when nothing is.
    pub fn missing_for(&self, backup: &Backup) -> Option<Gap> {
        let end = self.reachable_end(self.first_needed(backup));
        let resumes = self.next_stored(end).map_or(backup.stop_lsn, |(_, lsn)| lsn.min(backup.stop_lsn));
        (end < backup.stop_lsn).then(|| Gap { timeline: self.path.timeline_at(end), start: end, end: resumes })
    }

    /// First byte of the segment in which replay of `backup` starts: segments are read from their beginning.
    fn first_needed(&self, backup: &Backup) -> Lsn {
        let size = self.catalog.segment_size;
        SegmentNumber::containing(backup.start_lsn, size).start(size)
    }

    /// The stretches of unbroken WAL that usable backups of this branch can be replayed into, in order.
    pub fn stretches(&self) -> Vec<Stretch> {
        let mut usable: Vec<&Backup> = self.catalog.backups.iter().filter(|b| self.holds(b)).collect();
        usable.retain(|backup| self.missing_for(backup).is_none());
        usable.sort_by_key(|backup| (backup.stop_lsn, backup.start_lsn));
        let mut stretches: Vec<Stretch> = Vec::new();
        for backup in usable {
            let end = self.reachable_end(self.first_needed(backup));
            match stretches.last_mut() {
                Some(stretch) if stretch.end == end => stretch.backups.push(backup.clone()),
                _ => stretches.push(Stretch {
                    branch: self.timeline(),
                    backups: vec![backup.clone()],
                    end,
                    gap: self.gap_at(end),
                }),
            }
        }
        stretches
    }

    /// The hole that starts at `end`; `None` when nothing is stored beyond.
    pub fn gap_at(&self, end: Lsn) -> Option<Gap> {
        let (_, resumes) = self.next_stored(end)?;
        Some(Gap { timeline: self.path.timeline_at(end), start: end, end: resumes })
    }

    /// Why there is no usable backup on this branch.
    pub fn no_backup(&self) -> NotRecoverable {
        let newest = self.catalog.backups.iter().rev().find(|backup| self.holds(backup));
        let waiting = newest.and_then(|backup| Some((backup.id.clone(), self.missing_for(backup)?)));
        let has_backup = |branch: &Branch<'_>| !branch.stretches().is_empty();
        let others = branches(self.catalog).iter().filter(|b| has_backup(b)).map(Branch::timeline).collect();
        NotRecoverable::NoBackup { timeline: self.timeline(), waiting, others }
    }

    /// Recorded losses at or after `end`, where the stored WAL of the branch ends: nothing is stored beyond them yet.
    pub fn lost_at_end(&self, end: Lsn) -> impl Iterator<Item = Gap> + '_ {
        let nothing_beyond = self.next_stored(end).is_none();
        let lost = self.catalog.lost.iter().map(|lost| lost.gap);
        lost.filter(move |gap| nothing_beyond && gap.start >= end && self.path.timeline_at(gap.start) == gap.timeline)
    }

    /// All holes from `end` on, where a stretch ends.
    pub fn gaps_from(&self, end: Lsn) -> impl Iterator<Item = Gap> + '_ {
        std::iter::successors(self.gap_at(end), |gap| self.gap_at(self.reachable_end(gap.end)))
    }
}

/// Where two branches part: WAL before this position is the same on both. The end of the log when they are the same.
pub fn parting(one: &TimelineHistory, other: &TimelineHistory) -> Lsn {
    let legs = |history: &TimelineHistory| -> Vec<(TimelineId, Lsn)> {
        history.reigns().chain([(history.timeline(), Lsn::new(u64::MAX))]).collect()
    };
    let mut shared = Lsn::new(0);
    for ((timeline, end), (other_timeline, other_end)) in legs(one).into_iter().zip(legs(other)) {
        if timeline != other_timeline {
            return shared;
        }
        shared = end.min(other_end);
        if end != other_end {
            break;
        }
    }
    shared
}

/// The timeline that is live: the highest of which a history or WAL is stored. `None` when nothing is stored.
///
/// Numbers only grow, and a server that is promoted takes one above all that it can see: what was promoted last has the
/// highest. A timeline above 1 counts by its history file, which is stored before its WAL; one that is told only by WAL
/// or a backup (a lineage that began on it) counts as well.
pub fn live_timeline(catalog: &Catalog) -> Option<TimelineId> {
    catalog.timelines().last().copied()
}

/// Every branch, the live one first, then by falling number.
pub fn branches(catalog: &Catalog) -> Vec<Branch<'_>> {
    catalog.timelines().into_iter().rev().map(|timeline| Branch::new(catalog, timeline)).collect()
}
