//! Which backup a new one is compared with, and how much the server has to send.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use recovery::{Backup, BackupStatus, Catalog};
use wal::{Lsn, TimelineId};

use super::cut::is_comparable;
use super::error::CopyError;
use super::pages::{PageFacts, relation_segment};
use super::reference::Reference;
use super::request::{BackupDeps, ReadKind};
use super::server::ServerFacts;
use crate::codec::FrameReader;
use crate::primary::ReplicationConnection;
use crate::repository::RepositoryResult;
use crate::repository::chunk_index::ChunkIndex;
use crate::repository::file_table::{EntryKind, TableEntry};
use crate::repository::manifest::Manifest;
use crate::storage::ObjectKey;

#[cfg(test)]
mod tests;

/// The first major version that sends incremental backups.
const INCREMENTAL_SINCE: u32 = 17;

/// After so many incremental backups in a row `auto` reads everything once more: what PostgreSQL's summaries have missed, if
/// they ever do, does not stay for ever.
const MOST_IN_A_ROW: usize = 30;

/// How a backup is read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// What chunks are compared with.
    pub(super) reference: Option<Arc<Reference>>,
    /// PostgreSQL's manifest of the reference, compressed, and the sizes of pages: only what changed since it is sent.
    pub(super) incremental: Option<(Bytes, PageFacts)>,
    /// Files of the data directory are left unread that did not change since the reference.
    pub(super) unread: bool,
    /// Why everything is read, where a person may have expected less.
    pub(super) reason: Option<String>,
}

/// What is known of the server when the choice is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerState {
    pub(super) major: u32,
    pub(super) timeline: TimelineId,
    pub(super) flush_lsn: Lsn,
}

/// Chooses. Whatever cannot be read costs bytes, never the backup: then everything is read and stored as new.
pub(super) async fn choose(
    kind: ReadKind,
    deps: &BackupDeps<'_>,
    index: &ChunkIndex,
    connection: &mut ReplicationConnection,
    server: &ServerFacts,
    state: ServerState,
) -> Reading {
    if kind == ReadKind::Full {
        return Reading::default();
    }
    let catalog = match deps.repository.catalog().await {
        Ok(catalog) => catalog,
        Err(error) => return Reading::because(format!("what is stored cannot be read: {error}")),
    };
    match incremental(kind, deps, index, connection, server, state, &catalog).await {
        Ok(reading) => reading,
        Err(reason) => {
            // Of a server that has no incremental backups, nobody expects one unless he says so.
            let told = kind == ReadKind::Incremental || state.major >= INCREMENTAL_SINCE;
            let reference = newest(deps, index, &catalog).await;
            Reading { reference, reason: told.then_some(reason), ..Reading::default() }
        }
    }
}

impl Reading {
    fn because(reason: String) -> Self {
        Self { reason: Some(reason), ..Self::default() }
    }

    /// Whether less than everything is read.
    pub(super) const fn leaves_unread(&self) -> bool {
        self.incremental.is_some() || self.unread
    }

    /// The same backup with every file read whole, because of an error on the way to less.
    pub(super) fn whole(&self, reason: String) -> Self {
        Self { reference: self.reference.clone(), reason: Some(reason), ..Self::default() }
    }
}

/// Everything that an incremental backup needs, or the reason why there is none.
async fn incremental(
    kind: ReadKind,
    deps: &BackupDeps<'_>,
    index: &ChunkIndex,
    connection: &mut ReplicationConnection,
    server: &ServerFacts,
    state: ServerState,
    catalog: &Catalog,
) -> Result<Reading, String> {
    if state.major < INCREMENTAL_SINCE {
        return Err(format!("PostgreSQL {} always sends whole files", state.major));
    }
    let backup = rest_on(catalog, state)?;
    if kind == ReadKind::Auto && in_a_row(catalog) >= MOST_IN_A_ROW {
        return Err(format!("the last {MOST_IN_A_ROW} backups were incremental"));
    }
    let facts = server.sizes.ok_or("the server does not tell its block size")?;
    if connection.show("summarize_wal").await.map_err(|error| error.to_string())? != "on" {
        return Err("summarize_wal is off on the server".to_owned());
    }
    let doubt = |error: &dyn std::fmt::Display| format!("backup {} cannot be built on: {error}", backup.id);
    let manifest = deps.repository.manifest(&backup.id).await.map_err(|error| doubt(&error))?;
    check_manifest(&manifest, server)?;
    let postgres_manifest = postgres_manifest(deps, &manifest).await.map_err(|error| doubt(&error))?;
    let scratch = &deps.repository.repository().options().scratch_dir;
    let reference = Reference::load(deps.repository, &manifest, index, scratch, of_relation)
        .await
        .map_err(|error| doubt(&error))?;
    let incremental = Some((postgres_manifest, facts));
    Ok(Reading { reference: Some(Arc::new(reference)), incremental, ..Reading::default() })
}

