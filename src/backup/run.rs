//! Taking a base backup, from the first look to the last.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::try_join;
use recovery::{Backup, BackupId, BackupKind};
use wal::{Coverage, PgTime, WalRange};

use super::attempt::Attempt;
use super::choose::{Reading, choose};
use super::commit::{LONGEST, claim, packs_exist, put_manifest, store_postgres_manifest};
use super::error::CopyError;
use super::files::{self, Noted};
use super::progress::{BackupPhase, ProgressSender};
use super::read::ReadAll;
use super::request::{BackupDeps, BackupRequest};
use super::server::connect;
use super::upload::Destination;
use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::repository::chunk_index::ChunkIndex;
use crate::repository::file_table::CHUNK_SIZE;
use crate::repository::manifest::{FileSource, Manifest};

/// `backup_label` takes a line of so many bytes (`MAXPGPATH`).
const MAX_LABEL: usize = 1000;

/// Takes a backup and waits until it is usable: committed, and all WAL that it needs in the repository.
pub async fn run(request: &BackupRequest, deps: &BackupDeps<'_>, progress: &ProgressSender) -> Result<Backup> {
    let manifest = take(request, deps, progress).await?;
    wait_for_wal(&manifest, deps, progress).await
}

/// Takes a backup: when it returns, the backup is committed. It is usable as soon as its WAL is in the repository.
///
/// Whatever interrupts it before the commit leaves nothing that can be selected: the manifest is the last object that is
/// written, and it is written only when everything that it names is durable and every file is as PostgreSQL says. Packs
/// that were stored stay, and the next backup uses them.
pub async fn take(request: &BackupRequest, deps: &BackupDeps<'_>, progress: &ProgressSender) -> Result<Manifest> {
    let doing = format!("no backup of cluster \"{}\" was taken", deps.repository.cluster());
    let ready = tokio::select! {
        biased;
        () = deps.cancel.cancelled() => Err(interrupted(&doing)),
        // Boxed: it is large, and here the compiler proves that all of it is Send.
        ready = until_commit(request, deps, progress, &doing).boxed() => ready,
    };
    // Not in the select: a commit that has begun is carried through, else nobody knew whether the backup exists.
    let Ready { destination, manifest, noted, index } = ready?;
    put_manifest(&destination, &manifest).await?;
    fault_point!("backup.committed");
    // Closed on a thread that may wait: then it is written to disk. The next backup opens it.
    if let Err(error) = tokio::task::spawn_blocking(move || drop(index)).await {
        tracing::warn!(%error, "index of chunks not closed");
    }
    if let Some(noted) = noted {
        save(noted, deps).await;
    }
    tracing::info!(
        backup = %manifest.id, start_lsn = %manifest.start_lsn, stop_lsn = %manifest.stop_lsn,
        size_bytes = manifest.size_bytes, new_bytes = manifest.new_bytes, read_bytes = progress.borrow().read_bytes,
        "backup committed"
    );
    Ok(manifest)
}

/// All but the commit is done.
struct Ready {
    destination: Destination,
    manifest: Manifest,
    /// What the next backup need not read, when this one is committed.
    noted: Option<Noted>,
    /// To be closed.
    index: Arc<ChunkIndex>,
}

