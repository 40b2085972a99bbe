//! Where the pieces of a tail are put together.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

/// Takes a tail: bytes at offsets from the segment's start, which can be read back to compare pieces that overlap.
pub trait TailSink: Send {
    /// Forgets what it took.
    fn clear(&mut self) -> io::Result<()>;
    /// Takes bytes at an offset: within what it has, or right behind.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Gives back bytes that it took.
    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

/// For segments that fit in memory.
impl TailSink for Vec<u8> {
    fn clear(&mut self) -> io::Result<()> {
        Self::clear(self);
        Ok(())
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let outside = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let offset = usize::try_from(offset).map_err(outside)?;
        self.resize(self.len().max(offset + bytes.len()), 0);
        self[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let held = &self[from..];
        let held = held.get(..bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(held);
        Ok(())
    }
}

/// A file that is open for reading and writing.
impl TailSink for File {
    fn clear(&mut self) -> io::Result<()> {
        self.set_len(0)
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

/// Joins one piece to those before it: what they have in common is compared, the rest is put.
pub(super) struct Joint<'a> {
    sink: &'a mut dyn TailSink,
    at: u64,
    filled: u64,
    differs: bool,
}

impl<'a> Joint<'a> {
    /// For a piece that begins at the offset `at`, where everything before the offset `filled` is there.
    pub(super) fn new(sink: &'a mut dyn TailSink, at: u64, filled: u64) -> Self {
        Self { sink, at, filled, differs: false }
    }

    /// Whether the piece has other bytes than those before it.
    pub(super) fn differs(&self) -> bool {
        self.differs
    }
}

impl Write for Joint<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let overlap = usize::try_from(self.filled.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
        let (common, new) = bytes.split_at(overlap);
        if !common.is_empty() {
            let mut held = vec![0; common.len()];
            self.sink.read_back(self.at, &mut held)?;
            if held != common {
                self.differs = true;
                return Err(io::Error::other("another piece has other bytes there"));
            }
        }
        if !new.is_empty() {
            self.sink.put(self.at + overlap as u64, new)?;
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
