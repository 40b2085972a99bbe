//! The file table and everything that it leads to.

use std::io;

use bytes::Bytes;
use tokio::sync::watch;

use crate::repository::file_table::{PartReader, TableEntry, TableError, TableFacts};
use crate::repository::layout::LineageObject;
use crate::repository::manifest::{Manifest, PartRef};
use crate::repository::{LineageRepository, RepositoryResult};

use super::file_check::FileCheck;
use super::listing::named_key;
use super::packs::{self, scratch_failed};
use super::scratch::Scratch;
use super::server_manifest::ServerManifest;
use super::{BackupReport, BackupVerifyProgress, damage_of_needed};

/// Reads everything that the manifest names and proves it.
pub(super) async fn read(
    lineage: &LineageRepository,
    manifest: &Manifest,
    jobs: usize,
    progress: &watch::Sender<BackupVerifyProgress>,
    report: &mut BackupReport,
) -> RepositoryResult<()> {
    let total = manifest.packs.iter().map(|pack| pack.size).chain(manifest.parts.iter().map(|part| part.size)).sum();
    progress.send_modify(|progress| progress.total_bytes = total);

    let dir = lineage.repository().options().scratch_dir.clone();
    let packs = manifest.packs.len();
    let mut scratch = on_a_thread(lineage, move || Scratch::new(&dir, packs)).await?;
    let mut readable = Vec::new();
    for part in &manifest.parts {
        let Some(bytes) = part_bytes(lineage, manifest, part, report).await? else { continue };
        let proven;
        (scratch, proven) = note_places(lineage, manifest, part, bytes, scratch).await?;
        match proven {
            Ok(()) => readable.push(part),
            Err(what) => report.problem(key_of(lineage, manifest, &part.name), what),
        }
        progress.send_modify(|progress| progress.done_bytes += part.size);
    }
    let scratch = packs::read(lineage, manifest, scratch, jobs, progress, report).await?;
    files(lineage, manifest, &readable, &scratch, report).await
}

/// Writes down where the chunks of a part lie; the error says what is wrong with the part.
async fn note_places(
    lineage: &LineageRepository,
    manifest: &Manifest,
    part: &PartRef,
    bytes: Bytes,
    mut scratch: Scratch,
) -> RepositoryResult<(Scratch, Result<(), String>)> {
    let (count, facts) = (part.entries, manifest.table_facts());
    on_a_thread(lineage, move || {
        // Proven before the first place is written: a part counts as a whole or not at all.
        let proven = entries(bytes.clone(), count, facts).and_then(|mut all| all.try_for_each(|entry| entry.map(drop)));
        if let Err(error) = proven {
            return Ok((scratch, Err(error.to_string())));
        }
        for entry in entries(bytes, count, facts).map_err(io::Error::other)? {
            scratch.add(&entry.map_err(io::Error::other)?)?;
        }
        Ok((scratch, Ok(())))
    })
    .await
}

/// Goes through the table once more: each file as a whole, and against PostgreSQL's own manifest.
async fn files(
    lineage: &LineageRepository,
    manifest: &Manifest,
    readable: &[&PartRef],
    scratch: &Scratch,
    report: &mut BackupReport,
) -> RepositoryResult<()> {
    let server = server_manifest(lineage, manifest, report).await?;
    let proofs = scratch.proofs().in_order().map_err(|error| scratch_failed(lineage, error))?;
    let mut check = FileCheck::new(proofs, server);
    for part in readable {
        let Some(bytes) = part_bytes(lineage, manifest, part, report).await? else { continue };
        let (count, facts) = (part.entries, manifest.table_facts());
        check = on_a_thread(lineage, move || {
            for entry in entries(bytes, count, facts).map_err(io::Error::other)? {
                check.entry(&entry.map_err(io::Error::other)?)?;
            }
            Ok(check)
        })
        .await?;
    }
    let all_parts = readable.len() == manifest.parts.len();
    let table = key_of(lineage, manifest, manifest.parts.first().map_or("files/", |part| part.name.as_str()));
    let server_key =
        manifest.postgres_manifest.as_ref().map_or_else(String::new, |stored| key_of(lineage, manifest, &stored.name));
    let manifest_key = lineage.keys().key(&LineageObject::Manifest(manifest.id.clone()));
    check.finish(all_parts.then_some(manifest), &manifest_key.to_string(), &table, &server_key, report);
    Ok(())
}

/// PostgreSQL's own manifest, proven to be the object that the manifest names.
async fn server_manifest(
    lineage: &LineageRepository,
    manifest: &Manifest,
    report: &mut BackupReport,
) -> RepositoryResult<Option<ServerManifest>> {
    let Some(stored) = &manifest.postgres_manifest else { return Ok(None) };
    let Ok(key) = named_key(lineage, manifest, &stored.name) else { return Ok(None) };
    let bytes = match lineage.objects().get_checked(&key, &stored.sha256).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let what = damage_of_needed(&key, error)?;
            report.problem(key, what);
            return Ok(None);
        }
    };
    report.checked_bytes += bytes.len() as u64;
    match ServerManifest::open(bytes, manifest.backup_kind) {
        Ok(server) => Ok(Some(server)),
        Err(what) => {
            report.problem(key, what);
            Ok(None)
        }
    }
}

/// The bytes of a part; `None` when it cannot be had, which is a problem.
async fn part_bytes(
    lineage: &LineageRepository,
    manifest: &Manifest,
    part: &PartRef,
    report: &mut BackupReport,
) -> RepositoryResult<Option<Bytes>> {
    // What the name is wrong with was told with the listing.
    let Ok(key) = named_key(lineage, manifest, &part.name) else { return Ok(None) };
    match lineage.objects().get_checked(&key, &part.sha256).await {
        Ok(bytes) => {
            report.checked_bytes += bytes.len() as u64;
            Ok(Some(bytes))
        }
        Err(error) => {
            let what = damage_of_needed(&key, error)?;
            report.problem(key, what);
            Ok(None)
        }
    }
}

fn entries(
    bytes: Bytes,
    count: u64,
    facts: TableFacts,
) -> Result<impl Iterator<Item = Result<TableEntry, TableError>>, TableError> {
    PartReader::of_checked(bytes, count, facts)
}

fn key_of(lineage: &LineageRepository, manifest: &Manifest, name: &str) -> String {
    format!("{}{name}", lineage.keys().backup_prefix(&manifest.id))
}

/// Runs what takes time on a thread that may; what fails there is a scratch file.
pub(super) async fn on_a_thread<T: Send + 'static>(
    lineage: &LineageRepository,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> RepositoryResult<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|error| scratch_failed(lineage, error))
}
