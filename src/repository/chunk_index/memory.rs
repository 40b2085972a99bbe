//! The index in memory, bounded.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::repository::file_table::ChunkHash;
use crate::repository::pack::PackedChunk;
use crate::storage::Sha256;

use super::Location;

/// About 60 MiB. What does not fit is not known and would be stored again.
const MAX_CHUNKS: usize = 512 << 10;

#[derive(Debug, Default)]
pub(super) struct MemoryIndex {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    packs: Vec<Sha256>,
    /// The first number is the index in `packs`.
    chunks: HashMap<ChunkHash, (u32, u32, u32, u32)>,
}

impl MemoryIndex {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change leaves the maps whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, hash: &ChunkHash) -> Option<Location> {
        let inner = self.inner();
        let &(pack, offset, stored, plain) = inner.chunks.get(hash)?;
        Some(Location { pack: *inner.packs.get(pack as usize)?, offset, stored, plain })
    }

    pub(super) fn add_pack(&self, pack: &Sha256, chunks: &[PackedChunk]) {
        let mut inner = self.inner();
        let Ok(number) = u32::try_from(inner.packs.len()) else { return };
        inner.packs.push(*pack);
        let room = MAX_CHUNKS.saturating_sub(inner.chunks.len());
        let located = chunks.iter().map(|chunk| (chunk.hash, (number, chunk.offset, chunk.stored, chunk.plain)));
        inner.chunks.extend(located.take(room));
    }

    pub(super) fn packs(&self) -> HashSet<Sha256> {
        self.inner().packs.iter().copied().collect()
    }

    pub(super) fn retain(&self, keep: impl Fn(&Sha256) -> bool) {
        let inner = &mut *self.inner();
        let packs = &inner.packs;
        inner.chunks.retain(|_, (pack, ..)| packs.get(*pack as usize).is_some_and(&keep));
    }
}
