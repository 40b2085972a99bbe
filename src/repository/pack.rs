//! Packs: chunks of base backups, about 32 MiB of them in one object (FORMAT 6).

use bytes::Bytes;

use crate::codec::digest;
use crate::repository::file_table::ChunkHash;
use crate::storage::Sha256;

#[cfg(test)]
mod tests;

/// A pack is finished when it has this many bytes, at the latest.
pub const PACK_SIZE: usize = 32 << 20;

/// A pack has at most this many chunks, so that its table of contents stays small.
pub const MAX_CHUNKS: usize = 32 << 10;

/// What the last bytes of every pack say.
const FOOTER: &[u8; 4] = b"PGVP";
const FOOTER_LEN: usize = 8;

const TOC_MAGIC: &[u8; 8] = b"PGVPACK1";
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2A, 0x4D, 0x18];
const FRAME_HEADER_LEN: usize = 8;
const ENTRY_LEN: usize = 44;

/// Length of a table of contents without its entries: frame header, magic, count, footer.
const TOC_FIXED_LEN: usize = FRAME_HEADER_LEN + 8 + 4 + FOOTER_LEN;

/// The longest table of contents that is read.
pub const MAX_TOC_LEN: usize = TOC_FIXED_LEN + MAX_CHUNKS * ENTRY_LEN;

/// Where a chunk lies in its pack and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedChunk {
    /// First byte of its zstd frame.
    pub offset: u32,
    /// Length of the zstd frame.
    pub stored: u32,
    /// Length of the plaintext.
    pub plain: u32,
    /// BLAKE3 of the plaintext.
    pub hash: ChunkHash,
}

/// A pack that is being filled, in memory.
#[derive(Debug)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    chunks: Vec<PackedChunk>,
    full: usize,
}

/// A pack that is full.
#[derive(Clone, Debug)]
pub struct FinishedPack {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their SHA-256: its name.
    pub sha256: Sha256,
    /// What lies in it.
    pub chunks: Vec<PackedChunk>,
}

impl PackBuilder {
    /// An empty pack.
    pub fn new() -> Self {
        Self::of_size(PACK_SIZE)
    }

    /// An empty pack that is to be finished when it has so many bytes, at most [`PACK_SIZE`].
    pub fn of_size(full: usize) -> Self {
        let full = full.min(PACK_SIZE);
        // Chunks end a little above the size; the table of contents follows.
        // Of memory only what is written counts. Buffers of changing sizes below 32 MiB would be taken from malloc's heap and
        // leave holes there; larger ones are mapped and given back (mallopt(3), M_MMAP_THRESHOLD).
        Self { bytes: Vec::with_capacity(PACK_SIZE + (PACK_SIZE >> 4)), chunks: Vec::new(), full }
    }

    /// Its bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the zstd frame of a chunk.
    pub fn push(&mut self, frame: &[u8], plain: u32, hash: ChunkHash) -> PackedChunk {
        let position = |len: usize| u32::try_from(len).expect("a pack is finished far below 4 GiB");
        let chunk = PackedChunk { offset: position(self.bytes.len()), stored: position(frame.len()), plain, hash };
        self.bytes.extend_from_slice(frame);
        self.chunks.push(chunk);
        chunk
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether it is time to finish it.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= self.full || self.chunks.len() >= MAX_CHUNKS
    }

    /// Appends the table of contents and gives the pack its name. Hashes all of it: some milliseconds of CPU.
    pub fn finish(mut self) -> FinishedPack {
        let number = |n: usize| u32::try_from(n).expect("a table of contents is far below 4 GiB").to_le_bytes();
        let toc_len = TOC_FIXED_LEN + self.chunks.len() * ENTRY_LEN;
        self.bytes.reserve_exact(toc_len);
        self.bytes.extend_from_slice(&SKIPPABLE_MAGIC);
        self.bytes.extend_from_slice(&number(toc_len - FRAME_HEADER_LEN));
        self.bytes.extend_from_slice(TOC_MAGIC);
        self.bytes.extend_from_slice(&number(self.chunks.len()));
        for chunk in &self.chunks {
            for field in [chunk.offset, chunk.stored, chunk.plain] {
                self.bytes.extend_from_slice(&field.to_le_bytes());
            }
            self.bytes.extend_from_slice(&chunk.hash.0);
        }
        self.bytes.extend_from_slice(&number(toc_len));
        self.bytes.extend_from_slice(FOOTER);
        FinishedPack { sha256: digest::sha256(&self.bytes), bytes: self.bytes.into(), chunks: self.chunks }
    }
}

