//! Chunks of packs that this backup is filling or storing: not in the index yet.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::repository::file_table::{ChunkHash, StoredChunk};

/// Shared by the packer, which adds, and the workers, which need not compress again what is here. A chunk stays for the
/// rest of the backup once it was added, so what a worker has seen the packer finds. Memory: some 100 bytes a chunk, and
/// bounded: when full, further chunks are not remembered and duplicates of them are stored twice.
#[derive(Debug, Default)]
pub(super) struct FreshChunks {
    chunks: Mutex<HashMap<ChunkHash, StoredChunk>>,
}

/// About 16 MiB. Duplicates within one cluster are mostly the files of template databases, which come early.
const MAX_CHUNKS: usize = 128 << 10;

impl FreshChunks {
    fn chunks(&self) -> MutexGuard<'_, HashMap<ChunkHash, StoredChunk>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, hash: &ChunkHash) -> bool {
        self.chunks().contains_key(hash)
    }

    pub(super) fn find(&self, hash: &ChunkHash) -> Option<StoredChunk> {
        self.chunks().get(hash).copied()
    }

    pub(super) fn add(&self, chunk: StoredChunk) {
        let mut chunks = self.chunks();
        if chunks.len() < MAX_CHUNKS {
            chunks.insert(chunk.hash, chunk);
        }
    }
}
