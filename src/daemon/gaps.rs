//! Missing WAL as the daemon knows it: what the repository shows, and what the pipeline has just found out. Pure.

use std::fmt;

use chrono::{DateTime, Utc};
use recovery::{Backup, BackupStatus, WindowGap, live_timeline};
use wal::{Lsn, TimelineId};

use super::view::{ClusterView, Stored};

/// Missing WAL that no backup follows yet: nothing beyond it can be recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenGap {
    /// The timeline on which it is missing.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from: Lsn,
    /// First byte that is there again.
    pub to: Lsn,
    /// Why, in words for a person.
    pub reason: String,
    /// When it was found.
    pub found_at: DateTime<Utc>,
}

impl fmt::Display for OpenGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, from, to, reason, .. } = self;
        write!(
            f,
            "WAL from {from} to {to} of timeline {timeline} is lost ({reason}); moments after it need a base backup, \
             and there is none yet"
        )
    }
}

/// Leaves out holes that only the moment of the listing makes: segments are stored side by side, so behind `archived`, the
/// position up to which everything was stored when the listing began, one may be missing that comes in a moment.
pub fn without_what_is_on_its_way(mut stored: Stored, archived: Option<Lsn>) -> Stored {
    let Stored { catalog, window, .. } = &mut stored;
    let Some(live) = live_timeline(catalog) else { return stored };
    let path = catalog.path_to(live);
    window.gaps.retain(|gap| {
        let may_come = path.timeline_at(gap.from_lsn) == gap.timeline && archived < Some(gap.to_lsn);
        !may_come || catalog.lost.iter().any(|lost| overlaps(gap, lost.gap.timeline, lost.gap.start, lost.gap.end))
    });
    stored
}

/// Every gap from the oldest backup on, by timeline and position; while there is no backup, every one that was recorded.
///
/// The repository is listed now and then; what the pipeline has recorded since is added, so that nobody waits for a listing
/// to hear of a loss.
pub fn all(view: &ClusterView) -> Vec<WindowGap> {
    let stored = view.stored.as_deref();
    let mut gaps = stored.map(|stored| stored.window.gaps.clone()).unwrap_or_default();
    let oldest = view.backups().iter().map(|backup| backup.start_lsn).min();
    for record in view.wal.iter().flat_map(|wal| &wal.gaps).filter(|gap| oldest.is_none_or(|oldest| gap.to > oldest)) {
        let known = gaps.iter().any(|gap| overlaps(gap, record.timeline, record.from, record.to));
        if !known {
            gaps.push(WindowGap {
                timeline: record.timeline,
                from_lsn: record.from,
                to_lsn: record.to,
                reason: record.reason.clone(),
            });
        }
    }
    gaps.sort_by_key(|gap| (gap.timeline, gap.from_lsn));
    gaps
}

/// The last gap on the live branch that no backup follows; `None` when all is well, and while there is no backup at all, to
/// which nothing could be missing.
pub fn open(view: &ClusterView) -> Option<OpenGap> {
    let stored = view.stored.as_deref()?;
    if view.backups().is_empty() {
        return None;
    }
    let received = view.wal.as_ref().and_then(|wal| wal.timeline);
    let live = received.max(live_timeline(&stored.catalog))?;
    let path = stored.catalog.path_to(live);
    let on_live_branch = |gap: &WindowGap| {
        // A timeline that was just begun may not be listed yet: then it is taken to continue the newest that is.
        path.timeline_at(gap.from_lsn) == gap.timeline || !stored.catalog.histories.contains_key(&live)
    };
    // What is archived side by side may be listed in another order: only a hole in what counts as archived is one.
    let recorded = |gap: &WindowGap| {
        let Some(wal) = &view.wal else { return Some(stored.read_at) };
        let record = wal.gaps.iter().find(|record| overlaps(gap, record.timeline, record.from, record.to));
        let archived = wal.archived >= Some(gap.to_lsn);
        record.map(|record| record.at).or_else(|| archived.then_some(stored.read_at))
    };
    let followed = |gap: &WindowGap| {
        let mut backups = view.backups().iter().chain(view.last_committed.as_ref());
        backups.any(|backup| follows(backup, gap))
    };
    let gap = all(view).into_iter().rfind(|gap| on_live_branch(gap) && recorded(gap).is_some() && !followed(gap))?;
    let found_at = recorded(&gap)?;
    Some(OpenGap { timeline: gap.timeline, from: gap.from_lsn, to: gap.to_lsn, reason: gap.reason, found_at })
}

/// Whether the gap and this stretch of WAL have bytes in common.
fn overlaps(gap: &WindowGap, timeline: TimelineId, from: Lsn, to: Lsn) -> bool {
    gap.timeline == timeline && gap.from_lsn < to && from < gap.to_lsn
}

/// Whether recovery can start from this backup and go on beyond the gap.
fn follows(backup: &Backup, gap: &WindowGap) -> bool {
    backup.status != BackupStatus::Failed && backup.timeline >= gap.timeline && backup.start_lsn >= gap.to_lsn
}

#[cfg(test)]
mod tests;
