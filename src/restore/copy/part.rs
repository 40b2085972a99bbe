//! The files of one part of the file table, each from its making to its last chunk.
//!
//! A file is made by whoever comes with its first chunk, and finished by whoever comes with its last: it then has the
//! checksum that the file table says, or the restore fails. So making files, which takes long where there are many, goes
//! on beside reading and writing, and a small file is opened once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crc32c::{crc32c, crc32c_combine};

use crate::codec::digest::crc32c_of_zeros;
use crate::error::{Error, Result};
use crate::repository::file_table::{ChunkRef, EntryKind, FileContent, TableEntry};
use crate::restore::keep::Checksums;
use crate::restore::roots::{Length, Roots, TargetFile};

use super::{cannot_write, damaged};

/// A read keeps so many files open: chunks of a few may take turns in a pack.
const OPEN: usize = 8;

/// One part of the file table on its way to the disk.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) entries: Vec<TableEntry>,
    states: Vec<Mutex<State>>,
}

/// How far a file is.
#[derive(Debug)]
struct State {
    is_made: bool,
    /// CRC-32C of every chunk that is stored and lies at its place.
    checksums: Vec<Option<u32>>,
    /// Chunks that have to be written yet.
    missing: usize,
}

impl Part {
    /// The files of these entries; `right` are the chunks that lie at their places already. `are_made`: every file is there.
    pub(super) fn new(entries: Vec<TableEntry>, right: Checksums, are_made: bool) -> Self {
        let state = |(entry, checksums): (&TableEntry, Vec<Option<u32>>)| {
            let chunks = content(entry).map_or(&[][..], |file| &file.chunks);
            let is_missing = |(chunk, right): (&ChunkRef, &Option<u32>)| is_stored(chunk) && right.is_none();
            let missing = chunks.iter().zip(&checksums).filter(|&pair| is_missing(pair)).count();
            Mutex::new(State { is_made: are_made, checksums, missing })
        };
        let states = entries.iter().zip(right).map(state).collect();
        Self { entries, states }
    }

    /// Files of which no chunk has to be written.
    pub(super) fn without_chunks(&self) -> Vec<usize> {
        let files = (0..self.entries.len()).filter(|&entry| content(&self.entries[entry]).is_some());
        files.filter(|&entry| self.state(entry).missing == 0).collect()
    }

    /// How many files it has.
    pub(super) fn files(&self) -> u64 {
        self.entries.iter().filter_map(content).count() as u64
    }

    /// Makes and finishes a file of which no chunk has to be written.
    pub(super) fn complete(&self, entry: usize, roots: &Roots) -> Result<()> {
        let file = self.open(entry, roots).map_err(|error| cannot_write(&self.entries[entry].path, &error))?;
        self.finish(entry, &file, &self.state(entry))
    }

    fn state(&self, entry: usize) -> MutexGuard<'_, State> {
        self.states[entry].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, entry: usize, roots: &Roots) -> io::Result<TargetFile> {
        let TableEntry { path, mode, kind, .. } = &self.entries[entry];
        let EntryKind::File(content) = kind else { return Err(io::ErrorKind::IsADirectory.into()) };
        let mut state = self.state(entry);
        if state.is_made {
            return roots.open_again(path, length(content));
        }
        let file = roots.make(path, length(content), *mode)?;
        state.is_made = true;
        Ok(file)
    }

    /// Every chunk is written: is the file, as a whole, what the file table says?
    fn finish(&self, entry: usize, file: &TargetFile, state: &State) -> Result<()> {
        let TableEntry { path, mode, mtime, kind } = &self.entries[entry];
        let EntryKind::File(content) = kind else { return Ok(()) };
        let said = content.crc32c;
        match checksum_of(content, &state.checksums) {
            Some(found) if found == said => {}
            Some(found) => {
                return Err(damaged(format!("\"{path}\" has CRC-32C {found:08x}, the file table says {said:08x}")));
            }
            None => return Err(damaged(format!("not every chunk of \"{path}\" was written"))),
        }
        file.finish(*mode, *mtime).map_err(|error| cannot_write(path, &error))
    }
}

