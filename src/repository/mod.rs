//! What is stored, in domain words. The only place that makes object keys (`layout`).
//!
//! A [`Repository`] holds clusters, a [`ClusterRepository`] the lineages of one, a [`LineageRepository`] the WAL, the
//! histories and the backups of one unbroken history. All three are handles: cheap to clone, safe to share.
//! Every object is described in `docs/FORMAT.md`.

mod catalog;
pub mod chunk_index;
pub mod chunk_reader;
mod cluster_name;
mod documents;
mod encrypted;
mod error;
pub mod file_table;
mod gaps;
mod header;
mod header_cache;
mod history;
mod inventory;
pub mod keys;
pub mod layout;
mod lineage;
pub mod manifest;
mod marker;
mod marks;
mod memory;
mod objects;
pub mod pack;
mod segments;
mod tails;
#[cfg(test)]
pub(crate) mod test_wal;
mod usage;
mod wal_object;
mod wal_read;
mod workbench;
pub mod xact_search;

use std::path::PathBuf;
use std::sync::Arc;

use recovery::LineageId;
use wal::{PgTime, SegmentSize, SystemIdentifier};

use encrypted::Cipher;
use keys::KeyRing;
use memory::ObjectMemory;
use workbench::Workbenches;

use crate::codec::Compression;
use crate::storage::Storage;

pub use cluster_name::{ClusterName, InvalidClusterName};
pub use documents::{seal_document, unseal_document};
pub use encrypted::Prepared;
pub use error::{Ancestry, LineageMismatch, MismatchFact, RepositoryError};
pub use gaps::GapDocument;
pub use header::{WalHeader, WalKind};
pub use header_cache::HeaderCache;
pub use inventory::{BackupObjects, Inventory};
pub use keys::{EncryptionOptions, KeyError};
pub use lineage::{ClusterIdentity, LineageDocument};
pub use marker::{Marker, RepositoryId};
pub use marks::{Mark, MarkDocument};
pub use objects::{Objects, PutNew, WholeObject};
pub use segments::{Fetched, PlainSource, SegmentMeta, Stored};
pub use tails::{TailChain, TailSink};
pub use usage::{BackupUsage, ClusterUsage};

/// The result of everything that touches the repository.
pub type RepositoryResult<T> = Result<T, RepositoryError>;

/// How this program writes to the repository, and what it may use locally.
#[derive(Clone, Debug)]
pub struct RepositoryOptions {
    /// How new objects are compressed.
    pub compression: Compression,
    /// A local directory for objects that are too large to be built in memory.
    pub scratch_dir: PathBuf,
    /// WAL segments up to this many bytes are compressed in memory, larger ones in a file.
    pub max_in_memory: u64,
    /// What all WAL that is being stored may take in memory together, in bytes.
    pub memory: u64,
    /// Where the headers of stored WAL are remembered between runs; none = not at all.
    pub header_cache_dir: Option<PathBuf>,
    /// For whom the repository is encrypted, and what opens it.
    pub encryption: EncryptionOptions,
}

impl Default for RepositoryOptions {
    /// zstd level 1, the system's temporary directory, objects of up to 32 MiB in memory, all together no more, no cache.
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            scratch_dir: std::env::temp_dir(),
            max_in_memory: 32 << 20,
            memory: 32 << 20,
            header_cache_dir: None,
            encryption: EncryptionOptions::default(),
        }
    }
}

/// Everything that is stored in one place.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<RepositoryInner>,
}

#[derive(Debug)]
struct RepositoryInner {
    objects: Objects,
    options: RepositoryOptions,
    marker: Marker,
    memory: ObjectMemory,
    workbenches: Workbenches,
}

impl Repository {
    /// Opens the repository that lies in `storage`; `NotFound` when there is none, `TooNew` when a newer pgvault made it,
    /// `Key` when it is encrypted and the configured identity does not open it.
    pub async fn open(storage: Arc<dyn Storage>, options: RepositoryOptions) -> RepositoryResult<Self> {
        let plain = Objects::new(Arc::clone(&storage));
        let (marker, ring) = tokio::join!(marker::open(&plain), keys::open(&plain, &options.encryption));
        Self::of(storage, options, marker?, ring?)
    }

    /// Opens the repository, or makes one with this `id` when there is none. Of several that make one at once, one wins
    /// and the others open the winner's. Where encryption is configured and there is no key ring, it is made first.
    pub async fn create_or_open(
        storage: Arc<dyn Storage>,
        options: RepositoryOptions,
        now: PgTime,
        id: RepositoryId,
    ) -> RepositoryResult<Self> {
        let plain = Objects::new(Arc::clone(&storage));
        let ring = match keys::open(&plain, &options.encryption).await? {
            None if !options.encryption.recipients.is_empty() => {
                let began_unencrypted = match marker::open(&plain).await {
                    Ok(marker) if marker.encrypted => return Err(KeyError::KeyRingGone.into()),
                    Ok(_) if marker::was_encrypted(&plain).await? => return Err(KeyError::KeyRingGone.into()),
                    Ok(_) => true,
                    Err(error) if error.is_not_found() => false,
                    Err(error) => return Err(error),
                };
                Some(keys::create(&plain, &options.encryption, began_unencrypted, now).await?)
            }
            ring => ring,
        };
        if ring.as_ref().is_some_and(KeyRing::began_unencrypted) {
            marker::note_encrypted(&plain, now).await?;
        }
        let encrypted = ring.as_ref().is_some_and(|ring| !ring.began_unencrypted());
        let marker = marker::create_or_open(&plain, now, id, encrypted).await?;
        Self::of(storage, options, marker, ring)
    }

