//! A batch that was worked on: what each chunk has become.

use std::ops::Range;

use crate::backup::cut::{EntryHead, FileSum};
use crate::backup::reference::{OldChunk, PlacedChunk};
use crate::repository::chunk_index::KnownChunk;
use crate::repository::file_table::ChunkHash;

/// A batch, ready to be packed.
#[derive(Debug, Default)]
pub(in crate::backup) struct Worked {
    pub(in crate::backup) items: Vec<WorkedItem>,
    /// The zstd frames of new chunks.
    pub(in crate::backup) frames: Vec<u8>,
}

#[derive(Debug)]
pub(in crate::backup) enum WorkedItem {
    Directory(EntryHead),
    File(EntryHead, u64),
    Chunk(WorkedChunk),
    FileEnd(FileSum),
}

/// A chunk of the file that has begun.
#[derive(Debug)]
pub(in crate::backup) struct WorkedChunk {
    pub(in crate::backup) plain: u32,
    pub(in crate::backup) place: ChunkPlace,
    /// Pages whose checksum is wrong.
    pub(in crate::backup) damaged_pages: u64,
    /// For files whose checksum follows from those of their chunks.
    pub(in crate::backup) sum: Option<ChunkSum>,
}

/// What a chunk adds to the CRC-32C of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backup) struct ChunkSum {
    /// CRC-32C of its content.
    pub(in crate::backup) content: u32,
    /// That, XOR the CRC-32C of the old content, cut or filled up with zeros to the same length.
    pub(in crate::backup) change: u32,
}

#[derive(Debug)]
pub(in crate::backup) enum ChunkPlace {
    /// Nothing but zeros.
    Zeros,
    /// As the reference has it.
    Same(OldChunk),
    /// In a pack that existed before.
    Known(ChunkHash, KnownChunk),
    /// New; its frame lies here in `frames`. Another batch may have it as well: the packer looks again.
    New(ChunkHash, Range<usize>),
    /// Seen earlier in this backup.
    Fresh(ChunkHash),
    /// Stored as a difference.
    Patch(Patch),
}

/// A page patch.
#[derive(Debug)]
pub(in crate::backup) struct Patch {
    /// Of the content.
    pub(in crate::backup) hash: ChunkHash,
    /// Of the difference.
    pub(in crate::backup) difference: ChunkHash,
    /// Where the difference lies.
    pub(in crate::backup) place: PatchPlace,
    /// What it is the difference to.
    pub(in crate::backup) base: PlacedChunk,
}

#[derive(Debug)]
pub(in crate::backup) enum PatchPlace {
    /// In a pack that existed before: of a backup that was interrupted, say.
    Known(KnownChunk),
    /// Its frame lies here in `frames`.
    New(Range<usize>),
}

impl WorkedChunk {
    pub(super) fn new(plain: u32, place: ChunkPlace) -> Self {
        Self { plain, place, damaged_pages: 0, sum: None }
    }
}
