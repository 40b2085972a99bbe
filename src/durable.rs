//! Crash-safe files, and what each way of writing guarantees.
//!
//! "Durable" means: after a power loss the file is found under that name with that content. A file needs three steps
//! for it, in this order: its content is fsynced under a temporary name, the temporary name is changed into the final
//! one, the directory is fsynced. A crash before the second step leaves a temporary file (its name starts with `.`,
//! everyone ignores it), a crash after it either nothing or the whole file, never a part.
//!
//! **A failed fsync is never repeated here.** Linux may mark pages clean that it could not write, so a second fsync
//! would succeed over lost data. Whoever gets an error takes the file for not written.

mod dirs;
mod temp;

pub use dirs::{create_dir_all, dir_sync_is_supported, sync_dir, sync_parent};
pub use temp::TempFile;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Permission bits of files that only pgvault reads and writes.
pub const PRIVATE_FILE: u32 = 0o600;
/// Permission bits of directories that only pgvault enters.
pub const PRIVATE_DIR: u32 = 0o700;

/// What became of a file that should be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// It is durable under its name.
    Created,
    /// Something was there under its name and was left alone.
    AlreadyExists,
}

/// fsync of content and metadata. When it returns, the content survives; the *name* survives only after [`sync_dir`].
pub fn sync_file(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Removes a file that may not be there. Not durable: it may come back after a crash.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Writes a new file with these permission bits, whatever the umask; an existing file is left alone.
///
/// When it returns `Created`, name and content survive a crash. A crash on the way leaves nothing or the whole file
/// under `path`, and perhaps a temporary file beside it. Of several writers exactly one gets `Created`.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Written> {
    let mut temp = TempFile::beside(path, mode)?;
    temp.file_mut().write_all(bytes)?;
    temp.publish_new(path)
}

/// Writes a file in place of what is there, with permission bits 0600. For local state and caches only: what is in a
/// repository is never replaced.
///
/// When it returns, the new content survives a crash. A crash on the way leaves the old file or the new one, whole.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temp = TempFile::beside(path, PRIVATE_FILE)?;
    temp.file_mut().write_all(bytes)?;
    temp.publish(path)
}

/// Renames durably: the file's content, then the name, then both directories. What was at `to` is replaced.
///
/// When it returns, a crash finds the whole file at `to` and nothing at `from`. A crash on the way finds it at one of
/// the two (on some file systems at both, when they lie in different directories).
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    sync_file(&File::open(from)?)?;
    fs::rename(from, to)?;
    // The new name first: a crash in between shows the file twice rather than not at all.
    sync_parent(to)?;
    if from.parent() == to.parent() { Ok(()) } else { sync_parent(from) }
}

/// As [`rename`], but never over something: `AlreadyExists` leaves both as they were.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<Written> {
    sync_file(&File::open(from)?)?;
    if move_new(from, to)? == Written::AlreadyExists {
        return Ok(Written::AlreadyExists);
    }
    sync_parent(to)?;
    if from.parent() != to.parent() {
        sync_parent(from)?;
    }
    Ok(Written::Created)
}

/// Gives the file `from` the free name `to`, atomically and not yet durably.
///
/// `renameat2(RENAME_NOREPLACE)` where the file system has it, else `link` and `unlink`: link fails when the name is
/// taken, so there is one winner in both ways.
pub(crate) fn move_new(from: &Path, to: &Path) -> io::Result<Written> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Written::Created),
        Err(Errno::EXIST) => Ok(Written::AlreadyExists),
        // EINVAL: the file system does not know the flag (NFS, some FUSE). ENOSYS: the kernel does not know the call.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_new(from, to),
        Err(error) => Err(error.into()),
    }
}

fn link_new(from: &Path, to: &Path) -> io::Result<Written> {
    match fs::hard_link(from, to) {
        Ok(()) => {}
        // Over NFS the answer to a link that succeeded can get lost and the repeated call says EEXIST; the file's own
        // count of names tells the truth.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if std::os::unix::fs::MetadataExt::nlink(&fs::symlink_metadata(from)?) != 2 {
                return Ok(Written::AlreadyExists);
            }
        }
        Err(error) => return Err(error),
    }
    fs::remove_file(from)?;
    Ok(Written::Created)
}

#[cfg(test)]
mod tests;
