//! The files of one part of the file table, each from its making to its last chunk.
//!
//! A file is made by whoever comes with its first chunk, and finished by whoever comes with its last: it then has the
//! checksum that the file table says, or the restore fails. So making files, which takes long where there are many, goes
//! on beside reading and writing, and a small file is opened once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crc32c::{crc32c, crc32c_combine};
use recovery::DataPath;

use crate::codec::digest::crc32c_of_zeros;
use crate::error::{Error, Result};
use crate::repository::chunk_reader::{PackRead, WantedChunk};
use crate::repository::file_table::{ChunkRef, EntryKind, FileContent, TableEntry};
use crate::restore::keep::Checksums;
use crate::restore::roots::{Length, NewFile, Roots, TargetFile};

use super::{cannot_write, damaged};

/// A read keeps so many files open: chunks of a few may take turns in a pack.
const OPEN: usize = 8;

/// So many small files are made in one go: who makes one file at a time waits for the others in the directory each time.
const MADE_AT_ONCE: usize = 32;

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

    /// Makes and finishes files of which no chunk has to be written.
    pub(super) fn complete(&self, files: &[usize], roots: &Roots) -> Result<()> {
        let same_directory = |a: &usize, b: &usize| self.directory(*a) == self.directory(*b);
        for group in files.chunk_by(same_directory).flat_map(|group| group.chunks(MADE_AT_ONCE)) {
            let made = if self.state(group[0]).is_made {
                let open = |&file| self.open(file, roots).map_err(|error| self.cannot_write(file, &error));
                group.iter().map(open).collect::<Result<Vec<_>>>()?
            } else {
                self.make(group, roots)?
            };
            for (&entry, file) in group.iter().zip(&made) {
                self.finish(entry, file, &self.state(entry))?;
            }
        }
        Ok(())
    }

    /// Makes files of one directory that nobody else has made or makes.
    fn make(&self, files: &[usize], roots: &Roots) -> Result<Vec<TargetFile>> {
        let new = |&file: &usize| {
            let TableEntry { path, mode, .. } = &self.entries[file];
            NewFile { path, length: content(&self.entries[file]).map_or(Length::ByWriting, length), mode: *mode }
        };
        let new: Vec<NewFile<'_>> = files.iter().map(new).collect();
        let made = roots.make(&new).map_err(|(at, error)| self.cannot_write(files[at], &error))?;
        files.iter().for_each(|&file| self.state(file).is_made = true);
        Ok(made)
    }

    /// Whether it is a file of one chunk that is not there yet: then only the read that brings the chunk makes it.
    fn is_new_and_small(&self, entry: usize) -> bool {
        let is_small = content(&self.entries[entry]).is_some_and(|file| file.chunks.len() == 1);
        is_small && !self.state(entry).is_made
    }

    fn directory(&self, entry: usize) -> Option<DataPath> {
        self.entries[entry].path.parent()
    }

    fn cannot_write(&self, entry: usize, error: &io::Error) -> Error {
        cannot_write(&self.entries[entry].path, error)
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
        let new = NewFile { path, length: length(content), mode: *mode };
        let made = roots.make(&[new]).map_err(|(_, error)| error)?.pop();
        state.is_made = true;
        made.ok_or_else(|| io::ErrorKind::NotFound.into())
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

/// Writes the chunks of one read, in its order.
pub(super) struct Writer<'a> {
    part: &'a Part,
    roots: &'a Roots,
    chunk_size: u64,
    /// What comes yet.
    coming: &'a [WantedChunk],
    /// The one that was written to last is the first.
    open: VecDeque<(usize, TargetFile)>,
    /// Those that were made for chunks that come next.
    ahead: VecDeque<(usize, TargetFile)>,
    /// Files that have all their chunks now.
    pub(super) finished: u64,
    /// Bytes that were written.
    pub(super) written: u64,
    /// What failed, where it was not the system.
    pub(super) failed: Option<Error>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(part: &'a Part, roots: &'a Roots, chunk_size: u32, read: &'a PackRead) -> Self {
        let (open, ahead) = (VecDeque::with_capacity(OPEN), VecDeque::new());
        let (chunk_size, coming) = (u64::from(chunk_size), &read.chunks[..]);
        Self { part, roots, chunk_size, coming, open, ahead, finished: 0, written: 0, failed: None }
    }

    /// Writes a proven chunk of a file.
    pub(super) fn write(&mut self, entry: usize, position: u64, plain: &[u8]) -> io::Result<()> {
        let mut file = self.take_file(entry)?;
        self.coming = self.coming.get(1..).unwrap_or_default();
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
        for files in [&mut self.open, &mut self.ahead] {
            if let Some(at) = files.iter().position(|(of, _)| *of == entry)
                && let Some((_, file)) = files.remove(at)
            {
                return Ok(file);
            }
        }
        if self.part.is_new_and_small(entry) {
            return self.make_ahead(entry);
        }
        self.open.truncate(OPEN - 1);
        self.part.open(entry, self.roots)
    }

    /// Makes a small file, and with it those of the same directory that come right behind.
    fn make_ahead(&mut self, entry: usize) -> io::Result<TargetFile> {
        let directory = self.part.directory(entry);
        let behind = self.coming.iter().skip(1).map(|chunk| chunk.entry);
        let behind =
            behind.take_while(|&next| self.part.is_new_and_small(next) && self.part.directory(next) == directory);
        let files: Vec<usize> = [entry].into_iter().chain(behind).take(MADE_AT_ONCE).collect();
        let made = self.part.make(&files, self.roots).map_err(|error| self.fail(error))?;
        self.ahead = files.into_iter().zip(made).collect();
        self.ahead.pop_front().map(|(_, file)| file).ok_or_else(|| io::ErrorKind::NotFound.into())
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
mod tests;
