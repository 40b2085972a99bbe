//! The paths of a backup, as hashes: twenty-odd bytes each, however long they are.

use std::collections::{HashMap, HashSet};

use crate::repository::file_table::{EntryKind, TableEntry};

use super::Tally;

type PathHash = [u8; 16];

/// Which files and directories a backup has.
#[derive(Clone, Debug, Default)]
pub(in crate::restore) struct Known {
    /// With the size that each has in the backup.
    sizes: HashMap<PathHash, u64>,
    directories: HashSet<PathHash>,
    files: Tally,
}

fn hash(path: &[u8]) -> PathHash {
    let mut short = PathHash::default();
    short.copy_from_slice(&blake3::hash(path).as_bytes()[..16]);
    short
}

impl Known {
    /// Adds an entry of the file table, and the directories that it lies in.
    pub(in crate::restore) fn add(&mut self, entry: &TableEntry) {
        match &entry.kind {
            EntryKind::Directory => self.add_directory(entry.path.as_bytes()),
            EntryKind::File(file) => {
                self.sizes.insert(hash(entry.path.as_bytes()), file.size);
                self.files.add(file.size);
                if let Some(slash) = entry.path.as_bytes().iter().rposition(|&b| b == b'/') {
                    self.add_directory(&entry.path.as_bytes()[..slash]);
                }
            }
        }
    }

    /// Adds a directory and those that it lies in.
    pub(in crate::restore) fn add_directory(&mut self, path: &[u8]) {
        let mut path = path;
        // Whose parents are known is known.
        while self.directories.insert(hash(path)) {
            match path.iter().rposition(|&b| b == b'/') {
                Some(slash) => path = &path[..slash],
                None => return,
            }
        }
    }

    /// The size that a file has in the backup.
    pub(super) fn size_of(&self, path: &[u8]) -> Option<u64> {
        self.sizes.get(&hash(path)).copied()
    }

    pub(super) fn has_directory(&self, path: &[u8]) -> bool {
        self.directories.contains(&hash(path))
    }

    /// All files.
    pub(super) fn files(&self) -> Tally {
        self.files
    }
}
