//! What deleting one backup by hand would take away, and when it may not be done.

use recovery::{BackupId, Branch, Catalog, branches};
use wal::{Lsn, TimelineId};

use crate::decide::is_clean;

/// Why a backup may not be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteRefused {
    /// Pinned by hand.
    #[error("it is kept by hand")]
    Pinned,
    /// Nothing that can be restored cleanly would be left.
    #[error("without it there would be no backup that can be restored cleanly")]
    LastClean,
}

/// Moments that only this backup leads to, both ends included, in the WAL of the way to `timeline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct LostMoments {
    /// The branch.
    pub timeline: TimelineId,
    /// The first position that can no longer be recovered.
    pub from_lsn: Lsn,
    /// The first that can be again, or the end of the WAL that it leads through.
    pub to_lsn: Lsn,
}

/// Whether the backup `id` may be deleted. `is_whole` says of another one whether everything that it is made of is stored.
///
/// A damaged one may go as long as a clean one stays, like any other; without one it may be all that is left to save.
///
/// # Errors
///
/// When it is pinned, or no clean backup would stay.
pub fn may_delete(catalog: &Catalog, id: &BackupId, is_whole: impl Fn(&BackupId) -> bool) -> Result<(), DeleteRefused> {
    let pinned = catalog.backups.iter().any(|backup| backup.id == *id && backup.keep);
    if pinned || catalog.unreadable(id).is_some_and(|backup| backup.keep) {
        return Err(DeleteRefused::Pinned);
    }
    let mut stay = catalog.backups.iter().filter(|backup| backup.id != *id && is_clean(backup));
    if stay.any(|backup| is_whole(&backup.id)) { Ok(()) } else { Err(DeleteRefused::LastClean) }
}

/// What can no longer be recovered without the backup `id`. Of one whose manifest cannot be read nothing is lost that can be
/// reached now.
pub fn lost_without(catalog: &Catalog, id: &BackupId) -> Vec<LostMoments> {
    let mut without = catalog.clone();
    without.backups.retain(|backup| backup.id != *id);
    let mut lost = Vec::new();
    for branch in branches(catalog) {
        let after = Branch::new(&without, branch.timeline()).stretches();
        for before in branch.stretches() {
            let from_lsn = before.from_lsn();
            let to_lsn =
                after.iter().find(|after| after.end == before.end).map_or(before.end, |after| after.from_lsn());
            // On every way that leads there it is the same.
            let known = |other: &LostMoments| (other.from_lsn, other.to_lsn) == (from_lsn, to_lsn);
            if from_lsn < to_lsn && !lost.iter().any(known) {
                lost.push(LostMoments { timeline: branch.timeline(), from_lsn, to_lsn });
            }
        }
    }
    lost.sort_unstable();
    lost
}
