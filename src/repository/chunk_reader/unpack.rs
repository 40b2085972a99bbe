//! From stored bytes to proven plaintext.

use std::io;

use crate::codec::Decompressor;
use crate::repository::file_table::{ChunkHash, StoredChunk, TableEntry};

use super::{ChunkError, ChunkReader, PackRead};

/// Takes a proven chunk: index of the entry, position in the file, plaintext.
pub type ChunkSink<'a> = dyn FnMut(usize, u64, &[u8]) -> io::Result<()> + 'a;

/// Decompresses and verifies chunks, with memory that is used again. One per thread.
#[derive(Debug, Default)]
pub struct Unpacker {
    decompressor: Option<Decompressor>,
    plain: Vec<u8>,
}

impl Unpacker {
    /// An unpacker without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands on every chunk of `read` out of the `bytes` that were fetched for it, each only after its length and BLAKE3
    /// were found right. CPU bound.
    pub fn unpack(
        &mut self,
        reader: &ChunkReader,
        read: &PackRead,
        bytes: &[u8],
        entries: &[TableEntry],
        write: &mut ChunkSink<'_>,
    ) -> Result<(), ChunkError> {
        let mut ready: Option<StoredChunk> = None;
        for (at, wanted) in read.chunks.iter().enumerate() {
            let chunk = wanted.chunk;
            // The same chunk for another file lies right behind: do not decompress it twice.
            if ready != Some(chunk) {
                self.prove(&chunk, reader.chunk_size, read, bytes).map_err(|what| ChunkError::Damaged {
                    pack: reader.pack(read).clone(),
                    offset: chunk.offset,
                    stored: chunk.stored,
                    file: read.file(at, entries),
                    index: wanted.index,
                    what,
                })?;
                ready = Some(chunk);
            }
            let position = u64::from(wanted.index) * u64::from(reader.chunk_size);
            write(wanted.entry, position, &self.plain)
                .map_err(|source| ChunkError::Sink { file: read.file(at, entries), source })?;
        }
        Ok(())
    }

    /// Leaves the chunk's plaintext in `self.plain`.
    fn prove(&mut self, chunk: &StoredChunk, limit: u32, read: &PackRead, bytes: &[u8]) -> Result<(), String> {
        let start = u64::from(chunk.offset).checked_sub(read.range.start).ok_or("it lies outside of what was read")?;
        let start = usize::try_from(start).map_err(|error| error.to_string())?;
        let frame = start.checked_add(chunk.stored as usize).and_then(|end| bytes.get(start..end));
        let frame = frame.ok_or("the pack ends before it")?;
        if chunk.plain > limit {
            return Err(format!("{} bytes of content, more than a chunk has", chunk.plain));
        }
        self.plain.resize(chunk.plain as usize, 0);
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().map_err(|error| error.to_string())?),
        };
        decompressor.decompress_to(frame, &mut self.plain).map_err(|error| error.to_string())?;
        let found = ChunkHash::of(&self.plain);
        if found == chunk.hash {
            Ok(())
        } else {
            Err(format!("its BLAKE3 is {found}, the file table says {}", chunk.hash))
        }
    }
}
