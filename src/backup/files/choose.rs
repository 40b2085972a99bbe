//! What a backup of a data directory is compared with, and whether it may leave files unread.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use recovery::BackupId;

use super::noted::{Instance, Noted, Trace};
use super::read::FilesPlan;
use super::source::{FilesAccess, FilesSource, open};
use crate::backup::choose::{Reading, newest, of_relation};
use crate::backup::progress::ProgressSender;
use crate::backup::reference::Reference;
use crate::backup::request::{BackupDeps, ReadKind};
use crate::backup::server::ServerFacts;
use crate::error::Result;
use crate::primary::ReplicationConnection;
use crate::repository::chunk_index::ChunkIndex;
use crate::repository::manifest::Manifest;

/// A manifest names so many damaged files; with as many there may be more that it does not name.
const MOST_NAMED: usize = 10_000;

/// A data directory that is read, and what need not be read of it.
#[derive(Debug)]
pub(in crate::backup) struct ChosenFiles {
    pub(in crate::backup) source: Arc<FilesSource>,
    /// What was noted, and the backup that noted it; `None`: everything is read.
    noted: Option<(Arc<Noted>, Arc<Reference>)>,
    damaged: HashSet<String>,
    reading: Reading,
    settle: Duration,
}

impl ChosenFiles {
    pub(in crate::backup) fn reading(&self) -> Reading {
        self.reading.clone()
    }

    /// How the files are read from `now` on, which is before `pg_backup_start`.
    pub(in crate::backup) fn plan(&self, label: String, fast: bool, now: DateTime<Utc>) -> FilesPlan {
        let (noted, damaged) = (self.noted.clone(), self.damaged.clone());
        FilesPlan { label, fast, noted, damaged, settled_before: now - self.settle }
    }

    /// What the next backup need not read, once `manifest` is committed.
    pub(in crate::backup) fn noted(&self, manifest: &Manifest, traces: Vec<Trace>) -> Noted {
        Noted::new(manifest, self.source.instance.clone(), self.noted.as_ref().map(|(noted, _)| &**noted), traces)
    }
}

/// Chooses the source, and what to compare with; `None` where the server sends the files.
pub(in crate::backup) async fn choose_source(
    kind: ReadKind,
    deps: &BackupDeps<'_>,
    index: &ChunkIndex,
    connection: &ReplicationConnection,
    server: &ServerFacts,
    progress: &ProgressSender,
) -> Result<Option<ChosenFiles>> {
    let Some(access) = &deps.files else { return Ok(None) };
    let source = match open(access, deps, connection, server).await? {
        Ok(source) => source,
        Err(reason) => {
            tracing::warn!(reason, "the server sends the files of the backup");
            progress.send_modify(|progress| progress.not_files = Some(reason));
            return Ok(None);
        }
    };
    let settle = access.settle[usize::from(server.from_standby)];
    let chosen = ChosenFiles { source, noted: None, damaged: HashSet::new(), reading: Reading::default(), settle };
    if kind == ReadKind::Full {
        return Ok(Some(chosen));
    }
    // Whatever cannot be read or is not quite right costs reading, never the backup.
    Ok(Some(match unread(kind, access, deps, index, &chosen.source.instance).await {
        Ok((noted, reference, manifest)) => {
            let damaged = manifest.damaged_files.into_iter().map(|file| file.path).collect();
            let reading = Reading { reference: Some(Arc::clone(&reference)), unread: true, ..Reading::default() };
            ChosenFiles { noted: Some((Arc::new(noted), reference)), damaged, reading, ..chosen }
        }
        Err(reason) => {
            let reference = match deps.repository.catalog().await {
                Ok(catalog) => newest(deps, index, &catalog).await,
                Err(error) => {
                    tracing::warn!(%error, "what is stored cannot be read: nothing is compared with it");
                    None
                }
            };
            let reading = Reading { reference, reason: Some(reason), ..Reading::default() };
            ChosenFiles { reading, ..chosen }
        }
    }))
}

/// What may be left unread, or the reason why nothing is.
async fn unread(
    kind: ReadKind,
    access: &FilesAccess,
    deps: &BackupDeps<'_>,
    index: &ChunkIndex,
    instance: &Instance,
) -> std::result::Result<(Noted, Arc<Reference>, Manifest), String> {
    let file = access.noted_file.clone().ok_or("nothing is noted of files")?;
    let noted = tokio::task::spawn_blocking(move || Noted::load(&file)).await.map_err(|error| error.to_string())?;
    let noted = noted.ok_or("nothing was noted of files at the backup before")?;
    if noted.about.instance != *instance {
        return Err("the server was started since the backup before".to_owned());
    }
    if kind == ReadKind::Auto
        && let Some(reason) = noted.is_due(deps.clock.now())
    {
        return Err(reason);
    }
    let id = noted.about.backup.clone();
    let (reference, manifest) = built_on(&id, &noted, deps, index).await.map_err(|why| format!("backup {id} {why}"))?;
    Ok((noted, Arc::new(reference), manifest))
}

async fn built_on(
    id: &BackupId,
    noted: &Noted,
    deps: &BackupDeps<'_>,
    index: &ChunkIndex,
) -> std::result::Result<(Reference, Manifest), String> {
    let catalog = deps.repository.catalog().await.map_err(|error| format!("is not known: {error}"))?;
    let gone = || if catalog.unreadable(id).is_some() { "has a manifest that cannot be read" } else { "is no more" };
    let backup = catalog.backups.iter().find(|backup| backup.id == *id).ok_or_else(gone)?;
    if backup.damaged {
        return Err("is damaged".to_owned());
    }
    let cannot = |error: &dyn std::fmt::Display| format!("cannot be built on: {error}");
    let manifest = deps.repository.manifest(id).await.map_err(|error| cannot(&error))?;
    if !noted.is_of(&manifest) {
        return Err("is not the one that was noted".to_owned());
    }
    if manifest.damaged_files.len() >= MOST_NAMED {
        return Err("has more damaged files than are named".to_owned());
    }
    let scratch = &deps.repository.repository().options().scratch_dir;
    let reference = Reference::load(deps.repository, &manifest, index, scratch, of_relation).await;
    Ok((reference.map_err(|error| cannot(&error))?, manifest))
}
