//! What the objects of a cluster take, and who they are there for.

use std::collections::BTreeMap;

use recovery::{BackupId, BackupKind, LineageId};

use super::chunk_index::list_packs;
use super::manifest::{Manifest, PackRef};
use super::{ClusterRepository, Inventory, RepositoryResult};
use crate::storage::Sha256;

/// What one backup takes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BackupUsage {
    /// Its name.
    pub id: BackupId,
    /// Where it lies.
    pub lineage: LineageId,
    /// How it was read.
    pub kind: BackupKind,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Bytes that it added when it was taken.
    pub new_bytes: u64,
    /// Bytes that nothing else needs: what deleting it would set free.
    pub own_bytes: u64,
    /// Bytes of the packs that it shares with other backups.
    pub shared_bytes: u64,
    /// Chunks that are stored as the difference to another.
    pub patched_chunks: u64,
}

/// What one cluster takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ClusterUsage {
    /// Its committed backups, oldest first.
    pub backups: Vec<BackupUsage>,
    /// All packs.
    pub pack_bytes: u64,
    /// Packs that no committed backup needs: of one that runs, or was interrupted, or is deleted.
    pub unreferenced_bytes: u64,
    /// File tables and manifests of all backups, committed or not.
    pub backup_meta_bytes: u64,
    /// Whole WAL segments.
    pub wal_bytes: u64,
    /// How many.
    pub wal_segments: u64,
    /// Pieces of segments that are not complete, or were not when they were stored.
    pub tail_bytes: u64,
    /// Bytes that were refused and kept.
    pub conflict_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

impl ClusterRepository {
    /// What everything stored of this cluster takes: lists all of it, and reads every manifest.
    pub async fn usage(&self) -> RepositoryResult<ClusterUsage> {
        let packs = list_packs(self.repository().objects(), self.name()).await?;
        let mut usage = ClusterUsage::default();
        let mut backups = Vec::new();
        for lineage in self.lineages().await? {
            let inventory = lineage.inventory().await?;
            usage.add_inventory(&inventory);
            for (id, objects) in inventory.backups.iter().filter(|(_, objects)| objects.committed) {
                let folder = objects.objects.iter().map(|(_, size)| size).sum();
                backups.push((lineage.manifest(id).await?, folder));
            }
        }
        usage
            .add_packs(&packs.into_iter().map(|(sha256, size)| PackRef { sha256, size }).collect::<Vec<_>>(), &backups);
        Ok(usage)
    }
}

impl ClusterUsage {
    fn add_inventory(&mut self, inventory: &Inventory) {
        self.wal_segments += inventory.segments.len() as u64;
        self.wal_bytes += inventory.segments.values().sum::<u64>();
        self.tail_bytes += inventory.tails.values().sum::<u64>();
        self.conflict_bytes += inventory.conflicts.iter().map(|(_, size)| size).sum::<u64>();
        let folders = inventory.backups.values().flat_map(|backup| &backup.objects);
        self.backup_meta_bytes += folders.map(|(_, size)| size).sum::<u64>();
    }

    /// Who needs which pack. `backups` come with the bytes of their folders.
    fn add_packs(&mut self, packs: &[PackRef], backups: &[(Manifest, u64)]) {
        let mut needed_by: BTreeMap<Sha256, usize> = BTreeMap::new();
        for pack in backups.iter().flat_map(|(manifest, _)| &manifest.packs) {
            *needed_by.entry(pack.sha256).or_default() += 1;
        }
        let needs = |pack: &PackRef| needed_by.get(&pack.sha256).copied().unwrap_or_default();
        let bytes = |packs: &mut dyn Iterator<Item = &PackRef>| packs.map(|pack| pack.size).sum::<u64>();
        self.pack_bytes += bytes(&mut packs.iter());
        self.unreferenced_bytes += bytes(&mut packs.iter().filter(|pack| needs(pack) == 0));
        for (manifest, folder) in backups {
            self.backups.push(BackupUsage {
                id: manifest.id.clone(),
                lineage: manifest.lineage,
                kind: manifest.backup_kind,
                size_bytes: manifest.size_bytes,
                new_bytes: manifest.new_bytes,
                own_bytes: folder + bytes(&mut manifest.packs.iter().filter(|pack| needs(pack) == 1)),
                shared_bytes: bytes(&mut manifest.packs.iter().filter(|pack| needs(pack) > 1)),
                patched_chunks: manifest.patched_chunks,
            });
        }
        self.backups.sort_by(|a, b| a.id.cmp(&b.id));
        self.total_bytes =
            self.pack_bytes + self.backup_meta_bytes + self.wal_bytes + self.tail_bytes + self.conflict_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::manifest::test_manifest;

    #[test]
    fn a_pack_is_its_own_backups_until_another_needs_it() {
        let pack = |number: u8, size| PackRef { sha256: [number; 32], size };
        let backup = |id: &str, packs: &[PackRef]| {
            let manifest = test_manifest();
            (Manifest { id: id.parse().unwrap(), packs: packs.to_vec(), ..manifest }, 7)
        };
        let packs = [pack(1, 1000), pack(2, 100), pack(3, 10), pack(4, 1)];
        let backups = [
            backup("20261119T020513-0000", &[packs[0], packs[2]]),
            backup("20261119T020512-0000", &[packs[0], packs[1]]),
        ];
        let mut usage = ClusterUsage { backup_meta_bytes: 14, ..ClusterUsage::default() };
        usage.add_packs(&packs, &backups);
        let of: Vec<_> = usage.backups.iter().map(|backup| (backup.own_bytes, backup.shared_bytes)).collect();
        assert_eq!(of, [(107, 1000), (17, 1000)], "oldest first");
        assert_eq!((usage.pack_bytes, usage.unreferenced_bytes, usage.total_bytes), (1111, 1, 1125));
    }
}
