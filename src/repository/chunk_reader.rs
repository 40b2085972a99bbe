//! Reading chunks back: coalesced ranged reads of packs, each chunk proven by its hash.
//!
//! A restore takes some entries of the file table (a part, say), plans the reads for all of them together, because small
//! files share packs, runs some reads at once and writes what [`PackRead::unpack`] gives at its place:
//!
//! ```text
//! wanted_chunks(entries) -> plan -> ChunkReader::fetch (async) -> Unpacker::unpack (CPU, verified) -> pwrite
//! ```

mod aligned;
mod plan;
mod unpack;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use recovery::DataPath;

use crate::repository::file_table::{ChunkRef, EntryKind, StoredChunk, TableEntry};
use crate::storage::{ObjectKey, Storage, StorageError, StorageErrorKind};

pub use aligned::ALIGNMENT;
pub use plan::{PackRead, PatchRange, WantedChunk, plan, wanted_chunks, zero_chunks};
pub use unpack::{ChunkSink, Unpacker, open_frame};

/// Reads the chunks of one backup. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ChunkReader {
    storage: Arc<dyn Storage>,
    packs: Arc<[ObjectKey]>,
    chunk_size: u32,
}

/// A chunk could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// What is stored is not what the file table says. Nothing of the chunk was handed on.
    #[error("chunk {index} of \"{file}\" is damaged: {pack}, {stored} bytes at {offset}: {what}")]
    Damaged {
        /// The pack.
        pack: ObjectKey,
        /// Where the chunk lies in it.
        offset: u32,
        /// How long it is there.
        stored: u32,
        /// A file that needs the chunk.
        file: DataPath,
        /// Which chunk of the file, from 0.
        index: u32,
        /// What is wrong.
        what: String,
    },
    /// A pack is not there.
    #[error("{pack} is not in the repository; \"{file}\" needs it")]
    MissingPack {
        /// The pack.
        pack: ObjectKey,
        /// A file that needs it.
        file: DataPath,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The receiver of the bytes failed.
    #[error("\"{file}\": {source}")]
    Sink {
        /// The file.
        file: DataPath,
        /// What the system said.
        source: io::Error,
    },
}

impl ChunkReader {
    /// A reader of the packs with these keys, in the order of the manifest's `packs`.
    pub fn new(storage: Arc<dyn Storage>, packs: Vec<ObjectKey>, chunk_size: u32) -> Self {
        Self { storage, packs: packs.into(), chunk_size }
    }

    /// Bytes of a chunk.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Fetches what one read needs, with one request, and one for each range of differences. `entries` are those that the
    /// read was planned for.
    pub async fn fetch(&self, read: &PackRead, entries: &[TableEntry]) -> Result<Fetched, ChunkError> {
        let get = |pack: u32, range: Range<u64>| async move {
            let pack = self.pack(pack);
            match self.storage.get_range(pack, range).await {
                Err(error) if error.kind == StorageErrorKind::NotFound => {
                    Err(ChunkError::MissingPack { pack: pack.clone(), file: read.file(0, entries) })
                }
                result => Ok(result?),
            }
        };
        let bytes = get(read.pack, read.range.clone()).await?;
        let mut patches = Vec::with_capacity(read.patches.len());
        for PatchRange { pack, range } in &read.patches {
            patches.push((*pack, range.start, get(*pack, range.clone()).await?));
        }
        Ok(Fetched { bytes, patches })
    }

    /// Reads one whole file, zeros included, and hands it on chunk by chunk: position in the file, bytes. Not in order.
    /// For single files; many files are faster through [`plan`].
    pub async fn read_file(
        &self,
        entry: &TableEntry,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), ChunkError> {
        let EntryKind::File(file) = &entry.kind else { return Ok(()) };
        let sink = |source| ChunkError::Sink { file: entry.path.clone(), source };
        let entries = std::slice::from_ref(entry);
        let mut unpacker = Unpacker::new();
        for read in plan(wanted_chunks(entries)) {
            let bytes = self.fetch(&read, entries).await?;
            unpacker.unpack(self, &read, &bytes, entries, &mut |_, position, plain| write(position, plain))?;
        }
        let mut position = 0;
        for chunk in &file.chunks {
            if let ChunkRef::Zeros { plain } = chunk {
                write(position, &vec![0; *plain as usize]).map_err(sink)?;
            }
            position += u64::from(chunk.plain());
        }
        Ok(())
    }

    fn pack(&self, pack: u32) -> &ObjectKey {
        // The file table was read with the number of packs that this reader was made with.
        &self.packs[pack as usize]
    }
}

/// The bytes of one read.
#[derive(Clone, Debug)]
pub struct Fetched {
    bytes: Bytes,
    /// Pack, first byte, bytes of each range of differences.
    patches: Vec<(u32, u64, Bytes)>,
}

impl Fetched {
    /// The stored frame of a chunk of `read`.
    fn frame(&self, read: &PackRead, chunk: &StoredChunk) -> Option<&[u8]> {
        part(&self.bytes, read.range.start, chunk)
    }

    /// The stored frame of a difference.
    fn patch(&self, patch: &StoredChunk) -> Option<&[u8]> {
        let of_pack = self.patches.iter().filter(|(pack, ..)| *pack == patch.pack);
        of_pack.filter_map(|(_, start, bytes)| part(bytes, *start, patch)).next()
    }
}

/// The bytes of `chunk` in `bytes`, which lie in the pack from `start` on.
fn part<'a>(bytes: &'a [u8], start: u64, chunk: &StoredChunk) -> Option<&'a [u8]> {
    let from = usize::try_from(u64::from(chunk.offset).checked_sub(start)?).ok()?;
    bytes.get(from..from.checked_add(chunk.stored as usize)?)
}

#[cfg(test)]
mod tests;
