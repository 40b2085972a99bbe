//! Puts everything in order: chunks into packs, entries into the file table.

use std::collections::HashMap;
use std::sync::Arc;

use super::cut::{EntryHead, FileSum};
use super::error::CopyError;
use super::fresh::FreshChunks;
use super::progress::ProgressSender;
use super::reference::{OldChunk, PlacedChunk};
use super::upload::{Uploaded, Uploads};
use super::work::{ChunkPlace, Patch, PatchPlace, Worked, WorkedChunk, WorkedItem};
use crate::repository::chunk_index::{ChunkIndex, KnownChunk};
use crate::repository::file_table::{
    ChunkHash, ChunkRef, EntryKind, FileContent, PartWriter, PatchedChunk, StoredChunk, TableEntry,
};
use crate::repository::manifest::{DamagedFile, PackRef, PartRef};
use crate::repository::pack::{PACK_SIZE, PackBuilder};
use crate::storage::Sha256;

mod entry;

use entry::OpenEntry;

/// The first packs of a backup have this size, so that the store has something to do early on and little when everything was
/// read; later ones a part of what was packed before, up to the full size.
const FIRST_PACKS: usize = 8 << 20;
const PART_OF_ALL: u64 = 8;

/// More damaged files than this are counted and not named.
const MAX_DAMAGED: usize = 10_000;

/// What came out: everything is stored but the manifest.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) parts: Vec<PartRef>,
    pub(super) packs: Vec<PackRef>,
    /// Bytes of the packs and parts that this backup stored.
    pub(super) new_bytes: u64,
    /// Compressed length of all chunks.
    pub(super) stored_bytes: u64,
    pub(super) patched_chunks: u64,
    pub(super) damaged_files: Vec<DamagedFile>,
}

/// The packer. Batches must come in the order of the source.
#[derive(Debug)]
pub(super) struct Packer {
    uploads: Uploads,
    index: Arc<ChunkIndex>,
    fresh: Arc<FreshChunks>,
    progress: ProgressSender,
    /// The pack that is being filled, and its index in `packs`.
    open: Option<(u32, PackBuilder)>,
    /// Bytes of the packs that were finished.
    finished_bytes: u64,
    /// Every pack that a chunk lies in; `None` while it has no name yet.
    packs: Vec<Option<PackRef>>,
    ordinals: HashMap<Sha256, u32>,
    entry: Option<OpenEntry>,
    table: PartWriter,
    parts: Vec<Option<PartRef>>,
    packed: Packed,
}

impl Packer {
    pub(super) fn new(
        uploads: Uploads,
        index: Arc<ChunkIndex>,
        fresh: Arc<FreshChunks>,
        progress: ProgressSender,
    ) -> Self {
        Self {
            uploads,
            index,
            fresh,
            progress,
            open: None,
            finished_bytes: 0,
            packs: Vec::new(),
            ordinals: HashMap::new(),
            entry: None,
            table: PartWriter::default(),
            parts: Vec::new(),
            packed: Packed::default(),
        }
    }

    /// Takes the next batch. Waits while too much is on its way.
    pub(super) async fn take(&mut self, worked: Worked) -> Result<(), CopyError> {
        for item in worked.items {
            match item {
                WorkedItem::Directory(EntryHead { path, mode, mtime }) => {
                    self.add_entry(TableEntry { path, mode, mtime, kind: EntryKind::Directory }).await?;
                }
                WorkedItem::File(head, size) => {
                    self.entry = Some(OpenEntry::new(head, size));
                }
                WorkedItem::Chunk(chunk) => self.chunk(chunk, &worked.frames).await?,
                WorkedItem::FileEnd(sum) => self.end_file(sum).await?,
            }
        }
        for done in self.uploads.settled()? {
            self.settle(done);
        }
        Ok(())
    }

