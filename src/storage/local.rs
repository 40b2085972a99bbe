//! A repository in a local directory: one file per object, its path the object's key.
//!
//! Objects are written under `.tmp/` and get their name with everything durable: content, name, and every folder above
//! it (see [`folders`] for the proof). Names that start with a dot are never objects.

mod folders;
mod objects;
mod walk;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{
    Body, Capabilities, Level, ObjectInfo, ObjectKey, PutIfAbsent, PutOutcome, Sha256, Storage, StorageError,
    StorageErrorKind, StorageResult,
};
use objects::Objects;

/// Why a request failed: what the system said, or what was found.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{1}")]
    Found(StorageErrorKind, String),
}

impl Trouble {
    fn kind(&self) -> StorageErrorKind {
        match self {
            Self::Found(kind, _) => *kind,
            Self::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => StorageErrorKind::NotFound,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StorageErrorKind::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    StorageErrorKind::Full
                }
                // What network file systems say when their server is away.
                io::ErrorKind::TimedOut
                | io::ErrorKind::StaleNetworkFileHandle
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::Interrupted
                | io::ErrorKind::WouldBlock
                | io::ErrorKind::ResourceBusy => StorageErrorKind::Transient,
                _ => StorageErrorKind::Other,
            },
        }
    }
}

/// A directory that holds objects.
#[derive(Debug)]
pub struct LocalStorage {
    objects: Arc<Objects>,
}

impl LocalStorage {
    /// Opens a directory by its absolute path. It is created by the first put when it is missing. Files that a crash
    /// left behind under `.tmp/`, a day old at `now` and held by nobody, are removed.
    pub async fn open(root: &Path, now: DateTime<Utc>) -> StorageResult<Self> {
        let objects = Arc::new(Objects::new(root.to_owned()).map_err(|trouble| {
            StorageError::new(trouble.kind(), "open", format!("file://{}", root.display()), trouble.to_string())
        })?);
        let store = Self { objects };
        store.blocking("open", "", move |objects| objects.start(now)).await?;
        Ok(store)
    }

    /// Runs `work` on a thread that may wait for the disk. When the caller goes away the work still runs to its end: a
    /// put leaves nothing or the whole object.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&Objects) -> Result<T, Trouble> + Send + 'static,
    ) -> StorageResult<T> {
        let objects = Arc::clone(&self.objects);
        let error = |kind, message: String| StorageError::new(kind, operation, self.place_of(key), message);
        match tokio::task::spawn_blocking(move || work(&objects)).await {
            Ok(outcome) => outcome.map_err(|trouble| error(trouble.kind(), trouble.to_string())),
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(error(StorageErrorKind::Transient, "the program is stopping".to_owned())),
            },
        }
    }
}

#[async_trait]
impl Storage for LocalStorage {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        let owned = key.clone();
        self.blocking("put", key.as_str(), move |objects| objects.put_new(&owned, &body, sha256)).await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        let owned = key.clone();
        self.blocking("get", key.as_str(), move |objects| objects.get_range(&owned, 0..u64::MAX)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        let owned = key.clone();
        self.blocking("get_range", key.as_str(), move |objects| objects.get_range(&owned, range)).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        let owned = key.clone();
        self.blocking("head", key.as_str(), move |objects| objects.head(&owned)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        let (owned, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.blocking("list", prefix, move |objects| objects.list(&owned, after.as_deref(), limit)).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        let owned = prefix.to_owned();
        self.blocking("list_folders", prefix, move |objects| objects.list_folders(&owned)).await
    }

    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        let owned = prefix.to_owned();
        self.blocking("list", prefix, move |objects| objects.list_level(&owned)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        let first = keys.first().map_or("", ObjectKey::as_str);
        let owned = keys.to_vec();
        self.blocking("delete", first, move |objects| objects.delete(&owned)).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { put_if_absent: PutIfAbsent::Atomic }
    }

    fn location(&self) -> String {
        format!("file://{}", self.objects.root().display())
    }
}

/// The directory that a `file://` URL names; it must be absolute.
pub(super) fn directory_of(url: &str) -> Option<PathBuf> {
    let path = Path::new(url.strip_prefix("file://")?);
    path.is_absolute().then(|| path.to_owned())
}

#[cfg(test)]
mod tests;