/// Everything but the commit.
async fn until_commit(
    request: &BackupRequest,
    deps: &BackupDeps<'_>,
    progress: &ProgressSender,
    doing: &str,
) -> Result<Ready> {
    let explain = |error: CopyError| error.explain(doing);
    check_label(request)?;
    progress.send_modify(|progress| progress.phase = BackupPhase::Check);
    // The newest data key is used from here on.
    deps.repository.objects().refresh_keys().await.map_err(|error| explain(error.into()))?;
    let (index, (mut connection, server, state)) =
        try_join(known_chunks(deps).boxed(), connect(deps, doing).boxed()).await?;
    let chosen = files::choose_source(request.kind, deps, &index, &connection, &server, progress).await?;
    let mut reading = match &chosen {
        Some(files) => files.reading(),
        None => choose(request.kind, deps, &index, &mut connection, &server, state).await,
    };

    let started_at = PgTime::from(deps.clock.now());
    let id = claim(deps.repository, started_at, deps.random, request.label.as_deref()).await?;
    fault_point!("backup.begun");
    let destination = destination(deps, id.clone());
    let label = request.label.clone().unwrap_or_else(|| id.to_string());
    let attempt =
        Attempt { request, deps, label: &label, destination: &destination, index: &index, pages: server.pages };
    let (read, packed) = loop {
        tell(progress, &id, &reading);
        if let Some(files) = &chosen {
            // Its walsender is not needed.
            drop(connection);
            break attempt.copy_files(files, progress).await.map_err(explain)?;
        }
        match attempt.copy(connection, &reading, progress).await {
            Err(error) if reading.incremental.is_some() && error.leaves_a_full_backup() => {
                reading = reading.whole(error.to_string());
                // The walsender may be in the middle of something: a new one.
                (connection, _, _) = connect(deps, doing).await?;
            }
            copied => break copied.map_err(explain)?,
        }
    };
    fault_point!("backup.copied");
    let stopped_at = PgTime::from(deps.clock.now());

    progress.send_modify(|progress| progress.phase = BackupPhase::Commit);
    check_facts(deps, &read).map_err(explain)?;
    let postgres_manifest = match &read.manifest {
        Some((_, kept)) => Some(store_postgres_manifest(&destination, kept).await.map_err(explain)?),
        None => None,
    };
    fault_point!("backup.server_manifest_put");
    packs_exist(&destination, &packed.packs).await.map_err(explain)?;
    check_duration(started_at, PgTime::from(deps.clock.now()), doing)?;
    fault_point!("backup.proven");

    let repository = deps.repository;
    let manifest = Manifest {
        id: destination.id.clone(),
        cluster: repository.cluster().to_string(),
        lineage: repository.id(),
        system_identifier: repository.system_identifier(),
        postgres_version: server.postgres_version,
        segment_size: repository.segment_size(),
        timeline: read.began.timeline,
        start_lsn: read.began.start,
        stop_lsn: read.stop,
        started_at,
        stopped_at,
        backup_kind: if reading.leaves_unread() { BackupKind::Incremental } else { BackupKind::Full },
        source: if chosen.is_some() { FileSource::Files } else { FileSource::Stream },
        from_standby: server.from_standby,
        label,
        annotations: request.annotations.clone(),
        tablespaces: read.began.tablespaces,
        chunk_size: CHUNK_SIZE,
        data_checksums: server.data_checksums,
        damaged_files: packed.damaged_files,
        server_settings: server.settings,
        files: read.totals.files,
        directories: read.totals.directories,
        size_bytes: read.totals.bytes,
        new_bytes: packed.new_bytes + postgres_manifest.as_ref().map_or(0, |stored| stored.size),
        stored_bytes: packed.stored_bytes,
        patched_chunks: packed.patched_chunks,
        parts: packed.parts,
        postgres_manifest,
        packs: packed.packs,
    };
    let noted = chosen.zip(read.traces).map(|(files, traces)| files.noted(&manifest, traces));
    Ok(Ready { destination, manifest, noted, index })
}

/// Keeps what was noted of files. A cache: without it the next backup reads everything.
async fn save(noted: Noted, deps: &BackupDeps<'_>) {
    let Some(file) = deps.files.as_ref().and_then(|files| files.noted_file.clone()) else { return };
    let saved = tokio::task::spawn_blocking(move || noted.save(&file).map_err(|error| (file, error))).await;
    if let Ok(Err((file, error))) = saved {
        tracing::warn!(file = %file.display(), %error, "the next backup reads every file: what was noted of them cannot be kept");
    }
}

