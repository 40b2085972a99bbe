//! What is done to a batch: hash, look up, read old chunks back, take differences, compress, verify page checksums.
//!
//! First every chunk is looked at. Most are decided then: zeros, unchanged, known, or new and compressed at once. What may
//! become a page patch, or comes as pages only, waits for its old chunk; the thread is free meanwhile.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::cut::{Batch, BufferReturn, CutChunk, CutPages, Item};
use super::error::CopyError;
use super::fresh::FreshChunks;
use super::patch::{MIN_PATCHED, NotProven, Tools, put_pages};
use super::read_back::{OldFrames, ReadBack};
use super::reader::Reader;
use super::reference::{OldChunk, PlacedChunk};
use crate::codec::{CompressError, Compression};
use crate::repository::chunk_index::{ChunkIndex, KnownChunk};
use crate::repository::file_table::{CHUNK_SIZE, ChunkHash};

mod page_check;
mod worked;

pub(super) use page_check::PageCheck;
pub(super) use worked::{ChunkPlace, ChunkSum, Patch, PatchPlace, Worked, WorkedChunk, WorkedItem};

static ZEROS: [u8; CHUNK_SIZE as usize] = [0; CHUNK_SIZE as usize];

/// What all workers share.
#[derive(Debug)]
pub(super) struct Workshop {
    pub(super) index: Arc<ChunkIndex>,
    pub(super) fresh: Arc<FreshChunks>,
    pub(super) compression: Compression,
    pub(super) buffers: BufferReturn,
    /// Reads the old chunks of the reference.
    pub(super) read_back: ReadBack,
    /// Reads chunks that come from files.
    reader: Reader,
    /// Whether changed chunks may become page patches.
    pub(super) patches: bool,
    /// Threads that may work at once.
    threads: Semaphore,
    /// Contexts that are not in use.
    tools: Mutex<Vec<Tools>>,
}

/// What a workshop is made of.
#[derive(Debug)]
pub(super) struct WorkshopParts {
    pub(super) index: Arc<ChunkIndex>,
    pub(super) fresh: Arc<FreshChunks>,
    pub(super) compression: Compression,
    pub(super) buffers: BufferReturn,
    pub(super) read_back: ReadBack,
    pub(super) reader: Reader,
    pub(super) patches: bool,
    pub(super) threads: usize,
}

/// A batch of which some chunks wait for their old ones.
#[derive(Debug)]
struct Looked {
    worked: Worked,
    bytes: Vec<u8>,
    waiting: Vec<Waiting>,
    pages: Option<PageCheck>,
}

#[derive(Debug)]
struct Waiting {
    /// Index among the items.
    item: usize,
    cut: CutChunk,
    /// Of its content, when that is known.
    hash: Option<ChunkHash>,
}

impl Workshop {
    pub(super) fn new(parts: WorkshopParts) -> Self {
        let WorkshopParts { index, fresh, compression, buffers, read_back, reader, patches, threads } = parts;
        // A raw frame of a difference is as long as that of the chunk.
        let patches = patches && compression != Compression::None;
        let threads = Semaphore::new(threads);
        Self { index, fresh, compression, buffers, read_back, reader, patches, threads, tools: Mutex::default() }
    }

    /// Works on a batch and gives its buffer back.
    pub(super) async fn work(self: Arc<Self>, batch: Batch, pages: Option<PageCheck>) -> Result<Worked, CopyError> {
        self.reader.begin(&batch).await;
        // Read by whoever looks at them, the bytes are in the processor's cache.
        let looked = self.on_thread(move |shop, tools| shop.look(shop.reader.fill(batch)?, pages, tools)).await??;
        if looked.waiting.is_empty() {
            self.buffers.put(looked.bytes);
            return Ok(looked.worked);
        }
        let reads = looked.waiting.iter().map(|waiting| self.old_frames(&waiting.cut));
        let frames = try_join_all(reads).await?;
        let (worked, bytes) = self.on_thread(move |shop, tools| shop.decide(looked, frames, tools)).await??;
        self.buffers.put(bytes);
        Ok(worked)
    }

