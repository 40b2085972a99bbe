//! Reading old chunks back from the repository, while it pays.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::reference::{OldChunk, PlacedChunk};
use crate::repository::chunk_index::pack_key;
use crate::repository::{ClusterName, Objects, RepositoryError};

/// A chunk that takes longer than this to read back costs more than its patch saves: a whole chunk is compressed and on
/// its way in a fraction of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// After so many chunks that took too long or could not be read, nothing is read back any more for the sake of patches.
const MAX_FAILURES: u32 = 16;

/// Reads frames, some at once.
#[derive(Debug)]
pub(super) struct ReadBack {
    objects: Objects,
    cluster: ClusterName,
    permits: Semaphore,
    failures: AtomicU32,
}

/// The stored frames of an old chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct OldFrames {
    /// Of the whole chunk; `None` of zeros.
    pub(super) base: Option<Bytes>,
    /// Of the difference that lies over it.
    pub(super) patch: Option<Bytes>,
}

impl ReadBack {
    /// At most `reads` requests at once; each may take a chunk of memory.
    pub(super) fn new(objects: Objects, cluster: ClusterName, reads: usize) -> Self {
        Self { objects, cluster, permits: Semaphore::new(reads.max(1)), failures: AtomicU32::new(0) }
    }

    /// Whether it is still worth while to read back for a patch.
    pub(super) fn pays(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < MAX_FAILURES
    }

    /// The whole chunk beneath a patch to come; `None` when that costs more than it saves: the chunk is stored whole.
    pub(super) async fn base(&self, base: &PlacedChunk) -> Option<OldFrames> {
        let problem = match tokio::time::timeout(PATIENCE, self.frame(base)).await {
            Ok(Ok(bytes)) => return Some(OldFrames { base: Some(bytes), patch: None }),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not within {} s", PATIENCE.as_secs()),
        };
        self.failed(&problem);
        None
    }

    /// Everything that an old chunk is made of. For content that comes from nowhere else, so it waits and fails.
    pub(super) async fn all(&self, chunk: &OldChunk) -> Result<OldFrames, RepositoryError> {
        Ok(match chunk {
            OldChunk::Zeros { .. } => OldFrames::default(),
            OldChunk::Whole(base) => OldFrames { base: Some(self.frame(base).await?), patch: None },
            OldChunk::Patched { patch, base } => {
                OldFrames { base: Some(self.frame(base).await?), patch: Some(self.frame(patch).await?) }
            }
        })
    }

    /// Something that was read back is of no use.
    pub(super) fn failed(&self, problem: &str) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == MAX_FAILURES {
            tracing::warn!(%problem, "old chunks cannot be read back: changed chunks are stored whole from here on");
        }
    }

    async fn frame(&self, chunk: &PlacedChunk) -> Result<Bytes, RepositoryError> {
        let key = pack_key(&self.cluster, &chunk.pack.sha256);
        let (from, len) = (u64::from(chunk.offset), u64::from(chunk.stored));
        let _permit = self.permits.acquire().await;
        let bytes = self.objects.get_range(&key, from, from + len).await?;
        if bytes.len() as u64 == len {
            Ok(bytes)
        } else {
            Err(RepositoryError::damaged(&key, format!("it ends before byte {}", from + len)))
        }
    }
}
