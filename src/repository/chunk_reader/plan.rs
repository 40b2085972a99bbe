//! Which ranges of which packs to read.

use std::ops::Range;

use recovery::DataPath;

use crate::repository::file_table::{ChunkRef, EntryKind, PatchedChunk, StoredChunk, TableEntry};

/// A read takes at most this many bytes, unless one chunk alone is longer.
const MAX_READ: u64 = 8 << 20;

/// A read brings at most this much content, unless one chunk alone is longer: however well it is compressed, there are enough
/// reads to keep every processor busy to the end.
const MAX_PLAIN: u64 = 32 << 20;

/// Chunks that lie this close are read in one request: cheaper than another request.
const MAX_GAP: u64 = 128 << 10;

/// A chunk that somebody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedChunk {
    /// Index of the entry, as the caller counts them.
    pub entry: usize,
    /// Which chunk of the file, from 0.
    pub index: u32,
    /// Where it lies and what it holds; of a page patch, the chunk beneath.
    pub chunk: StoredChunk,
    /// The difference to `chunk`, when it is a page patch.
    pub patch: Option<StoredChunk>,
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
    /// What has to be read besides: the differences of those that are page patches.
    pub patches: Vec<PatchRange>,
}

/// A range of a pack that holds differences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRange {
    /// Index of the pack in the manifest's `packs`.
    pub pack: u32,
    /// Bytes of the pack.
    pub range: Range<u64>,
}

impl PackRead {
    /// Bytes that are read from the repository.
    pub fn stored_bytes(&self) -> u64 {
        let patches = self.patches.iter().map(|patch| &patch.range);
        [&self.range].into_iter().chain(patches).map(|range| range.end - range.start).sum()
    }

    /// The file that needs chunk number `at`.
    pub(super) fn file(&self, at: usize, entries: &[TableEntry]) -> DataPath {
        entries[self.chunks[at].entry].path.clone()
    }
}

/// Every stored chunk of these entries; `entry` is the index in the slice.
pub fn wanted_chunks(entries: &[TableEntry]) -> Vec<WantedChunk> {
    chunks_of(entries)
        .filter_map(|(entry, index, chunk)| match chunk {
            ChunkRef::Stored(chunk) => Some(WantedChunk { entry, index, chunk: *chunk, patch: None }),
            ChunkRef::Patched(PatchedChunk { patch, base }) => {
                Some(WantedChunk { entry, index, chunk: *base, patch: Some(*patch) })
            }
            ChunkRef::Zeros { .. } => None,
        })
        .collect()
}

/// Every chunk of zeros of these entries: index of the entry in the slice, index of the chunk, its length.
pub fn zero_chunks(entries: &[TableEntry]) -> impl Iterator<Item = (usize, u32, u32)> {
    chunks_of(entries).filter_map(|(entry, index, chunk)| match chunk {
        ChunkRef::Zeros { plain } => Some((entry, index, *plain)),
        ChunkRef::Stored(_) | ChunkRef::Patched(_) => None,
    })
}

fn chunks_of(entries: &[TableEntry]) -> impl Iterator<Item = (usize, u32, &ChunkRef)> {
    let files = entries.iter().enumerate().filter_map(|(at, entry)| match &entry.kind {
        EntryKind::File(file) => Some((at, file)),
        EntryKind::Directory => None,
    });
    files.flat_map(|(at, file)| (0..).zip(&file.chunks).map(move |(index, chunk)| (at, index, chunk)))
}

/// Joins what lies close together into reads, in the order in which it lies in the packs. Page patches go by the chunk
/// beneath: their differences were stored in the same order, and are joined for each read.
pub fn plan(mut wanted: Vec<WantedChunk>) -> Vec<PackRead> {
    wanted.sort_by_key(|wanted| (wanted.chunk.pack, wanted.chunk.offset, wanted.entry, wanted.index));
    let mut reads: Vec<PackRead> = Vec::new();
    let (mut patch_bytes, mut plain_bytes) = (0, 0);
    for wanted in wanted {
        let chunk = wanted.chunk;
        let range = range_of(&chunk);
        let patch = wanted.patch.map_or(0, |patch| u64::from(patch.stored));
        let plain = u64::from(chunk.plain);
        match reads.last_mut() {
            Some(read)
                if read.pack == chunk.pack
                    && range.start <= read.range.end + MAX_GAP
                    && patch_bytes + patch <= MAX_READ
                    && (range.end <= read.range.end
                        || (range.end - read.range.start <= MAX_READ && plain_bytes + plain <= MAX_PLAIN)) =>
            {
                read.range.end = read.range.end.max(range.end);
                read.chunks.push(wanted);
                patch_bytes += patch;
                plain_bytes += plain;
            }
            _ => {
                reads.push(PackRead { pack: chunk.pack, range, chunks: vec![wanted], patches: Vec::new() });
                (patch_bytes, plain_bytes) = (patch, plain);
            }
        }
    }
    for read in &mut reads {
        read.patches = patch_ranges(&read.chunks);
    }
    reads
}

/// The ranges that hold the differences of these chunks.
fn patch_ranges(chunks: &[WantedChunk]) -> Vec<PatchRange> {
    let mut patches: Vec<StoredChunk> = chunks.iter().filter_map(|wanted| wanted.patch).collect();
    patches.sort_by_key(|patch| (patch.pack, patch.offset));
    let mut ranges: Vec<PatchRange> = Vec::new();
    for patch in patches {
        let range = range_of(&patch);
        match ranges.last_mut() {
            Some(last)
                if last.pack == patch.pack
                    && range.start <= last.range.end + MAX_GAP
                    && (range.end <= last.range.end || range.end - last.range.start <= MAX_READ) =>
            {
                last.range.end = last.range.end.max(range.end);
            }
            _ => ranges.push(PatchRange { pack: patch.pack, range }),
        }
    }
    ranges
}

fn range_of(chunk: &StoredChunk) -> Range<u64> {
    u64::from(chunk.offset)..u64::from(chunk.offset) + u64::from(chunk.stored)
}
