//! A file system of its own, small enough to be filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pg::{am_root, give_to_server_user};

/// A tmpfs over a directory, until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts it; none where only root may, and we are not: CI is.
    pub fn over(dir: &Path, megabytes: u64) -> Option<Self> {
        if !am_root() {
            println!("not run: only root can mount a small file system");
            return None;
        }
        let size = format!("size={megabytes}m,mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir).output().unwrap();
        assert!(mounted.status.success(), "{mounted:?}");
        give_to_server_user(dir);
        Some(Self { at: dir.to_owned() })
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut size = 64 << 20;
        let balloon = fs::File::options().create(true).append(true).open(self.balloon()).unwrap();
        while size >= 4096 {
            let zeros = vec![0; size];
            if std::io::Write::write_all(&mut &balloon, &zeros).is_err() {
                size /= 2;
            }
        }
    }

    /// Gives so much of it back.
    pub fn leave(&self, bytes: u64) {
        let balloon = fs::File::options().write(true).open(self.balloon()).unwrap();
        balloon.set_len(balloon.metadata().unwrap().len() - bytes).unwrap();
    }

    /// Gives it back.
    pub fn relieve(&self) {
        fs::remove_file(self.balloon()).unwrap();
    }

    fn balloon(&self) -> PathBuf {
        self.at.join("balloon")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still has files open there is about to end.
        let ended = Command::new("umount").arg("-l").arg(&self.at).status().unwrap();
        assert!(ended.success() || std::thread::panicking());
    }
}
