//! Making what was restored durable, in bulk.
//!
//! Every file must be on the disk before `global/pg_control` gets its name: those that were written, and those that were
//! kept, because what was read from them may never have left memory. One `syncfs` does it for a whole file system, several
//! times faster than a sync for each of 100,000 files, but only where it can be believed: it has to wait for the disk, and
//! to tell of what could not be written since this file system was opened here ([`Disks::open`], before the first write). That
//! is so on the local file systems of Linux 5.17 and later. Anywhere else every file is synced by itself.
//!
//! What was written past the page cache may lie in the disk's own cache still. ext4 empties that in `syncfs` (`ext4_sync_fs`);
//! XFS does with the log, and each file's time of last change enters the log after the file's bytes (`TargetFile::finish`).

mod trees;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstatfs, open, syncfs};

use trees::{directories_of_other_devices, sync_trees};

/// `syncfs` returns what the file system's own sync returned since then ("vfs: make sync_filesystem return errors from
/// ->sync_fs"); errors of writing back are told since 5.8.
const SINCE: (u32, u32) = (5, 17);

/// `f_type` of ext2 to ext4, XFS, btrfs, F2FS, tmpfs (statfs(2)).
const BELIEVED: [u64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994];

/// The file systems that are written to.
#[derive(Debug)]
pub(super) struct Disks {
    whole: Vec<Disk>,
    /// Directories whose files are synced one by one.
    trees: Vec<PathBuf>,
    roots: Vec<PathBuf>,
}

#[derive(Debug)]
struct Disk {
    path: PathBuf,
    device: u64,
    /// Open since before the first write: errors from then on are told here.
    fd: OwnedFd,
}

impl Disks {
    /// Opens the file systems that these directories lie on.
    pub(super) fn open(roots: &[PathBuf]) -> io::Result<Self> {
        let kernel = rustix::system::uname();
        let is_new = version(&kernel.release().to_string_lossy()).is_some_and(|version| version >= SINCE);
        let mut disks = Self { whole: Vec::new(), trees: Vec::new(), roots: roots.to_vec() };
        for path in roots {
            let device = fs::metadata(path)?.dev();
            let fd = open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let kind = fstatfs(&fd)?.f_type;
            if !is_new || !u64::try_from(kind).is_ok_and(|kind| BELIEVED.contains(&kind)) {
                disks.trees.push(path.clone());
            } else if !disks.whole.iter().any(|disk| disk.device == device) {
                disks.whole.push(Disk { path: path.clone(), device, fd });
            }
        }
        Ok(disks)
    }

    /// Makes everything durable that was written below the directories. A failed sync is an error and never repeated: what
    /// could not be written may be marked clean and be lost.
    pub(super) fn sync(&self, threads: usize) -> io::Result<()> {
        for disk in &self.whole {
            syncfs(&disk.fd).map_err(|error| named(&disk.path, error.into()))?;
        }
        // What is mounted somewhere below lies on a file system that was not opened before.
        let whole: BTreeSet<u64> = self.whole.iter().map(|disk| disk.device).collect();
        let mut trees = self.trees.clone();
        for root in self.roots.iter().filter(|root| !self.trees.contains(root)) {
            trees.extend(directories_of_other_devices(root, &whole)?);
        }
        sync_trees(&trees, threads)
    }
}

/// `(5, 17)` of `5.17.0-1-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, believed) in [
            ("5.17.0-1-amd64", true),
            ("6.1.0", true),
            ("10.0", true),
            ("5.9.16", false),
            ("4.18.0-553.el8", false),
            ("6", false),
            ("custom", false),
        ] {
            assert_eq!(version(release).is_some_and(|version| version >= SINCE), believed, "{release}");
        }
    }

    #[test]
    fn each_file_system_is_synced_once() {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["a", "b"].map(|name| dir.path().join(name));
        roots.iter().for_each(|root| fs::create_dir(root).unwrap());
        let disks = Disks::open(&roots).unwrap();
        assert!(disks.whole.len() <= 1 && disks.whole.len() * 2 + disks.trees.len() == 2, "{disks:?}");
        disks.sync(2).unwrap();
        assert_eq!(Disks::open(&[dir.path().join("missing")]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