    /// Stores what is left and waits until all of it is durable.
    pub(super) async fn finish(mut self) -> Result<Packed, CopyError> {
        if let Some((ordinal, builder)) = self.open.take() {
            self.uploads.pack(ordinal as usize, builder).await?;
        }
        if let Some(part) = self.table.finish() {
            self.parts.push(None);
            self.uploads.part(self.parts.len() - 1, part).await?;
        }
        // What settles may start another task: telling the index.
        loop {
            let settled = self.uploads.wait().await?;
            if settled.is_empty() {
                break;
            }
            settled.into_iter().for_each(|done| self.settle(done));
        }
        let missing = || CopyError::OutOfTurn("an object was not stored");
        let mut packed = self.packed;
        packed.packs = self.packs.into_iter().collect::<Option<_>>().ok_or_else(missing)?;
        packed.parts = self.parts.into_iter().collect::<Option<_>>().ok_or_else(missing)?;
        Ok(packed)
    }

    async fn chunk(&mut self, chunk: WorkedChunk, frames: &[u8]) -> Result<(), CopyError> {
        let WorkedChunk { plain, place, damaged_pages, sum } = chunk;
        let placed = match place {
            ChunkPlace::Zeros => ChunkRef::Zeros { plain },
            ChunkPlace::Known(hash, known) => ChunkRef::Stored(self.known(known, hash)),
            ChunkPlace::Same(OldChunk::Zeros { plain }) => ChunkRef::Zeros { plain },
            ChunkPlace::Same(OldChunk::Whole(chunk)) => ChunkRef::Stored(self.placed(&chunk)),
            ChunkPlace::Same(OldChunk::Patched { patch, base }) => {
                ChunkRef::Patched(PatchedChunk { patch: self.placed(&patch), base: self.placed(&base) })
            }
            ChunkPlace::Patch(patch) => ChunkRef::Patched(self.patch(patch, plain, frames).await?),
            ChunkPlace::Fresh(hash) => {
                let lost = CopyError::OutOfTurn("a chunk that was seen is not remembered");
                ChunkRef::Stored(self.fresh.find(&hash).ok_or(lost)?)
            }
            ChunkPlace::New(hash, frame) => match self.fresh.find(&hash) {
                // Two batches that were worked on at the same time have the same chunk.
                Some(stored) => ChunkRef::Stored(stored),
                None => ChunkRef::Stored(self.pack_chunk(&frames[frame], plain, hash).await?),
            },
        };
        match &placed {
            ChunkRef::Zeros { .. } => {}
            ChunkRef::Stored(stored) => self.packed.stored_bytes += u64::from(stored.stored),
            ChunkRef::Patched(PatchedChunk { patch, base }) => {
                self.packed.stored_bytes += u64::from(patch.stored) + u64::from(base.stored);
                self.packed.patched_chunks += 1;
            }
        }
        if let Some(entry) = &mut self.entry {
            entry.damaged_pages += damaged_pages;
            entry.add(placed, plain, sum);
        }
        Ok(())
    }

    /// The frame of a difference, stored now or before.
    async fn patch(&mut self, patch: Patch, plain: u32, frames: &[u8]) -> Result<PatchedChunk, CopyError> {
        let Patch { hash, difference, place, base } = patch;
        let stored = match place {
            PatchPlace::Known(known) => self.known(known, difference),
            PatchPlace::New(frame) => match self.fresh.find(&difference) {
                Some(stored) => stored,
                None => self.pack_chunk(&frames[frame], plain, difference).await?,
            },
        };
        Ok(PatchedChunk { patch: StoredChunk { hash, ..stored }, base: self.placed(&base) })
    }

    fn known(&mut self, known: KnownChunk, hash: ChunkHash) -> StoredChunk {
        let KnownChunk { pack, offset, stored, plain } = known;
        StoredChunk { pack: self.ordinal(pack), offset, stored, plain, hash }
    }

    fn placed(&mut self, chunk: &PlacedChunk) -> StoredChunk {
        let PlacedChunk { pack, offset, stored, plain, hash } = *chunk;
        StoredChunk { pack: self.ordinal(pack), offset, stored, plain, hash }
    }

