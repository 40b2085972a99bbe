//! Written once: the rule under everything that is stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::digest::{Hasher, sha256};
use crate::repository::layout::LineageKeys;
use crate::repository::{RepositoryError, RepositoryResult};
use crate::storage::{Body, ObjectKey, PutIfAbsent, PutOutcome, Sha256, Storage};

/// How much is read at a time where a whole object is read by ranges.
pub(super) const READ_SIZE: u64 = 8 << 20;

/// A store in which every object is written once.
#[derive(Clone, Debug)]
pub struct Objects {
    storage: Arc<dyn Storage>,
}

/// What a put of a new object came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutNew {
    /// The object is durable and complete under its key, with exactly these bytes.
    Created,
    /// The key holds something: the caller compares. Ours was not written, or lost to another writer.
    Taken,
}

impl Objects {
    /// The rule over this store.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// The store.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Stores an object under a free key.
    ///
    /// Where the store cannot promise put-if-absent, we look before, and read back after: a writer that overwrote ours in
    /// between is seen as `Taken`. What remains there is a writer that looked before our put and writes after our reading
    /// back; it writes the same bytes unless two histories are being stored under one name.
    pub async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> RepositoryResult<PutNew> {
        let dependable = self.storage.capabilities().put_if_absent == PutIfAbsent::Atomic;
        if !dependable && self.storage.head(key).await?.is_some() {
            return Ok(PutNew::Taken);
        }
        if self.storage.put_new(key, body, sha256).await? == PutOutcome::AlreadyExists {
            return Ok(PutNew::Taken);
        }
        if !dependable && self.stored_sha256(key).await?.0 != sha256 {
            return Ok(PutNew::Taken);
        }
        Ok(PutNew::Created)
    }

    /// Stores bytes under a key that may only ever hold these: `Ok(true)` when they are new, `Ok(false)` when they were
    /// there already. Other bytes under the key: ours go to `conflict/` and the error says where.
    pub async fn put_same(&self, keys: &LineageKeys, key: &ObjectKey, bytes: Bytes) -> RepositoryResult<bool> {
        let digest = sha256(&bytes);
        match self.put_new(key, Body::Bytes(bytes.clone()), digest).await? {
            PutNew::Created => Ok(true),
            PutNew::Taken if self.get(key).await? == bytes => Ok(false),
            PutNew::Taken => {
                let kept_as = self.keep_refused(keys, key, Body::Bytes(bytes), digest).await?;
                Err(RepositoryError::Conflict { key: key.clone(), kept_as })
            }
        }
    }

    /// Keeps bytes that `refused` could not take; their name is made of their content, so it is free or holds the same.
    pub async fn keep_refused(
        &self,
        keys: &LineageKeys,
        refused: &ObjectKey,
        body: Body,
        sha256: Sha256,
    ) -> RepositoryResult<ObjectKey> {
        let kept_as = keys.conflict_key(&sha256, refused);
        match self.put_new(&kept_as, body, sha256).await? {
            PutNew::Created => Ok(kept_as),
            PutNew::Taken if self.stored_sha256(&kept_as).await?.0 == sha256 => Ok(kept_as),
            PutNew::Taken => Err(RepositoryError::damaged(&kept_as, "its bytes are not those that its name tells")),
        }
    }

    /// A whole object, for those that are small.
    pub async fn get(&self, key: &ObjectKey) -> RepositoryResult<Bytes> {
        self.storage.get(key).await.map_err(|error| RepositoryError::from_get(key, error))
    }

    /// A whole object; none when the store says that there is none.
    pub async fn find(&self, key: &ObjectKey) -> RepositoryResult<Option<Bytes>> {
        match self.get(key).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes `from` up to `to` of an object, fewer where it ends before.
    pub async fn get_range(&self, key: &ObjectKey, from: u64, to: u64) -> RepositoryResult<Bytes> {
        self.storage.get_range(key, from..to).await.map_err(|error| RepositoryError::from_get(key, error))
    }

    /// SHA-256 and length of what lies under the key, read by ranges.
    pub async fn stored_sha256(&self, key: &ObjectKey) -> RepositoryResult<(Sha256, u64)> {
        let mut hasher = Hasher::new();
        let mut position = 0;
        loop {
            let piece = self.get_range(key, position, position + READ_SIZE).await?;
            hasher.update(&piece);
            position += piece.len() as u64;
            if (piece.len() as u64) < READ_SIZE {
                return Ok((hasher.finish(), position));
            }
        }
    }
}