/// The newest backup that an incremental one may rest on; the reason when it is none.
///
/// PostgreSQL itself checks what its manifest and the summaries say. What it cannot know is whether the WAL between that
/// backup and now is the WAL of this very server: the repository holds it without a gap, so the receiver has compared it.
fn rest_on(catalog: &Catalog, state: ServerState) -> Result<&Backup, String> {
    let newest = catalog.backups.last().ok_or("there is no backup yet")?;
    let id = &newest.id;
    if newest.timeline != state.timeline {
        return Err(format!("backup {id} is of timeline {}, the server is on {}", newest.timeline, state.timeline));
    }
    if newest.status != BackupStatus::Ok {
        return Err(format!("the WAL of backup {id} is not all stored"));
    }
    if newest.damaged {
        return Err(format!("backup {id} is damaged"));
    }
    if newest.postgres_version / 10_000 != state.major {
        return Err(format!("backup {id} is of PostgreSQL {}", newest.postgres_version / 10_000));
    }
    if newest.stop_lsn > state.flush_lsn {
        return Err(format!("backup {id} ends at {}, and the server is at {} only", newest.stop_lsn, state.flush_lsn));
    }
    let end = catalog.coverage.contiguous_end(newest.timeline, newest.start_lsn);
    let beyond = catalog.coverage.ranges(newest.timeline).any(|range| Some(range.start) > end);
    if beyond {
        return Err(format!("WAL since backup {id} has a gap"));
    }
    Ok(newest)
}

/// How many of the newest backups are incremental.
fn in_a_row(catalog: &Catalog) -> usize {
    catalog.backups.iter().rev().take_while(|backup| backup.kind == recovery::BackupKind::Incremental).count()
}

fn check_manifest(manifest: &Manifest, server: &ServerFacts) -> Result<(), String> {
    if manifest.data_checksums != server.data_checksums {
        return Err(format!("data checksums were switched since backup {}", manifest.id));
    }
    Ok(())
}

/// PostgreSQL's own manifest of a backup, as it is stored.
async fn postgres_manifest(deps: &BackupDeps<'_>, manifest: &Manifest) -> Result<Bytes, CopyError> {
    let stored = manifest
        .postgres_manifest
        .as_ref()
        .ok_or_else(|| CopyError::Doubt("it has no manifest of PostgreSQL".to_owned()))?;
    let key = format!("{}{}", deps.repository.keys().backup_prefix(&manifest.id), stored.name);
    let key = ObjectKey::new(key).map_err(|error| CopyError::Doubt(error.to_string()))?;
    Ok(deps.repository.objects().get_checked(&key, &stored.sha256).await?)
}

/// Uploads the manifest of the reference.
pub(super) async fn upload(connection: &mut ReplicationConnection, manifest: &Bytes) -> Result<(), CopyError> {
    let plain = FrameReader::new(manifest.clone().reader()).map_err(CopyError::Scratch)?;
    connection.upload_manifest(plain).await.map_err(CopyError::NotStarted)
}

/// The newest backup whose file table can be read, to find page patches with.
pub(super) async fn newest(deps: &BackupDeps<'_>, index: &ChunkIndex, catalog: &Catalog) -> Option<Arc<Reference>> {
    let newest = catalog.backups.last()?;
    match load(deps, index, newest).await {
        Ok(reference) => Some(Arc::new(reference)),
        Err(error) => {
            tracing::warn!(backup = %newest.id, %error, "cannot be compared with: changed chunks are stored whole");
            None
        }
    }
}

async fn load(deps: &BackupDeps<'_>, index: &ChunkIndex, backup: &Backup) -> Result<Reference, CopyError> {
    let manifest: RepositoryResult<Manifest> = deps.repository.manifest(&backup.id).await;
    let scratch = &deps.repository.repository().options().scratch_dir;
    Reference::load(deps.repository, &manifest?, index, scratch, comparable).await
}

fn comparable(entry: &TableEntry) -> bool {
    matches!(&entry.kind, EntryKind::File(file) if is_comparable(&entry.path, file.size))
}

pub(super) fn of_relation(entry: &TableEntry) -> bool {
    relation_segment(&entry.path).is_some()
}
