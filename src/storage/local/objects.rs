//! Objects as files: what each operation does to the file system. Everything here waits for the disk.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::OFlags;
use tracing::{debug, warn};

use super::Trouble;
use super::folders::{FolderId, Folders, is_absent};
use crate::codec::digest::Hasher;
use crate::durable::{PRIVATE_DIR, PRIVATE_FILE, TempFile, Written, create_dir_all, dir_sync_is_supported};
use crate::storage::{Body, ObjectKey, PutOutcome, Sha256, StorageErrorKind};

/// Folder of files that are being written.
const TEMP: &str = ".tmp";
/// A file under `.tmp/` that is older and that nobody holds was left by a crash.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How often a put starts over because a delete removed the folder under it.
const ATTEMPTS: usize = 32;
/// How much of a file is copied at a time.
const COPY_BUFFER: usize = 1024 * 1024;

/// The files below a root.
#[derive(Debug)]
pub(super) struct Objects {
    root: PathBuf,
    /// Identity of the root, once it was seen.
    identity: OnceLock<FolderId>,
    folders: Folders,
}

impl Objects {
    /// Objects below `root`, which must be an absolute path and may be missing.
    pub(super) fn new(root: PathBuf) -> Result<Self, Trouble> {
        if !root.is_absolute() {
            return Err(Trouble::Found(StorageErrorKind::Other, "the path must be absolute".to_owned()));
        }
        Ok(Self { root, identity: OnceLock::new(), folders: Folders::default() })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What happens once when the store is opened.
    pub(super) fn start(&self, now: DateTime<Utc>) -> Result<(), Trouble> {
        if !self.look_at_root()? {
            return Ok(());
        }
        if !dir_sync_is_supported(&self.root)? {
            warn!(directory = %self.root.display(), "this file system cannot make names durable: a power loss may undo stored objects");
        }
        // Leftovers harm nobody; on a read-only or foreign directory they stay.
        if let Err(error) = self.remove_leftovers(now) {
            debug!(directory = %self.root.display(), %error, "leftovers of a crash stay");
        }
        Ok(())
    }

    /// Stores a body under a free key.
    pub(super) fn put_new(&self, key: &ObjectKey, body: &Body, sha256: Sha256) -> Result<PutOutcome, Trouble> {
        self.make_root()?;
        let path = self.path_of(key);
        // Looked at first so that no body is written in vain; what decides is the rename.
        if self.exists(&path)? && self.made_durable(&path)? {
            return Ok(PutOutcome::AlreadyExists);
        }
        let temp_dir = self.root.join(TEMP);
        create_dir_all(&temp_dir, PRIVATE_DIR)?;
        let mut temp = TempFile::in_dir(&temp_dir, PRIVATE_FILE)?;
        write_body(&mut temp, body, sha256)?;
        temp.sync()?;
        for _ in 0..ATTEMPTS {
            make_folders(&path)?;
            let outcome = match temp.try_publish_new_synced(&path) {
                Ok(Written::Created) => PutOutcome::Created,
                Ok(Written::AlreadyExists) if self.exists(&path)? => PutOutcome::AlreadyExists,
                Ok(Written::AlreadyExists) => continue,
                // A delete removed the folder, which was empty, before the object came into it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            if self.made_durable(&path)? {
                return Ok(outcome);
            }
            if outcome == PutOutcome::Created {
                // It had its name, was whole, and somebody deleted it: the same as a delete after the put.
                return Ok(outcome);
            }
        }
        let message = "its folder was deleted again and again while it was written".to_owned();
        Err(Trouble::Found(StorageErrorKind::Transient, message))
    }

    /// Bytes of an object: what of `range` lies inside it.
    pub(super) fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, Trouble> {
        let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(self.path_of(key)) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Err(self.no_such_object()?),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(self.no_such_object()?);
        }
        let end = range.end.min(metadata.len());
        let wanted = end.saturating_sub(range.start);
        let too_large = || Trouble::Found(StorageErrorKind::Other, format!("{wanted} bytes do not fit into memory"));
        let mut bytes = vec![0; usize::try_from(wanted).map_err(|_| too_large())?];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    }

