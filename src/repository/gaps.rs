//! What is known of WAL that was lost: why, and when that was found. FORMAT.md 4.4.
//!
//! The record only explains. Which WAL is missing is told by what is stored, so a record that cannot be read hides nothing.

use futures_util::{StreamExt, TryStreamExt, stream};
use recovery::LostWal;
use wal::{Gap, Lsn, PgTime, TimelineId};

use crate::codec::digest::sha256;
use crate::repository::layout::{GapName, LineageObject};
use crate::repository::{
    Inventory, LineageRepository, PutNew, RepositoryError, RepositoryResult, seal_document, unseal_document,
};
use crate::storage::Body;

#[cfg(test)]
mod tests;

const KIND: &str = "gap";

/// How many records are read at once.
const PARALLEL: usize = 8;

/// A record's content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GapDocument {
    /// The timeline on which WAL is missing.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from_lsn: Lsn,
    /// First byte that is there again.
    pub to_lsn: Lsn,
    /// Why, in words for a person.
    pub reason: String,
    /// When it was found.
    pub found_at: PgTime,
}

impl LineageRepository {
    /// Records why WAL is missing; `Ok(false)` when that was recorded before, by us or by another writer: the first record of
    /// a range stays.
    pub async fn put_gap(&self, document: &GapDocument) -> RepositoryResult<bool> {
        let name = GapName { timeline: document.timeline, from: document.from_lsn, to: document.to_lsn };
        let key = self.keys().key(&LineageObject::Gap(name));
        if name.from >= name.to {
            return Err(RepositoryError::mismatch(key, "it ends before it begins"));
        }
        let bytes = seal_document(&key, KIND, document)?;
        let digest = sha256(&bytes);
        Ok(self.objects().put_new(&key, Body::Bytes(bytes), digest).await? == PutNew::Created)
    }

    /// What a listing's records of lost WAL say.
    pub async fn lost_wal_of(&self, inventory: &Inventory) -> RepositoryResult<Vec<LostWal>> {
        self.lost(&inventory.gaps).await
    }

    /// The records of these names.
    pub(super) async fn lost(&self, names: &[GapName]) -> RepositoryResult<Vec<LostWal>> {
        let mut names = names.to_vec();
        names.sort_unstable();
        let lost: Vec<Option<LostWal>> =
            stream::iter(names).map(|name| self.lost_wal(name)).buffered(PARALLEL).try_collect().await?;
        Ok(lost.into_iter().flatten().collect())
    }

    async fn lost_wal(&self, name: GapName) -> RepositoryResult<Option<LostWal>> {
        let key = self.keys().key(&LineageObject::Gap(name));
        // Listed, and gone since.
        let Some(bytes) = self.objects().find(&key).await? else { return Ok(None) };
        let (reason, found_at) = match unseal_document::<GapDocument>(&key, KIND, &bytes) {
            Ok(document) => (document.reason, Some(document.found_at)),
            Err(error @ (RepositoryError::Damaged { .. } | RepositoryError::TooNew { .. })) => {
                (format!("lost, but the record of it cannot be read: {error}"), None)
            }
            Err(error) => return Err(error),
        };
        let gap = Gap { timeline: name.timeline, start: name.from, end: name.to };
        Ok(Some(LostWal { gap, reason, found_at }))
    }
}
