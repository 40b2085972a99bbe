//! The catalog: what recovery and retention decide from.

use std::collections::BTreeMap;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use recovery::{Backup, BackupId, BackupStatus, Catalog, TailEnd, UnreadableBackup};
use wal::{Coverage, SegmentName, TimelineHistory, TimelineId, TimelinePath, WalRange};

use crate::repository::header::WalPlace;
use crate::repository::layout::{LineageObject, TailName};
use crate::repository::manifest::Manifest;
use crate::repository::marks::marked;
use crate::repository::{BackupObjects, Inventory, LineageRepository, RepositoryError, RepositoryResult, TailChain};

#[cfg(test)]
mod tests;

/// How many small objects are read at once.
const PARALLEL: usize = 8;

impl LineageRepository {
    /// Reads what is stored, as one snapshot: one listing, every history, every manifest.
    ///
    /// A backup whose manifest is damaged is part of it by name, among those that cannot be read: it must keep nobody from
    /// the others, and whoever deletes must know of it. Whatever else cannot be read is an error: without a history every
    /// decision might be another one, and what the store or a missing key keeps from us is no damage.
    pub async fn catalog(&self) -> RepositoryResult<Catalog> {
        let inventory = self.survey().await?;
        self.catalog_of(&inventory).await
    }

    /// The catalog of what a listing found.
    pub async fn catalog_of(&self, inventory: &Inventory) -> RepositoryResult<Catalog> {
        let tails = self.tails_of_incomplete_segments(inventory)?;
        let mut coverage = Coverage::new();
        for &name in inventory.segments.keys() {
            let place = WalPlace::segment(self, name)?;
            coverage.insert(WalRange { timeline: name.timeline(), start: place.start, end: place.end() });
        }
        for &TailEnd { timeline, start, end } in &tails {
            coverage.insert(WalRange { timeline, start, end });
        }
        let histories = self.listed_histories(inventory).await?;
        let mut catalog = Catalog {
            cluster: self.cluster().to_string(),
            lineage: self.id(),
            segment_size: self.segment_size(),
            backups: Vec::new(),
            unreadable: Vec::new(),
            coverage,
            tails,
            histories,
            lost: self.lost(&inventory.gaps).await?,
        };
        (catalog.backups, catalog.unreadable) = self.committed_backups(inventory, &catalog).await?;
        Ok(catalog)
    }

    fn tails_of_incomplete_segments(&self, inventory: &Inventory) -> RepositoryResult<Vec<TailEnd>> {
        let mut by_segment: BTreeMap<SegmentName, Vec<TailName>> = BTreeMap::new();
        for tail in incomplete(inventory) {
            by_segment.entry(tail.segment).or_default().push(tail);
        }
        let mut ends = Vec::new();
        for (segment, pieces) in by_segment {
            let start = WalPlace::segment(self, segment)?.start;
            if let Some(chain) = TailChain::of(segment, start, pieces) {
                ends.push(TailEnd { timeline: segment.timeline(), start, end: chain.end });
            }
        }
        Ok(ends)
    }

    async fn listed_histories(&self, inventory: &Inventory) -> RepositoryResult<BTreeMap<TimelineId, TimelineHistory>> {
        stream::iter(inventory.histories.iter().copied())
            .map(|timeline| async move {
                let key = self.keys().key(&LineageObject::History(timeline));
                let history = self.stored_history(timeline).await?;
                Ok((timeline, history.ok_or_else(|| RepositoryError::damaged(&key, "listed, but not there"))?))
            })
            .buffered(PARALLEL)
            .try_collect()
            .await
    }

    async fn committed_backups(
        &self,
        inventory: &Inventory,
        catalog: &Catalog,
    ) -> RepositoryResult<(Vec<Backup>, Vec<UnreadableBackup>)> {
        let committed = inventory.backups.iter().filter(|(_, objects)| objects.committed);
        // Boxed, because the compiler cannot see otherwise that the whole is Send.
        let reads: Vec<_> = committed.map(|(id, objects)| self.backup(id, objects, catalog).boxed()).collect();
        let read: Vec<Result<Backup, UnreadableBackup>> = stream::iter(reads).buffered(PARALLEL).try_collect().await?;
        let (mut backups, mut unreadable) = (Vec::new(), Vec::new());
        for backup in read {
            match backup {
                Ok(backup) => backups.push(backup),
                Err(backup) => unreadable.push(backup),
            }
        }
        backups.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        Ok((backups, unreadable))
    }

    /// One committed backup, or that its manifest cannot be read.
    async fn backup(
        &self,
        id: &BackupId,
        objects: &BackupObjects,
        catalog: &Catalog,
    ) -> RepositoryResult<Result<Backup, UnreadableBackup>> {
        let manifest = match self.manifest(id).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_about_the_object() => {
                let keep = marked(objects.marks.iter()).keep;
                return Ok(Err(UnreadableBackup { id: id.clone(), keep, reason: error.to_string() }));
            }
            Err(error) => return Err(error),
        };
        let mut backup = manifest.to_backup(&catalog.coverage);
        let path: TimelinePath = catalog.path_to(backup.timeline);
        let gap = catalog.coverage.first_gap(&path, backup.start_lsn, backup.stop_lsn);
        backup.status = if gap.is_none() { BackupStatus::Ok } else { BackupStatus::WaitingForWal };
        let marked = marked(objects.marks.iter());
        backup.keep = marked.keep;
        backup.damaged |= marked.damaged;
        Ok(Ok(backup))
    }

    /// The manifest of a committed backup; `NotFound` when there is none.
    pub async fn manifest(&self, id: &BackupId) -> RepositoryResult<Manifest> {
        let key = self.keys().key(&LineageObject::Manifest(id.clone()));
        let bytes = self.objects().get(&key).await?;
        let manifest = Manifest::unseal(&bytes).map_err(|error| {
            if error.is_too_new() {
                RepositoryError::TooNew { key: key.clone(), what: error.to_string() }
            } else {
                RepositoryError::damaged(&key, error)
            }
        })?;
        let belongs = manifest.id == *id
            && manifest.lineage == self.id()
            && manifest.cluster == self.cluster().as_str()
            && manifest.segment_size == self.segment_size();
        if belongs {
            Ok(manifest)
        } else {
            let what = format!("it is the manifest of {} of {} {}", manifest.id, manifest.cluster, manifest.lineage);
            Err(RepositoryError::damaged(&key, what))
        }
    }
}

/// Pieces of segments that are not stored whole.
fn incomplete(inventory: &Inventory) -> impl Iterator<Item = TailName> + '_ {
    inventory.tails.keys().copied().filter(|tail| !inventory.segments.contains_key(&tail.segment))
}
