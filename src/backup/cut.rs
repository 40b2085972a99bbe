//! Cuts files into chunks at fixed offsets and hands them on in batches of up to a chunk's size.
//!
//! Where the bytes of a file come from does not matter here: `directory`, `begin_file`, `data` is the seam behind which
//! another source of files can stand. Buffers come from a pool of fixed size and go back to it: when the stages behind are
//! slower than the source, the source waits here, and memory stays what it is.

use std::ops::Range;
use std::sync::Arc;

use recovery::DataPath;
use tokio::sync::mpsc;

use super::error::CopyError;
use super::manifest_check::ManifestCheck;
use super::opened::FromFile;
use super::pages::relation_segment;
use super::patch::MIN_PATCHED;
use super::reference::{OldChunk, Reference};
use crate::repository::file_table::CHUNK_SIZE;

mod from_file;
mod rebuild;
#[cfg(test)]
mod tests;

use rebuild::OpenRebuilt;
pub(super) use rebuild::Rebuilt;

/// A batch has at most so many items, so that directories and empty files do not pile up.
const MAX_ITEMS: usize = 4096;

/// Name and attributes of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EntryHead {
    pub(super) path: DataPath,
    pub(super) mode: u32,
    pub(super) mtime: i64,
}

/// What happens next, in the order of the source.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Directory(EntryHead),
    /// A file begins, of this many bytes.
    File(EntryHead, u64),
    Chunk(CutChunk),
    /// A chunk that is as the reference has it.
    Same(OldChunk),
    /// The file ends.
    FileEnd(FileSum),
}

/// How the CRC-32C of a whole file is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSum {
    /// It passed by whole.
    Known(u32),
    /// From those of its chunks.
    OfChunks,
    /// From that of the old file, and what its chunks change.
    Changed {
        /// Of the old file.
        crc32c: u32,
        /// Length of the old file, at most that of the new one.
        size: u64,
    },
}

/// A chunk of the file that has begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CutChunk {
    /// Where its bytes lie in the batch.
    pub(super) bytes: Range<usize>,
    /// Where they lie in the file.
    pub(super) position: u64,
    /// Which file of its relation it is, when its pages have checksums.
    pub(super) segment: Option<u32>,
    /// What the reference has at the same place.
    pub(super) old: Option<OldChunk>,
    /// The bytes are only these pages of it; the others are as in `old`, and zeros beyond it.
    pub(super) pages: Option<CutPages>,
    /// Where the bytes are still to be read from, at `position`.
    pub(super) from: Option<FromFile>,
}

/// Pages of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CutPages {
    /// Length of the whole chunk.
    pub(super) plain: u32,
    /// Bytes of a page.
    pub(super) page_size: u32,
    /// Which pages of the chunk they are.
    pub(super) numbers: Vec<u32>,
}

/// Items and the bytes of their chunks.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// So many more, behind them, are to be read from files.
    pub(super) to_read: usize,
    pub(super) items: Vec<Item>,
}

/// Whether the chunks of a file are compared with those of the reference: files of relations, which change page by page.
pub(super) fn is_comparable(path: &DataPath, size: u64) -> bool {
    size >= MIN_PATCHED && relation_segment(path).is_some()
}

/// Buffers that are not in use.
#[derive(Debug)]
pub(super) struct BufferPool {
    free: mpsc::Receiver<Vec<u8>>,
    back: mpsc::Sender<Vec<u8>>,
}

/// Gives a buffer back.
#[derive(Clone, Debug)]
pub(super) struct BufferReturn(mpsc::Sender<Vec<u8>>);

impl BufferPool {
    /// A pool of `count` buffers, each of which grows to the size of a chunk when it is used.
    pub(super) fn new(count: usize) -> Self {
        let (back, free) = mpsc::channel(count);
        for _ in 0..count {
            back.try_send(Vec::new()).expect("the channel has room for every buffer");
        }
        Self { free, back }
    }

