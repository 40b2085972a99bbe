//! The backup that a new one is compared with: which chunks its files are made of, and where they lie.
//!
//! Its file table is written to a local scratch file, a line a file; in memory stays 16 bytes a file. It is believed in
//! nothing that matters: a chunk counts as unchanged when its hash is the same, and what is read back is proven by its hash.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use recovery::{BackupId, DataPath};

use super::error::CopyError;
use crate::durable::{PRIVATE_FILE, TempFile};
use crate::repository::chunk_index::ChunkIndex;
use crate::repository::file_table::{
    CHUNK_SIZE, ChunkHash, ChunkRef, EntryKind, PartReader, PatchedChunk, StoredChunk, TableEntry, TableFacts,
    decode_entry, encode_entry,
};
use crate::repository::manifest::{Manifest, PackRef};
use crate::repository::{LineageRepository, RepositoryError};
use crate::storage::ObjectKey;

#[cfg(test)]
mod tests;

/// A stored chunk, with its pack by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlacedChunk {
    pub(super) pack: PackRef,
    pub(super) offset: u32,
    pub(super) stored: u32,
    pub(super) plain: u32,
    pub(super) hash: ChunkHash,
}

/// A chunk of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OldChunk {
    /// Nothing but zeros.
    Zeros { plain: u32 },
    /// A whole chunk.
    Whole(PlacedChunk),
    /// A page patch; `patch` has length and hash of the result.
    Patched { patch: PlacedChunk, base: PlacedChunk },
}

impl OldChunk {
    pub(super) const fn plain(&self) -> u32 {
        match self {
            Self::Zeros { plain } => *plain,
            Self::Whole(chunk) | Self::Patched { patch: chunk, .. } => chunk.plain,
        }
    }

    /// The hash of its content; `None` of zeros.
    pub(super) const fn hash(&self) -> Option<ChunkHash> {
        match self {
            Self::Zeros { .. } => None,
            Self::Whole(chunk) | Self::Patched { patch: chunk, .. } => Some(chunk.hash),
        }
    }

    /// The whole chunk that a patch may lie over: never a patch itself.
    pub(super) const fn base(&self) -> Option<PlacedChunk> {
        match self {
            Self::Zeros { .. } => None,
            Self::Whole(base) | Self::Patched { base, .. } => Some(*base),
        }
    }
}

/// A file of the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldFile {
    pub(super) size: u64,
    pub(super) crc32c: u32,
    pub(super) chunks: Vec<OldChunk>,
}

/// The file table of the reference. Its scratch file goes with it.
#[derive(Debug)]
pub(super) struct Reference {
    id: BackupId,
    packs: Vec<PackRef>,
    facts: TableFacts,
    lines: TempFile,
    /// Hash of the path to position and length of its line.
    places: HashMap<u64, (u64, u32)>,
}

impl Reference {
    /// Reads the file table of a backup. `wanted` are the files that matter.
    ///
    /// An error when it has other chunks than ours, or a pack that is not among those that exist.
    pub(super) async fn load(
        lineage: &LineageRepository,
        manifest: &Manifest,
        index: &ChunkIndex,
        scratch_dir: &Path,
        wanted: fn(&TableEntry) -> bool,
    ) -> Result<Self, CopyError> {
        if manifest.chunk_size != CHUNK_SIZE {
            return Err(CopyError::Doubt(format!("it has chunks of {} bytes", manifest.chunk_size)));
        }
        if let Some(gone) = manifest.packs.iter().find(|pack| !index.lists(pack)) {
            let sha256 = crate::codec::digest::to_hex(&gone.sha256);
            return Err(CopyError::Doubt(format!("its pack {sha256} is not in the repository")));
        }
        let mut writer = ReferenceWriter::new(scratch_dir)?;
        for part in &manifest.parts {
            let key = format!("{}{}", lineage.keys().backup_prefix(&manifest.id), part.name);
            let damaged = |error: String| CopyError::from(RepositoryError::mismatch(&key, error));
            let object = ObjectKey::new(key.clone()).map_err(|error| damaged(error.to_string()))?;
            let bytes = lineage.objects().get_checked(&object, &part.sha256).await?;
            let (entries, facts) = (part.entries, manifest.table_facts());
            // Decompressing and parsing a part takes a good part of a second.
            let read = tokio::task::spawn_blocking(move || {
                let result = PartReader::of_checked(bytes, entries, facts).map_err(|error| error.to_string());
                let result = result.map(|part| writer.add(part, wanted));
                (writer, result)
            });
            let (back, result) = read.await?;
            writer = back;
            result.map_err(damaged)??;
        }
        writer.finish(manifest.id.clone(), manifest.packs.clone(), manifest.table_facts())
    }

