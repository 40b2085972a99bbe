//! Which chunks the packs of a cluster hold already.
//!
//! A cache on local disk: deleting it is harmless, losing it costs one small read per pack. It is never believed about
//! what exists: [`ChunkIndex::refresh`] brings it in line with the listing of packs, reads the tables of contents of
//! those it does not know (of another host, of interrupted backups), and from then on only chunks of listed packs are
//! found. Errors of the local file cost space in the repository (chunks are stored again), never a backup.

mod disk;
mod memory;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::durable;
use crate::repository::RepositoryResult;
use crate::repository::file_table::ChunkHash;
use crate::repository::layout::{ObjectName, Parsed, packs_prefix};
use crate::repository::manifest::PackRef;
use crate::repository::pack::{PackedChunk, Toc, read_toc};
use crate::repository::{ClusterName, Objects, RepositoryError};
use crate::storage::{ObjectKey, Sha256};

use disk::DiskIndex;
use memory::MemoryIndex;

#[cfg(test)]
mod tests;

/// How much of a pack's end is read at first: its table of contents is in it, unless its chunks are tiny.
const TOC_READ: u64 = 64 << 10;

/// Tables of contents that are read at once.
const PARALLEL_READS: usize = 8;

/// The chunks that are known.
#[derive(Debug)]
pub struct ChunkIndex {
    chunks: Chunks,
    /// Packs that exist, with their sizes: only their chunks are found.
    listed: RwLock<HashMap<Sha256, u64>>,
}

#[derive(Debug)]
enum Chunks {
    Disk(DiskIndex),
    Memory(MemoryIndex),
}

/// Where a known chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownChunk {
    /// The pack.
    pub pack: PackRef,
    /// First byte of its zstd frame in the pack.
    pub offset: u32,
    /// Length of the zstd frame.
    pub stored: u32,
    /// Length of the plaintext.
    pub plain: u32,
}

/// What the index keeps of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Location {
    pack: Sha256,
    offset: u32,
    stored: u32,
    plain: u32,
}

/// What [`ChunkIndex::refresh`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Packs that exist.
    pub packs: u64,
    /// Packs whose table of contents had to be read.
    pub read: u64,
    /// Packs whose table of contents is damaged: not used.
    pub damaged: u64,
    /// Packs that were known and are gone.
    pub gone: u64,
}

