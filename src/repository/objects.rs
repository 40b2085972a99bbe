//! Written once: the rule under everything that is stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::digest::{Hasher, sha256, to_hex};
use crate::codec::encryption::{Generation, is_encrypted, plain_len};
use crate::repository::encrypted::{Cipher, EncryptedStorage, Prepared};
use crate::repository::keys;
use crate::repository::layout::LineageKeys;
use crate::repository::{RepositoryError, RepositoryResult};
use crate::storage::{Body, ObjectKey, PutIfAbsent, PutOutcome, Sha256, Storage};

/// How much is read at a time where a whole object is read by ranges.
pub(super) const READ_SIZE: u64 = 8 << 20;

/// A store in which every object is written once, encrypted where the repository is.
#[derive(Clone, Debug)]
pub struct Objects {
    /// As it is.
    raw: Arc<dyn Storage>,
    /// As its readers see it: in plaintext.
    storage: Arc<dyn Storage>,
    cipher: Arc<Cipher>,
}

/// What a put of a new object came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutNew {
    /// The object is durable and complete under its key, with exactly these bytes.
    Created,
    /// The key holds something: the caller compares. Ours was not written, or lost to another writer.
    Taken,
}

/// An object that was read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeObject {
    /// Its content.
    pub content: Bytes,
    /// SHA-256 of its stored form.
    pub sha256_of_stored: Sha256,
    /// Length of its stored form.
    pub stored_len: u64,
}