/// Writes the chunks of one read.
pub(super) struct Writer<'a> {
    part: &'a Part,
    roots: &'a Roots,
    chunk_size: u64,
    /// The one that was written to last is the first.
    open: VecDeque<(usize, TargetFile)>,
    /// Files that have all their chunks now.
    pub(super) finished: u64,
    /// Bytes that were written.
    pub(super) written: u64,
    /// Why a file could not be finished.
    pub(super) failed: Option<Error>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(part: &'a Part, roots: &'a Roots, chunk_size: u32) -> Self {
        let open = VecDeque::with_capacity(OPEN);
        Self { part, roots, chunk_size: u64::from(chunk_size), open, finished: 0, written: 0, failed: None }
    }

    /// Writes a proven chunk of a file.
    pub(super) fn write(&mut self, entry: usize, position: u64, plain: &[u8]) -> io::Result<()> {
        let mut file = self.take_file(entry)?;
        file.write_all_at(plain, position)?;
        self.written += plain.len() as u64;
        let index = usize::try_from(position / self.chunk_size).map_err(io::Error::other)?;
        if self.note(entry, index, crc32c(plain), &file).map_err(|error| self.fail(error))? {
            self.finished += 1;
        } else {
            self.open.push_front((entry, file));
        }
        Ok(())
    }

    fn take_file(&mut self, entry: usize) -> io::Result<TargetFile> {
        if let Some(at) = self.open.iter().position(|(of, _)| *of == entry)
            && let Some((_, file)) = self.open.remove(at)
        {
            return Ok(file);
        }
        self.open.truncate(OPEN - 1);
        self.part.open(entry, self.roots)
    }

    /// Enters a chunk that was written; finishes the file when it was the last. Whoever enters the last one comes after all
    /// others under the lock, so nobody writes to the file any more.
    fn note(&self, entry: usize, index: usize, checksum: u32, file: &TargetFile) -> Result<bool> {
        let mut state = self.part.state(entry);
        if state.checksums[index].replace(checksum).is_none() {
            state.missing -= 1;
        }
        if state.missing == 0 { self.part.finish(entry, file, &state).map(|()| true) } else { Ok(false) }
    }

    /// Keeps the error for whoever called; the sink of chunks knows those of the system only.
    fn fail(&mut self, error: Error) -> io::Error {
        let told = io::Error::other(error.to_string());
        self.failed = Some(error);
        told
    }
}

/// What a file holds.
pub(super) fn content(entry: &TableEntry) -> Option<&FileContent> {
    match &entry.kind {
        EntryKind::File(file) => Some(file),
        EntryKind::Directory => None,
    }
}

fn is_stored(chunk: &ChunkRef) -> bool {
    !matches!(chunk, ChunkRef::Zeros { .. })
}

fn length(file: &FileContent) -> Length {
    match file.chunks.as_slice() {
        [] => Length::ByWriting,
        [only] if is_stored(only) => Length::ByWriting,
        chunks if chunks.iter().all(is_stored) => Length::Whole(file.size),
        _ => Length::WithHoles(file.size),
    }
}

/// CRC-32C of a file from those of its chunks; `None` when one is missing.
fn checksum_of(file: &FileContent, checksums: &[Option<u32>]) -> Option<u32> {
    let mut whole = None;
    for (chunk, &checksum) in file.chunks.iter().zip(checksums) {
        let of_chunk = match *chunk {
            ChunkRef::Zeros { plain } => crc32c_of_zeros(plain as usize),
            ChunkRef::Stored(_) | ChunkRef::Patched(_) => checksum?,
        };
        let before = |crc| crc32c_combine(crc, of_chunk, chunk.plain() as usize);
        whole = Some(whole.map_or(of_chunk, before));
    }
    Some(whole.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::file_table::{ChunkHash, StoredChunk};

    #[test]
    fn checksums_of_chunks_make_that_of_the_file() {
        let bytes: Vec<u8> = [vec![7; 100_000], vec![0; 100_000], (0..=255).collect()].concat();
        let stored =
            |plain| ChunkRef::Stored(StoredChunk { pack: 0, offset: 0, stored: 1, plain, hash: ChunkHash([0; 32]) });
        let chunks = vec![stored(100_000), ChunkRef::Zeros { plain: 100_000 }, stored(256)];
        let file = FileContent { size: bytes.len() as u64, crc32c: 0, chunks };
        let parts = [Some(crc32c(&bytes[..100_000])), None, Some(crc32c(&bytes[200_000..]))];
        assert_eq!(checksum_of(&file, &parts), Some(crc32c(&bytes)));
        assert_eq!(checksum_of(&file, &[parts[0], None, None]), None, "one was not written");
        assert_eq!(checksum_of(&FileContent { size: 0, crc32c: 0, chunks: Vec::new() }, &[]), Some(crc32c(b"")));
    }
}
