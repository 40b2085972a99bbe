//! Reading old chunks back from the repository, while it pays.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::reference::{OldChunk, PlacedChunk};
use crate::repository::chunk_index::pack_key;
use crate::repository::{ClusterName, Objects, RepositoryError};
use crate::storage::ObjectKey;

mod ahead;
#[cfg(test)]
mod tests;

use ahead::{Ahead, Read};

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
    permits: Arc<Semaphore>,
    ahead: Mutex<Ahead<Window>>,
    patience: Duration,
    failures: AtomicU32,
}

/// A piece of a pack that is being read, or was; `None` when it cannot be. Read on whether somebody waits or not, and given
/// up when it is forgotten.
#[derive(Clone, Debug)]
struct Window {
    bytes: Shared<BoxFuture<'static, Option<Bytes>>>,
    _reading: Arc<AbortOnDropHandle<Option<Bytes>>>,
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
        let permits = Arc::new(Semaphore::new(reads.max(1)));
        Self { objects, cluster, permits, ahead: Mutex::default(), patience: PATIENCE, failures: AtomicU32::new(0) }
    }

    /// Whether it is still worth while to read back for a patch.
    pub(super) fn pays(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < MAX_FAILURES
    }

    /// The whole chunk beneath a patch to come; `None` when that costs more than it saves: the chunk is stored whole.
    pub(super) async fn base(&self, base: &PlacedChunk) -> Option<OldFrames> {
        let problem = match tokio::time::timeout(self.patience, self.frame(base)).await {
            Ok(Ok(bytes)) => return Some(OldFrames { base: Some(bytes), patch: None }),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                // The next chunks are not to wait for the same request.
                self.ahead().forget(&base.pack.sha256, u64::from(base.offset));
                format!("not within {} s", self.patience.as_secs())
            }
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
        // A frame is never empty.
        let (from, len) = (u64::from(chunk.offset), u64::from(chunk.stored.max(1)));
        let begin = |range: std::ops::Range<u64>| self.begin(key.clone(), range);
        let read = self.ahead().read(&chunk.pack.sha256, from..from + len, chunk.pack.size, begin);
        if !matches!(read, Read::Alone) {
            if let Some(frame) = read_ahead(read, len).await {
                return Ok(frame);
            }
            // What is wrong with a neighbour is no matter of this chunk.
            let mut ahead = self.ahead();
            [from, from + len - 1].iter().for_each(|&at| ahead.forget(&chunk.pack.sha256, at));
        }
        let _permit = self.permits.acquire().await;
        let bytes = self.objects.get_range(&key, from, from + len).await?;
        if bytes.len() as u64 == len {
            Ok(bytes)
        } else {
            Err(RepositoryError::damaged(&key, format!("it ends before byte {}", from + len)))
        }
    }

    fn begin(&self, key: ObjectKey, range: std::ops::Range<u64>) -> Window {
        let (objects, permits) = (self.objects.clone(), Arc::clone(&self.permits));
        let read = async move {
            let _permit = permits.acquire().await;
            let read = objects.get_range(&key, range.start, range.end).await;
            read.inspect_err(|error| tracing::debug!(%key, ?range, %error, "not read ahead")).ok()
        };
        let bytes = read.boxed().shared();
        let reading = Arc::new(AbortOnDropHandle::new(tokio::spawn(bytes.clone())));
        Window { bytes, _reading: reading }
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead<Window>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `len` bytes of windows; `None` where those could not be read whole.
async fn read_ahead(read: Read<Window>, len: u64) -> Option<Bytes> {
    match read {
        Read::Alone => None,
        Read::Within(window, at) => piece(&window.bytes.await?, at, len),
        Read::Across(first, at, second, split) => {
            let beginning = piece(&first.bytes.await?, at, split)?;
            let rest = piece(&second.bytes.await?, 0, len.checked_sub(split)?)?;
            Some([beginning, rest].concat().into())
        }
    }
}

/// `len` bytes from there on; `None` where there are fewer.
fn piece(of: &Bytes, at: u64, len: u64) -> Option<Bytes> {
    let (from, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
    let to = from.checked_add(len).filter(|&to| to <= of.len())?;
    Some(of.slice(from..to))
}
