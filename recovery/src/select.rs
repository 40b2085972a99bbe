//! From which backup a recovery starts.

use crate::branch::Branch;
use crate::locate::Located;
use crate::window::Reach;
use crate::{Backup, NotRecoverable, RecoveryRequest};

/// The backup to start from, and whether damage was found in it.
///
/// The newest that becomes consistent before the target, by its stop LSN and never by a clock: the less WAL is left to
/// replay. One in which damage was found only where no other will do.
pub(crate) fn select(
    branch: &Branch<'_>,
    reach: &Reach,
    located: &Located,
    request: &RecoveryRequest,
) -> Result<(Backup, bool), NotRecoverable> {
    let newest_first = || reach.stretch.backups.iter().rev().filter(|b| b.stop_lsn <= located.consistent_by);
    let newest = newest_first().find(|backup| !backup.damaged).or_else(|| newest_first().next());
    let Some(newest) = newest else {
        return Err(NotRecoverable::BeforeFirstBackup {
            target: request.target.clone(),
            earliest: reach.from,
            first_backup: reach.stretch.first_backup().id.clone(),
        });
    };
    let Some(wanted) = request.backup.as_ref().and_then(|id| branch.backup(id)) else {
        return Ok((newest.clone(), newest.damaged));
    };
    if wanted.stop_lsn > located.consistent_by {
        return Err(NotRecoverable::BackupAfterTarget {
            id: wanted.id.clone(),
            stop_lsn: wanted.stop_lsn,
            target: request.target.clone(),
            instead: newest.id.clone(),
        });
    }
    match branch.gap_at(branch.reachable_end(wanted.start_lsn)) {
        Some(gap) if !reach.stretch.backups.contains(wanted) => Err(NotRecoverable::GapAfterBackup {
            id: wanted.id.clone(),
            gap,
            target: request.target.clone(),
            instead: newest.id.clone(),
        }),
        _ => Ok((wanted.clone(), wanted.damaged)),
    }
}
