//! Carrying a plan out.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Buf;
use recovery::{BackupId, BackupKind};
use wal::TimelineId;

use crate::clock::Clock;
use crate::codec::FrameReader;
use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::repository::LineageRepository;
use crate::storage::ObjectKey;

use super::copy::{copy_files, damaged as damaged_backup};
use super::existing::Tally;
use super::finish::{clear_settings, complete, write_settings};
use super::marker::Marker;
use super::progress::{RestorePhase, RestoreProgressSender};
use super::roots::Roots;
use super::throttle::Throttle;
use super::{RestorePlan, own_manifest, parallel, tablespace_map};

mod take;

/// A restore that is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreOutcome {
    /// The data directory.
    pub directory: PathBuf,
    /// The backup.
    pub backup: BackupId,
    /// The timeline that PostgreSQL will recover along.
    pub timeline: TimelineId,
    /// Bytes of all files of the backup.
    pub restored_bytes: u64,
    /// Those of them that were there already and right.
    pub kept_bytes: u64,
    /// What was removed because the backup does not have it.
    pub removed: Tally,
    /// How long it took.
    pub seconds: f64,
    /// What a person should know before the server is started.
    pub warnings: Vec<String>,
}

/// How much a restore may do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Reads from the repository at a time, each with up to 8 MiB in memory and its chunks being written.
    pub jobs: usize,
    /// At most so many bytes a second from the repository; `None` is as fast as it goes. WAL is not counted: it is fetched
    /// later, by the restore_command.
    pub max_rate: Option<u64>,
}

impl Default for Effort {
    /// Two reads for each processor, so that one is fetched while another is written; four at least, sixteen at most.
    fn default() -> Self {
        Self { jobs: (2 * parallel::processors()).clamp(4, 16), max_rate: None }
    }
}

/// Restores as `plan` says.
///
/// PostgreSQL cannot start on the directory until the last step has been taken, nor on what was there before from the first
/// change on. An error, a crash or a dropped future in between leaves a directory that a marker names as unfinished; the same
/// restore can be run again, and keeps what is right.
pub async fn apply(
    plan: &RestorePlan,
    lineage: &LineageRepository,
    effort: Effort,
    progress: &RestoreProgressSender,
    clock: &dyn Clock,
) -> Result<RestoreOutcome> {
    let begun = clock.instant();
    progress.send_modify(|p| (p.phase, p.total_bytes) = (RestorePhase::Copy, plan.manifest.size_bytes));
    let taken = take::directories(plan)?;
    let roots = Arc::new(taken.roots);
    let removed = take::remove_what_the_backup_lacks(plan, &taken.places, &roots).await?;
    let throttle = Throttle::new(effort.max_rate, clock);
    let copied = copy_files(lineage, &plan.manifest, roots.clone(), effort.jobs, throttle, progress).await?;
    fault_point!("restore.copied");
    write_postgres_manifest(plan, lineage, &roots).await?;
    tablespace_map::rewrite(&roots, &plan.tablespaces)
        .map_err(|error| cannot(plan, "place its tablespaces", &error))?;
    complete(&roots).map_err(|error| cannot(plan, "complete its directories", &error))?;
    let warnings = match &plan.settings {
        Some(settings) => write_settings(&roots, settings, &plan.recovery.backup),
        None => clear_settings(&roots).map(|()| Vec::new()),
    };
    let warnings = warnings.map_err(|error| cannot(plan, "write its settings", &error))?;
    fault_point!("restore.settings");

    progress.send_modify(|p| p.phase = RestorePhase::Sync);
    let (disks, threads) = (taken.disks, parallel::processors().max(effort.jobs));
    let synced = tokio::task::spawn_blocking(move || disks.sync(threads)).await;
    let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
    if let Err(error) = synced {
        // From here on what is read from these files may not be what is on the disk: the next run must not keep any.
        let marker = Marker { unsynced: true, ..taken.marker };
        let marked = roots.put_markers(&marker).map_err(|error| cannot(plan, "mark its files as not durable", &error));
        let failed = cannot(plan, "make its files durable", &error);
        return Err(match marked {
            Ok(()) => failed,
            Err(error) => {
                failed.because(error).help("remove what lies in the directory before you restore into it again")
            }
        });
    }
    fault_point!("restore.synced");
    // Everything else is durable: from here on PostgreSQL can start.
    roots.publish_pg_control().map_err(|error| cannot(plan, "publish global/pg_control", &error))?;
    fault_point!("restore.published");
    roots.remove_markers().map_err(|error| cannot(plan, "remove the marker of the restore", &error))?;
    fault_point!("restore.done");
    progress.send_modify(|p| p.phase = RestorePhase::Done);
    Ok(RestoreOutcome {
        directory: plan.directory.clone(),
        backup: plan.recovery.backup.id.clone(),
        timeline: plan.recovery.timeline,
        restored_bytes: copied.bytes,
        kept_bytes: copied.kept_bytes,
        removed,
        seconds: clock.instant().saturating_duration_since(begun).as_secs_f64(),
        warnings,
    })
}

/// A step that the system refused.
pub(super) fn cannot(plan: &RestorePlan, what: &str, error: &io::Error) -> Error {
    let failed = |code| Error::new(code, format!("restoring to {}: cannot {what}: {error}", plan.directory.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failed(ErrorCode::NoSpace).help("make room and run the same command again: it goes on from here")
        }
        _ => failed(ErrorCode::Unclassified),
    }
}

/// Writes a `backup_manifest`, so that `pg_verifybackup -n` can look at the result: the one that PostgreSQL made, unless there
/// is none, or it describes an incremental backup's files.
async fn write_postgres_manifest(plan: &RestorePlan, lineage: &LineageRepository, roots: &Roots) -> Result<()> {
    let sent_whole = plan.manifest.postgres_manifest.as_ref().filter(|_| plan.manifest.backup_kind == BackupKind::Full);
    let Some(stored) = sent_whole else {
        let composed = own_manifest::compose(lineage, &plan.manifest).await?;
        let mut file = composed.file();
        return roots
            .write("backup_manifest", &mut file)
            .map_err(|error| cannot(plan, "write backup_manifest", &error));
    };
    let text = format!("{}{}", lineage.keys().backup_prefix(&plan.manifest.id), stored.name);
    let damaged = |what: String| damaged_backup(format!("{text} is damaged: {what}"));
    let key = ObjectKey::new(text.clone()).map_err(|error| damaged(error.to_string()))?;
    let bytes = lineage.objects().get_checked(&key, &stored.sha256).await?;
    let mut plain = FrameReader::new(bytes.reader()).map_err(|error| damaged(error.to_string()))?;
    roots.write("backup_manifest", &mut plain).map_err(|error| cannot(plan, "write backup_manifest", &error))
}
