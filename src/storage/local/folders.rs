//! Which folders are known to be durable.
//!
//! **Why a stored object survives.** Its content is fsynced under the temporary name; it gets its name; then
//! [`Folders::make_durable`] runs. From then on the folder is not empty, so no delete can remove it or a folder above
//! it, and what is looked at below stays what it is. The folder is fsynced: the object's name is durable in it. Then,
//! for every folder up to the root, the folder above it is fsynced, so its own name is durable too. Only after that is
//! the put answered, with `Created` or, just the same, with `AlreadyExists`: another writer may have given the object
//! its name a moment ago and not have come to these steps yet.
//!
//! Folders that went through it once are remembered by identity (device, inode, time of birth; an inode alone is used
//! again), and only after everything above them was synced. So an ordinary put costs one fsync of a folder.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::durable::{sync_dir, sync_parent};

/// Forgetting costs some fsyncs; remembering for ever would cost memory.
const MAX_KNOWN: usize = 10_000;

/// What tells one folder from another that has its name later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FolderId {
    device: u64,
    inode: u64,
    born: Option<SystemTime>,
}

impl FolderId {
    /// The identity of the directory at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() })
    }
}

/// The folders below a root whose names are known to be durable.
#[derive(Debug, Default)]
pub(super) struct Folders {
    known: Mutex<HashMap<PathBuf, FolderId>>,
}

impl Folders {
    /// Makes the name of `object`, which exists, durable, with every folder between it and `root`.
    pub(super) fn make_durable(&self, root: &Path, object: &Path) -> io::Result<()> {
        sync_parent(object)?;
        let mut news = Vec::new();
        for folder in object.ancestors().skip(1).take_while(|folder| *folder != root) {
            let id = FolderId::of(folder)?;
            if self.knows(folder, id) {
                break;
            }
            sync_parent(folder)?;
            news.push((folder.to_owned(), id));
        }
        self.remember(news);
        Ok(())
    }

    /// fsyncs the folder that holds `path`, or the nearest one above that is still there.
    pub(super) fn sync_nearest(root: &Path, path: &Path) -> io::Result<()> {
        for folder in path.ancestors().skip(1) {
            match sync_dir(folder) {
                Err(error) if is_absent(&error) && folder != root => {}
                outcome => return outcome,
            }
        }
        Ok(())
    }

    fn knows(&self, folder: &Path, id: FolderId) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(folder) == Some(&id)
    }

    fn remember(&self, news: Vec<(PathBuf, FolderId)>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + news.len() > MAX_KNOWN {
            known.clear();
        }
        known.extend(news);
    }
}

/// Whether the error says that there is nothing under a name (a component that is a file included).
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