    /// CPU bound work of some milliseconds, on a thread that may wait.
    async fn on_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Tools) -> T + Send + 'static,
    ) -> Result<T, CopyError> {
        let _permit = self.threads.acquire().await;
        let shop = Arc::clone(self);
        let done = spawn_blocking(move || {
            let mut tools = shop.take_tools()?;
            let done = work(&shop, &mut tools);
            shop.tools.lock().unwrap_or_else(PoisonError::into_inner).push(tools);
            Ok::<T, CopyError>(done)
        });
        done.await?
    }

    fn look(&self, mut batch: Batch, pages: Option<PageCheck>, tools: &mut Tools) -> Result<Looked, CopyError> {
        let mut worked = Worked::default();
        let mut waiting = Vec::new();
        for item in batch.items {
            let done = match item {
                Item::Directory(head) => WorkedItem::Directory(head),
                Item::File(head, size) => WorkedItem::File(head, size),
                Item::FileEnd(sum) => WorkedItem::FileEnd(sum),
                Item::Same(old) => WorkedItem::Chunk(WorkedChunk::new(old.plain(), ChunkPlace::Same(old))),
                Item::Chunk(cut) => {
                    let item = worked.items.len();
                    // What comes from a file can be read once more, and is so before anything else is done with it.
                    let damaged = match (&cut.from, pages) {
                        (Some(file), Some(check)) => file.0.judge(&mut batch.bytes[cut.bytes.clone()], &cut, check)?,
                        (None, Some(check)) if cut.pages.is_none() => {
                            check.damaged_pages(&batch.bytes[cut.bytes.clone()], &cut)
                        }
                        _ => 0,
                    };
                    let (chunk, hash) = self.look_at(&cut, &batch.bytes, tools, &mut worked.frames)?;
                    let chunk = WorkedChunk { damaged_pages: damaged, ..chunk };
                    if let Some(hash) = hash {
                        waiting.push(Waiting { item, cut, hash });
                    }
                    WorkedItem::Chunk(chunk)
                }
            };
            worked.items.push(done);
        }
        Ok(Looked { worked, bytes: batch.bytes, waiting, pages })
    }

    /// The chunk as far as it is decided; `Some` when it waits for its old one, with its hash where that is known.
    fn look_at(
        &self,
        cut: &CutChunk,
        bytes: &[u8],
        tools: &mut Tools,
        frames: &mut Vec<u8>,
    ) -> Result<(WorkedChunk, Option<Option<ChunkHash>>), CompressError> {
        if let Some(CutPages { plain, .. }) = &cut.pages {
            return Ok((WorkedChunk::new(*plain, ChunkPlace::Zeros), Some(None)));
        }
        let content = &bytes[cut.bytes.clone()];
        let plain = u32::try_from(content.len()).expect("a chunk is at most CHUNK_SIZE long");
        let sum = cut.from.as_ref().map(|_| ChunkSum { content: crc32c::crc32c(content), change: 0 });
        let (place, hash) = match self.find(content, cut.old.as_ref()) {
            Ok(place) => (place, None),
            Err(hash) if self.may_be_patched(cut, content) => (ChunkPlace::Zeros, Some(Some(hash))),
            Err(hash) => (whole(content, hash, tools, frames)?, None),
        };
        Ok((WorkedChunk { sum, ..WorkedChunk::new(plain, place) }, hash))
    }

    /// Where this content lies already; its hash when it is new.
    fn find(&self, content: &[u8], old: Option<&OldChunk>) -> Result<ChunkPlace, ChunkHash> {
        if ZEROS.get(..content.len()) == Some(content) {
            return Ok(ChunkPlace::Zeros);
        }
        let hash = ChunkHash::of(content);
        if let Some(old) = old.filter(|old| old.hash() == Some(hash) && old.plain() as usize == content.len()) {
            return Ok(ChunkPlace::Same(*old));
        }
        if self.fresh.contains(&hash) {
            return Ok(ChunkPlace::Fresh(hash));
        }
        match self.known(&hash, content.len()) {
            Some(known) => Ok(ChunkPlace::Known(hash, known)),
            None => Err(hash),
        }
    }

    /// A chunk of another length under the same hash cannot be; but an index is only a file.
    fn known(&self, hash: &ChunkHash, len: usize) -> Option<KnownChunk> {
        self.index.find(hash).filter(|known| known.plain as usize == len)
    }

    fn may_be_patched(&self, cut: &CutChunk, content: &[u8]) -> bool {
        let base = cut.old.as_ref().and_then(OldChunk::base);
        self.patches && content.len() as u64 >= MIN_PATCHED && base.is_some() && self.read_back.pays()
    }

    /// What a waiting chunk needs; `None` when it does not come and the chunk can do without.
    async fn old_frames(&self, cut: &CutChunk) -> Result<Option<OldFrames>, CopyError> {
        match (&cut.old, &cut.pages) {
            (Some(old), Some(_)) => match self.read_back.all(old).await {
                Ok(frames) => Ok(Some(frames)),
                Err(error) => Err(CopyError::Doubt(error.to_string())),
            },
            (None, _) => Ok(None),
            (Some(old), None) => match old.base() {
                Some(base) => Ok(self.read_back.base(&base).await),
                None => Ok(None),
            },
        }
    }

    fn decide(
        &self,
        looked: Looked,
        frames: Vec<Option<OldFrames>>,
        tools: &mut Tools,
    ) -> Result<(Worked, Vec<u8>), CopyError> {
        let Looked { mut worked, bytes, waiting, pages } = looked;
        let mut content = Vec::new();
        for (Waiting { item, cut, hash }, frames) in waiting.into_iter().zip(frames) {
            let decided = match (&cut.pages, hash) {
                (None, Some(hash)) => {
                    let content = &bytes[cut.bytes.clone()];
                    let base = frames.and_then(|frames| self.open_base(&cut, &frames, tools));
                    let place = self.place(content, hash, base.as_ref(), tools, &mut worked.frames)?;
                    (place, 0, None)
                }
                (Some(of), _) => {
                    let sum = rebuild(&cut, of, &bytes, frames.unwrap_or_default(), tools, &mut content)?;
                    let damaged = pages.map_or(0, |check| check.damaged_of(&bytes[cut.bytes.clone()], &cut, of));
                    let base = cut.old.as_ref().and_then(OldChunk::base).filter(|_| self.patches);
                    let place = match self.find(&content, cut.old.as_ref()) {
                        Ok(place) => place,
                        Err(hash) => self.place(&content, hash, base.as_ref(), tools, &mut worked.frames)?,
                    };
                    (place, damaged, Some(sum))
                }
                (None, None) => continue,
            };
            if let Some(WorkedItem::Chunk(chunk)) = worked.items.get_mut(item) {
                let (place, damaged, sum) = decided;
                chunk.place = place;
                chunk.damaged_pages += damaged;
                chunk.sum = sum.or(chunk.sum);
            }
        }
        Ok((worked, bytes))
    }

    /// The whole chunk beneath, opened; `None` when it is of no use.
    fn open_base(&self, cut: &CutChunk, frames: &OldFrames, tools: &mut Tools) -> Option<PlacedChunk> {
        let base = cut.old.as_ref().and_then(OldChunk::base)?;
        match tools.open_base(&base, frames.base.as_ref()?) {
            Ok(()) => Some(base),
            Err(NotProven(what)) => {
                // The chunk is stored whole: from now on it does not need the damaged one.
                let pack = crate::codec::digest::to_hex(&base.pack.sha256);
                tracing::warn!(%pack, offset = base.offset, %what, "a stored chunk is damaged");
                self.read_back.failed(&what);
                None
            }
        }
    }

    /// A place for new content: as a difference to `base`, which `tools` have open, when that is worth while.
    fn place(
        &self,
        content: &[u8],
        hash: ChunkHash,
        base: Option<&PlacedChunk>,
        tools: &mut Tools,
        frames: &mut Vec<u8>,
    ) -> Result<ChunkPlace, CompressError> {
        let Some(&base) = base else { return whole(content, hash, tools, frames) };
        let difference = tools.difference(content);
        if let Some(known) = self.known(&difference, content.len()) {
            return Ok(ChunkPlace::Patch(Patch { hash, difference, place: PatchPlace::Known(known), base }));
        }
        let (start, is_patch) = tools.append_smaller(content, &base, frames)?;
        let frame = start..frames.len();
        Ok(if is_patch {
            ChunkPlace::Patch(Patch { hash, difference, place: PatchPlace::New(frame), base })
        } else {
            ChunkPlace::New(hash, frame)
        })
    }

    fn take_tools(&self) -> Result<Tools, CompressError> {
        let free = self.tools.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(|| Tools::new(self.compression), Ok)
    }
}

