//! The two ends of a backup in the repository: the claim of its name, and the commit.

use std::time::Duration;

use bytes::Bytes;
use recovery::BackupId;
use serde::Serialize;
use wal::PgTime;

use super::error::CopyError;
use super::manifest_check::KeptManifest;
use super::upload::Destination;
use crate::codec::digest::sha256;
use crate::repository::chunk_index::list_packs;
use crate::repository::layout::{LineageObject, ShortHash};
use crate::repository::manifest::{Manifest, PackRef, StoredObject};
use crate::repository::{LineageRepository, PutNew, RepositoryError, RepositoryResult, seal_document};
use crate::storage::{Body, Sha256};

/// FORMAT 5.0: whoever deletes packs, or what a backup has left behind, waits so long for one that has begun.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Names are tried so often; each second has 65536 of them.
const ATTEMPTS: u16 = 100;

#[derive(Serialize)]
struct Begun<'a> {
    id: &'a BackupId,
    lineage: recovery::LineageId,
    started_at: PgTime,
    label: &'a str,
}

/// Claims a name that no other backup has, and says when the backup began. `label` is what it is called in
/// `backup_label`, when it is not to be its name.
pub(super) async fn claim(
    repository: &LineageRepository,
    started_at: PgTime,
    random: u16,
    label: Option<&str>,
) -> RepositoryResult<BackupId> {
    let mut attempt = 0;
    loop {
        let id = BackupId::new(started_at, random.wrapping_add(attempt));
        let key = repository.keys().key(&LineageObject::Begun(id.clone()));
        let begun = Begun { id: &id, lineage: repository.id(), started_at, label: label.unwrap_or(id.as_str()) };
        let document = seal_document(&key, "begun", &begun)?;
        let digest = sha256(&document);
        match repository.objects().put_new(&key, Body::Bytes(document), digest).await? {
            PutNew::Created => return Ok(id),
            PutNew::Taken if attempt < ATTEMPTS => attempt += 1,
            PutNew::Taken => return Err(RepositoryError::mismatch(key, "every name of this second is taken")),
        }
    }
}

/// Stores PostgreSQL's own manifest; returns what the manifest says of it, and whether it is new.
pub(super) async fn store_postgres_manifest(
    destination: &Destination,
    kept: &KeptManifest,
) -> Result<StoredObject, CopyError> {
    let named = |sha256: &Sha256| LineageObject::PostgresManifest(destination.id.clone(), ShortHash::of(sha256));
    let prepared =
        destination.objects.prepare(&destination.keys.key(&named(&kept.sha256)), kept.body(), kept.sha256).await?;
    let object = named(&prepared.sha256());
    destination.put(&destination.keys.key(&object), &prepared).await?;
    Ok(StoredObject { name: destination.name(&object), sha256: prepared.sha256(), size: prepared.body().len() })
}

/// Looks once more that every pack is there: one that an older backup stored may have been deleted while this one ran.
pub(super) async fn packs_exist(destination: &Destination, packs: &[PackRef]) -> Result<(), CopyError> {
    let listed = list_packs(&destination.objects, destination.keys.cluster()).await?;
    match packs.iter().find(|pack| listed.get(&pack.sha256) != Some(&pack.size)) {
        None => Ok(()),
        Some(pack) => {
            let key = crate::repository::chunk_index::pack_key(destination.keys.cluster(), &pack.sha256);
            Err(RepositoryError::damaged(&key, "it was deleted or changed while the backup ran").into())
        }
    }
}

/// The commit: from here on the backup exists. Everything that it names is durable.
pub(super) async fn put_manifest(destination: &Destination, manifest: &Manifest) -> RepositoryResult<()> {
    let key = destination.keys.key(&LineageObject::Manifest(manifest.id.clone()));
    let sealed = manifest.seal().map_err(|error| RepositoryError::mismatch(&key, error))?;
    destination.objects.put_same(&destination.keys, &key, Bytes::from(sealed)).await?;
    Ok(())
}
