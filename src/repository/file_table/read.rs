//! Reading a file table, part by part, entry by entry.

use std::io::{BufRead, BufReader, Read};

use super::{TableEntry, TableError, line};
use crate::codec::{FrameReader, digest};
use crate::storage::Sha256;
use bytes::{Buf, Bytes};

/// The longest line that is read: the entry of a file of about 1 TiB.
const MAX_LINE: u64 = 128 << 20;

/// What a manifest says about its file table; every entry is checked against it.
#[derive(Clone, Copy, Debug)]
pub struct TableFacts {
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// How many packs the manifest names.
    pub packs: usize,
}

/// The entries of one stored part, in order. Memory: the compressed part, a window and one entry.
pub struct PartReader {
    lines: BufReader<FrameReader<bytes::buf::Reader<Bytes>>>,
    facts: TableFacts,
    line: Vec<u8>,
    entries: u64,
    expected: u64,
    ended: bool,
}

impl PartReader {
    /// Checks the stored part against its SHA-256 from the manifest; `entries` is how many it must have.
    pub fn new(part: Bytes, sha256: Sha256, entries: u64, facts: TableFacts) -> Result<Self, TableError> {
        let found = digest::sha256(&part);
        if found != sha256 {
            return Err(TableError::Checksum { expected: digest::to_hex(&sha256), found: digest::to_hex(&found) });
        }
        Self::unchecked(part, entries, facts)
    }

    /// The same for a part whose stored form was checked when it was read ([`crate::repository::Objects::get_checked`]).
    pub fn of_checked(part: Bytes, entries: u64, facts: TableFacts) -> Result<Self, TableError> {
        Self::unchecked(part, entries, facts)
    }

    fn unchecked(part: Bytes, expected: u64, facts: TableFacts) -> Result<Self, TableError> {
        let frames = FrameReader::new(part.reader()).map_err(TableError::Compression)?;
        Ok(Self { lines: BufReader::new(frames), facts, line: Vec::new(), entries: 0, expected, ended: false })
    }

    fn read_line(&mut self) -> Result<bool, TableError> {
        self.line.clear();
        let mut limited = (&mut self.lines).take(MAX_LINE);
        let read = limited.read_until(b'\n', &mut self.line).map_err(TableError::Compression)?;
        if read > 0 && self.line.pop() != Some(b'\n') {
            return Err(self.bad_line("it does not end, or is too long".to_owned()));
        }
        Ok(read > 0)
    }

    fn bad_line(&self, what: String) -> TableError {
        TableError::Line { line: self.entries + 1, what }
    }

    fn next_entry(&mut self) -> Result<Option<TableEntry>, TableError> {
        if !self.read_line()? {
            return if self.entries == self.expected {
                Ok(None)
            } else {
                Err(TableError::Entries { expected: self.expected, found: self.entries })
            };
        }
        let entry = line::read(&self.line, self.facts.chunk_size, self.facts.packs);
        let entry = entry.map_err(|what| self.bad_line(what))?;
        self.entries += 1;
        Ok(Some(entry))
    }
}

impl Iterator for PartReader {
    type Item = Result<TableEntry, TableError>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_entry().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

impl std::fmt::Debug for PartReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartReader").field("entries", &self.entries).field("expected", &self.expected).finish()
    }
}

/// Reads hostile bytes as a part; must not panic. For fuzzing.
pub fn fuzz_part(data: &[u8]) {
    let facts = TableFacts { chunk_size: super::CHUNK_SIZE, packs: 4 };
    // The lines themselves, too: compressed by chance is rare.
    for line in data.split(|&b| b == b'\n') {
        if let Ok(entry) = line::read(line, facts.chunk_size, facts.packs) {
            let mut again = Vec::new();
            line::write(&entry, &mut again);
            assert_eq!(line::read(&again, facts.chunk_size, facts.packs), Ok(entry));
        }
    }
    if let Ok(reader) = PartReader::unchecked(Bytes::copy_from_slice(data), 0, facts) {
        reader.for_each(drop);
    }
}