    fn of(
        storage: Arc<dyn Storage>,
        options: RepositoryOptions,
        marker: Marker,
        ring: Option<KeyRing>,
    ) -> RepositoryResult<Self> {
        let cipher = match ring {
            Some(ring) => Cipher::On(ring),
            None if marker.encrypted => return Err(KeyError::KeyRingGone.into()),
            None if options.encryption.recipients.is_empty() => Cipher::Off,
            None => Cipher::Wanted,
        };
        let objects = Objects::with_cipher(storage, cipher);
        let memory = ObjectMemory::new(options.memory);
        let workbenches = Workbenches::new(options.compression);
        Ok(Self { inner: Arc::new(RepositoryInner { objects, options, marker, memory, workbenches }) })
    }

    fn memory(&self) -> &ObjectMemory {
        &self.inner.memory
    }

    fn workbenches(&self) -> &Workbenches {
        &self.inner.workbenches
    }

    /// Which repository this is.
    pub fn marker(&self) -> &Marker {
        &self.inner.marker
    }

    /// The store beneath, with the rule "written once" over it.
    pub fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    /// How new objects are compressed, and what may be used locally.
    pub fn options(&self) -> &RepositoryOptions {
        &self.inner.options
    }

    /// Where it is, for people; no secret.
    pub fn location(&self) -> String {
        self.inner.objects.storage().location()
    }

    /// One cluster, whether anything of it is stored or not.
    pub fn cluster(&self, name: &ClusterName) -> ClusterRepository {
        ClusterRepository { repository: self.clone(), name: name.clone() }
    }

    /// The clusters of which anything is stored, by name.
    pub async fn clusters(&self) -> RepositoryResult<Vec<ClusterName>> {
        let folders = self.inner.objects.storage().list_folders("").await?;
        Ok(folders.iter().filter_map(|folder| ClusterName::new(folder.rsplit('/').next()?).ok()).collect())
    }
}

/// What is stored of one cluster.
#[derive(Clone, Debug)]
pub struct ClusterRepository {
    repository: Repository,
    name: ClusterName,
}

impl ClusterRepository {
    /// The cluster's name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The repository it lies in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Every lineage, oldest first. An unreadable one is an error, never skipped.
    pub async fn lineages(&self) -> RepositoryResult<Vec<LineageRepository>> {
        lineage::all(self).await
    }

    /// The lineage that was begun last; none when nothing of the cluster is stored.
    pub async fn newest_lineage(&self) -> RepositoryResult<Option<LineageRepository>> {
        Ok(self.lineages().await?.pop())
    }

    /// One lineage by its name.
    pub async fn lineage(&self, id: LineageId) -> RepositoryResult<LineageRepository> {
        lineage::open(self, id).await
    }

    /// The lineage that the WAL and backups of this server belong to, begun when the cluster has none yet.
    ///
    /// A server that contradicts what is stored (another system identifier, another history under the same timeline) is
    /// refused with both facts ([`RepositoryError::Lineage`]), unless `new_lineage` asks to begin another lineage, with the
    /// newest one so far as its parent.
    pub async fn lineage_for(
        &self,
        server: &ClusterIdentity,
        new_lineage: bool,
        now: PgTime,
    ) -> RepositoryResult<LineageRepository> {
        lineage::find_or_create(self, server, new_lineage, now).await
    }
}

/// What is stored of one lineage.
#[derive(Clone, Debug)]
pub struct LineageRepository {
    inner: Arc<LineageInner>,
}

#[derive(Debug)]
struct LineageInner {
    repository: Repository,
    keys: layout::LineageKeys,
    document: LineageDocument,
    histories: history::KnownHistories,
    headers: HeaderCache,
}

impl LineageRepository {
    /// Its name.
    pub fn id(&self) -> LineageId {
        self.inner.keys.lineage()
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> &ClusterName {
        self.inner.keys.cluster()
    }

    /// What was written down when it began.
    pub fn document(&self) -> &LineageDocument {
        &self.inner.document
    }

    /// Size of its WAL segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.inner.document.segment_size
    }

    /// The identifier that initdb gave.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.inner.document.system_identifier
    }

    /// Its keys.
    pub fn keys(&self) -> &layout::LineageKeys {
        &self.inner.keys
    }

    /// The repository it lies in.
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// The store beneath, with the rule "written once" over it.
    pub fn objects(&self) -> &Objects {
        self.inner.repository.objects()
    }
}
