//! The first steps: from here on PostgreSQL cannot start.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::restore::RestorePlan;
use crate::restore::directory::Candidate;
use crate::restore::existing::Tally;
use crate::restore::marker::Marker;
use crate::restore::places::Places;
use crate::restore::roots::{Keep, Roots, open_root, put_marker};
use crate::restore::sync::Disks;

use super::cannot;

/// The directories of a restore, marked and open.
pub(super) struct Taken {
    pub(super) places: Places,
    pub(super) roots: Roots,
    pub(super) disks: Disks,
    pub(super) marker: Marker,
}

/// Looks at every directory once more, makes those that are missing, marks all of them as unfinished, and takes an old
/// `pg_control` away.
///
/// Nothing but markers is changed before all of them are durable; nothing else before `pg_control` is durably gone. So
/// whatever lies in a directory without a marker is as it was, and what lies in one with a marker cannot be started, or is
/// still as it was.
pub(super) fn directories(plan: &RestorePlan) -> Result<Taken> {
    let backup = plan.recovery.backup.id.clone();
    let plain = Marker { lineage: plan.lineage, backup, delta: false, unsynced: false };
    let places = Places::decide(&plan.directory, &plan.request, &plan.manifest.tablespaces, &plain)?;
    refuse_changes(plan, &places, &plain)?;
    let marker = Marker { delta: places.are_mixed(&plain), unsynced: places.are_unsynced(), ..plain };
    let keep = match (places.are_empty(), marker.unsynced) {
        (true, _) => Keep::New,
        (false, true) => Keep::Nothing,
        (false, false) => Keep::Right,
    };
    let take = |candidate: &Candidate| {
        directory(candidate, &marker, plan).map_err(|error| {
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return cannot(plan, "mark its directories", &error);
            }
            Error::new(ErrorCode::TargetDirectory, format!("cannot write to {}: {error}", candidate.path.display()))
                .help("choose a directory that this user may write to: --to DIR")
        })
    };
    // The data directory last: only with its marker does anything begin.
    let spaces = places.tablespaces.iter().map(|t| Ok((t, take(&t.candidate)?))).collect::<Result<Vec<_>>>()?;
    let wal = places.wal.as_ref().map(&take).transpose()?;
    let mut roots = Roots::new(take(&places.data)?, plan.owner, keep);
    fault_point!("restore.marked");
    let paths: Vec<_> = places.candidates().map(|candidate| candidate.path.clone()).collect();
    let disks = Disks::open(&paths).map_err(|error| cannot(plan, "open its file systems", &error))?;
    roots.unpublish_pg_control().map_err(|error| cannot(plan, "take the old global/pg_control away", &error))?;
    fault_point!("restore.unpublished");
    if let Some(wal) = wal {
        roots.set_wal(wal);
    }
    for (tablespace, fd) in spaces {
        roots.add_tablespace(tablespace.oid, fd);
    }
    Ok(Taken { places, roots, disks, marker })
}

/// What was planned is what is done, or nothing.
fn refuse_changes(plan: &RestorePlan, now: &Places, wanted: &Marker) -> Result<()> {
    let same_places =
        now.tablespaces.iter().map(|t| (t.oid, &t.new)).eq(plan.tablespaces.iter().map(|t| (t.oid, &t.new)))
            && now.wal.as_ref().map(|wal| &wal.path) == plan.wal_dir.as_ref();
    // A restore that failed after this plan was made may be tried again with it; an empty directory that is empty no more
    // is that, or was refused already.
    if same_places && (plan.survey.is_some() || !now.are_mixed(wanted)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::TargetDirectory,
        format!("{} has changed since the plan was made", plan.directory.display()),
    )
    .help("see the plan again: --dry-run"))
}

/// Makes and opens a directory, with the marker in it.
fn directory(candidate: &Candidate, marker: &Marker, plan: &RestorePlan) -> io::Result<OwnedFd> {
    let fd = open_root(&candidate.path, plan.owner)?;
    fault_point!("restore.mark");
    // The marker is there before anything else is, after a power loss too.
    put_marker(fd.as_fd(), marker, plan.owner)?;
    if let Some(parent) = candidate.path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(fd)
}

/// Removes from old directories what the backup does not have, and makes the links that it needs.
pub(super) async fn remove_what_the_backup_lacks(
    plan: &RestorePlan,
    places: &Places,
    roots: &Arc<Roots>,
) -> Result<Tally> {
    let mut removed = Tally::default();
    if let Some(survey) = plan.survey.clone() {
        let removing = tokio::task::spawn_blocking(move || survey.remove()).await;
        let removing = removing.unwrap_or_else(|error| Err(io::Error::other(error)));
        removed = removing.map_err(|error| cannot(plan, "remove what the backup does not have", &error))?.removed;
    }
    for (path, target) in places.links() {
        let path = String::from_utf8_lossy(&path).into_owned();
        roots.link(&path, &target).map_err(|error| cannot(plan, "make its links", &error))?;
    }
    fault_point!("restore.removed");
    Ok(removed)
}
