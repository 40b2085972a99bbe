//! A repository in an S3 bucket, below a prefix.
//!
//! Services that speak S3 differ in what counts most here: whether a conditional put holds. It is found out with
//! scratch objects ([`probe`]) and never assumed. Requests are not repeated here, with the exception of the parts of
//! one large upload: [`Retry`](super::retry::Retry) does that, and knows what an answer means after a lost one.

mod bucket;
mod client;
mod credentials;
mod delete;
mod failure;
mod list;
mod multipart;
mod place;
mod probe;
mod put;
mod read;
mod signing;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::{
    Body, Capabilities, Level, ObjectInfo, ObjectKey, PutIfAbsent, PutOutcome, Sha256, Storage, StorageContext,
    StorageOptions, StorageResult,
};
use bucket::Bucket;
use probe::Abilities;

/// A bucket, or what lies below a prefix in it.
#[derive(Debug)]
pub struct S3Storage {
    bucket: Bucket,
    abilities: OnceCell<Abilities>,
}

impl S3Storage {
    /// Prepares access; sends no request to the store.
    pub async fn connect(options: &StorageOptions, context: &StorageContext) -> StorageResult<Self> {
        Ok(Self { bucket: client::connect(options, context).await?, abilities: OnceCell::new() })
    }

    /// Finds out what the store can do, unless it is known.
    pub(super) async fn find_out(&self) -> StorageResult<()> {
        self.abilities().await.map(|_| ())
    }

    async fn abilities(&self) -> StorageResult<Abilities> {
        self.abilities.get_or_try_init(|| probe::probe(&self.bucket)).await.copied()
    }
}

#[async_trait]
impl Storage for S3Storage {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        let abilities = self.abilities().await?;
        self.bucket.put_new(key, body, sha256, abilities).await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.bucket.get(key).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        self.bucket.get_range(key, range).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        self.bucket.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.bucket.list(prefix, after, limit).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.bucket.list_folders(prefix).await
    }

    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        self.bucket.list_level(prefix).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        self.bucket.delete(keys).await
    }

    fn capabilities(&self) -> Capabilities {
        // Until it was found out, nothing is promised.
        let put_if_absent = self.abilities.get().map_or(PutIfAbsent::Unreliable, |abilities| abilities.put_if_absent);
        Capabilities { put_if_absent }
    }

    fn location(&self) -> String {
        self.bucket.location()
    }
}
