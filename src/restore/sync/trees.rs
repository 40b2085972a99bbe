//! Syncing file by file.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::named;

/// Directories below `root` that lie on other file systems than these. What is below them is not looked at.
pub(super) fn directories_of_other_devices(root: &Path, devices: &BTreeSet<u64>) -> io::Result<Vec<PathBuf>> {
    let (mut open, mut others) = (vec![root.to_owned()], Vec::new());
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() || entry.file_name() == "lost+found" {
                continue;
            }
            // Not through `entry`: a directory that is mounted over counts by what is mounted.
            let device = fs::symlink_metadata(entry.path())?.dev();
            if devices.contains(&device) { &mut open } else { &mut others }.push(entry.path());
        }
    }
    Ok(others)
}

/// fsync of every file and directory below `roots`, by `jobs` threads, as `fsync_pgdata` of pg_basebackup does. Links
/// are not followed. When it returns, all of it survives a power loss.
///
/// A failed fsync is an error and never repeated: the pages may be marked clean and be lost.
pub(super) fn sync_trees(roots: &[PathBuf], jobs: usize) -> io::Result<()> {
    let queue = Mutex::new(Queue { directories: roots.to_vec(), working: 0, error: None });
    let changed = std::sync::Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| sync_directories(&queue, &changed));
        }
    });
    let queue = queue.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match queue.error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

struct Queue {
    directories: Vec<PathBuf>,
    working: usize,
    error: Option<io::Error>,
}

fn sync_directories(queue: &Mutex<Queue>, changed: &std::sync::Condvar) {
    let lock = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut state = lock();
    loop {
        if state.error.is_some() {
            return;
        }
        let Some(directory) = state.directories.pop() else {
            if state.working == 0 {
                return;
            }
            state = changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            continue;
        };
        state.working += 1;
        drop(state);
        let result = sync_directory(&directory);
        state = lock();
        state.working -= 1;
        match result {
            Ok(below) => state.directories.extend(below),
            Err(error) => state.error = Some(error),
        }
        changed.notify_all();
    }
}

/// fsync of the files in a directory and of itself; returns the directories in it.
fn sync_directory(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut below = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // What a mount point brings along belongs to root.
            if entry.file_name() != "lost+found" {
                below.push(entry.path());
            }
        } else if kind.is_file() {
            fs::File::open(entry.path())?.sync_all().map_err(|error| named(&entry.path(), error))?;
        }
    }
    fs::File::open(directory)?.sync_all().map_err(|error| named(directory, error))?;
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_synced_to_its_leaves_and_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..20 {
            let below = dir.path().join(format!("a{number}/b"));
            fs::create_dir_all(&below).unwrap();
            fs::write(below.join("file"), "x").unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", dir.path().join("link")).unwrap();
        sync_trees(&[dir.path().to_owned()], 3).unwrap();
        let error = sync_trees(&[dir.path().join("missing")], 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
