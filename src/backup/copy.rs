//! The pipeline: read, work, pack, store, each while the others do.
//!
//! ```text
//! socket -> tar -> cutter -> [batches] -> workers -> packer -> [uploads]
//! data directory -> cutter -> [batches] -> readers, workers -> packer -> [uploads]
//! ```
//!
//! Memory, whatever the size of the cluster: the pool's buffers (1 MiB each: one being cut, the queue, one per worker and
//! per read-back), a compressed batch for each of those (about 1 MiB), three chunks of scratch per worker, the pack being
//! filled and those on their way (34 MiB each), windows of old packs (1 MiB each: six, and those that somebody still uses),
//! the fresh chunks (16 MiB at most), the index's cache (16 MiB), the part of
//! the file table (8 MiB, once more while it is compressed), 32 bytes per file for duplicates and the reference. With two
//! workers, four read-backs and two uploads: about 197 MiB at the very most, 140 in practice.

use std::sync::Arc;

use futures_util::{StreamExt, TryFutureExt, TryStreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use wal::Lsn;

use super::cut::{BufferPool, Cutter};
use super::error::CopyError;
use super::fresh::FreshChunks;
use super::manifest_check::ManifestCheck;
use super::packer::{Packed, Packer};
use super::pages::PageFacts;
use super::progress::ProgressSender;
use super::read::{BackupStream, ReadAll, read_stream};
use super::read_back::ReadBack;
use super::reader::Reader;
use super::reference::Reference;
use super::upload::{Destination, Uploads};
use super::work::{PageCheck, Workshop, WorkshopParts};
use crate::primary::MaxRate;
use crate::repository::chunk_index::ChunkIndex;

/// Batches between the reader and the workers: what the socket can run ahead.
const QUEUE: usize = 4;

/// How much a backup may do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Threads that hash and compress.
    pub workers: usize,
    /// Objects on their way to the store at once; each may be a pack in memory (34 MiB).
    pub uploads: usize,
    /// Old chunks that are read back at once.
    pub reads: usize,
}

impl Default for CopyLimits {
    /// As many workers as the machine has processors (eight at most), two uploads, four read-backs.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self { workers: processors.clamp(1, 8), uploads: 2, reads: 4 }
    }
}

/// What a copy needs besides the stream.
#[derive(Debug)]
pub(super) struct CopyParts {
    pub(super) destination: Destination,
    pub(super) index: Arc<ChunkIndex>,
    pub(super) limits: CopyLimits,
    /// How to verify page checksums; `None` where the cluster has none.
    pub(super) pages: Option<PageFacts>,
    /// What chunks are compared with.
    pub(super) reference: Option<Arc<Reference>>,
    /// No faster than this, where we read the files.
    pub(super) max_rate: Option<MaxRate>,
    /// Whether changed chunks may become page patches.
    pub(super) patches: bool,
    pub(super) scratch_dir: std::path::PathBuf,
    pub(super) progress: ProgressSender,
}

/// Copies what the server sends; of an incremental backup only what changed since the reference, in pages of these sizes.
pub(super) async fn copy_stream(
    stream: impl BackupStream + 'static,
    incremental: Option<PageFacts>,
    parts: CopyParts,
) -> Result<(ReadAll, Packed), CopyError> {
    let incremental = incremental.zip(parts.reference.clone());
    let check = ManifestCheck::new(&parts.scratch_dir, parts.destination.compression)?;
    let progress = parts.progress.clone();
    copy(|cutter, began| read_stream(stream, cutter, incremental, began, progress), Some(check), parts).await
}

/// Copies the whole backup, whose files `read` gives to the cutter. When it returns, every object but the manifest is durable
/// and every file is as PostgreSQL's manifest says, where the source has one to `check` against. Dropped or failed, it leaves
/// packs that the next backup finds by their tables of contents.
pub(super) async fn copy<R>(
    read: impl FnOnce(Cutter, oneshot::Sender<Lsn>) -> R,
    check: Option<ManifestCheck>,
    parts: CopyParts,
) -> Result<(ReadAll, Packed), CopyError>
where
    R: Future<Output = Result<ReadAll, CopyError>> + Send + 'static,
{
    let CopyParts { destination, index, limits, pages, reference, max_rate, patches, progress, .. } = parts;
    let (workers, reads) = (limits.workers.max(1), limits.reads.max(1));
    let pool = BufferPool::new(workers + reads + QUEUE + 2);
    let fresh = Arc::new(FreshChunks::default());
    let compression = destination.compression;
    let shop = Arc::new(Workshop::new(WorkshopParts {
        index: Arc::clone(&index),
        fresh: Arc::clone(&fresh),
        compression,
        buffers: pool.give_back(),
        read_back: ReadBack::new(destination.objects.clone(), destination.keys.cluster().clone(), reads),
        reader: Reader::new(max_rate, progress.clone()),
        patches: patches && reference.is_some(),
        threads: workers,
    }));
    let (batches, mut queue) = mpsc::channel(QUEUE);
    let (began, has_begun) = oneshot::channel();

    let cutter = Cutter::new(pool, batches, check, reference);
    let reader = AbortOnDropHandle::new(tokio::spawn(read(cutter, began)));
    let mut packer = Packer::new(Uploads::new(destination, limits.uploads.max(1)), index, fresh, progress);

    let packing = async move {
        // A reader that fails before it begins says so itself.
        let start = has_begun.await.map_err(|_| CopyError::Stopped)?;
        let pages = pages.map(|facts| PageCheck { facts, start });
        // `buffered` keeps the order of the batches whatever order they are done in. Tasks of their own: they go on while
        // the packer waits for the store.
        let mut worked = stream::poll_fn(move |context| queue.poll_recv(context))
            .map(|batch| {
                AbortOnDropHandle::new(tokio::spawn(Arc::clone(&shop).work(batch, pages))).map_err(CopyError::from)
            })
            .buffered(workers + reads);
        while let Some(worked) = worked.try_next().await? {
            packer.take(worked?).await?;
        }
        Ok(packer)
    };
    let reading = async { reader.await? };
    let (read, packer) = first_cause(reading, packing).await?;
    Ok((read, packer.finish().await?))
}

/// Both, or the error that is a cause: a stage that stops because another has failed must not hide why.
async fn first_cause<A, B>(
    one: impl Future<Output = Result<A, CopyError>>,
    other: impl Future<Output = Result<B, CopyError>>,
) -> Result<(A, B), CopyError> {
    let (one, other) = (std::pin::pin!(one), std::pin::pin!(other));
    match futures_util::future::select(one, other).await {
        futures_util::future::Either::Left((first, second)) => match first {
            Ok(first) => Ok((first, second.await?)),
            Err(CopyError::Stopped) => second.await.and(Err(CopyError::Stopped)),
            Err(error) => Err(error),
        },
        futures_util::future::Either::Right((first, second)) => match first {
            Ok(first) => Ok((second.await?, first)),
            Err(CopyError::Stopped) => second.await.and(Err(CopyError::Stopped)),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
mod tests;
