//! The folder of a prefetcher.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::durable::{PRIVATE_DIR, remove_if_there};
use crate::fault_point;
use crate::wal_fetch::locked_file::{WithoutLocks, open_locked};

/// Folder of all prefetchers, beside `%p`: in `pg_wal`, which base backups leave out (basebackup.c, `excludeDirContents`)
/// and in which PostgreSQL looks at names of segments only.
const BASE: &str = ".pgvault-prefetch";
const LOCK: &str = "lock";
const SOCKET: &str = "socket";

/// Where one prefetcher works, and where `wal fetch` finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchPlace {
    dir: PathBuf,
}

impl PrefetchPlace {
    /// The place for requests to this destination; none unless it is the one of a server's recovery
    /// (`RestoreArchivedFile`, xlogarchive.c). `pg_rewind` asks for files under other names: it lists `pg_wal`
    /// meanwhile, and must not find files that come and go.
    pub fn beside(destination: &Path, key: u64) -> Option<Self> {
        let name = destination.file_name()?.to_str()?;
        let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty())?;
        matches!(name, "RECOVERYXLOG" | "RECOVERYHISTORY").then(|| Self::new(parent, key))
    }

    fn new(wal_dir: &Path, key: u64) -> Self {
        Self { dir: wal_dir.join(BASE).join(format!("{key:016x}")) }
    }

    /// The place in this folder, as the command line of a prefetcher names it.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the prefetcher listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the place ours: empty, and nobody else's as long as the claim lives. `None` when another prefetcher has it.
    ///
    /// Folders of prefetchers that were killed are removed with it, whatever their key.
    pub fn claim(self) -> io::Result<Option<Claim>> {
        let base = self.dir.parent().ok_or(io::ErrorKind::InvalidInput)?;
        make_dir(base)?;
        make_dir(&self.dir)?;
        let Some(lock) = take_lock(&self.dir.join(LOCK))? else { return Ok(None) };
        clear(&self.dir)?;
        remove_abandoned(base, &self.dir);
        fault_point!("prefetch.claimed");
        Ok(Some(Claim { place: self, lock }))
    }
}

/// A place that is ours.
#[derive(Debug)]
pub struct Claim {
    place: PrefetchPlace,
    lock: File,
}

impl Claim {
    /// The place.
    pub fn place(&self) -> &PrefetchPlace {
        &self.place
    }

    /// Takes everything away. The name of the lock goes last and while it is held: whoever comes next makes all of it anew.
    pub fn release(self) -> io::Result<()> {
        clear(&self.place.dir)?;
        fault_point!("prefetch.released");
        fs::remove_file(self.place.dir.join(LOCK))?;
        remove_empty(&self.place.dir)?;
        if let Some(base) = self.place.dir.parent() {
            remove_empty(base)?;
        }
        drop(self.lock);
        Ok(())
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(PRIVATE_DIR).create(dir) {
        Ok(()) => Ok(()),
        // Never through a link: what lies behind it is not ours to clear.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(dir)?.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The lock; none when somebody has it.
fn take_lock(path: &Path) -> io::Result<Option<File>> {
    open_locked(path, WithoutLocks::Refused)
}

/// Removes the files of a folder except its lock. Folders are not entered: there are none of ours.
fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() != LOCK && !entry.file_type()?.is_dir() {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes folders whose prefetcher is gone. What cannot be removed is in nobody's way.
fn remove_abandoned(base: &Path, own: &Path) {
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(base)? {
            let entry = entry?;
            let dir = entry.path();
            let is_key = entry.file_name().to_str().is_some_and(|name| u64::from_str_radix(name, 16).is_ok());
            if dir == own || !is_key || !entry.file_type()?.is_dir() {
                continue;
            }
            let lock = dir.join(LOCK);
            if !lock.exists() {
                // Being made, or being removed.
                remove_empty(&dir)?;
            } else if let Some(_held) = take_lock(&lock)? {
                clear(&dir)?;
                remove_if_there(&lock)?;
                remove_empty(&dir)?;
            }
        }
        Ok(())
    };
    if let Err(error) = remove() {
        tracing::debug!(base = %base.display(), %error, "folders of former prefetchers are left");
    }
}

/// Removes a folder that is empty; one that is not, or not there, is left.
fn remove_empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        removed => removed,
    }
}
