//! `pgvault-repository.json`: says that here is a repository, of which format, and which one. FORMAT.md 3.1.

use std::fmt;

use wal::PgTime;

use crate::codec::digest::sha256;
use crate::repository::layout::ObjectName;
use crate::repository::{Objects, PutNew, RepositoryResult, seal_document, unseal_document};
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
}

/// Reads the marker; `NotFound` when there is none.
pub(super) async fn open(objects: &Objects) -> RepositoryResult<Marker> {
    let key = ObjectName::Marker.key();
    unseal_document(&key, KIND, &objects.get(&key).await?)
}

/// Reads the marker, or writes one. Two that write at once end with the same marker: the loser reads the winner's.
pub(super) async fn create_or_open(objects: &Objects, now: PgTime, id: RepositoryId) -> RepositoryResult<Marker> {
    match open(objects).await {
        Err(error) if error.is_not_found() => {}
        found => return found,
    }
    let key = ObjectName::Marker.key();
    let marker = Marker { id, created_at: now };
    let document = seal_document(&key, KIND, &marker)?;
    let digest = sha256(&document);
    match objects.put_new(&key, Body::Bytes(document), digest).await? {
        PutNew::Created => Ok(marker),
        PutNew::Taken => open(objects).await,
    }
}