    /// Length of an object.
    pub(super) fn head(&self, key: &ObjectKey) -> Result<Option<u64>, Trouble> {
        match fs::symlink_metadata(self.path_of(key)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(metadata) if metadata.is_dir() => Ok(None),
            Ok(_) => Err(not_a_file(&self.path_of(key))),
            Err(error) if is_absent(&error) => {
                self.no_such_object()?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes objects, durably: when it returns, no crash brings one of them back, so what is deleted by a later call
    /// is never gone while what was deleted by an earlier one is still there.
    pub(super) fn delete(&self, keys: &[ObjectKey]) -> Result<(), Trouble> {
        if !self.look_at_root()? {
            return Ok(());
        }
        let paths: Vec<PathBuf> = keys.iter().map(|key| self.path_of(key)).collect();
        for path in &paths {
            match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => match fs::remove_file(path) {
                    Err(error) if !is_absent(&error) => return Err(error.into()),
                    Ok(()) | Err(_) => {}
                },
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // One of each folder: a thousand objects of one folder cost one fsync.
        let mut folders = BTreeSet::new();
        for path in paths.iter().filter(|path| path.parent().is_some_and(|folder| folders.insert(folder.to_owned()))) {
            Folders::sync_nearest(&self.root, path)?;
        }
        folders.iter().for_each(|folder| self.remove_empty_folders(folder));
        Ok(())
    }

    /// Whether the root is there, and still the directory that was opened: when a disk or share is unmounted, everything
    /// in it looks absent, and "there is no such object" would be a lie.
    pub(super) fn look_at_root(&self) -> Result<bool, Trouble> {
        match FolderId::of(&self.root) {
            Ok(id) if *self.identity.get_or_init(|| id) == id => Ok(true),
            Err(error) if is_absent(&error) && self.identity.get().is_none() => Ok(false),
            Err(error) if !is_absent(&error) => Err(error.into()),
            Ok(_) | Err(_) => {
                let message = "is no longer the directory that was opened: was it unmounted or moved?";
                Err(Trouble::Found(StorageErrorKind::Transient, format!("{} {message}", self.root.display())))
            }
        }
    }

    pub(super) fn path_of(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn make_root(&self) -> Result<(), Trouble> {
        if !self.look_at_root()? {
            create_dir_all(&self.root, PRIVATE_DIR)?;
            self.look_at_root()?;
        }
        Ok(())
    }

    /// The answer that an object is not there; an error when the root is not there any more.
    fn no_such_object(&self) -> Result<Trouble, Trouble> {
        self.look_at_root()?;
        Ok(Trouble::Found(StorageErrorKind::NotFound, "no such object".to_owned()))
    }

    /// Whether an object has this path; a folder or a link there is an error.
    fn exists(&self, path: &Path) -> Result<bool, Trouble> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(true),
            Ok(_) => Err(not_a_file(path)),
            // The path goes through a file: making the folders says so.
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an object's name durable; false when it was deleted meanwhile.
    fn made_durable(&self, path: &Path) -> Result<bool, Trouble> {
        match self.folders.make_durable(&self.root, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.exists(path)? => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a folder and those above it, as far as they are empty. One that is not empty, or not ours to remove,
    /// stays: empty folders mean nothing.
    fn remove_empty_folders(&self, folder: &Path) {
        for folder in folder.ancestors().take_while(|folder| *folder != self.root) {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return,
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Removes temporary files that a crash left behind.
    fn remove_leftovers(&self, now: DateTime<Utc>) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(TEMP)) {
            Err(error) if is_absent(&error) => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let changed = DateTime::<Utc>::from(fs::symlink_metadata(&path)?.modified()?);
            let is_old = (now - changed).to_std().is_ok_and(|age| age > STALE);
            if is_old && TempFile::is_abandoned(&path)? {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Writes the body and checks that a file is what its checksum says; bytes in memory are what they were hashed as.
fn write_body(temp: &mut TempFile, body: &Body, sha256: Sha256) -> Result<(), Trouble> {
    let (path, len) = match body {
        Body::Bytes(bytes) => return Ok(temp.file_mut().write_all(bytes)?),
        Body::File { path, len } => (path, *len),
    };
    let source = File::open(path).map_err(|error| {
        Trouble::Found(
            StorageErrorKind::Other,
            format!("the file to store, {}, cannot be read: {error}", path.display()),
        )
    })?;
    let mut source = source.take(len.saturating_add(1));
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; COPY_BUFFER];
    let mut copied = 0u64;
    loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            outcome => outcome?,
        };
        let piece = buffer.get(..n).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        hasher.update(piece);
        temp.file_mut().write_all(piece)?;
        copied += n as u64;
    }
    if copied == len && hasher.finish() == sha256 {
        return Ok(());
    }
    let message = format!("the file to store, {}, is not the {len} bytes that its checksum says", path.display());
    Err(Trouble::Found(StorageErrorKind::Corrupt, message))
}

/// Makes the folders above an object, not durable yet: they may be removed again while they are empty.
fn make_folders(object: &Path) -> Result<(), Trouble> {
    let Some(folder) = object.parent() else { return Ok(()) };
    match fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(folder) {
        Ok(()) => Ok(()),
        // Removed between two of its steps: the rename says so and everything starts over. A file in the way: the
        // rename says that too.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn not_a_file(path: &Path) -> Trouble {
    let message = format!("{} is a folder, a link or something else that is no object", path.display());
    Trouble::Found(StorageErrorKind::Other, message)
}
