//! What lies in the directories that a restore takes over: what of it the backup has too, and what has to go.
//!
//! Old directories are walked by open directories and never through a link. The same walk counts for the plan and removes
//! for [`super::apply`], so what is done is what was shown.

mod known;
mod walk;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

pub(super) use known::Known;
pub(super) use walk::Walk;

/// Files and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// How many files, links and other entries that are no directories.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// What will become of what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// Files that the backup has under the same name: they are read, kept where they are right, and written where not.
    pub compared: Tally,
    /// What the backup does not have: it is removed.
    pub removed: Tally,
    /// Directories that are removed.
    pub removed_directories: u64,
    /// Files that the backup has and that are not there.
    pub missing: Tally,
    /// What lies in a tablespace's directory and does not belong to this cluster: it is left alone.
    pub left: Vec<PathBuf>,
}

/// A directory to walk, and what its files are called in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) path: PathBuf,
    pub(super) kind: TreeKind,
}

/// What a directory is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TreeKind {
    Data,
    /// `pg_wal`, outside of the data directory.
    Wal,
    /// `pg_tblspc/<oid>`. Other versions of PostgreSQL may have directories in it.
    Tablespace(u32),
}

impl TreeKind {
    /// The path that it has in a backup.
    fn prefix(self) -> Vec<u8> {
        match self {
            Self::Data => Vec::new(),
            Self::Wal => b"pg_wal".to_vec(),
            Self::Tablespace(oid) => format!("pg_tblspc/{oid}").into_bytes(),
        }
    }
}

/// Everything that is walked, and what it is compared with.
#[derive(Clone, Debug, Default)]
pub(super) struct Survey {
    pub(super) trees: Vec<Tree>,
    pub(super) known: Known,
    /// Links that the restore makes: where, and where they lead.
    pub(super) links: BTreeMap<Vec<u8>, PathBuf>,
}

impl Survey {
    /// Counts what there is, and the bytes that the files which stay or go take on the disk, by tree.
    pub(super) fn look(&self) -> io::Result<(Existing, Vec<u64>)> {
        let mut walk = Walk::new(&self.known, &self.links, false);
        let mut taken = Vec::with_capacity(self.trees.len());
        for tree in &self.trees {
            let before = walk.taken_bytes;
            walk.tree(tree)?;
            taken.push(walk.taken_bytes - before);
        }
        let mut existing = walk.found;
        existing.missing = Tally {
            files: self.known.files().files.saturating_sub(existing.compared.files),
            bytes: self.known.files().bytes.saturating_sub(walk.wanted_bytes),
        };
        Ok((existing, taken))
    }

    /// Removes what the backup does not have. Not durable yet.
    pub(super) fn remove(&self) -> io::Result<Existing> {
        let mut walk = Walk::new(&self.known, &self.links, true);
        self.trees.iter().try_for_each(|tree| walk.tree(tree))?;
        Ok(walk.found)
    }
}

#[cfg(test)]
mod tests;
