//! Which packs the backups of a cluster name, and which of them are stored.

use std::collections::{BTreeSet, HashMap};

use recovery::{BackupId, Catalog, LineageId};

use super::FreePacks;
use crate::repository::chunk_index::list_packs;
use crate::repository::manifest::PackRef;
use crate::repository::{LineageRepository, RepositoryResult};
use crate::storage::Sha256;

/// The packs of a cluster.
#[derive(Debug)]
pub(super) struct Packs {
    lineage: LineageId,
    stored: HashMap<Sha256, u64>,
    /// What each backup of each lineage names.
    named: Vec<(LineageId, BackupId, Vec<PackRef>)>,
    /// Whether every manifest of the cluster could be read.
    all_known: bool,
}

/// Reads every manifest of the cluster: its lineages share packs.
pub(super) async fn packs(lineage: &LineageRepository, catalog: &Catalog) -> RepositoryResult<Packs> {
    let stored = list_packs(lineage.objects(), lineage.cluster()).await?;
    let mut packs = Packs { lineage: lineage.id(), stored, named: Vec::new(), all_known: true };
    let cluster = lineage.repository().cluster(lineage.cluster());
    for other in cluster.lineages().await? {
        let of_other;
        let catalog = if other.id() == lineage.id() {
            catalog
        } else {
            of_other = other.catalog().await?;
            &of_other
        };
        packs.all_known &= catalog.unreadable.is_empty();
        for backup in &catalog.backups {
            packs.named.push((other.id(), backup.id.clone(), other.manifest(&backup.id).await?.packs));
        }
    }
    Ok(packs)
}

impl Packs {
    /// Whether every pack of this backup is stored, with its length.
    pub(super) fn are_stored(&self, id: &BackupId) -> bool {
        let mut of_it = self.named.iter().filter(|(lineage, known, _)| *lineage == self.lineage && known == id);
        let is_stored = |pack: &PackRef| self.stored.get(&pack.sha256) == Some(&pack.size);
        of_it.any(|(_, _, packs)| packs.iter().all(is_stored))
    }

    /// What nothing but this backup names; `None` where that is not known.
    pub(super) fn only_of(&self, id: &BackupId) -> Option<FreePacks> {
        if !self.all_known {
            return None;
        }
        let is_it =
            |(lineage, known, _): &&(LineageId, BackupId, Vec<PackRef>)| *lineage == self.lineage && known == id;
        let others: BTreeSet<Sha256> =
            self.named.iter().filter(|named| !is_it(named)).flat_map(|(_, _, packs)| packs).map(|p| p.sha256).collect();
        let own = self.named.iter().filter(is_it).flat_map(|(_, _, packs)| packs);
        let own = own.filter(|pack| !others.contains(&pack.sha256));
        Some(own.fold(FreePacks::default(), |sum, pack| FreePacks {
            count: sum.count + 1,
            bytes: sum.bytes.saturating_add(pack.size),
        }))
    }
}
