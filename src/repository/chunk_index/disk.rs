//! The index in a redb file: memory stays at the cache, however many chunks there are.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::repository::file_table::ChunkHash;
use crate::repository::pack::PackedChunk;
use crate::storage::Sha256;

use super::Location;

/// Memory for pages of the file.
const CACHE_BYTES: usize = 16 << 20;

/// BLAKE3 -> pack, offset, stored, plain.
const CHUNKS: TableDefinition<'_, &[u8; 32], (&[u8; 32], u32, u32, u32)> = TableDefinition::new("chunks-1");
/// The packs whose chunks are all in the other table.
const PACKS: TableDefinition<'_, &[u8; 32], ()> = TableDefinition::new("packs-1");

pub(super) struct DiskIndex {
    database: Database,
}

impl std::fmt::Debug for DiskIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskIndex")
    }
}

impl DiskIndex {
    pub(super) fn open(path: &Path) -> Result<Self, redb::Error> {
        match Self::open_file(path) {
            Err(redb::Error::DatabaseAlreadyOpen) => Err(redb::Error::DatabaseAlreadyOpen),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "index of chunks is damaged, making a new one");
                fs::remove_file(path).map_err(redb::Error::Io)?;
                Self::open_file(path)
            }
            opened => opened,
        }
    }

    fn open_file(path: &Path) -> Result<Self, redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        let transaction = begin_write(&database)?;
        transaction.open_table(CHUNKS)?;
        transaction.open_table(PACKS)?;
        transaction.commit()?;
        Ok(Self { database })
    }

    pub(super) fn find(&self, hash: &ChunkHash) -> Result<Option<Location>, redb::Error> {
        let found = self.database.begin_read()?.open_table(CHUNKS)?.get(&hash.0)?;
        Ok(found.map(|value| {
            let (pack, offset, stored, plain) = value.value();
            Location { pack: *pack, offset, stored, plain }
        }))
    }

    /// All chunks of a pack and the fact that it is known, or nothing.
    pub(super) fn add_pack(&self, pack: &Sha256, chunks: &[PackedChunk]) -> Result<(), redb::Error> {
        let transaction = begin_write(&self.database)?;
        {
            let mut table = transaction.open_table(CHUNKS)?;
            for chunk in chunks {
                table.insert(&chunk.hash.0, (pack, chunk.offset, chunk.stored, chunk.plain))?;
            }
            transaction.open_table(PACKS)?.insert(pack, ())?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn packs(&self) -> Result<HashSet<Sha256>, redb::Error> {
        let table = self.database.begin_read()?.open_table(PACKS)?;
        let packs: Result<_, redb::StorageError> = table.iter()?.map(|row| Ok(*row?.0.value())).collect();
        Ok(packs?)
    }

    pub(super) fn retain(&self, keep: impl Fn(&Sha256) -> bool) -> Result<(), redb::Error> {
        let transaction = begin_write(&self.database)?;
        transaction.open_table(CHUNKS)?.retain(|_, (pack, ..)| keep(pack))?;
        transaction.open_table(PACKS)?.retain(|pack, ()| keep(pack))?;
        transaction.commit()?;
        Ok(())
    }
}

/// A change that is whole or not at all, and on disk when the index is closed: it is a cache, and what a crash takes from it
/// is read anew.
fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::None)?;
    Ok(transaction)
}
