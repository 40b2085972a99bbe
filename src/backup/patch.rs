//! Chunks as differences to older ones, and their contents from pages.

use bytes::Bytes;

use super::read_back::OldFrames;
use super::reference::{OldChunk, PlacedChunk};
use crate::codec::difference::{difference, xor};
use crate::codec::{CompressError, Compression, Compressor, DecompressError, Decompressor};
use crate::repository::file_table::{CHUNK_SIZE, ChunkHash};

/// Chunks shorter than this are stored whole: there is little to save.
pub(super) const MIN_PATCHED: u64 = 64 << 10;

/// A page patch is worth its read-back, now and at every restore, when it is at most this part of the whole chunk.
const WORTH: usize = 2;

/// Contexts and memory of one thread, used again.
#[derive(Debug)]
pub(super) struct Tools {
    compressor: Compressor,
    decompressor: Decompressor,
    /// The whole chunk beneath.
    base: Vec<u8>,
    /// The old content, when it is another.
    old: Vec<u8>,
    difference: Vec<u8>,
    /// A frame as it is made: it needs room for more than it takes.
    frame: Vec<u8>,
}

/// What was read back is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotProven(pub(super) String);

impl Tools {
    pub(super) fn new(compression: Compression) -> Result<Self, CompressError> {
        Ok(Self {
            compressor: Compressor::new(compression)?,
            decompressor: Decompressor::new().map_err(CompressError::context)?,
            base: Vec::new(),
            old: Vec::new(),
            difference: Vec::new(),
            frame: Vec::new(),
        })
    }

    /// Opens and proves the whole chunk beneath.
    pub(super) fn open_base(&mut self, base: &PlacedChunk, frame: &Bytes) -> Result<(), NotProven> {
        open(&mut self.decompressor, frame, base.plain, &mut self.base)?;
        prove(&self.base, base.hash)
    }

    /// Opens and proves the content of an old chunk; that of the whole chunk beneath as well, when there is one.
    pub(super) fn open_old(&mut self, chunk: &OldChunk, frames: &OldFrames) -> Result<&[u8], NotProven> {
        let missing = || NotProven("it was not read back".to_owned());
        match chunk {
            OldChunk::Zeros { plain } => {
                self.old.clear();
                self.old.resize(*plain as usize, 0);
                Ok(&self.old)
            }
            OldChunk::Whole(base) => {
                self.open_base(base, frames.base.as_ref().ok_or_else(missing)?)?;
                Ok(&self.base)
            }
            OldChunk::Patched { patch, base } => {
                self.open_base(base, frames.base.as_ref().ok_or_else(missing)?)?;
                let frame = frames.patch.as_ref().ok_or_else(missing)?;
                open(&mut self.decompressor, frame, patch.plain, &mut self.old)?;
                xor(&mut self.old, &self.base);
                prove(&self.old, patch.hash)?;
                Ok(&self.old)
            }
        }
    }

    /// The difference of `bytes` to the base that was opened last, and its hash: the identity of the frame that holds it.
    pub(super) fn difference(&mut self, bytes: &[u8]) -> ChunkHash {
        difference(bytes, &self.base, &mut self.difference);
        ChunkHash::of(&self.difference)
    }

    /// Appends the frame of `bytes`; returns its length.
    pub(super) fn append_frame(&mut self, bytes: &[u8], frames: &mut Vec<u8>) -> Result<usize, CompressError> {
        append_frame(&mut self.compressor, bytes, &mut self.frame, frames)
    }

    /// Appends the frame of that difference when it is worth while, else that of `bytes`; whether it is the difference.
    /// `frames` ends with the frame that counts, which starts at the number returned.
    pub(super) fn append_smaller(
        &mut self,
        bytes: &[u8],
        base: &PlacedChunk,
        frames: &mut Vec<u8>,
    ) -> Result<(usize, bool), CompressError> {
        let start = frames.len();
        let patch = append_frame(&mut self.compressor, &self.difference, &mut self.frame, frames)?;
        // What the chunk beneath takes is what the whole one would, nearly always: then it need not be compressed.
        if patch.saturating_mul(WORTH) <= base.stored as usize {
            return Ok((start, true));
        }
        let whole_start = frames.len();
        let whole = self.append_frame(bytes, frames)?;
        if patch.saturating_mul(WORTH) <= whole {
            frames.truncate(whole_start);
            return Ok((start, true));
        }
        Ok((whole_start, false))
    }
}

/// By way of `frame`, so that `frames` grows by what the frame takes and not by what it could have taken.
fn append_frame(
    compressor: &mut Compressor,
    bytes: &[u8],
    frame: &mut Vec<u8>,
    frames: &mut Vec<u8>,
) -> Result<usize, CompressError> {
    frame.clear();
    let len = compressor.append_frame(bytes, frame)?;
    frames.extend_from_slice(frame);
    Ok(len)
}

/// Puts `pages` over `content`: page number `numbers[i]`, counted in `content`, is the i-th of `pages`.
pub(super) fn put_pages(content: &mut [u8], pages: &[u8], numbers: &[u32], page_size: usize) -> Option<()> {
    for (page, &number) in pages.chunks_exact(page_size).zip(numbers) {
        let start = (number as usize).checked_mul(page_size)?;
        content.get_mut(start..start.checked_add(page_size)?)?.copy_from_slice(page);
    }
    Some(())
}

fn open(decompressor: &mut Decompressor, frame: &[u8], plain: u32, into: &mut Vec<u8>) -> Result<(), NotProven> {
    if plain > CHUNK_SIZE {
        return Err(NotProven(format!("{plain} bytes of content, more than a chunk has")));
    }
    into.resize(plain as usize, 0);
    decompressor.decompress_to(frame, into).map_err(|error: DecompressError| NotProven(error.to_string()))
}

fn prove(content: &[u8], hash: ChunkHash) -> Result<(), NotProven> {
    let found = ChunkHash::of(content);
    if found == hash { Ok(()) } else { Err(NotProven(format!("its BLAKE3 is {found}, the file table says {hash}"))) }
}