/// The last bytes of an object are not the table of contents of a pack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no table of contents at the end of the pack: {0}")]
pub struct TocError(&'static str);

impl Default for PackBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// What the end of a pack gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Toc {
    /// What lies in the pack.
    Chunks(Vec<PackedChunk>),
    /// This many of the last bytes are needed.
    NeedsLast(usize),
}

/// Reads the table of contents from `end`, the last bytes of a pack of `pack_size` bytes. It is believed no further than
/// it is possible; what it says of a chunk is proven when the chunk is read.
pub fn read_toc(end: &[u8], pack_size: u64) -> Result<Toc, TocError> {
    let footer = end.last_chunk::<FOOTER_LEN>().ok_or(TocError("it is too short"))?;
    let [a, b, c, d, name @ ..] = *footer;
    if &name != FOOTER {
        return Err(TocError("the last bytes are others"));
    }
    let toc_len = u32::from_le_bytes([a, b, c, d]) as usize;
    if !(TOC_FIXED_LEN..=MAX_TOC_LEN).contains(&toc_len) || toc_len as u64 > pack_size {
        return Err(TocError("its length is not possible"));
    }
    let Some(start) = end.len().checked_sub(toc_len) else { return Ok(Toc::NeedsLast(toc_len)) };
    let toc = end.get(start..end.len() - FOOTER_LEN).ok_or(TocError("it is too short"))?;
    let (magic, toc) = toc.split_first_chunk::<4>().ok_or(TocError("it is too short"))?;
    let (frame_len, toc) = split_u32(toc)?;
    let (name, toc) = toc.split_first_chunk::<8>().ok_or(TocError("it is too short"))?;
    let (count, entries) = split_u32(toc)?;
    if *magic != SKIPPABLE_MAGIC || name != TOC_MAGIC || frame_len as usize != toc_len - FRAME_HEADER_LEN {
        return Err(TocError("it does not start where its length says"));
    }
    if entries.len() != (count as usize).saturating_mul(ENTRY_LEN) {
        return Err(TocError("its length and its number of chunks contradict each other"));
    }
    let content_len = pack_size - toc_len as u64;
    entries
        .chunks_exact(ENTRY_LEN)
        .map(|entry| read_entry(entry, content_len))
        .collect::<Result<_, _>>()
        .map(Toc::Chunks)
}

fn read_entry(entry: &[u8], content_len: u64) -> Result<PackedChunk, TocError> {
    let (offset, entry) = split_u32(entry)?;
    let (stored, entry) = split_u32(entry)?;
    let (plain, entry) = split_u32(entry)?;
    let hash = ChunkHash(entry.try_into().map_err(|_| TocError("an entry has another length"))?);
    if stored == 0 || plain == 0 || u64::from(offset) + u64::from(stored) > content_len {
        return Err(TocError("a chunk lies outside the pack"));
    }
    Ok(PackedChunk { offset, stored, plain, hash })
}

fn split_u32(bytes: &[u8]) -> Result<(u32, &[u8]), TocError> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(TocError("it is too short"))?;
    Ok((u32::from_le_bytes(*number), rest))
}

/// Reads hostile bytes as the end of a pack; must not panic. For fuzzing.
pub fn fuzz_toc(data: &[u8]) {
    drop(read_toc(data, data.len() as u64));
    drop(read_toc(data, u64::MAX));
}
