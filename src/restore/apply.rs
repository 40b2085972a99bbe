//! Carrying a plan out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Buf;
use recovery::{BackupId, BackupKind};
use rustix::fs::{Mode, OFlags, fsync, openat};
use wal::TimelineId;

use crate::clock::Clock;
use crate::codec::FrameReader;
use crate::error::{Error, ErrorCode, Result};
use crate::repository::LineageRepository;
use crate::storage::ObjectKey;

use super::copy::{copy_files, damaged as damaged_backup};
use super::directory::{self, Candidate, MARKER, marker_text};
use super::finish::{clear_settings, complete, sync_trees, write_settings};
use super::progress::{RestorePhase, RestoreProgressSender};
use super::roots::{Roots, open_root, write_in};
use super::{Owner, RestorePlan, own_manifest, tablespace_map};

/// A restore that is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreOutcome {
    /// The data directory.
    pub directory: PathBuf,
    /// The backup.
    pub backup: BackupId,
    /// The timeline that PostgreSQL will recover along.
    pub timeline: TimelineId,
    /// Bytes of all files that were written.
    pub restored_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// What a person should know before the server is started.
    pub warnings: Vec<String>,
}

/// Restores as `plan` says, with `jobs` requests and writers at a time.
///
/// PostgreSQL cannot start on the directory until the last step has been taken. An error, a crash or a dropped future
/// before it leaves a directory that a marker names as unfinished; the same restore can be run again.
pub async fn apply(
    plan: &RestorePlan,
    lineage: &LineageRepository,
    jobs: usize,
    progress: &RestoreProgressSender,
    clock: &dyn Clock,
) -> Result<RestoreOutcome> {
    let begun = clock.instant();
    progress.send_modify(|p| (p.phase, p.total_bytes) = (RestorePhase::Copy, plan.manifest.size_bytes));
    let roots = Arc::new(take_directories(plan)?);
    let restored_bytes = copy_files(lineage, &plan.manifest, roots.clone(), jobs, progress).await?;
    write_postgres_manifest(plan, lineage, &roots).await?;
    tablespace_map::rewrite(&roots, &plan.tablespaces)
        .map_err(|error| cannot(plan, "place its tablespaces", &error))?;
    complete(&roots).map_err(|error| cannot(plan, "complete its directories", &error))?;
    let warnings = match &plan.settings {
        Some(settings) => write_settings(&roots, settings, &plan.recovery.backup),
        None => clear_settings(&roots).map(|()| Vec::new()),
    };
    let warnings = warnings.map_err(|error| cannot(plan, "write its settings", &error))?;

    progress.send_modify(|p| p.phase = RestorePhase::Sync);
    let trees = trees_of(plan);
    let synced = tokio::task::spawn_blocking(move || sync_trees(&trees, jobs)).await;
    let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
    synced.map_err(|error| cannot(plan, "make its files durable", &error))?;
    // Everything else is durable: from here on PostgreSQL can start.
    roots.publish_pg_control().map_err(|error| cannot(plan, "publish global/pg_control", &error))?;
    roots.remove_everywhere(MARKER).map_err(|error| cannot(plan, "remove the marker of the restore", &error))?;
    progress.send_modify(|p| p.phase = RestorePhase::Done);
    Ok(RestoreOutcome {
        directory: plan.directory.clone(),
        backup: plan.recovery.backup.id.clone(),
        timeline: plan.recovery.timeline,
        restored_bytes,
        seconds: clock.instant().saturating_duration_since(begun).as_secs_f64(),
        warnings,
    })
}

fn cannot(plan: &RestorePlan, what: &str, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        _ => ErrorCode::Unclassified,
    };
    Error::new(code, format!("restoring to {}: cannot {what}: {error}", plan.directory.display()))
}

/// Looks at every directory once more, makes those that are missing, marks them as unfinished and opens them.
fn take_directories(plan: &RestorePlan) -> Result<Roots> {
    let marker = marker_text(plan.lineage, &plan.recovery.backup.id);
    let mut resumed = false;
    let mut take = |candidate: &Candidate| {
        let again = directory::check(&candidate.path, &marker, "directory", "--to DIR")?;
        resumed |= again.resumed;
        // The marker of an interrupted restore stays: without it, nobody could tell what its files are.
        let marker = (!again.resumed).then_some(marker.as_str());
        take_directory(&candidate.path, marker, plan.owner).map_err(|error| {
            Error::new(ErrorCode::TargetDirectory, format!("cannot write to {}: {error}", candidate.path.display()))
                .help("choose a directory that this user may write to: --to DIR")
        })
    };
    let data = take(&plan.data)?;
    let wal = plan.wal.as_ref().map(&mut take).transpose()?;
    let tablespaces = plan.tablespaces.iter().map(|t| Ok((t, take(&t.candidate)?))).collect::<Result<Vec<_>>>()?;
    let mut roots = Roots::new(data, plan.owner, resumed);
    let linked = |error| cannot(plan, "make its links", &error);
    if let (Some(fd), Some(candidate)) = (wal, &plan.wal) {
        roots.link("pg_wal", &candidate.path).map_err(linked)?;
        roots.set_wal(fd);
    }
    for (tablespace, fd) in tablespaces {
        roots.link(&format!("pg_tblspc/{}", tablespace.oid), &tablespace.new).map_err(linked)?;
        roots.add_tablespace(tablespace.oid, fd);
    }
    Ok(roots)
}

/// Opens a directory, with `marker` as its marker unless it has it.
fn take_directory(path: &Path, marker: Option<&str>, owner: Option<Owner>) -> io::Result<OwnedFd> {
    let fd = open_root(path, owner)?;
    if let Some(marker) = marker {
        write_in(fd.as_fd(), Path::new(MARKER), &mut marker.as_bytes(), owner)?;
    }
    // The marker is there before anything else is, after a power loss too.
    fsync(openat(&fd, MARKER, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty())?)?;
    fsync(&fd)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(fd)
}

/// Writes a `backup_manifest`, so that `pg_verifybackup -n` can look at the result: the one that PostgreSQL made, unless it
/// describes an incremental backup's files.
async fn write_postgres_manifest(plan: &RestorePlan, lineage: &LineageRepository, roots: &Roots) -> Result<()> {
    if plan.manifest.backup_kind == BackupKind::Incremental {
        let composed = own_manifest::compose(lineage, &plan.manifest).await?;
        let mut file = composed.file();
        return roots
            .write("backup_manifest", &mut file)
            .map_err(|error| cannot(plan, "write backup_manifest", &error));
    }
    let Some(stored) = &plan.manifest.postgres_manifest else { return Ok(()) };
    let text = format!("{}{}", lineage.keys().backup_prefix(&plan.manifest.id), stored.name);
    let damaged = |what: String| damaged_backup(format!("{text} is damaged: {what}"));
    let key = ObjectKey::new(text.clone()).map_err(|error| damaged(error.to_string()))?;
    let bytes = lineage.objects().get_checked(&key, &stored.sha256).await?;
    let mut plain = FrameReader::new(bytes.reader()).map_err(|error| damaged(error.to_string()))?;
    roots.write("backup_manifest", &mut plain).map_err(|error| cannot(plan, "write backup_manifest", &error))
}

fn trees_of(plan: &RestorePlan) -> Vec<PathBuf> {
    let outside = plan.wal_dir.iter().chain(plan.tablespaces.iter().map(|t| &t.new));
    [&plan.directory].into_iter().chain(outside).cloned().collect()
}
