//! Encryption between the objects of this repository and the store: what is put is encrypted, what is read is decrypted, and
//! everything above sees plaintext. Listings tell lengths as they are stored.
//!
//! An object has the same key encrypted or not. So one question has one answer: "not there" never means "there in another
//! form", put-if-absent keeps writers apart whatever they store, and a lost key ring makes objects unreadable, not absent.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::keys::{self, KeyError, KeyRing};
use super::layout::{ObjectName, Parsed};
use super::{Objects, RepositoryError, RepositoryResult};
use crate::codec::digest::{Hasher, sha256, sha256_reader};
use crate::codec::encryption::{
    BlockRange, DataKey, EncryptionError, Generation, HEADER, Opened, STORED_BLOCK, claimed_generation, encrypt,
    encrypt_into, is_encrypted, open_blocks, plain_len,
};
use crate::durable::{PRIVATE_FILE, TempFile};
use crate::storage::{
    Body, Capabilities, Level, ObjectInfo, ObjectKey, PutOutcome, Sha256, Storage, StorageError, StorageErrorKind,
    StorageResult,
};

/// Up to so many bytes are encrypted and decrypted where they are, more on a thread that may take its time.
const INLINE: usize = 1 << 20;

/// Whether a repository is encrypted.
#[derive(Debug)]
pub(super) enum Cipher {
    /// It is not. What is encrypted all the same is never taken for anything else.
    Off,
    /// It shall be and has no keys yet: nothing is stored in the clear.
    Wanted,
    /// With these keys.
    On(KeyRing),
}

/// An object in the form in which it is stored.
#[derive(Debug)]
pub struct Prepared {
    body: Body,
    sha256: Sha256,
    /// Removes the file under `body`.
    _file: Option<TempFile>,
}

impl Prepared {
    /// What is put.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Its SHA-256.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }
}

