//! What is done to a batch, on a thread of its own: hash, look up, compress, verify page checksums.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use wal::Lsn;

use super::cut::{Batch, BufferReturn, CutChunk, EntryHead, Item};
use super::fresh::FreshChunks;
use super::pages::PageFacts;
use crate::codec::{CompressError, Compression, Compressor};
use crate::repository::chunk_index::{ChunkIndex, KnownChunk};
use crate::repository::file_table::{CHUNK_SIZE, ChunkHash};

static ZEROS: [u8; CHUNK_SIZE as usize] = [0; CHUNK_SIZE as usize];

/// A batch, ready to be packed.
#[derive(Debug)]
pub(super) struct Worked {
    pub(super) items: Vec<WorkedItem>,
    /// The zstd frames of new chunks.
    pub(super) frames: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum WorkedItem {
    Directory(EntryHead),
    File(EntryHead, u64),
    Chunk(WorkedChunk),
    FileEnd(u32),
}

/// A chunk of the file that has begun.
#[derive(Debug)]
pub(super) struct WorkedChunk {
    pub(super) plain: u32,
    pub(super) place: ChunkPlace,
    /// Pages whose checksum is wrong.
    pub(super) damaged_pages: u64,
}

#[derive(Debug)]
pub(super) enum ChunkPlace {
    /// Nothing but zeros.
    Zeros,
    /// In a pack that existed before.
    Known(ChunkHash, KnownChunk),
    /// New; its frame lies here in `frames`. Another batch may have it as well: the packer looks again.
    New(ChunkHash, Range<usize>),
    /// Seen earlier in this backup.
    Fresh(ChunkHash),
}

/// Which pages to verify, and against what.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageCheck {
    pub(super) facts: PageFacts,
    /// Where the backup began.
    pub(super) start: Lsn,
}

/// What all workers share.
#[derive(Debug)]
pub(super) struct Workshop {
    pub(super) index: Arc<ChunkIndex>,
    pub(super) fresh: Arc<FreshChunks>,
    pub(super) compression: Compression,
    pub(super) buffers: BufferReturn,
    /// Contexts that are not in use.
    compressors: Mutex<Vec<Compressor>>,
}

impl Workshop {
    pub(super) fn new(
        index: Arc<ChunkIndex>,
        fresh: Arc<FreshChunks>,
        compression: Compression,
        buffers: BufferReturn,
    ) -> Self {
        Self { index, fresh, compression, buffers, compressors: Mutex::default() }
    }

    /// Works on a batch and gives its buffer back. CPU bound: some milliseconds.
    pub(super) fn work(&self, batch: Batch, pages: Option<PageCheck>) -> Result<Worked, CompressError> {
        let mut compressor = self.take_compressor()?;
        let mut frames = Vec::new();
        let mut items = Vec::with_capacity(batch.items.len());
        for item in batch.items {
            items.push(match item {
                Item::Directory(head) => WorkedItem::Directory(head),
                Item::File(head, size) => WorkedItem::File(head, size),
                Item::FileEnd(crc32c) => WorkedItem::FileEnd(crc32c),
                Item::Chunk(cut) => {
                    let bytes = &batch.bytes[cut.bytes.clone()];
                    WorkedItem::Chunk(WorkedChunk {
                        plain: u32::try_from(bytes.len()).expect("a chunk is at most CHUNK_SIZE long"),
                        place: self.place(bytes, &mut compressor, &mut frames)?,
                        damaged_pages: pages.map_or(0, |check| check.damaged_pages(bytes, &cut)),
                    })
                }
            });
        }
        self.buffers.put(batch.bytes);
        self.compressors.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        Ok(Worked { items, frames })
    }

    fn place(
        &self,
        bytes: &[u8],
        compressor: &mut Compressor,
        frames: &mut Vec<u8>,
    ) -> Result<ChunkPlace, CompressError> {
        if ZEROS.get(..bytes.len()) == Some(bytes) {
            return Ok(ChunkPlace::Zeros);
        }
        let hash = ChunkHash::of(bytes);
        if self.fresh.contains(&hash) {
            return Ok(ChunkPlace::Fresh(hash));
        }
        // A chunk of another length under the same hash cannot be; but an index is only a file.
        if let Some(known) = self.index.find(&hash).filter(|known| known.plain as usize == bytes.len()) {
            return Ok(ChunkPlace::Known(hash, known));
        }
        let start = frames.len();
        compressor.append_frame(bytes, frames)?;
        Ok(ChunkPlace::New(hash, start..frames.len()))
    }

    fn take_compressor(&self) -> Result<Compressor, CompressError> {
        let free = self.compressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(|| Compressor::new(self.compression), Ok)
    }
}

impl PageCheck {
    fn damaged_pages(&self, bytes: &[u8], cut: &CutChunk) -> u64 {
        cut.segment.map_or(0, |segment| self.facts.damaged_pages(bytes, segment, cut.position, self.start))
    }
}
