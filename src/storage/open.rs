//! Opens the store that a URL names.

use std::sync::Arc;

use super::limited::Limited;
use super::local::{LocalStorage, directory_of};
use super::memory::MemoryStorage;
use super::metered::Metered;
use super::retry::Retry;
use super::s3::S3Storage;
use super::{Probe, Storage, StorageContext, StorageError, StorageErrorKind, StorageOptions, StorageResult};

/// How many requests run at a time when nothing is configured.
const DEFAULT_CONNECTIONS: usize = 8;

/// Opens a store: the place that the URL names, its requests counted and bounded, failed ones repeated where that can
/// help.
///
/// A `file://` directory appears with the first put when it is missing; a bucket must exist.
/// [`Storage::capabilities`] promises nothing before the probe ([`StorageContext::probe`]).
pub async fn open(options: &StorageOptions, context: StorageContext) -> StorageResult<Arc<dyn Storage>> {
    let url = &options.url;
    match url.split_once("://") {
        Some(("memory", _)) => Ok(Arc::new(wrap(Arc::new(MemoryStorage::new()), options, &context))),
        Some(("file", _)) => {
            let root = directory_of(url).ok_or_else(|| not_a_place(url))?;
            let store = LocalStorage::open(&root, context.clock.now()).await?;
            Ok(Arc::new(wrap(Arc::new(store), options, &context)))
        }
        Some(("s3", _)) => {
            let s3 = Arc::new(S3Storage::connect(options, &context).await?);
            let store = wrap(Arc::clone(&s3) as Arc<dyn Storage>, options, &context);
            if context.probe == Probe::AtOpen {
                store.repeat(|_| s3.find_out()).await?;
            }
            Ok(Arc::new(store))
        }
        _ => Err(not_a_place(url)),
    }
}

/// Each attempt is counted by itself; waiting for a slot is not part of a request's time, and waiting for the next
/// attempt occupies no slot.
fn wrap(store: Arc<dyn Storage>, options: &StorageOptions, context: &StorageContext) -> Retry {
    let metered = Metered::new(store, Arc::clone(&context.meter), Arc::clone(&context.clock));
    let limited = Limited::new(Arc::new(metered), options.connections.unwrap_or(DEFAULT_CONNECTIONS));
    Retry::new(Arc::new(limited), context.retry, context.seed)
}

fn not_a_place(url: &str) -> StorageError {
    let message = "not a place for a repository: s3://bucket/prefix or file:///absolute/path";
    StorageError::new(StorageErrorKind::Other, "open", url, message)
}