    async fn pack_chunk(&mut self, frame: &[u8], plain: u32, hash: ChunkHash) -> Result<StoredChunk, CopyError> {
        let (ordinal, builder) = match &mut self.open {
            Some(open) => open,
            none => {
                let ordinal = self.packs.len();
                self.packs.push(None);
                none.insert((narrow(ordinal), PackBuilder::of_size(next_size(self.finished_bytes))))
            }
        };
        let packed = builder.push(frame, plain, hash);
        let stored = StoredChunk { pack: *ordinal, offset: packed.offset, stored: packed.stored, plain, hash };
        self.fresh.add(stored);
        if builder.is_full()
            && let Some((ordinal, builder)) = self.open.take()
        {
            self.finished_bytes += builder.len() as u64;
            self.uploads.pack(ordinal as usize, builder).await?;
        }
        Ok(stored)
    }

    /// Under which number the manifest names a pack that existed before.
    fn ordinal(&mut self, pack: PackRef) -> u32 {
        *self.ordinals.entry(pack.sha256).or_insert_with(|| {
            self.packs.push(Some(pack));
            narrow(self.packs.len() - 1)
        })
    }

    async fn end_file(&mut self, sum: FileSum) -> Result<(), CopyError> {
        let Some(entry) = self.entry.take() else {
            return Err(CopyError::OutOfTurn("the end of a file that did not begin"));
        };
        let crc32c = entry.crc32c(sum);
        let OpenEntry { head, size, chunks, damaged_pages, .. } = entry;
        let EntryHead { path, mode, mtime } = head;
        if damaged_pages > 0 {
            tracing::warn!(%path, damaged_pages, "page checksums are wrong");
            if self.packed.damaged_files.len() < MAX_DAMAGED {
                self.packed.damaged_files.push(DamagedFile { path: path.to_string(), pages: damaged_pages });
            }
        }
        let kind = EntryKind::File(FileContent { size, crc32c, chunks });
        self.add_entry(TableEntry { path, mode, mtime, kind }).await
    }

    async fn add_entry(&mut self, entry: TableEntry) -> Result<(), CopyError> {
        if let Some(part) = self.table.push(&entry) {
            self.parts.push(None);
            self.uploads.part(self.parts.len() - 1, part).await?;
        }
        Ok(())
    }

    /// An object is durable.
    fn settle(&mut self, done: Uploaded) {
        match done {
            Uploaded::Indexed => return,
            Uploaded::Part { number, part } => {
                self.packed.new_bytes += part.size;
                self.parts[number] = Some(part);
            }
            Uploaded::Pack { ordinal, pack, chunks, is_new } => {
                self.packed.new_bytes += if is_new { pack.size } else { 0 };
                self.packs[ordinal] = Some(pack);
                // Before the index tells of it: else a chunk found there would give the pack a second number.
                self.ordinals.entry(pack.sha256).or_insert(narrow(ordinal));
                self.uploads.index(Arc::clone(&self.index), pack, chunks);
            }
        }
        self.progress.send_modify(|progress| progress.new_bytes = self.packed.new_bytes);
    }
}

/// How large the next pack gets, when the packs before have so many bytes.
fn next_size(finished_bytes: u64) -> usize {
    usize::try_from(finished_bytes / PART_OF_ALL).unwrap_or(PACK_SIZE).clamp(FIRST_PACKS, PACK_SIZE)
}

fn narrow(ordinal: usize) -> u32 {
    u32::try_from(ordinal).expect("four thousand million packs are more than any store holds")
}

#[cfg(test)]
mod tests {
    use super::{FIRST_PACKS, next_size};
    use crate::repository::pack::PACK_SIZE;

    #[test]
    fn packs_begin_small_and_grow_with_the_backup() {
        let mut packed = 0;
        let mut sizes = Vec::new();
        while sizes.last() != Some(&PACK_SIZE) {
            sizes.push(next_size(packed));
            packed += sizes[sizes.len() - 1] as u64;
        }
        assert_eq!(sizes[..9], [FIRST_PACKS; 9]);
        assert!(sizes.is_sorted() && sizes.len() < 25, "{sizes:?}");
        assert_eq!(next_size(u64::MAX), PACK_SIZE);
    }
}
