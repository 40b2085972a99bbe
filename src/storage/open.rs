//! Opens the store that a URL names.

use std::sync::Arc;

use super::limited::Limited;
use super::local::{LocalStorage, directory_of};
use super::memory::MemoryStorage;
use super::metered::Metered;
use super::retry::Retry;
use super::{Storage, StorageContext, StorageError, StorageErrorKind, StorageOptions, StorageResult};

/// How many requests run at a time when nothing is configured.
const DEFAULT_CONNECTIONS: usize = 8;

/// Opens a store: the place that the URL names, its requests counted, failed ones repeated where that can help.
///
/// A `file://` directory is created when it is missing; a bucket must exist. What the store does with a put of an
/// existing key is found out here ([`Storage::capabilities`]).
pub async fn open(options: &StorageOptions, context: StorageContext) -> StorageResult<Arc<dyn Storage>> {
    let url = &options.url;
    let store: Arc<dyn Storage> = match url.split_once("://") {
        Some(("memory", _)) => Arc::new(MemoryStorage::new()),
        Some(("file", _)) => {
            let root = directory_of(url).ok_or_else(|| not_a_place(url))?;
            Arc::new(LocalStorage::open(&root, context.clock.now()).await?)
        }
        _ => return Err(not_a_place(url)),
    };
    // Each attempt is counted by itself; waiting for a slot is not part of a request's time, and waiting for the next
    // attempt occupies no slot.
    let metered = Metered::new(store, context.meter, context.clock);
    let limited = Limited::new(Arc::new(metered), options.connections.unwrap_or(DEFAULT_CONNECTIONS));
    Ok(Arc::new(Retry::new(Arc::new(limited), context.retry, context.seed)))
}

fn not_a_place(url: &str) -> StorageError {
    let message = "not a place for a repository: s3://bucket/prefix or file:///absolute/path";
    StorageError::new(StorageErrorKind::Other, "open", url, message)
}