fn whole(
    content: &[u8],
    hash: ChunkHash,
    tools: &mut Tools,
    frames: &mut Vec<u8>,
) -> Result<ChunkPlace, CompressError> {
    let start = frames.len();
    tools.append_frame(content, frames)?;
    Ok(ChunkPlace::New(hash, start..frames.len()))
}

/// Leaves in `content` the old content, cut or filled up to the new length, with the new pages over it.
fn rebuild(
    cut: &CutChunk,
    of: &CutPages,
    bytes: &[u8],
    frames: OldFrames,
    tools: &mut Tools,
    content: &mut Vec<u8>,
) -> Result<ChunkSum, CopyError> {
    content.clear();
    if let Some(old) = &cut.old {
        let opened = tools.open_old(old, &frames).map_err(|NotProven(what)| {
            let pack = old.base().map_or_else(String::new, |base| crate::codec::digest::to_hex(&base.pack.sha256));
            CopyError::Doubt(format!("a chunk of it in pack {pack} is damaged: {what}"))
        })?;
        content.extend_from_slice(opened);
    }
    content.resize(of.plain as usize, 0);
    let before = crc32c::crc32c(content);
    let pages = bytes.get(cut.bytes.clone()).unwrap_or_default();
    put_pages(content, pages, &of.numbers, of.page_size as usize)
        .ok_or_else(|| CopyError::Doubt("a page lies outside of its file".to_owned()))?;
    let after = crc32c::crc32c(content);
    Ok(ChunkSum { content: after, change: before ^ after })
}
