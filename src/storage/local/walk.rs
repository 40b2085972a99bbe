//! Listings: files in the order of their keys.

use std::fs;
use std::io;
use std::path::Path;

use super::Trouble;
use super::folders::is_absent;
use super::objects::Objects;
use crate::storage::key::check_prefix;
use crate::storage::{Level, ObjectInfo, ObjectKey, StorageErrorKind};

/// One entry of a folder that may be or hold objects.
struct Entry {
    /// Its key, with a `/` at the end for a folder: so that entries sort as the keys below them do.
    key: String,
    size: u64,
}

/// A listing under way.
struct Listing<'a> {
    root: &'a Path,
    after: Option<&'a str>,
    limit: usize,
    found: Vec<ObjectInfo>,
}

impl Objects {
    /// Objects below `prefix` and after `after`, in key order, at most `limit`.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<ObjectInfo>, Trouble> {
        check_prefix(prefix).map_err(|error| Trouble::Found(StorageErrorKind::Other, error.to_string()))?;
        if !self.look_at_root()? {
            return Ok(Vec::new());
        }
        let mut listing = Listing { root: self.root(), after, limit: limit.unwrap_or(usize::MAX), found: Vec::new() };
        listing.folder(prefix)?;
        // A root that went away during the walk looks like folders that are empty.
        self.look_at_root()?;
        Ok(listing.found)
    }

    /// What lies right below `prefix`.
    pub(super) fn list_level(&self, prefix: &str) -> Result<Level, Trouble> {
        check_prefix(prefix).map_err(|error| Trouble::Found(StorageErrorKind::Other, error.to_string()))?;
        let mut level = Level::default();
        if !self.look_at_root()? {
            return Ok(level);
        }
        for Entry { key, size } in entries(self.root(), prefix)? {
            match key.strip_suffix('/') {
                Some(folder) => level.folders.push(folder.get(prefix.len()..).unwrap_or_default().to_owned()),
                None => level.objects.extend(ObjectKey::new(key).map(|key| ObjectInfo { key, size })),
            }
        }
        self.look_at_root()?;
        Ok(level)
    }

    /// Folders right below `prefix` that hold an object at any depth.
    pub(super) fn list_folders(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        check_prefix(prefix).map_err(|error| Trouble::Found(StorageErrorKind::Other, error.to_string()))?;
        if !self.look_at_root()? {
            return Ok(Vec::new());
        }
        let mut folders = Vec::new();
        for entry in entries(self.root(), prefix)? {
            if let Some(folder) = entry.key.strip_suffix('/')
                && self.holds_object(&entry.key)?
            {
                folders.push(folder.get(prefix.len()..).unwrap_or_default().to_owned());
            }
        }
        self.look_at_root()?;
        // Sorted as names, without the `/` that sorted them as keys.
        folders.sort();
        Ok(folders)
    }

    /// Whether there is an object below a folder: a crash can leave folders without any.
    fn holds_object(&self, prefix: &str) -> Result<bool, Trouble> {
        let mut listing = Listing { root: self.root(), after: None, limit: 1, found: Vec::new() };
        listing.folder(prefix)?;
        Ok(!listing.found.is_empty())
    }
}

impl Listing<'_> {
    /// Takes the objects below `prefix`. As deep as keys are long: 200 folders.
    fn folder(&mut self, prefix: &str) -> Result<(), Trouble> {
        for entry in entries(self.root, prefix)? {
            if self.found.len() >= self.limit {
                return Ok(());
            }
            if entry.key.ends_with('/') {
                if !self.lies_before(&entry.key) {
                    self.folder(&entry.key)?;
                }
            } else if self.after.is_none_or(|after| entry.key.as_str() > after)
                && let Ok(key) = ObjectKey::new(entry.key)
            {
                self.found.push(ObjectInfo { key, size: entry.size });
            }
        }
        Ok(())
    }

    /// Whether all keys below a folder come before those wanted.
    fn lies_before(&self, prefix: &str) -> bool {
        self.after.is_some_and(|after| after > prefix && !after.starts_with(prefix))
    }
}

/// What lies right in a folder and can be part of a key, sorted as keys. A folder that is not there is empty.
fn entries(root: &Path, prefix: &str) -> Result<Vec<Entry>, Trouble> {
    let folder = root.join(prefix);
    let listing = match fs::read_dir(&folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut entries = Vec::new();
    for entry in listing {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = format!("{prefix}{name}");
        if ObjectKey::new(key.as_str()).is_err() {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => entries.push(Entry { key, size: metadata.len() }),
            Ok(metadata) if metadata.is_dir() => entries.push(Entry { key: key + "/", size: 0 }),
            // What lies behind a link would be invisible here and visible to a get: refuse rather than overlook it.
            Ok(metadata) if metadata.is_symlink() => {
                let message = format!("{} is a symbolic link; a repository must not hold any", entry.path().display());
                return Err(Trouble::Found(StorageErrorKind::Other, message));
            }
            Ok(_) => {}
            // Deleted between being named and being looked at.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(entries)
}
