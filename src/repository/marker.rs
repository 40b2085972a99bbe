//! `pgvault-repository.json`: says that here is a repository, of which format, and which one. FORMAT.md 3.1.

use std::fmt;

use bytes::Bytes;
use wal::PgTime;

use crate::codec::digest::sha256;
use crate::codec::sealed::{ENCRYPTION, seal_with_features};
use crate::repository::layout::ObjectName;
use crate::repository::{Objects, PutNew, RepositoryError, RepositoryResult, unseal_document};
use crate::storage::Body;

const KIND: &str = "repository";

/// Tells one repository from another: 128 random bits.
#[derive(Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// The id with these bits.
    pub fn new(random: [u8; 16]) -> Self {
        Self(hex::encode(random))
    }

    /// 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The marker's content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Marker {
    /// Which repository this is.
    pub id: RepositoryId,
    /// When it was made.
    pub created_at: PgTime,
    /// Whether everything in it is encrypted, from the beginning.
    #[serde(default, skip_serializing_if = "is_false")]
    pub encrypted: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Reads the marker; `NotFound` when there is none.
pub(super) async fn open(objects: &Objects) -> RepositoryResult<Marker> {
    let key = ObjectName::Marker.key();
    unseal_document(&key, KIND, &objects.get(&key).await?)
}

/// Reads the marker, or writes one. Two that write at once end with the same marker: the loser reads the winner's.
pub(super) async fn create_or_open(
    objects: &Objects,
    now: PgTime,
    id: RepositoryId,
    encrypted: bool,
) -> RepositoryResult<Marker> {
    match open(objects).await {
        Err(error) if error.is_not_found() => {}
        found => return found,
    }
    let key = ObjectName::Marker.key();
    let marker = Marker { id, created_at: now, encrypted };
    let features: &[&str] = if encrypted { &[ENCRYPTION] } else { &[] };
    let document = seal_with_features(KIND, features, &marker);
    let document = Bytes::from(document.map_err(|error| RepositoryError::mismatch(&key, error))?);
    let digest = sha256(&document);
    match objects.put_in_the_clear(&key, Body::Bytes(document), digest).await? {
        PutNew::Created => Ok(marker),
        PutNew::Taken => open(objects).await,
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct EncryptedSince {
    since: PgTime,
}

/// Whether a repository that began in the clear says that it was encrypted later.
pub(super) async fn was_encrypted(objects: &Objects) -> RepositoryResult<bool> {
    Ok(objects.find(&ObjectName::EncryptedSince.key()).await?.is_some())
}

/// Notes it, beside the key ring: when all of that is lost, no other one must be begun in its place.
pub(super) async fn note_encrypted(objects: &Objects, now: PgTime) -> RepositoryResult<()> {
    if was_encrypted(objects).await? {
        return Ok(());
    }
    let key = ObjectName::EncryptedSince.key();
    let document = seal_with_features("encrypted", &[ENCRYPTION], &EncryptedSince { since: now });
    let document = Bytes::from(document.map_err(|error| RepositoryError::mismatch(&key, error))?);
    let digest = sha256(&document);
    // Taken is as good: another writer has noted it.
    objects.put_in_the_clear(&key, Body::Bytes(document), digest).await.map(|_| ())
}
