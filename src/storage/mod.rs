//! Keys and bytes: what every place that can hold a repository can do.
//!
//! The seam is narrow on purpose: an object is written once under its final key, read whole or by range, listed by
//! prefix, deleted. `local`, `s3` and `memory` implement it and one conformance suite runs over all three; `retry` and
//! `faulty` wrap it.

pub mod faulty;
mod key;
pub mod limited;
pub mod local;
pub mod memory;
pub mod metered;
mod open;
mod options;
pub mod retry;
pub mod s3;

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;

pub use key::{InvalidKey, ObjectKey};
pub use metered::{RequestResult, StorageMeter};
pub use open::open;
pub use options::{Probe, StorageContext, StorageOptions};
pub use retry::RetryPolicy;

/// SHA-256 of stored bytes.
pub type Sha256 = [u8; 32];

/// What is to be stored. Known length, readable again from the start, so that an attempt can be repeated.
#[derive(Clone, Debug)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A local file of this length, for objects too large for memory; it must not change until the put returns.
    File {
        /// Where it lies.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
}

impl Body {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a put found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The key was free; the object is now durable under it.
    Created,
    /// The key was taken; nothing was written. The caller compares.
    AlreadyExists,
}

/// What a listing tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub size: u64,
}

/// What lies right below a prefix, each in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Objects.
    pub objects: Vec<ObjectInfo>,
    /// Names of folders. Nothing need be left in one whose last object was deleted.
    pub folders: Vec<String>,
}

/// What a store does with a put of an existing key, as the probe at open found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutIfAbsent {
    /// Atomic: of several writers one wins, the others are told.
    Atomic,
    /// Ignored or unreliable: correctness comes from names that cannot collide, looking before and reading back after.
    Unreliable,
}

/// What one store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether put-if-absent holds.
    pub put_if_absent: PutIfAbsent,
}

/// What a caller can do about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageErrorKind {
    /// There is no object under the key.
    NotFound,
    /// The store does not let us in: credentials, rights, bucket, clock skew. Repeating does not help.
    Denied,
    /// It may work when repeated: timeouts, connection trouble, 5xx, throttling.
    Transient,
    /// No space left.
    Full,
    /// The store answered something that cannot be true: wrong length, wrong checksum.
    Corrupt,
    /// It is encrypted, and the key that it needs is not known here. Repeating does not help.
    NoKey,
    /// Anything else. Repeating does not help.
    Other,
}

/// A request to the store failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {key}: {message}")]
pub struct StorageError {
    /// What to do about it.
    pub kind: StorageErrorKind,
    /// `get`, `put`, `list`, `delete`, …
    pub operation: &'static str,
    /// The key or prefix, with the place it lies in.
    pub key: String,
    /// What the store said, with the request id where there is one; no secret.
    pub message: String,
}

impl StorageError {
    /// A failed request.
    pub fn new(
        kind: StorageErrorKind,
        operation: &'static str,
        key: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, operation, key: key.into(), message: message.into() }
    }
}

/// The result of a request to the store.
pub type StorageResult<T> = Result<T, StorageError>;

/// A place that holds objects.
#[async_trait]
pub trait Storage: Send + Sync + Debug {
    /// Stores `body` under `key` unless something is there. When it returns `Created`, the object is durable and
    /// complete. `sha256` is the checksum of `body`; a store that can verify it on arrival does.
    ///
    /// Dropping the future leaves either nothing or the whole object under the key, never a part.
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome>;

    /// The whole object.
    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes>;

    /// Bytes `range` of the object; shorter when the object ends inside the range, empty when it starts past the end.
    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes>;

    /// Length of the object, or `None` when there is none: authoritative, never from a cache or a listing.
    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>>;

    /// All objects whose key starts with `prefix` (a whole number of key components ending in `/`, or empty) and sorts
    /// after `after`, in key order. Pages until the store has no more, or until at least `limit` objects were found.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>>;

    /// The next key components below `prefix` that have further components below them ("folders"), in order,
    /// without the trailing `/`.
    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>>;

    /// What lies right below `prefix`, however much lies deeper. A store that can tells it without naming that.
    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        let mut level = Level::default();
        for object in self.list(prefix, None, None).await? {
            match object.key.as_str().get(prefix.len()..).and_then(|below| below.split_once('/')) {
                None => level.objects.push(object),
                Some((folder, _)) if level.folders.last().is_none_or(|last| last != folder) => {
                    level.folders.push(folder.to_owned());
                }
                Some(_) => {}
            }
        }
        Ok(level)
    }

    /// Deletes objects; those that are not there count as deleted.
    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()>;

    /// What this store can do.
    fn capabilities(&self) -> Capabilities;

    /// Where it is, for people: `s3://bucket/prefix`, `file:///srv/pgvault`. No secret.
    fn location(&self) -> String;

    /// A key or prefix with the place it lies in, for messages.
    fn place_of(&self, key: &str) -> String {
        let location = self.location();
        if location.ends_with('/') { location + key } else { format!("{location}/{key}") }
    }
}
