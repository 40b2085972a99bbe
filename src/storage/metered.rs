//! Counts and times every request that reaches a store.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use crate::clock::Clock;

use super::{
    Body, Capabilities, Level, ObjectInfo, ObjectKey, PutOutcome, Sha256, Storage, StorageErrorKind, StorageResult,
};

/// What became of a request, for the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestResult {
    /// It did what was asked for; "already exists" and "there is none" are answers too.
    Ok,
    /// It failed.
    Failed(StorageErrorKind),
    /// The caller went away before the answer came.
    Cancelled,
}

impl RequestResult {
    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(StorageErrorKind::NotFound) => "not_found",
            Self::Failed(StorageErrorKind::Denied) => "denied",
            Self::Failed(StorageErrorKind::Transient) => "transient",
            Self::Failed(StorageErrorKind::Full) => "full",
            Self::Failed(StorageErrorKind::Corrupt) => "corrupt",
            Self::Failed(StorageErrorKind::NoKey) => "no_key",
            Self::Failed(StorageErrorKind::Other) => "other",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Learns of every request. `operation` is one of `put`, `get`, `get_range`, `head`, `list`, `list_folders`, `delete`.
pub trait StorageMeter: Send + Sync + Debug {
    /// A request ended, after this time.
    fn request(&self, operation: &'static str, result: RequestResult, duration: Duration);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoMeter;

impl StorageMeter for NoMeter {
    fn request(&self, _operation: &'static str, _result: RequestResult, _duration: Duration) {}
}

/// A store whose requests are counted; attempts that are repeated count each.
#[derive(Debug)]
pub struct Metered {
    inner: Arc<dyn Storage>,
    meter: Arc<dyn StorageMeter>,
    clock: Arc<dyn Clock>,
}

impl Metered {
    /// Counts the requests to `inner`.
    pub fn new(inner: Arc<dyn Storage>, meter: Arc<dyn StorageMeter>, clock: Arc<dyn Clock>) -> Self {
        Self { inner, meter, clock }
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = StorageResult<T>>,
    ) -> StorageResult<T> {
        let mut running = Running { metered: self, operation, start: self.clock.instant(), result: None };
        let outcome = request.await;
        running.result = Some(match &outcome {
            Ok(_) => RequestResult::Ok,
            Err(error) => RequestResult::Failed(error.kind),
        });
        outcome
    }
}

/// Reports on drop, so that a request whose caller went away is counted too.
struct Running<'a> {
    metered: &'a Metered,
    operation: &'static str,
    start: Instant,
    result: Option<RequestResult>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let duration = self.metered.clock.instant().saturating_duration_since(self.start);
        self.metered.meter.request(self.operation, self.result.unwrap_or(RequestResult::Cancelled), duration);
    }
}

#[async_trait]
impl Storage for Metered {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        self.measure("put", self.inner.put_new(key, body, sha256)).await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.measure("get", self.inner.get(key)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        self.measure("get_range", self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        self.measure("head", self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.measure("list", self.inner.list(prefix, after, limit)).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.measure("list_folders", self.inner.list_folders(prefix)).await
    }

    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        self.measure("list", self.inner.list_level(prefix)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        self.measure("delete", self.inner.delete(keys)).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