impl ChunkIndex {
    /// The index in this file, a new one where there is none or it cannot be read, in memory when another process has it.
    pub fn open(path: &Path) -> Self {
        let opened = match path.parent() {
            Some(dir) => durable::create_dir_all(dir, durable::PRIVATE_DIR).map_err(redb::Error::Io),
            None => Ok(()),
        };
        match opened.and_then(|()| DiskIndex::open(path)) {
            Ok(index) => Self::with(Chunks::Disk(index)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "index of chunks not usable, working without it");
                Self::in_memory()
            }
        }
    }

    /// An index that is forgotten afterwards and remembers about half a terabyte.
    pub fn in_memory() -> Self {
        Self::with(Chunks::Memory(MemoryIndex::default()))
    }

    fn with(chunks: Chunks) -> Self {
        Self { chunks, listed: RwLock::default() }
    }

    /// Brings the index in line with the packs that exist. Local work is done on the calling thread.
    pub async fn refresh(&self, objects: &Objects, cluster: &ClusterName) -> RepositoryResult<Refreshed> {
        let listed = list_packs(objects, cluster).await?;
        let known = self.known_packs();
        let gone = known.iter().filter(|pack| !listed.contains_key(*pack)).count() as u64;
        if gone > 0 {
            self.forget_packs(&listed);
        }
        let unknown: Vec<PackRef> = listed
            .iter()
            .filter(|(sha256, _)| !known.contains(*sha256))
            .map(|(&sha256, &size)| PackRef { sha256, size })
            .collect();
        let mut refreshed = Refreshed { packs: listed.len() as u64, read: unknown.len() as u64, damaged: 0, gone };
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = listed;
        // Owned, because the compiler cannot see otherwise that the whole is Send.
        let (objects, cluster) = (objects.clone(), cluster.clone());
        let mut tables = stream::iter(unknown)
            .map(move |pack| {
                let (objects, cluster) = (objects.clone(), cluster.clone());
                async move { read_pack_toc(&objects, &cluster, pack).await.map(|toc| (pack, toc)) }
            })
            .buffer_unordered(PARALLEL_READS);
        while let Some((pack, toc)) = tables.try_next().await? {
            match toc {
                Some(chunks) => self.add_pack(pack, &chunks),
                None => refreshed.damaged += 1,
            }
        }
        Ok(refreshed)
    }

    /// Where a chunk lies, if a pack that exists holds it. Reads the local file.
    pub fn find(&self, hash: &ChunkHash) -> Option<KnownChunk> {
        let location = match &self.chunks {
            Chunks::Disk(index) => index.find(hash).unwrap_or_else(|error| {
                tracing::debug!(%error, "index of chunks cannot be read");
                None
            }),
            Chunks::Memory(index) => index.find(hash),
        }?;
        let size = *self.listed.read().unwrap_or_else(PoisonError::into_inner).get(&location.pack)?;
        let Location { pack, offset, stored, plain } = location;
        let inside = u64::from(offset) + u64::from(stored) <= size;
        inside.then_some(KnownChunk { pack: PackRef { sha256: pack, size }, offset, stored, plain })
    }

    /// Remembers the chunks of a pack that is stored now. Writes the local file.
    pub fn add_pack(&self, pack: PackRef, chunks: &[PackedChunk]) {
        self.listed.write().unwrap_or_else(PoisonError::into_inner).insert(pack.sha256, pack.size);
        match &self.chunks {
            Chunks::Disk(index) => {
                if let Err(error) = index.add_pack(&pack.sha256, chunks) {
                    tracing::warn!(%error, "index of chunks cannot be written; some chunks will be stored again");
                }
            }
            Chunks::Memory(index) => index.add_pack(&pack.sha256, chunks),
        }
    }

    /// Whether a pack exists, with this length.
    pub fn lists(&self, pack: &PackRef) -> bool {
        self.listed.read().unwrap_or_else(PoisonError::into_inner).get(&pack.sha256) == Some(&pack.size)
    }

    fn known_packs(&self) -> std::collections::HashSet<Sha256> {
        match &self.chunks {
            Chunks::Disk(index) => index.packs().unwrap_or_else(|error| {
                tracing::warn!(%error, "index of chunks cannot be read; it is made again");
                Default::default()
            }),
            Chunks::Memory(index) => index.packs(),
        }
    }

    fn forget_packs(&self, listed: &HashMap<Sha256, u64>) {
        match &self.chunks {
            Chunks::Disk(index) => {
                if let Err(error) = index.retain(|pack| listed.contains_key(pack)) {
                    // What is left behind is not found: its packs are not listed.
                    tracing::warn!(%error, "index of chunks cannot be cleaned");
                }
            }
            Chunks::Memory(index) => index.retain(|pack| listed.contains_key(pack)),
        }
    }
}

/// The packs that exist, with their sizes.
pub async fn list_packs(objects: &Objects, cluster: &ClusterName) -> RepositoryResult<HashMap<Sha256, u64>> {
    let found = objects.storage().list(&packs_prefix(cluster), None, None).await?;
    let packs = found.iter().filter_map(|object| match ObjectName::parse(object.key.as_str()) {
        Parsed::Known(ObjectName::Pack(_, sha256)) => Some((sha256, object.size)),
        _ => None,
    });
    Ok(packs.collect())
}

/// The key of a pack.
pub fn pack_key(cluster: &ClusterName, sha256: &Sha256) -> ObjectKey {
    ObjectName::Pack(cluster.clone(), *sha256).key()
}

/// What lies in a pack, by its own table of contents; `None` when that is damaged, or the pack is gone since it was listed.
async fn read_pack_toc(
    objects: &Objects,
    cluster: &ClusterName,
    pack: PackRef,
) -> RepositoryResult<Option<Vec<PackedChunk>>> {
    let key = pack_key(cluster, &pack.sha256);
    let len = match objects.content_len(&key, pack.size).await {
        Err(RepositoryError::NotFound(_)) => return Ok(None),
        Err(error @ RepositoryError::Damaged { .. }) => {
            tracing::warn!(%key, %error, "pack not used for new backups");
            return Ok(None);
        }
        len => len?,
    };
    let mut last = TOC_READ;
    // The first read tells how long the table is; the second has all of it.
    for _ in 0..2 {
        let end = match objects.get_range(&key, len.saturating_sub(last), len).await {
            Err(RepositoryError::NotFound(_)) => return Ok(None),
            Err(error @ RepositoryError::Damaged { .. }) => {
                tracing::warn!(%key, %error, "pack not used for new backups");
                return Ok(None);
            }
            result => result?,
        };
        match read_toc(&end, len) {
            Ok(Toc::Chunks(chunks)) => return Ok(Some(chunks)),
            Ok(Toc::NeedsLast(len)) => last = len as u64,
            Err(error) => {
                tracing::warn!(%key, %error, "pack not used for new backups");
                return Ok(None);
            }
        }
    }
    tracing::warn!(%key, "pack not used for new backups: its end changes while it is read");
    Ok(None)
}
