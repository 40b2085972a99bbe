//! Which ranges of which packs to read.

use std::ops::Range;

use recovery::DataPath;

use crate::repository::file_table::{ChunkRef, EntryKind, StoredChunk, TableEntry};

/// A read takes at most this many bytes, unless one chunk alone is longer.
const MAX_READ: u64 = 8 << 20;

/// Chunks that lie this close are read in one request: cheaper than another request.
const MAX_GAP: u64 = 128 << 10;

/// A chunk that somebody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedChunk {
    /// Index of the entry, as the caller counts them.
    pub entry: usize,
    /// Which chunk of the file, from 0.
    pub index: u32,
    /// Where it lies and what it holds.
    pub chunk: StoredChunk,
}

/// One request to the store, and the chunks it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRead {
    /// Index of the pack in the manifest's `packs`.
    pub pack: u32,
    /// Bytes of the pack.
    pub range: Range<u64>,
    /// The chunks in them, by position; the same chunk several times when several files need it.
    pub chunks: Vec<WantedChunk>,
}

impl PackRead {
    /// The file that needs chunk number `at`.
    pub(super) fn file(&self, at: usize, entries: &[TableEntry]) -> DataPath {
        entries[self.chunks[at].entry].path.clone()
    }
}

/// Every stored chunk of these entries; `entry` is the index in the slice.
pub fn wanted_chunks(entries: &[TableEntry]) -> Vec<WantedChunk> {
    chunks_of(entries)
        .filter_map(|(entry, index, chunk)| match chunk {
            ChunkRef::Stored(chunk) => Some(WantedChunk { entry, index, chunk: *chunk }),
            ChunkRef::Zeros { .. } => None,
        })
        .collect()
}

/// Every chunk of zeros of these entries: index of the entry in the slice, index of the chunk, its length.
pub fn zero_chunks(entries: &[TableEntry]) -> impl Iterator<Item = (usize, u32, u32)> {
    chunks_of(entries).filter_map(|(entry, index, chunk)| match chunk {
        ChunkRef::Zeros { plain } => Some((entry, index, *plain)),
        ChunkRef::Stored(_) => None,
    })
}

fn chunks_of(entries: &[TableEntry]) -> impl Iterator<Item = (usize, u32, &ChunkRef)> {
    let files = entries.iter().enumerate().filter_map(|(at, entry)| match &entry.kind {
        EntryKind::File(file) => Some((at, file)),
        EntryKind::Directory => None,
    });
    files.flat_map(|(at, file)| (0..).zip(&file.chunks).map(move |(index, chunk)| (at, index, chunk)))
}

/// Joins what lies close together into reads, in the order in which it lies in the packs.
pub fn plan(mut wanted: Vec<WantedChunk>) -> Vec<PackRead> {
    wanted.sort_by_key(|wanted| (wanted.chunk.pack, wanted.chunk.offset, wanted.entry, wanted.index));
    let mut reads: Vec<PackRead> = Vec::new();
    for wanted in wanted {
        let chunk = wanted.chunk;
        let range = u64::from(chunk.offset)..u64::from(chunk.offset) + u64::from(chunk.stored);
        match reads.last_mut() {
            Some(read)
                if read.pack == chunk.pack
                    && range.start <= read.range.end + MAX_GAP
                    && (range.end <= read.range.end || range.end - read.range.start <= MAX_READ) =>
            {
                read.range.end = read.range.end.max(range.end);
                read.chunks.push(wanted);
            }
            _ => reads.push(PackRead { pack: chunk.pack, range, chunks: vec![wanted] }),
        }
    }
    reads
}
