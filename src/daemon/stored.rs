//! Reads what the repository holds of a cluster: catalog, recoverable ranges, sizes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use recovery::{BackupId, Catalog};
use wal::PgTime;

use super::view::{Stored, StoredBytes};
use crate::error::{Error, ErrorCode, Result};
use crate::repository::{ClusterName, ClusterRepository, Inventory, LineageRepository, Repository};
use crate::restore;

/// The newest lineage of a cluster.
///
/// # Errors
///
/// `NotFound` when nothing of the cluster is stored.
pub fn newest_lineage(cluster: &ClusterRepository) -> BoxFuture<'_, Result<LineageRepository>> {
    // Boxed, here and below: rustc cannot prove a spawned task `Send` through the streams of the repository otherwise.
    async move {
        match cluster.newest_lineage().await? {
            Some(lineage) => Ok(lineage),
            None => Err(nothing_stored(cluster.repository(), cluster.name()).await),
        }
    }
    .boxed()
}

async fn nothing_stored(repository: &Repository, name: &ClusterName) -> Error {
    let error = Error::new(
        ErrorCode::NotFound,
        format!("nothing of cluster \"{name}\" is stored in {}", repository.location()),
    );
    match repository.clusters().await {
        Ok(names) if !names.is_empty() => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            error.help(format!("stored there: {}", names.join(", ")))
        }
        _ => error.help("start to stream: pgvault serve"),
    }
}

/// Reads everything that is stored of a lineage: one listing, the manifests, and what the WAL itself says.
pub fn read(lineage: &LineageRepository, now: DateTime<Utc>) -> BoxFuture<'_, Result<Stored>> {
    read_all(lineage, now).boxed()
}

async fn read_all(lineage: &LineageRepository, now: DateTime<Utc>) -> Result<Stored> {
    let inventory = lineage.survey().await?;
    let catalog = lineage.catalog_of(&inventory).await?;
    let window = restore::window(lineage, &catalog).await?;
    let bytes = bytes(&inventory, &catalog);
    let verified = verified(lineage, &inventory).await?;
    Ok(Stored { read_at: now, catalog, window, verified, bytes })
}

async fn verified(lineage: &LineageRepository, inventory: &Inventory) -> Result<BTreeMap<BackupId, PgTime>> {
    let mut verified = BTreeMap::new();
    for (id, objects) in inventory.backups.iter().filter(|(_, objects)| objects.committed) {
        if let Some(at) = lineage.verified_at(&objects.marks).await? {
            verified.insert(id.clone(), at);
        }
    }
    Ok(verified)
}

fn bytes(inventory: &Inventory, catalog: &Catalog) -> StoredBytes {
    let objects = inventory.backups.values().flat_map(|backup| &backup.objects);
    StoredBytes {
        base: catalog.backups.iter().map(|backup| backup.new_bytes).sum(),
        wal: inventory.segments.values().chain(inventory.tails.values()).sum(),
        meta: objects.map(|(_, size)| size).sum(),
    }
}
