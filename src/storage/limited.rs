//! Bounds how many requests run at the same time.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Body, Capabilities, Level, ObjectInfo, ObjectKey, PutOutcome, Sha256, Storage, StorageResult};

/// A store that gets at most so many requests at a time; the others wait in the order in which they came.
#[derive(Debug)]
pub struct Limited {
    inner: Arc<dyn Storage>,
    slots: Semaphore,
}

impl Limited {
    /// At most `connections` requests at a time, at least one.
    pub fn new(inner: Arc<dyn Storage>, connections: usize) -> Self {
        Self { inner, slots: Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)) }
    }

    async fn slot(&self) -> Option<SemaphorePermit<'_>> {
        // Acquiring fails only when the semaphore was closed, which nobody does.
        self.slots.acquire().await.ok()
    }
}

#[async_trait]
impl Storage for Limited {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        let _slot = self.slot().await;
        self.inner.put_new(key, body, sha256).await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        let _slot = self.slot().await;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        let _slot = self.slot().await;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        let _slot = self.slot().await;
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        let _slot = self.slot().await;
        self.inner.list(prefix, after, limit).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        let _slot = self.slot().await;
        self.inner.list_folders(prefix).await
    }

    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        let _slot = self.slot().await;
        self.inner.list_level(prefix).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        let _slot = self.slot().await;
        self.inner.delete(keys).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