impl Cipher {
    /// The stored form of an object for this key, or for one that differs from it in the digits that are made of the stored
    /// bytes. `sha256` is that of `body`.
    pub(super) async fn prepare(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> RepositoryResult<Prepared> {
        let ring = match self {
            Self::Off => return Ok(Prepared { body, sha256, _file: None }),
            Self::Wanted => return Err(KeyError::NoKeyRing.into()),
            Self::On(ring) => ring,
        };
        let (generation, data_key) = ring.newest().ok_or(KeyError::NoKeyRing)?;
        let name = ObjectName::bound(key);
        match body {
            Body::Bytes(plain) if plain.len() <= INLINE => encrypt_bytes(&data_key, generation, &name, &plain, &sha256),
            Body::Bytes(plain) => {
                let work = move || encrypt_bytes(&data_key, generation, &name, &plain, &sha256);
                blocking(key, work).await?
            }
            Body::File { path, len } => {
                let work = move || encrypt_file(&data_key, generation, &name, (&path, len), &sha256);
                blocking(key, work).await?
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    key: &ObjectKey,
    work: impl FnOnce() -> T + Send + 'static,
) -> RepositoryResult<T> {
    let stopped = |error| RepositoryError::mismatch(key, format!("encrypting ended unexpectedly: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(stopped)
}

fn encrypt_bytes(
    key: &DataKey,
    generation: Generation,
    name: &str,
    plain: &Bytes,
    plain_sha256: &Sha256,
) -> RepositoryResult<Prepared> {
    debug_assert_eq!(sha256(plain), *plain_sha256, "the salt rests on it");
    let stored = encrypt(key, generation, name, plain, plain_sha256)
        .map_err(|error: EncryptionError| RepositoryError::mismatch(name, error))?;
    Ok(Prepared { sha256: sha256(&stored), body: Body::Bytes(stored.into()), _file: None })
}

/// Into a file beside the plain one.
fn encrypt_file(
    key: &DataKey,
    generation: Generation,
    name: &str,
    (path, len): (&Path, u64),
    plain_sha256: &Sha256,
) -> RepositoryResult<Prepared> {
    let failed = |source| RepositoryError::Io { path: path.to_owned(), source };
    let mut plain = Hashed { file: File::open(path).map_err(failed)?, hasher: Hasher::new() };
    let mut temp = TempFile::beside(path, PRIVATE_FILE).map_err(failed)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, temp.file_mut());
    encrypt_into((key, generation, name), (&mut plain, len, plain_sha256), &mut out).map_err(failed)?;
    out.into_inner().map_err(|error| failed(error.into_error()))?;
    // Its salt rests on the checksum: of other bytes nothing may be stored.
    if plain.hasher.finish() != *plain_sha256 {
        return Err(RepositoryError::mismatch(path.display(), "the file changed while it was encrypted"));
    }
    temp.file_mut().seek(SeekFrom::Start(0)).map_err(failed)?;
    let (sha256, len) = sha256_reader(temp.file_mut()).map_err(failed)?;
    Ok(Prepared { body: Body::File { path: temp.path().to_owned(), len }, sha256, _file: Some(temp) })
}

struct Hashed {
    file: File,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        self.hasher.update(out.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// A store as readers see it: objects in plaintext.
#[derive(Debug)]
pub(super) struct EncryptedStorage {
    raw: Arc<dyn Storage>,
    cipher: Arc<Cipher>,
}

impl EncryptedStorage {
    pub(super) fn new(raw: Arc<dyn Storage>, cipher: Arc<Cipher>) -> Self {
        Self { raw, cipher }
    }

    fn failed(&self, kind: StorageErrorKind, key: &ObjectKey, what: impl ToString) -> StorageError {
        StorageError::new(kind, "get", self.raw.place_of(key.as_str()), what.to_string())
    }

    fn corrupt(&self, key: &ObjectKey, what: impl ToString) -> StorageError {
        self.failed(StorageErrorKind::Corrupt, key, what)
    }

    /// Whether an object may lie in the clear. Where everything is encrypted from the beginning, one that is not was put
    /// there by somebody else.
    fn may_be_clear(&self, key: &ObjectKey) -> StorageResult<()> {
        let exempt = || {
            matches!(
                ObjectName::parse(key.as_str()),
                Parsed::Known(ObjectName::Marker | ObjectName::EncryptedSince | ObjectName::KeyRing(_))
            )
        };
        match &*self.cipher {
            Cipher::On(ring) if !ring.began_unencrypted() && !exempt() => {
                Err(self.corrupt(key, "it is not encrypted, and everything in this repository is"))
            }
            _ => Ok(()),
        }
    }

    /// The key of a generation. One that is not known may have been made by another writer since: then the key ring is read
    /// again.
    async fn key(&self, key: &ObjectKey, generation: Generation) -> StorageResult<DataKey> {
        let unknown = |have| {
            let error = KeyError::UnknownGeneration { generation, have };
            self.failed(StorageErrorKind::NoKey, key, error)
        };
        let Cipher::On(ring) = &*self.cipher else { return Err(unknown(None)) };
        if let Some(known) = ring.key(generation) {
            return Ok(known);
        }
        keys::refresh(&Objects::new(Arc::clone(&self.raw)), ring).await.map_err(|error| match error {
            RepositoryError::Storage(error) => error,
            other => self.failed(StorageErrorKind::NoKey, key, other),
        })?;
        ring.key(generation).ok_or_else(|| unknown(ring.newest().map(|(newest, _)| newest)))
    }

    /// Opens the blocks of an object from block `first` on.
    async fn open(&self, key: &ObjectKey, first: u64, stored: Bytes) -> StorageResult<Opened> {
        let generation = claimed_generation(&stored).ok_or_else(|| self.corrupt(key, EncryptionError::CutShort))?;
        let (data_key, name) = (self.key(key, generation).await?, ObjectName::bound(key));
        let opened = if stored.len() <= INLINE {
            open_blocks(&data_key, &name, first, &stored)
        } else {
            tokio::task::spawn_blocking(move || open_blocks(&data_key, &name, first, &stored))
                .await
                .map_err(|error| self.failed(StorageErrorKind::Other, key, error))?
        };
        opened.map_err(|error| self.corrupt(key, error))
    }

    /// The plaintext of a whole object.
    pub(super) async fn open_whole(&self, key: &ObjectKey, stored: Bytes) -> StorageResult<Bytes> {
        if !is_encrypted(&stored) {
            return self.may_be_clear(key).map(|()| stored);
        }
        let opened = self.open(key, 0, stored).await?;
        if opened.is_end { Ok(opened.plain.into()) } else { Err(self.corrupt(key, EncryptionError::CutShort)) }
    }

    /// A range whose blocks are not there, or are none: behind the end, in the clear, or damage. The object's beginning and
    /// its end tell.
    async fn where_no_block_is(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        blocks: &BlockRange,
        found: Bytes,
    ) -> StorageResult<Bytes> {
        let beginning = match blocks.first {
            0 => found.clone(),
            _ => self.raw.get_range(key, 0..HEADER as u64).await?,
        };
        if !is_encrypted(&beginning) {
            self.may_be_clear(key)?;
            return self.raw.get_range(key, range).await;
        }
        if !found.is_empty() {
            return Err(self.corrupt(key, format!("block {} has no header", blocks.first)));
        }
        let cut_short = || self.corrupt(key, EncryptionError::CutShort);
        let len = self.raw.head(key).await?.ok_or_else(cut_short)?;
        plain_len(len).ok_or_else(cut_short)?;
        let last = len.saturating_sub(1) / STORED_BLOCK;
        let block = self.raw.get_range(key, last * STORED_BLOCK..len).await?;
        if self.open(key, last, block).await?.is_end { Ok(Bytes::new()) } else { Err(cut_short()) }
    }
}

#[async_trait]
impl Storage for EncryptedStorage {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        let prepared = self.cipher.prepare(key, body, sha256).await.map_err(|error| {
            StorageError::new(StorageErrorKind::NoKey, "put", self.raw.place_of(key.as_str()), error.to_string())
        })?;
        self.raw.put_new(key, prepared.body().clone(), prepared.sha256()).await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.open_whole(key, self.raw.get(key).await?).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        if range.is_empty() || !matches!(*self.cipher, Cipher::On(_)) {
            let found = self.raw.get_range(key, range.clone()).await?;
            // Chance does not make such a beginning; within an object it means nothing.
            if range.start == 0 && is_encrypted(&found) {
                let generation = claimed_generation(&found).unwrap_or(Generation::FIRST);
                return self.key(key, generation).await.map(|_| found);
            }
            return Ok(found);
        }
        let blocks = BlockRange::of(&range);
        let stored = self.raw.get_range(key, blocks.stored.clone()).await?;
        if !is_encrypted(&stored) {
            return self.where_no_block_is(key, range, &blocks, stored).await;
        }
        let cut = (stored.len() as u64) < blocks.stored.end - blocks.stored.start;
        let opened = self.open(key, blocks.first, stored).await?;
        if cut && !opened.is_end {
            return Err(self.corrupt(key, EncryptionError::CutShort));
        }
        let plain = Bytes::from(opened.plain);
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(plain.len());
        let start = clamp(blocks.skip);
        Ok(plain.slice(start..clamp(blocks.skip.saturating_add(range.end - range.start)).max(start)))
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        self.raw.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.raw.list(prefix, after, limit).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.raw.list_folders(prefix).await
    }

    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        self.raw.list_level(prefix).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        self.raw.delete(keys).await
    }

    fn capabilities(&self) -> Capabilities {
        self.raw.capabilities()
    }

    fn location(&self) -> String {
        self.raw.location()
    }
}