    pub(super) fn give_back(&self) -> BufferReturn {
        BufferReturn(self.back.clone())
    }

    async fn take(&mut self) -> Vec<u8> {
        // The pool itself holds a sender, so the channel never closes.
        let mut buffer = self.free.recv().await.unwrap_or_default();
        buffer.clear();
        buffer.reserve_exact(CHUNK_SIZE as usize);
        buffer
    }
}

impl BufferReturn {
    pub(super) fn put(&self, buffer: Vec<u8>) {
        // There are never more buffers than places, and a pool that is gone needs none.
        drop(self.0.try_send(buffer));
    }
}

/// What was cut so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CutTotals {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct OpenFile {
    path: DataPath,
    size: u64,
    position: u64,
    /// Where the chunk that is being filled starts in the batch, and how many bytes it lacks.
    chunk_start: usize,
    chunk_left: usize,
    segment: Option<u32>,
    crc32c: u32,
    /// What the reference has of it.
    old: Vec<OldChunk>,
    /// What came in its place, where that is another: its length and CRC-32C.
    arrived: Option<(u64, u32)>,
}

/// The cutter.
#[derive(Debug)]
pub(super) struct Cutter {
    pool: BufferPool,
    out: mpsc::Sender<Batch>,
    batch: Option<Batch>,
    file: Option<OpenFile>,
    rebuilt: Option<OpenRebuilt>,
    reference: Option<Arc<Reference>>,
    /// Against the server's manifest, where there is one.
    check: Option<ManifestCheck>,
    totals: CutTotals,
    /// Files that the batch holds open.
    open_files: usize,
}

impl Cutter {
    /// `reference` tells what older chunks to compare with.
    pub(super) fn new(
        pool: BufferPool,
        out: mpsc::Sender<Batch>,
        check: Option<ManifestCheck>,
        reference: Option<Arc<Reference>>,
    ) -> Self {
        let totals = CutTotals::default();
        Self { pool, out, batch: None, file: None, rebuilt: None, reference, check, totals, open_files: 0 }
    }

    pub(super) fn totals(&self) -> CutTotals {
        self.totals
    }

    /// A directory.
    pub(super) async fn directory(&mut self, head: EntryHead) -> Result<(), CopyError> {
        self.totals.directories += 1;
        self.push(Item::Directory(head)).await
    }

    /// A file begins; exactly `size` bytes of data follow.
    pub(super) async fn begin_file(&mut self, head: EntryHead, size: u64) -> Result<(), CopyError> {
        self.begin(head, size, None).await
    }

    /// A small file whose content is not what was sent: that had another length and CRC-32C.
    pub(super) async fn edited_file(
        &mut self,
        head: EntryHead,
        content: &[u8],
        arrived: (u64, u32),
    ) -> Result<(), CopyError> {
        self.begin(head, content.len() as u64, Some(arrived)).await?;
        self.data(content).await
    }

    async fn begin(&mut self, head: EntryHead, size: u64, arrived: Option<(u64, u32)>) -> Result<(), CopyError> {
        if self.file.is_some() || self.rebuilt.is_some() {
            return Err(CopyError::OutOfTurn("a file inside a file"));
        }
        let segment = relation_segment(&head.path);
        let path = head.path.clone();
        let old = match &self.reference {
            Some(reference) if is_comparable(&path, size) => reference.find(&path)?.map(|file| file.chunks),
            _ => None,
        };
        let old = old.unwrap_or_default();
        self.push(Item::File(head, size)).await?;
        self.file =
            Some(OpenFile { path, size, position: 0, chunk_start: 0, chunk_left: 0, segment, crc32c: 0, old, arrived });
        if size == 0 { self.end_file().await } else { Ok(()) }
    }

