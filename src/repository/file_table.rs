//! The file table of a backup (FORMAT 5.2): what lies in the data directory, and which chunks each file is made of.

mod line;
mod read;
mod write;

pub use line::{decode_entry, encode_entry};
pub use read::{PartReader, TableFacts, fuzz_part};
pub use write::{PART_PLAIN_BYTES, PartWriter, PlainPart};

use recovery::DataPath;

/// Bytes of one chunk unless a manifest says otherwise: files are cut at multiples of it.
pub const CHUNK_SIZE: u32 = 1 << 20;

/// A file or directory of the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Where it lies, relative to the data directory; files of tablespaces are `pg_tblspc/<oid>/…`.
    pub path: DataPath,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last change, Unix seconds.
    pub mtime: i64,
    /// What it is.
    pub kind: EntryKind,
}

/// What a table entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File(FileContent),
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Its length in bytes.
    pub size: u64,
    /// CRC-32C of the whole content.
    pub crc32c: u32,
    /// Its chunks in order; chunk i covers the bytes from `i × chunk_size` on.
    pub chunks: Vec<ChunkRef>,
}

/// One chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkRef {
    /// Nothing but zeros; not stored.
    Zeros {
        /// Its length.
        plain: u32,
    },
    /// Stored in a pack.
    Stored(StoredChunk),
    /// Stored as the difference to another chunk.
    Patched(PatchedChunk),
}

impl ChunkRef {
    /// Length of the plaintext.
    pub const fn plain(&self) -> u32 {
        match self {
            Self::Zeros { plain } => *plain,
            Self::Stored(chunk) => chunk.plain,
            Self::Patched(patched) => patched.patch.plain,
        }
    }
}

/// A page patch (FORMAT 6.3): a chunk that differs from another in few pages.
///
/// Its bytes are those of the frame at `patch` XOR those of `base`, cut or filled up with zeros to the same length. `base` is
/// always a whole chunk, never a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchedChunk {
    /// Where the difference lies; `plain` and `hash` are those of the result.
    pub patch: StoredChunk,
    /// The chunk that it is the difference to.
    pub base: StoredChunk,
}

/// Where a stored chunk lies and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChunk {
    /// Index of the pack in the manifest's `packs`.
    pub pack: u32,
    /// First byte of its zstd frame in the pack.
    pub offset: u32,
    /// Length of the zstd frame.
    pub stored: u32,
    /// Length of the plaintext.
    pub plain: u32,
    /// BLAKE3 of the plaintext.
    pub hash: ChunkHash,
}

/// BLAKE3 of a chunk's plaintext: its identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// The identity of these bytes.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

impl std::fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A part of a file table is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The zstd stream is damaged.
    #[error("the part cannot be decompressed: {0}")]
    Compression(std::io::Error),
    /// The part does not have the SHA-256 that the manifest says.
    #[error("the part has SHA-256 {found}, the manifest says {expected}")]
    Checksum {
        /// What the manifest says, in hexadecimal digits.
        expected: String,
        /// What its bytes give.
        found: String,
    },
    /// A line is not an entry.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The part has another number of entries than the manifest says.
    #[error("the part has {found} entries, the manifest says {expected}")]
    Entries {
        /// What the manifest says.
        expected: u64,
        /// How many lines there are.
        found: u64,
    },
}

#[cfg(test)]
mod tests;
