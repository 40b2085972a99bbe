//! A file of our own, held by a lock that ends with the process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::durable::PRIVATE_FILE;

/// What it means that a file system has no locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WithoutLocks {
    /// There is nobody else, as far as can be known.
    Nobody,
    /// The file cannot be had.
    Refused,
}

/// Opens a file, made if there is none, and locks it; none when another process holds it. Never through a link.
pub(super) fn open_locked(path: &Path, without_locks: WithoutLocks) -> io::Result<Option<File>> {
    let unknown =
        |error: &io::Error| without_locks == WithoutLocks::Nobody && error.kind() == io::ErrorKind::Unsupported;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_FILE)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default())
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) if unknown(&error) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever held it has perhaps renamed or removed it in between: then the name is free.
        match fs::symlink_metadata(path) {
            Ok(named) if named.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}
