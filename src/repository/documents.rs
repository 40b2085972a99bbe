//! Sealed documents under keys.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{SealedError, seal, unseal};
use crate::repository::{RepositoryError, RepositoryResult};
use crate::storage::ObjectKey;

/// The sealed document of this kind, to be stored under `key`.
pub fn seal_document<T: Serialize>(key: &ObjectKey, kind: &str, content: &T) -> RepositoryResult<Bytes> {
    seal(kind, content).map(Bytes::from).map_err(|error| RepositoryError::mismatch(key, error))
}

/// Reads the sealed document that lies under `key`.
pub fn unseal_document<T: DeserializeOwned>(key: &ObjectKey, kind: &str, bytes: &[u8]) -> RepositoryResult<T> {
    unseal(bytes, kind).map_err(|error: SealedError| {
        if error.is_too_new() {
            RepositoryError::TooNew { key: key.clone(), what: error.to_string() }
        } else {
            RepositoryError::damaged(key, error)
        }
    })
}
