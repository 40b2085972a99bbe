//! Every file against PostgreSQL's own manifest, in memory that does not grow with the number of files.
//!
//! The server names files in the manifest in the order in which it sent them. So what we received is written down as we
//! go (path, length, CRC-32C), read again when the manifest comes, and the two lists are walked side by side. The manifest
//! itself goes, compressed, to a file as well: it can have hundreds of megabytes and is stored byte for byte.

mod kept;
mod records;

use std::collections::HashMap;
use std::path::Path;

use recovery::DataPath;
use recovery::pg_manifest::{FileChecksum, ManifestFacts, ManifestFile, PgManifestReader};

use super::error::CopyError;
use crate::codec::Compression;

pub(super) use kept::KeptManifest;
use kept::ManifestKeeper;
use records::{Received, Records};

#[cfg(test)]
mod tests;

/// A file is not what PostgreSQL's manifest says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ManifestMismatch {
    /// The manifest names it and the archives do not have it.
    #[error("the server's manifest names \"{0}\", and it was not sent")]
    NotSent(DataPath),
    /// The archives have it and the manifest does not name it.
    #[error("the server sent \"{0}\", and its manifest does not name it")]
    NotNamed(DataPath),
    /// Another length.
    #[error("\"{path}\" has {received} bytes, the server's manifest says {stated}")]
    Size {
        /// The file.
        path: DataPath,
        /// What arrived.
        received: u64,
        /// What the manifest says.
        stated: u64,
    },
    /// Other bytes.
    #[error("\"{path}\" has CRC-32C {received:08x}, the server's manifest says {stated:08x}")]
    Checksum {
        /// The file.
        path: DataPath,
        /// What arrived.
        received: u32,
        /// What the manifest says.
        stated: u32,
    },
    /// A file without CRC-32C, which we asked for.
    #[error("the server's manifest has no CRC-32C for \"{0}\"")]
    NoChecksum(DataPath),
}

/// The check, from the first file to the end of the manifest.
#[derive(Debug)]
pub(super) struct ManifestCheck {
    reader: PgManifestReader,
    records: Records,
    /// Where the two lists differ in order. Stays empty with every server known.
    unnamed: HashMap<DataPath, Received>,
    unsent: HashMap<DataPath, ManifestFile>,
    keeper: ManifestKeeper,
}

impl ManifestCheck {
    /// Scratch files go to `scratch_dir` and are removed with the check.
    pub(super) fn new(scratch_dir: &Path, compression: Compression) -> Result<Self, CopyError> {
        Ok(Self {
            reader: PgManifestReader::new(),
            records: Records::new(scratch_dir)?,
            unnamed: HashMap::new(),
            unsent: HashMap::new(),
            keeper: ManifestKeeper::new(scratch_dir, compression)?,
        })
    }

    /// A file has arrived. Goes to the page cache, a few dozen bytes a file.
    pub(super) fn file(&mut self, path: &DataPath, size: u64, crc32c: u32) -> Result<(), CopyError> {
        self.records.push(path, Received { size, crc32c })
    }

    /// A piece of the manifest has arrived.
    pub(super) fn manifest(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        self.keeper.push(bytes)?;
        let mut named = Vec::new();
        self.reader.push(bytes, &mut |file| named.push(file))?;
        named.into_iter().try_for_each(|file| self.compare(file))
    }

    /// Everything has arrived.
    pub(super) fn finish(mut self) -> Result<(ManifestFacts, KeptManifest), CopyError> {
        let facts = self.reader.finish()?;
        while let Some((path, received)) = self.records.next()? {
            match self.unsent.remove(&path) {
                Some(named) => agree(&named, received)?,
                None => return Err(ManifestMismatch::NotNamed(path).into()),
            }
        }
        if let Some((path, _)) = self.unsent.into_iter().next() {
            return Err(ManifestMismatch::NotSent(path).into());
        }
        if let Some((path, _)) = self.unnamed.into_iter().next() {
            return Err(ManifestMismatch::NotNamed(path).into());
        }
        Ok((facts, self.keeper.finish()?))
    }

    fn compare(&mut self, named: ManifestFile) -> Result<(), CopyError> {
        if let Some(received) = self.unnamed.remove(&named.path) {
            return Ok(agree(&named, received)?);
        }
        match self.records.next()? {
            Some((path, received)) if path == named.path => return Ok(agree(&named, received)?),
            Some((path, received)) => match self.unsent.remove(&path) {
                Some(earlier) => agree(&earlier, received)?,
                None => {
                    self.unnamed.insert(path, received);
                }
            },
            None => {}
        }
        match self.unsent.insert(named.path.clone(), named) {
            None => Ok(()),
            Some(twice) => Err(ManifestMismatch::NotSent(twice.path).into()),
        }
    }
}

fn agree(named: &ManifestFile, received: Received) -> Result<(), ManifestMismatch> {
    let path = || named.path.clone();
    if named.size != received.size {
        return Err(ManifestMismatch::Size { path: path(), received: received.size, stated: named.size });
    }
    match named.checksum {
        Some(FileChecksum::Crc32c(stated)) if stated == received.crc32c => Ok(()),
        Some(FileChecksum::Crc32c(stated)) => {
            Err(ManifestMismatch::Checksum { path: path(), received: received.crc32c, stated })
        }
        _ => Err(ManifestMismatch::NoChecksum(path())),
    }
}
