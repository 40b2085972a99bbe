//! Directories that stay open, so that a file takes one call and not one for each step of its way.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;

/// At most so many stay open.
const MOST: usize = 128;

/// `f_type` of ext2 to ext4 and XFS (statfs(2)): on others writes past the page cache are emulated, or cost more than they
/// save.
const WRITES_PAST_THE_CACHE: [u64; 2] = [0xEF53, 0x5846_5342];

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    fd: OwnedFd,
    /// Held while files are made: the kernel takes a lock of the directory for each, and whoever waits for that one burns a
    /// processor meanwhile.
    making: Mutex<()>,
    pub(super) writes_past_the_cache: bool,
}

impl OpenDirectory {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let kind = fstatfs(&fd)?.f_type;
        let writes_past_the_cache = u64::try_from(kind).is_ok_and(|kind| WRITES_PAST_THE_CACHE.contains(&kind));
        Ok(Self { fd, making: Mutex::new(()), writes_past_the_cache })
    }

    /// Makes and opens files that are not there yet; an error says with which one it ended.
    pub(super) fn make(&self, names: &[PathBuf], mode: Mode) -> Result<Vec<OwnedFd>, (usize, Errno)> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _nobody_else = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let make = |(at, name)| openat(&self.fd, name, flags, mode).map_err(|error| (at, error));
        names.iter().enumerate().map(make).collect()
    }
}

impl AsFd for OpenDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Directories by their path from the data directory.
#[derive(Debug, Default)]
pub(super) struct OpenDirectories {
    open: Mutex<HashMap<Vec<u8>, Arc<OpenDirectory>>>,
}

impl OpenDirectories {
    /// The directory with this path, which `open` opens unless it is open.
    pub(super) fn get(
        &self,
        path: &[u8],
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<OpenDirectory>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = lock().get(path) {
            return Ok(Arc::clone(directory));
        }
        let opened = Arc::new(OpenDirectory::new(open()?)?);
        let mut directories = lock();
        // Those that are in use stay open until they are not.
        if directories.len() >= MOST {
            directories.clear();
        }
        // Another thread may have been faster: then both use that one, and its lock.
        Ok(Arc::clone(directories.entry(path.to_vec()).or_insert(opened)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn few_stay_open_and_each_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let directories = OpenDirectories::default();
        let mut opened = 0;
        for number in 0..2 * MOST {
            let path = (number / 2).to_string();
            let open = || {
                opened += 1;
                Ok(File::open(dir.path())?.into())
            };
            directories.get(path.as_bytes(), open).unwrap();
        }
        assert_eq!(opened, MOST);
        directories.get(b"one more", || Ok(File::open(dir.path())?.into())).unwrap();
        assert_eq!(directories.open.lock().unwrap().len(), 1);
        let missing = || Err(io::ErrorKind::NotFound.into());
        assert_eq!(directories.get(b"missing", missing).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
