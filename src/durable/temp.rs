//! Files under a temporary name.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::dirs::{parent, sync_parent};
use super::{Written, move_new, sync_file};

/// Every temporary name starts so.
const PREFIX: &str = ".tmp-";

/// A file that is being written under a temporary name. Dropped without being published, it is removed; after a crash
/// it stays and means nothing: its name starts with `.`.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: PathBuf,
    published: bool,
}

impl TempFile {
    /// A new, empty file in `dir` with these permission bits, whatever the umask. It is locked (flock) as long as it is
    /// open, so that a janitor can tell it from one that a crash left behind.
    pub fn in_dir(dir: &Path, mode: u32) -> io::Result<Self> {
        loop {
            let path = dir.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
            match OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path) {
                Ok(file) => {
                    let temp = Self { file, path, published: false };
                    temp.file.set_permissions(Permissions::from_mode(mode))?;
                    temp.lock()?;
                    return Ok(temp);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A new, empty file in the directory that holds `path`.
    pub fn beside(path: &Path, mode: u32) -> io::Result<Self> {
        Self::in_dir(parent(path), mode)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The open file, for writing.
    pub fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    /// Its temporary name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name if that is free. What survives a crash: as with [`super::write_new`].
    pub fn publish_new(self, path: &Path) -> io::Result<Written> {
        self.sync()?;
        let written = self.publish_new_synced(path)?;
        sync_parent(path)?;
        Ok(written)
    }

    /// Gives the file its final name, replacing what is there. What survives a crash: as with [`super::replace`].
    pub fn publish(mut self, path: &Path) -> io::Result<()> {
        self.sync()?;
        fs::rename(&self.path, path)?;
        self.published = true;
        sync_parent(path)
    }

    /// fsync of the content, still under the temporary name.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_file(&self.file)
    }

    /// Gives the file, which was synced, its final name if that is free. The name is not durable yet: the caller fsyncs
    /// the directory. The file stays open and is removed on drop only if the name was taken.
    pub(crate) fn publish_new_synced(mut self, path: &Path) -> io::Result<Written> {
        self.try_publish_new_synced(path)
    }

    /// As `publish_new_synced`, for callers that try again after an error.
    pub(crate) fn try_publish_new_synced(&mut self, path: &Path) -> io::Result<Written> {
        let written = move_new(&self.path, path)?;
        self.published = written == Written::Created;
        Ok(written)
    }

    /// Whether `path` is a temporary file that nobody writes any more: nobody holds its lock.
    pub(crate) fn is_abandoned(path: &Path) -> io::Result<bool> {
        let is_temp = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
        if !is_temp || !fs::symlink_metadata(path)?.is_file() {
            return Ok(false);
        }
        match File::open(path)?.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn lock(&self) -> io::Result<()> {
        match self.file.try_lock() {
            // A file system without locks: then only age tells what is abandoned.
            Err(fs::TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => Err(error),
            // Held by a janitor that looks at it this very moment; it finds it too young to remove.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.published {
            // Nothing depends on it being gone: a leftover is ignored by everyone and removed by a janitor.
            drop(fs::remove_file(&self.path));
        }
    }
}
