//! What listings tell: is every object there, with the length that the manifest says?

use std::collections::{BTreeMap, HashMap};

use recovery::BackupId;

use crate::repository::chunk_index::{list_packs, pack_key};
use crate::repository::layout::LineageObject;
use crate::repository::manifest::Manifest;
use crate::repository::{LineageRepository, RepositoryResult};
use crate::storage::{ObjectKey, Sha256};

use super::BackupReport;

/// What is listed in a backup's folder, and the packs of its cluster.
#[derive(Debug)]
pub(super) struct Listing {
    /// Key and length of each object of the folder.
    pub(super) folder: BTreeMap<ObjectKey, u64>,
    packs: HashMap<Sha256, u64>,
}

impl Listing {
    pub(super) async fn of(lineage: &LineageRepository, id: &BackupId) -> RepositoryResult<Self> {
        let folder = lineage.objects().storage().list(&lineage.keys().backup_prefix(id), None, None).await?;
        let packs = list_packs(lineage.objects(), lineage.cluster()).await?;
        Ok(Self { folder: folder.into_iter().map(|object| (object.key, object.size)).collect(), packs })
    }
}

/// Every object that the manifest names, against the listing.
pub(super) async fn compare(
    lineage: &LineageRepository,
    manifest: &Manifest,
    listing: &Listing,
    report: &mut BackupReport,
) -> RepositoryResult<()> {
    let parts = manifest.parts.iter().map(|part| (&part.name, part.size));
    let server_manifest = manifest.postgres_manifest.iter().map(|stored| (&stored.name, stored.size));
    for (name, size) in parts.chain(server_manifest) {
        match named_key(lineage, manifest, name) {
            Ok(key) => length(lineage, &key, listing.folder.get(&key).copied(), size, report).await?,
            Err(what) => report.problem(lineage.keys().key(&LineageObject::Manifest(manifest.id.clone())), what),
        }
    }
    for pack in &manifest.packs {
        let key = pack_key(lineage.cluster(), &pack.sha256);
        length(lineage, &key, listing.packs.get(&pack.sha256).copied(), pack.size, report).await?;
    }
    report.packs = manifest.packs.len() as u64;
    Ok(())
}

/// The key of an object that the manifest names below the backup's folder.
pub(super) fn named_key(lineage: &LineageRepository, manifest: &Manifest, name: &str) -> Result<ObjectKey, String> {
    ObjectKey::new(format!("{}{name}", lineage.keys().backup_prefix(&manifest.id)))
        .map_err(|error| format!("it names an object that cannot be: {error}"))
}

/// A listing may lag behind, so absence is what the store says of exactly this key.
async fn length(
    lineage: &LineageRepository,
    key: &ObjectKey,
    listed: Option<u64>,
    expected: u64,
    report: &mut BackupReport,
) -> RepositoryResult<()> {
    let found = match listed {
        Some(found) => Some(found),
        None => lineage.objects().storage().head(key).await?,
    };
    match found {
        Some(found) if found == expected => {}
        Some(found) => report.problem(key, format!("it has {found} bytes, the manifest says {expected}")),
        None => report.problem(key, "it is missing"),
    }
    Ok(())
}
