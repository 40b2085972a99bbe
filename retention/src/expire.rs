//! What deleting the obsolete backups sets free.

use std::collections::BTreeMap;

use recovery::{Backup, BackupId, BackupStatus, Branch, Catalog, branches, live_timeline, required_wal};
use wal::{Coverage, Lsn, PgTime, TimelineId, WalRange};

use crate::decide::{before, is_clean};
use crate::{Policy, Verdict};

/// From where on the WAL of one timeline is kept without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalKeepFrom {
    /// The timeline in the segments' names.
    pub timeline: TimelineId,
    /// First byte of the first segment.
    pub lsn: Lsn,
}

/// What is no longer needed. History files always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpirePlan {
    /// Obsolete backups, oldest first.
    pub backups: Vec<BackupId>,
    /// Stored WAL that no kept backup needs: whole segments and their tails, by timeline and position.
    pub wal: Vec<WalRange>,
    /// From where on each timeline's WAL is kept without a hole. Single backups before it keep their own WAL.
    pub wal_keep_from: Vec<WalKeepFrom>,
}

/// What follows from the verdicts; a backup without one stays. Nothing is deleted at all without a clean backup that stays, nor
/// while the manifest of any backup cannot be read: nobody knows what WAL and which packs that one needs.
pub fn plan(catalog: &Catalog, policy: &Policy, verdicts: &[Verdict], now: PgTime) -> ExpirePlan {
    if !catalog.unreadable.is_empty() {
        return ExpirePlan::default();
    }
    let obsolete = |backup: &&Backup| verdicts.iter().any(|verdict| verdict.backup == backup.id && !verdict.keep);
    let (gone, kept): (Vec<&Backup>, Vec<&Backup>) = catalog.backups.iter().partition(obsolete);
    if !kept.iter().any(|backup| is_clean(backup)) {
        return ExpirePlan::default();
    }
    let needed = Needed::by(catalog, policy, &kept, now);
    let dead = |timeline| is_left_behind(catalog, &kept, timeline);
    let mut wal = Vec::new();
    for timeline in catalog.coverage.timelines() {
        // A timeline of which nothing is needed is either over, or one that we do not understand: then it stays.
        if needed.coverage.ranges(timeline).next().is_some() || dead(timeline) {
            wal.extend(without(catalog.coverage.ranges(timeline), &needed.coverage));
        }
    }
    let wal_keep_from = needed.from.into_iter().map(|(timeline, lsn)| WalKeepFrom { timeline, lsn }).collect();
    ExpirePlan { backups: gone.into_iter().map(|backup| backup.id.clone()).collect(), wal, wal_keep_from }
}

/// Whether a timeline is over: a clean backup that stays was taken on a later one, and the live branch is not this one.
fn is_left_behind(catalog: &Catalog, kept: &[&Backup], timeline: TimelineId) -> bool {
    live_timeline(catalog) != Some(timeline) && kept.iter().any(|backup| is_clean(backup) && backup.timeline > timeline)
}

/// The WAL that the kept backups need, on every branch that they can be replayed into. The branches of timelines that were
/// left are among them: so the segment in which a timeline was left stays under its own name too, which stands in for the
/// next timeline's copy.
struct Needed {
    coverage: Coverage,
    from: BTreeMap<TimelineId, Lsn>,
}

impl Needed {
    fn by(catalog: &Catalog, policy: &Policy, kept: &[&Backup], now: PgTime) -> Self {
        let mut needed = Self { coverage: Coverage::new(), from: BTreeMap::new() };
        for branch in &branches(catalog) {
            let continuous_from = continuous_from(branch, policy, kept, now);
            let replayable = kept.iter().filter(|backup| backup.status != BackupStatus::Failed && branch.holds(backup));
            for backup in replayable {
                if backup.start_lsn >= continuous_from {
                    needed.add_to_the_end(catalog, branch, backup.start_lsn);
                } else {
                    needed.add_until_consistent(catalog, branch, backup);
                }
            }
        }
        needed
    }

    fn add_to_the_end(&mut self, catalog: &Catalog, branch: &Branch<'_>, from: Lsn) {
        let all = required_wal(from, Lsn::new(u64::MAX), branch.path(), catalog.segment_size);
        for leg in all.legs() {
            self.coverage.insert(WalRange { timeline: leg.timeline, start: leg.start, end: leg.end });
            let lowest = self.from.entry(leg.timeline).or_insert(leg.start);
            *lowest = leg.start.min(*lowest);
        }
    }

    fn add_until_consistent(&mut self, catalog: &Catalog, branch: &Branch<'_>, backup: &Backup) {
        let wal = required_wal(backup.start_lsn, backup.stop_lsn, branch.path(), catalog.segment_size);
        for leg in wal.legs() {
            self.coverage.insert(WalRange { timeline: leg.timeline, start: leg.start, end: leg.end });
        }
    }
}

/// From which backup on WAL is kept without a hole on a branch: the newest clean one that finished before the WAL window
/// starts; the beginning without such a window or such a backup.
fn continuous_from(branch: &Branch<'_>, policy: &Policy, kept: &[&Backup], now: PgTime) -> Lsn {
    let Some(window) = policy.effective_wal_window() else { return Lsn::INVALID };
    let start = before(now, window);
    let finished = kept.iter().filter(|b| is_clean(b) && b.stopped_at <= start && branch.holds(b));
    finished.map(|backup| backup.start_lsn).max().unwrap_or(Lsn::INVALID)
}

/// The parts of `stored` that are not needed.
fn without(stored: impl Iterator<Item = WalRange>, needed: &Coverage) -> Vec<WalRange> {
    let mut free = Vec::new();
    for range in stored {
        let mut start = range.start;
        for keep in needed.ranges(range.timeline).filter(|keep| keep.end > range.start && keep.start < range.end) {
            if start < keep.start {
                free.push(WalRange { start, end: keep.start, ..range });
            }
            start = start.max(keep.end);
        }
        if start < range.end {
            free.push(WalRange { start, ..range });
        }
    }
    free
}
