//! A file that is being restored.
//!
//! Whole chunks of large files go to the disk past the page cache (`O_DIRECT` in open(2)): copying them into the cache costs
//! more processor time than everything else that a restore does with them, and the cache of a machine that a server is
//! about to start on is worth more than what was written first. What is too short for that, or not aligned, goes through
//! the cache. Durable it is in neither case before it was synced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, OFlags, Timespec, Timestamps, fallocate, fchmod, fcntl_setfl, fstat, futimens};
use rustix::io::Errno;

use crate::repository::chunk_reader::ALIGNMENT;

use super::mode_of;

/// Files from this size on are written past the page cache.
const LARGE: u64 = 1 << 20;

/// How a new file gets its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::restore) enum Length {
    /// By the one write that follows, or never for one that is empty.
    ByWriting,
    /// At once; what is not written is a hole.
    WithHoles(u64),
    /// At once, and every byte will be written: where that goes past the page cache, with room on the disk for all of it,
    /// so that writes of several jobs do not tear it apart there.
    Whole(u64),
}

impl Length {
    /// Whether what is written shall go past the page cache.
    pub(super) const fn is_large(self) -> bool {
        match self {
            Self::ByWriting => false,
            Self::WithHoles(size) | Self::Whole(size) => size >= LARGE,
        }
    }
}

/// An open file.
#[derive(Debug)]
pub(in crate::restore) struct TargetFile {
    file: File,
    /// Writes go past the page cache.
    direct: bool,
}

impl TargetFile {
    /// A file whose writes go past the page cache if `direct`, and if that can be had.
    pub(super) fn new(file: File, direct: bool) -> Self {
        let direct = direct && fcntl_setfl(&file, OFlags::DIRECT).is_ok();
        Self { file, direct }
    }

    /// Gives an empty file its length.
    pub(super) fn set_length(&self, length: Length) -> io::Result<()> {
        match length {
            Length::ByWriting => Ok(()),
            Length::Whole(size) if self.direct => match fallocate(&self.file, FallocateFlags::empty(), 0, size) {
                // It need not be supported.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.file.set_len(size),
                result => Ok(result?),
            },
            Length::WithHoles(size) | Length::Whole(size) => self.file.set_len(size),
        }
    }

    /// Writes all of `bytes` at this position.
    pub(in crate::restore) fn write_all_at(&mut self, mut bytes: &[u8], mut position: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.direct && !is_aligned(bytes, position) {
                self.write_through_the_cache()?;
            }
            match self.file.write_at(bytes, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    position += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Of a file system that wants more than we know.
                Err(error) if self.direct && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.write_through_the_cache()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_through_the_cache(&mut self) -> io::Result<()> {
        self.direct = false;
        Ok(fcntl_setfl(&self.file, OFlags::empty())?)
    }

    /// Gives it the time of its last change and, when they do not let its owner write, the permission bits that it had.
    pub(in crate::restore) fn finish(&self, mode: u32, mtime: i64) -> io::Result<()> {
        if mode & 0o600 != 0o600 {
            fchmod(&self.file, mode_of(mode))?;
        }
        let found = fstat(&self.file)?;
        if (found.st_mtime, found.st_mtime_nsec) == (mtime, 0) {
            return Ok(());
        }
        Ok(futimens(&self.file, &modified_at(mtime))?)
    }
}

/// A time of last change; that of the last access stays.
fn modified_at(seconds: i64) -> Timestamps {
    let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: at(0, rustix::fs::UTIME_OMIT), last_modification: at(seconds, 0) }
}

fn is_aligned(bytes: &[u8], position: u64) -> bool {
    bytes.as_ptr().align_offset(ALIGNMENT) == 0
        && bytes.len().is_multiple_of(ALIGNMENT)
        && position.is_multiple_of(ALIGNMENT as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_aligned_or_not_arrives_at_its_place() {
        let dir = tempfile::tempdir().unwrap();
        for length in [Length::ByWriting, Length::WithHoles(3 << 20), Length::Whole(3 << 20)] {
            for direct in [false, true] {
                let path = dir.path().join("file");
                let mut file = TargetFile::new(File::create(&path).unwrap(), direct);
                file.set_length(length).unwrap();
                let memory: Vec<u8> = (0..(1 << 20) + 2 * ALIGNMENT).map(|i| (i % 251) as u8 + 1).collect();
                let start = memory.as_ptr().align_offset(ALIGNMENT);
                let whole = &memory[start..start + (1 << 20)];
                file.write_all_at(whole, 1 << 20).unwrap();
                file.write_all_at(&whole[1..5001], 0).unwrap();
                // The same file, aligned again, and a piece that ends anywhere.
                file.write_all_at(whole, 2 << 20).unwrap();
                file.write_all_at(&whole[..4097], 3 << 20).unwrap();
                file.finish(0o400, 1_700_000_000).unwrap();
                let mut expected = whole[1..5001].to_vec();
                expected.resize(1 << 20, 0);
                let expected = [&expected, whole, whole, &whole[..4097]].concat();
                assert!(std::fs::read(&path).unwrap() == expected, "{length:?} {direct}");
                let found = rustix::fs::stat(&path).unwrap();
                assert_eq!((found.st_mode & 0o7777, found.st_mtime), (0o400, 1_700_000_000));
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
}
