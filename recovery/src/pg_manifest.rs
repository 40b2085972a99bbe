//! PostgreSQL's `backup_manifest`, read as it arrives (`backup_manifest.c` writes it, `parse_manifest.c` reads it).
//!
//! Versions 1 (PostgreSQL 13 to 16) and 2 (17 and later, which adds the system identifier). A manifest names every file of
//! a backup and can have hundreds of megabytes: entries are handed on one by one, and memory stays at one entry.

mod entry;
mod scan;

#[cfg(test)]
mod tests;

use sha2::{Digest, Sha256};
use wal::{SystemIdentifier, WalRange};

use crate::InvalidDataPath;

pub use entry::{FileChecksum, ManifestFile};
use scan::{Scanner, Unit};

/// More WAL ranges than this (one per timeline of the backup) are nonsense.
const MAX_WAL_RANGES: usize = 1024;

/// What a manifest says besides its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFacts {
    /// 1 or 2.
    pub version: u64,
    /// The cluster's system identifier, from version 2 on.
    pub system_identifier: Option<SystemIdentifier>,
    /// Number of files.
    pub files: u64,
    /// Which WAL the backup needs.
    pub wal_ranges: Vec<WalRange>,
}

/// The bytes are not a manifest of PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PgManifestError {
    /// Not the JSON that PostgreSQL writes.
    #[error("backup_manifest, byte {at}: {what}")]
    Malformed {
        /// About where.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// Written by a PostgreSQL that we do not know.
    #[error("backup_manifest has version {0}, versions 1 and 2 are known")]
    Version(u64),
    /// A name that leads outside.
    #[error("backup_manifest names a file that cannot be: {0}")]
    Path(#[from] InvalidDataPath),
    /// It ends too early.
    #[error("backup_manifest was cut short")]
    Truncated,
    /// Its own checksum is wrong.
    #[error("backup_manifest does not have the SHA-256 that it says")]
    Checksum,
}

/// Reads a manifest that is pushed in pieces of any size.
#[derive(Debug, Default)]
pub struct PgManifestReader {
    scanner: Scanner,
    lines: LineDigests,
    version: Option<u64>,
    system_identifier: Option<SystemIdentifier>,
    files: u64,
    seen_files: bool,
    wal_ranges: Vec<WalRange>,
    stated_checksum: Option<[u8; 32]>,
}

impl PgManifestReader {
    /// At the start of a manifest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and hands on the files that they complete. Nothing is proven before [`Self::finish`].
    pub fn push(&mut self, bytes: &[u8], on_file: &mut dyn FnMut(ManifestFile)) -> Result<(), PgManifestError> {
        self.lines.push(bytes);
        for &byte in bytes {
            if let Some(unit) = self.scanner.push(byte)? {
                let at = self.scanner.position();
                let malformed = |what: String| PgManifestError::Malformed { at, what };
                if self.stated_checksum.is_some() {
                    return Err(malformed("there is more after the checksum".to_owned()));
                }
                match unit {
                    Unit::Member(text) => match entry::member(&text).map_err(malformed)? {
                        entry::Member::Version(version) => self.set_version(version)?,
                        entry::Member::SystemIdentifier(number) => {
                            self.system_identifier = Some(SystemIdentifier::new(number));
                        }
                        entry::Member::Checksum(sha256) => self.stated_checksum = Some(sha256),
                        entry::Member::Other => {}
                    },
                    Unit::ArrayBegins(name) => match name.as_str() {
                        "Files" if self.version.is_some() && !self.seen_files => self.seen_files = true,
                        "WAL-Ranges" if self.version.is_some() && self.wal_ranges.is_empty() => {}
                        _ => return Err(malformed(format!("the list \"{name}\" has no place here"))),
                    },
                    Unit::Element(name, text) if name == "Files" => {
                        self.files += 1;
                        on_file(entry::file(&text).map_err(malformed)??);
                    }
                    Unit::Element(_, text) => {
                        if self.wal_ranges.len() >= MAX_WAL_RANGES {
                            return Err(malformed("too many WAL ranges".to_owned()));
                        }
                        self.wal_ranges.push(entry::wal_range(&text).map_err(malformed)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// All bytes were pushed: verifies the checksum and returns what else the manifest says.
    pub fn finish(self) -> Result<ManifestFacts, PgManifestError> {
        if !self.scanner.is_complete() || !self.seen_files {
            return Err(PgManifestError::Truncated);
        }
        let version = self.version.ok_or(PgManifestError::Truncated)?;
        let stated = self.stated_checksum.ok_or(PgManifestError::Truncated)?;
        if self.lines.before_last_line() != Some(stated) {
            return Err(PgManifestError::Checksum);
        }
        Ok(ManifestFacts {
            version,
            system_identifier: self.system_identifier,
            files: self.files,
            wal_ranges: self.wal_ranges,
        })
    }

    fn set_version(&mut self, version: u64) -> Result<(), PgManifestError> {
        match version {
            1 | 2 if self.version.is_none() => {
                self.version = Some(version);
                Ok(())
            }
            _ => Err(PgManifestError::Version(version)),
        }
    }
}

/// SHA-256 of everything before the last line, without knowing which line is the last.
#[derive(Debug, Default)]
struct LineDigests {
    all: Sha256,
    /// After the last newline, and after the one before it.
    at_newlines: [Option<Sha256>; 2],
    ends_in_newline: bool,
}

impl LineDigests {
    fn push(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.all.update(line);
            self.ends_in_newline = line.ends_with(b"\n");
            if self.ends_in_newline {
                self.at_newlines.swap(0, 1);
                self.at_newlines[0] = Some(self.all.clone());
            }
        }
    }

    fn before_last_line(self) -> Option<[u8; 32]> {
        let [_, before] = self.at_newlines;
        before.filter(|_| self.ends_in_newline).map(|digest| digest.finalize().into())
    }
}

/// Reads hostile bytes as a manifest, whole and in pieces; both must tell the same, and never panic. For fuzzing.
pub fn fuzz_pg_manifest(data: &[u8]) {
    let read = |piece: usize| {
        let mut reader = PgManifestReader::new();
        let mut files = Vec::new();
        let pushed = data.chunks(piece).try_for_each(|bytes| reader.push(bytes, &mut |file| files.push(file)));
        (files, pushed.and_then(|()| reader.finish()))
    };
    let piece = usize::from(data.first().copied().unwrap_or(0)) + 1;
    assert_eq!(read(data.len().max(1)), read(piece));
}