impl Objects {
    /// The rule over this store, nothing encrypted.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self::with_cipher(storage, Cipher::Off)
    }

    pub(super) fn with_cipher(raw: Arc<dyn Storage>, cipher: Cipher) -> Self {
        let cipher = Arc::new(cipher);
        let storage = Arc::new(EncryptedStorage::new(Arc::clone(&raw), Arc::clone(&cipher)));
        Self { raw, storage, cipher }
    }

    /// The store, objects in plaintext; lengths are those of the stored form.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Whether new objects are encrypted.
    pub fn encrypts(&self) -> bool {
        matches!(*self.cipher, Cipher::On(_))
    }

    /// The generation of the key for new objects; none where nothing is encrypted.
    pub fn key_generation(&self) -> Option<Generation> {
        match &*self.cipher {
            Cipher::On(ring) => ring.newest().map(|(generation, _)| generation),
            Cipher::Off | Cipher::Wanted => None,
        }
    }

    /// Looks for keys that another writer has made since.
    pub async fn refresh_keys(&self) -> RepositoryResult<()> {
        match &*self.cipher {
            Cipher::On(ring) => keys::refresh(&Self::new(Arc::clone(&self.raw)), ring).await.map(|_| ()),
            Cipher::Off | Cipher::Wanted => Ok(()),
        }
    }

    /// The form in which an object is stored; `sha256` is that of `body`. For objects whose key is made of the stored bytes:
    /// any digits may stand in their place in `key`.
    pub async fn prepare(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> RepositoryResult<Prepared> {
        self.cipher.prepare(key, body, sha256).await
    }

    /// Stores an object under a free key.
    ///
    /// Where the store cannot promise put-if-absent, we look before, and read back after: a writer that overwrote ours in
    /// between is seen as `Taken`. What remains there is a writer that looked before our put and writes after our reading
    /// back; it writes the same bytes unless two histories are being stored under one name.
    pub async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> RepositoryResult<PutNew> {
        self.put_prepared(key, &self.prepare(key, body, sha256).await?).await
    }

    /// The same for an object that was prepared.
    pub async fn put_prepared(&self, key: &ObjectKey, prepared: &Prepared) -> RepositoryResult<PutNew> {
        self.put_in_the_clear(key, prepared.body().clone(), prepared.sha256()).await
    }

    /// Stores bytes as they are: what must be readable without a key, and what is encrypted already.
    pub(super) async fn put_in_the_clear(
        &self,
        key: &ObjectKey,
        body: Body,
        sha256: Sha256,
    ) -> RepositoryResult<PutNew> {
        let dependable = self.raw.capabilities().put_if_absent == PutIfAbsent::Atomic;
        if !dependable && self.raw.head(key).await?.is_some() {
            return Ok(PutNew::Taken);
        }
        if self.raw.put_new(key, body, sha256).await? == PutOutcome::AlreadyExists {
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
        let prepared = self.prepare(&keys.conflict_key(&sha256, refused), body, sha256).await?;
        let kept_as = keys.conflict_key(&prepared.sha256(), refused);
        match self.put_prepared(&kept_as, &prepared).await? {
            PutNew::Created => Ok(kept_as),
            PutNew::Taken if self.stored_sha256(&kept_as).await?.0 == prepared.sha256() => Ok(kept_as),
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

    /// A whole object whose stored form has this SHA-256; `Damaged` when it is another.
    pub async fn get_checked(&self, key: &ObjectKey, sha256_of_stored: &Sha256) -> RepositoryResult<Bytes> {
        let stored = self.raw.get(key).await.map_err(|error| RepositoryError::from_get(key, error))?;
        let found = sha256(&stored);
        if found != *sha256_of_stored {
            let (expected, found) = (to_hex(sha256_of_stored), to_hex(&found));
            return Err(RepositoryError::damaged(key, format!("its SHA-256 is {found}, not {expected}")));
        }
        self.open_whole(key, stored).await
    }

    /// The first `limit` bytes of an object's stored form: their SHA-256 and number, and the content. For who wants to say
    /// more than that the checksum is wrong.
    pub async fn get_whole(&self, key: &ObjectKey, limit: u64) -> RepositoryResult<WholeObject> {
        let stored = self.raw.get_range(key, 0..limit).await.map_err(|error| RepositoryError::from_get(key, error))?;
        let (sha256_of_stored, stored_len) = (sha256(&stored), stored.len() as u64);
        Ok(WholeObject { content: self.open_whole(key, stored).await?, sha256_of_stored, stored_len })
    }

    async fn open_whole(&self, key: &ObjectKey, stored: Bytes) -> RepositoryResult<Bytes> {
        let reader = EncryptedStorage::new(Arc::clone(&self.raw), Arc::clone(&self.cipher));
        reader.open_whole(key, stored).await.map_err(|error| RepositoryError::from_get(key, error))
    }

    /// Length of the content of an object whose stored form has this length.
    pub async fn content_len(&self, key: &ObjectKey, stored: u64) -> RepositoryResult<u64> {
        let Cipher::On(ring) = &*self.cipher else { return Ok(stored) };
        if ring.began_unencrypted() {
            let beginning =
                self.raw.get_range(key, 0..8).await.map_err(|error| RepositoryError::from_get(key, error))?;
            if !is_encrypted(&beginning) {
                return Ok(stored);
            }
        }
        plain_len(stored).ok_or_else(|| RepositoryError::damaged(key, format!("nothing encrypted has {stored} bytes")))
    }

    /// Bytes `from` up to `to` of an object, fewer where it ends before.
    pub async fn get_range(&self, key: &ObjectKey, from: u64, to: u64) -> RepositoryResult<Bytes> {
        self.storage.get_range(key, from..to).await.map_err(|error| RepositoryError::from_get(key, error))
    }

    /// SHA-256 and length of what lies under the key as it is stored, read by ranges.
    pub async fn stored_sha256(&self, key: &ObjectKey) -> RepositoryResult<(Sha256, u64)> {
        let mut hasher = Hasher::new();
        let mut position = 0;
        loop {
            let piece = self.raw.get_range(key, position..position + READ_SIZE).await;
            let piece = piece.map_err(|error| RepositoryError::from_get(key, error))?;
            hasher.update(&piece);
            position += piece.len() as u64;
            if (piece.len() as u64) < READ_SIZE {
                return Ok((hasher.finish(), position));
            }
        }
    }
}
