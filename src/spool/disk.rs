//! What the spool asks of the file system.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

use super::SpoolError;
use crate::durable::{self, Written};

/// Makes a folder and those above it, durable.
pub(super) fn create_dir_all(dir: &Path) -> Result<(), SpoolError> {
    durable::create_dir_all(dir, durable::PRIVATE_DIR).map_err(SpoolError::io(dir))
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    durable::sync_dir(dir).map_err(SpoolError::io(dir))
}

/// Opens a new file for reading and writing, in place of a left-over.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    let mode = durable::PRIVATE_FILE;
    OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(mode).open(path)
}

/// Takes the folder for this process until the returned file is closed.
pub(super) fn lock(dir: &Path) -> Result<File, SpoolError> {
    let path = dir.join(".lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(SpoolError::io(&path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SpoolError::InUse { dir: dir.to_owned() }),
        Err(errno) => Err(SpoolError::io(&path)(errno.into())),
    }
}

/// Gives a new file its full size, with the space for it, so that no later write can find the disk full.
pub(super) fn reserve(file: &File, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        // File systems without it (NFS, some overlays): written zeros take the space just as well.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
            zero_fill(file, size)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Writes zeros from the file's first byte on.
pub(super) fn zero_fill(file: &File, size: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    let mut at = 0;
    while at < size {
        let piece = (size - at).min(ZEROS.len() as u64);
        #[expect(clippy::cast_possible_truncation, reason = "at most the length of ZEROS")]
        file.write_all_at(&ZEROS[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

/// Makes the next read come from the disk, as far as the pages are clean.
pub(super) fn drop_from_cache(file: &File) -> io::Result<()> {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).map_err(io::Error::from)
}

/// Writes a small file that does not exist yet, durable in content and name; what is there already is left alone.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<Written, SpoolError> {
    durable::write_new(path, bytes, durable::PRIVATE_FILE).map_err(SpoolError::io(path))
}

/// Removes a file that may not be there. Not durable: it may come back after a crash.
pub(super) fn remove_if_there(path: &Path) -> Result<(), SpoolError> {
    durable::remove_if_there(path).map_err(SpoolError::io(path))
}

/// Bytes that an ordinary user can still write to the file system.
pub(super) fn available_bytes(dir: &Path) -> Result<u64, SpoolError> {
    let stat = rustix::fs::statvfs(dir).map_err(|errno| SpoolError::io(dir)(errno.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