    pub(super) fn id(&self) -> &BackupId {
        &self.id
    }

    /// A file by its path. Reads a line of the scratch file.
    pub(super) fn find(&self, path: &DataPath) -> Result<Option<OldFile>, CopyError> {
        let Some(&(position, len)) = self.places.get(&hash_of(path)) else { return Ok(None) };
        let mut line = vec![0; len as usize];
        self.lines.file().read_exact_at(&mut line, position).map_err(CopyError::Scratch)?;
        let entry = decode_entry(&line, self.facts).map_err(|error| CopyError::Scratch(io::Error::other(error)))?;
        Ok(match entry.kind {
            EntryKind::File(file) if entry.path == *path => Some(OldFile {
                size: file.size,
                crc32c: file.crc32c,
                chunks: file.chunks.iter().map(|chunk| self.old_chunk(chunk)).collect(),
            }),
            // Another path with the same hash.
            _ => None,
        })
    }

    fn old_chunk(&self, chunk: &ChunkRef) -> OldChunk {
        match chunk {
            ChunkRef::Zeros { plain } => OldChunk::Zeros { plain: *plain },
            ChunkRef::Stored(chunk) => OldChunk::Whole(self.placed(chunk)),
            ChunkRef::Patched(PatchedChunk { patch, base }) => {
                OldChunk::Patched { patch: self.placed(patch), base: self.placed(base) }
            }
        }
    }

    fn placed(&self, chunk: &StoredChunk) -> PlacedChunk {
        let StoredChunk { pack, offset, stored, plain, hash } = *chunk;
        // The line was read with the number of packs that the manifest has.
        PlacedChunk { pack: self.packs[pack as usize], offset, stored, plain, hash }
    }
}

fn hash_of(path: &DataPath) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// Writes the scratch file.
#[derive(Debug)]
struct ReferenceWriter {
    temp: TempFile,
    writer: BufWriter<File>,
    position: u64,
    places: HashMap<u64, (u64, u32)>,
    line: Vec<u8>,
}

impl ReferenceWriter {
    fn new(dir: &Path) -> Result<Self, CopyError> {
        let temp = TempFile::in_dir(dir, PRIVATE_FILE).map_err(CopyError::Scratch)?;
        let file = temp.file().try_clone().map_err(CopyError::Scratch)?;
        Ok(Self { temp, writer: BufWriter::new(file), position: 0, places: HashMap::new(), line: Vec::new() })
    }

    fn add(&mut self, part: PartReader, wanted: fn(&TableEntry) -> bool) -> Result<(), CopyError> {
        for entry in part {
            let entry = entry.map_err(|error| CopyError::Doubt(format!("its file table is damaged: {error}")))?;
            if !matches!(entry.kind, EntryKind::File(_)) || !wanted(&entry) {
                continue;
            }
            self.line.clear();
            encode_entry(&entry, &mut self.line);
            let Ok(len) = u32::try_from(self.line.len()) else { continue };
            self.writer.write_all(&self.line).map_err(CopyError::Scratch)?;
            self.places.insert(hash_of(&entry.path), (self.position, len));
            self.position += u64::from(len);
        }
        Ok(())
    }

    fn finish(mut self, id: BackupId, packs: Vec<PackRef>, facts: TableFacts) -> Result<Reference, CopyError> {
        self.writer.flush().map_err(CopyError::Scratch)?;
        Ok(Reference { id, packs, facts, lines: self.temp, places: self.places })
    }
}