    /// The next bytes of the file.
    pub(super) async fn data(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            if self.file.as_ref().is_some_and(|file| file.chunk_left == 0) {
                self.begin_chunk().await?;
            }
            let (Some(file), Some(batch)) = (&mut self.file, &mut self.batch) else {
                return Err(CopyError::OutOfTurn("data that belong to no file"));
            };
            let (now, rest) = bytes.split_at(file.chunk_left.min(bytes.len()));
            bytes = rest;
            batch.bytes.extend_from_slice(now);
            file.crc32c = crc32c::crc32c_append(file.crc32c, now);
            file.chunk_left -= now.len();
            self.totals.bytes += now.len() as u64;
            if file.chunk_left > 0 {
                continue;
            }
            let bytes_of_chunk = file.chunk_start..batch.bytes.len();
            let position = file.position;
            file.position += bytes_of_chunk.len() as u64;
            let ended = file.position == file.size;
            let old = usize::try_from(position / u64::from(CHUNK_SIZE)).ok().and_then(|at| file.old.get(at)).copied();
            let segment = file.segment;
            batch.items.push(Item::Chunk(CutChunk {
                bytes: bytes_of_chunk,
                position,
                segment,
                old,
                pages: None,
                from: None,
            }));
            if ended {
                self.end_file().await?;
            }
        }
        Ok(())
    }

    /// A piece of PostgreSQL's manifest, after the last file.
    pub(super) fn manifest(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let check = self.check.as_mut().ok_or(CopyError::OutOfTurn("a manifest where none is due"))?;
        check.manifest(bytes)
    }

    /// Everything came: hands on the rest.
    pub(super) async fn finish(mut self) -> Result<(CutTotals, Option<ManifestCheck>), CopyError> {
        if self.file.is_some() || self.rebuilt.is_some() {
            return Err(CopyError::OutOfTurn("inside a file"));
        }
        self.send().await?;
        Ok((self.totals, self.check))
    }

    async fn begin_chunk(&mut self) -> Result<(), CopyError> {
        let Some(file) = &self.file else { return Ok(()) };
        let left = file.size - file.position;
        let len = usize::try_from(left.min(u64::from(CHUNK_SIZE))).expect("a chunk fits into memory");
        self.make_room(len).await?;
        let start = self.batch().await.bytes.len();
        if let Some(file) = &mut self.file {
            (file.chunk_start, file.chunk_left) = (start, len);
        }
        Ok(())
    }

    async fn end_file(&mut self) -> Result<(), CopyError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        self.totals.files += 1;
        let (size, crc32c) = file.arrived.unwrap_or((file.size, file.crc32c));
        self.check_file(&file.path, size, crc32c)?;
        self.push(Item::FileEnd(FileSum::Known(file.crc32c))).await
    }

    fn check_file(&mut self, path: &DataPath, size: u64, crc32c: u32) -> Result<(), CopyError> {
        self.check.as_mut().map_or(Ok(()), |check| check.file(path, size, crc32c))
    }

    /// Sends the batch when it has no room for so many bytes.
    async fn make_room(&mut self, len: usize) -> Result<(), CopyError> {
        let room = self
            .batch
            .as_ref()
            .map_or(CHUNK_SIZE as usize, |batch| CHUNK_SIZE as usize - batch.bytes.len() - batch.to_read);
        if room < len { self.send().await } else { Ok(()) }
    }

    async fn push(&mut self, item: Item) -> Result<(), CopyError> {
        self.batch().await.items.push(item);
        if self.batch.as_ref().is_some_and(|batch| batch.items.len() >= MAX_ITEMS) {
            self.send().await?;
        }
        Ok(())
    }

    async fn batch(&mut self) -> &mut Batch {
        if self.batch.is_none() {
            self.batch = Some(Batch { bytes: self.pool.take().await, ..Batch::default() });
        }
        self.batch.get_or_insert_default()
    }

    async fn send(&mut self) -> Result<(), CopyError> {
        self.open_files = 0;
        match self.batch.take() {
            Some(batch) => self.out.send(batch).await.map_err(|_| CopyError::Stopped),
            None => Ok(()),
        }
    }
}