/// The backup, once all WAL from its start to its stop is in the repository.
pub async fn wait_for_wal(manifest: &Manifest, deps: &BackupDeps<'_>, progress: &ProgressSender) -> Result<Backup> {
    let range = WalRange { timeline: manifest.timeline, start: manifest.start_lsn, end: manifest.stop_lsn };
    progress.send_modify(|progress| progress.phase = BackupPhase::WaitForWal);
    tokio::select! {
        biased;
        () = deps.cancel.cancelled() => {
            Err(interrupted(&format!("backup {} is committed and waits for WAL up to {}", manifest.id, range.end)))
        }
        stored = deps.wal.wait_until_stored(range) => {
            stored?;
            progress.send_modify(|progress| progress.phase = BackupPhase::Done);
            let mut coverage = Coverage::new();
            coverage.insert(range);
            Ok(manifest.to_backup(&coverage))
        }
    }
}

/// The index of chunks, in line with the packs that exist. Its file is read and written on a thread that may wait.
async fn known_chunks(deps: &BackupDeps<'_>) -> Result<Arc<ChunkIndex>> {
    let file = deps.index_file.clone();
    let open = move || file.map_or_else(ChunkIndex::in_memory, |file| ChunkIndex::open(&file));
    let index = tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| Error::new(ErrorCode::Unclassified, "the index of chunks cannot be opened").because(error))?;
    let index = Arc::new(index);
    let refreshed = index.refresh(deps.repository.objects(), deps.repository.cluster()).await?;
    tracing::debug!(?refreshed, "chunks known");
    Ok(index)
}

fn destination(deps: &BackupDeps<'_>, id: BackupId) -> Destination {
    Destination {
        objects: deps.repository.objects().clone(),
        keys: deps.repository.keys().clone(),
        id,
        compression: deps.repository.repository().options().compression,
    }
}

/// Says what is about to happen.
fn tell(progress: &ProgressSender, id: &BackupId, reading: &Reading) {
    let compared_with = reading.reference.as_ref().map(|reference| reference.id().to_string());
    let (incremental, reason) = (reading.incremental.is_some(), reading.reason.clone());
    tracing::info!(backup = %id, incremental, compared_with, reason, "reading a backup");
    progress.send_modify(|progress| {
        (progress.phase, progress.id) = (BackupPhase::Checkpoint, Some(id.clone()));
        (progress.done_bytes, progress.files, progress.reason) = (0, 0, reason);
    });
}

/// What the server's manifest, if there is one, says against what the server said.
fn check_facts(deps: &BackupDeps<'_>, read: &ReadAll) -> std::result::Result<(), CopyError> {
    let Some((facts, _)) = &read.manifest else { return Ok(()) };
    let ours = deps.repository.system_identifier();
    if facts.system_identifier.is_some_and(|stated| stated != ours) {
        return Err(CopyError::OutOfTurn("its manifest has another system identifier"));
    }
    let first = facts.wal_ranges.iter().map(|range| range.start).min();
    let last = facts.wal_ranges.iter().map(|range| range.end).max();
    if (first, last) != (Some(read.began.start), Some(read.stop)) {
        return Err(CopyError::OutOfTurn("its manifest names other WAL"));
    }
    Ok(())
}

/// Whoever deletes packs does not wait for a backup that takes longer (FORMAT 5.0).
fn check_duration(started_at: PgTime, now: PgTime, doing: &str) -> Result<()> {
    let micros = now.as_micros().saturating_sub(started_at.as_micros());
    if u128::try_from(micros).unwrap_or(0) < LONGEST.as_micros() {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Refused, doing)
        .because("it took more than seven days: packs that it refers to may have been deleted meanwhile"))
}

/// `backup_label` has one line for it.
fn check_label(request: &BackupRequest) -> Result<()> {
    match &request.label {
        Some(label) if label.len() > MAX_LABEL || label.is_empty() || label.chars().any(char::is_control) => {
            let message = format!("\"{}\" cannot be the label of a backup", label.escape_debug());
            Err(Error::new(ErrorCode::Usage, message)
                .help(format!("take one line of at most {MAX_LABEL} bytes: --name NAME")))
        }
        _ => Ok(()),
    }
}

fn interrupted(doing: &str) -> Error {
    Error::new(ErrorCode::Interrupted, doing)
        .because("it was asked to stop")
        .help("take another, it uses what was stored: pgvault backup now")
}
