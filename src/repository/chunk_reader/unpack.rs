//! From stored bytes to proven plaintext.

use std::io;

use crate::codec::Decompressor;
use crate::codec::difference::xor;
use crate::repository::file_table::{ChunkHash, StoredChunk, TableEntry};

use super::aligned::AlignedBuffer;
use super::{ChunkError, ChunkReader, Fetched, PackRead, WantedChunk};

/// Takes a proven chunk: index of the entry, position in the file, plaintext, which begins at a multiple of
/// [`super::ALIGNMENT`] in memory.
pub type ChunkSink<'a> = dyn FnMut(usize, u64, &[u8]) -> io::Result<()> + 'a;

/// Decompresses and verifies chunks, with memory that is used again. One per thread.
#[derive(Debug, Default)]
pub struct Unpacker {
    decompressor: Option<Decompressor>,
    plain: AlignedBuffer,
    /// The chunk beneath a page patch.
    base: AlignedBuffer,
}

/// What is wrong with a stored chunk, and whose frame it is.
struct Wrong {
    chunk: StoredChunk,
    what: String,
}

impl Unpacker {
    /// An unpacker without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands on every chunk of `read` out of what was fetched for it, each only after its length and BLAKE3 were found
    /// right. CPU bound.
    pub fn unpack(
        &mut self,
        reader: &ChunkReader,
        read: &PackRead,
        fetched: &Fetched,
        entries: &[TableEntry],
        write: &mut ChunkSink<'_>,
    ) -> Result<(), ChunkError> {
        let mut ready: Option<(StoredChunk, Option<StoredChunk>)> = None;
        for (at, wanted) in read.chunks.iter().enumerate() {
            // The same chunk for another file lies right behind: do not decompress it twice.
            if ready != Some((wanted.chunk, wanted.patch)) {
                self.prove(wanted, reader.chunk_size, read, fetched).map_err(|Wrong { chunk, what }| {
                    ChunkError::Damaged {
                        pack: reader.pack(chunk.pack).clone(),
                        offset: chunk.offset,
                        stored: chunk.stored,
                        file: read.file(at, entries),
                        index: wanted.index,
                        what,
                    }
                })?;
                ready = Some((wanted.chunk, wanted.patch));
            }
            let position = u64::from(wanted.index) * u64::from(reader.chunk_size);
            write(wanted.entry, position, self.plain.bytes())
                .map_err(|source| ChunkError::Sink { file: read.file(at, entries), source })?;
        }
        Ok(())
    }

    /// Leaves the chunk's plaintext in `self.plain`.
    fn prove(&mut self, wanted: &WantedChunk, limit: u32, read: &PackRead, fetched: &Fetched) -> Result<(), Wrong> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none
                .insert(Decompressor::new().map_err(|error| Wrong { chunk: wanted.chunk, what: error.to_string() })?),
        };
        let beneath = if wanted.patch.is_some() { &mut self.base } else { &mut self.plain };
        let wrong = |chunk, what| Wrong { chunk, what };
        let mut open = |frame, chunk: &StoredChunk, buffer: &mut AlignedBuffer| {
            let frame = checked_frame(frame, chunk, limit)?;
            decompressor.decompress_to(frame, buffer.with_len(chunk.plain as usize)).map_err(|error| error.to_string())
        };
        open(fetched.frame(read, &wanted.chunk), &wanted.chunk, beneath).map_err(|what| wrong(wanted.chunk, what))?;
        let Some(patch) = wanted.patch else {
            return is_right(self.plain.bytes(), &wanted.chunk).map_err(|what| wrong(wanted.chunk, what));
        };
        open(fetched.patch(&patch), &patch, &mut self.plain).map_err(|what| wrong(patch, what))?;
        xor(self.plain.bytes_mut(), self.base.bytes());
        is_right(self.plain.bytes(), &patch).map_err(|what| match is_right(self.base.bytes(), &wanted.chunk) {
            // Which of the two is to blame matters only now.
            Err(beneath) => wrong(wanted.chunk, format!("it lies beneath a page patch: {beneath}")),
            Ok(()) => wrong(patch, format!("a page patch: {what}")),
        })
    }
}

/// Leaves the content of a chunk's `frame` in `plain`. It is not proven yet.
pub fn open_frame(
    decompressor: &mut Decompressor,
    frame: Option<&[u8]>,
    chunk: &StoredChunk,
    limit: u32,
    plain: &mut Vec<u8>,
) -> Result<(), String> {
    let frame = checked_frame(frame, chunk, limit)?;
    plain.resize(chunk.plain as usize, 0);
    decompressor.decompress_to(frame, plain).map_err(|error| error.to_string())
}

fn checked_frame<'a>(frame: Option<&'a [u8]>, chunk: &StoredChunk, limit: u32) -> Result<&'a [u8], String> {
    let frame = frame.ok_or("the pack ends before it")?;
    if chunk.plain > limit {
        return Err(format!("{} bytes of content, more than a chunk has", chunk.plain));
    }
    Ok(frame)
}

fn is_right(plain: &[u8], chunk: &StoredChunk) -> Result<(), String> {
    let found = ChunkHash::of(plain);
    if found == chunk.hash { Ok(()) } else { Err(format!("its BLAKE3 is {found}, the file table says {}", chunk.hash)) }
}
