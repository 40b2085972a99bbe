//! A store in memory, for tests: the plainest meaning of every operation.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::codec::digest::sha256 as digest;

use super::key::check_prefix;
use super::{
    Body, Capabilities, InvalidKey, ObjectInfo, ObjectKey, PutIfAbsent, PutOutcome, Sha256, Storage, StorageError,
    StorageErrorKind, StorageResult,
};

/// Objects in memory; gone when dropped.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryStorage {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        // Every change is one insert or remove, so a panic elsewhere leaves the map whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_prefix(&self, operation: &'static str, prefix: &str) -> StorageResult<()> {
        let error = |error: InvalidKey| {
            StorageError::new(StorageErrorKind::Other, operation, self.place_of(prefix), error.to_string())
        };
        check_prefix(prefix).map_err(error)
    }

    fn find(&self, operation: &'static str, key: &ObjectKey) -> StorageResult<Bytes> {
        self.objects().get(key.as_str()).cloned().ok_or_else(|| {
            StorageError::new(StorageErrorKind::NotFound, operation, self.place_of(key.as_str()), "no such object")
        })
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        let error = |kind, message: String| StorageError::new(kind, "put", self.place_of(key.as_str()), message);
        let len = body.len();
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File { path, .. } => {
                Bytes::from(std::fs::read(path).map_err(|e| error(StorageErrorKind::Other, e.to_string()))?)
            }
        };
        if bytes.len() as u64 != len || digest(&bytes) != sha256 {
            return Err(error(StorageErrorKind::Corrupt, "the body is not what its checksum says".to_owned()));
        }
        let mut objects = self.objects();
        if objects.contains_key(key.as_str()) {
            return Ok(PutOutcome::AlreadyExists);
        }
        objects.insert(key.as_str().to_owned(), bytes);
        Ok(PutOutcome::Created)
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.find("get", key)
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        let bytes = self.find("get_range", key)?;
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let (start, end) = (clamp(range.start), clamp(range.end));
        Ok(bytes.slice(start..end.max(start)))
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        Ok(self.objects().get(key.as_str()).map(|bytes| bytes.len() as u64))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.check_prefix("list", prefix)?;
        let objects = self.objects();
        let found = objects
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .filter_map(|(key, bytes)| Some(ObjectInfo { key: ObjectKey::new(key).ok()?, size: bytes.len() as u64 }));
        Ok(found.take(limit.unwrap_or(usize::MAX)).collect())
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.check_prefix("list_folders", prefix)?;
        let objects = self.objects();
        let folders: BTreeSet<&str> =
            objects.keys().filter_map(|key| Some(key.strip_prefix(prefix)?.split_once('/')?.0)).collect();
        Ok(folders.into_iter().map(str::to_owned).collect())
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        let mut objects = self.objects();
        for key in keys {
            objects.remove(key.as_str());
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { put_if_absent: PutIfAbsent::Atomic }
    }

    fn location(&self) -> String {
        "memory://".to_owned()
    }
}
