//! The state directory, and the lock that keeps a second daemon out of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use rustix::fs::{FlockOperation, flock};

use crate::durable;
use crate::error::{Error, ErrorCode, Result};

/// A state directory that is ours for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    // The kernel gives the lock back when the file is closed, however the process ends. The file itself stays: to remove
    // it would let a third process lock a new one while a second still waits for this one.
    _lock: File,
}

/// Who holds the lock, as written into its file.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Holder {
    pid: u32,
    host: String,
    since: DateTime<Utc>,
}

impl StateDir {
    /// Makes the directory when it is missing, and takes its lock.
    ///
    /// # Errors
    ///
    /// `E0402` when another daemon works in it, with its pid, host and start.
    pub fn claim(path: &Path, now: DateTime<Utc>) -> Result<Self> {
        let cannot = |what: &str, error: &dyn std::error::Error| {
            Error::new(ErrorCode::InvalidConfig, format!("cannot {what} {}", path.display()))
                .because(error)
                .help(format!("make it writable for this user: install -d -o \"$(id -un)\" -m 0700 {}", path.display()))
                .help("or name another one: PGVAULT_STATE_DIR=DIR, state_dir in [daemon]")
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| cannot("make the state directory", &error))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| cannot("write to the state directory", &error))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error == rustix::io::Errno::WOULDBLOCK {
                return Err(already_served(path, &mut lock));
            }
            return Err(cannot("lock the state directory", &error));
        }
        let holder = Holder { pid: std::process::id(), host: host_name(), since: now };
        // Only who holds the lock makes scratch files: what lies there is of a process that was killed.
        let scratch = scratch(path);
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(cannot("remove old scratch files in", &error));
            }
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&scratch)
            .map_err(|error| cannot("write to the state directory", &error))?;
        write_holder(&mut lock, &holder).map_err(|error| cannot("write to the state directory", &error))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where files are built that are too large for memory, below this state directory.
pub fn scratch(state_dir: &Path) -> PathBuf {
    state_dir.join("scratch")
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn write_holder(lock: &mut File, holder: &Holder) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.write_all(serde_json::to_string(holder)?.as_bytes())
}

fn already_served(path: &Path, lock: &mut File) -> Error {
    let mut text = String::new();
    let holder: Option<Holder> = lock.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
    let error = Error::new(ErrorCode::AnotherWriter, format!("another pgvault serves {}", path.display()));
    let error = match holder {
        Some(holder) => error.because(format!(
            "pid {} on {}, since {}",
            holder.pid,
            holder.host,
            holder.since.to_rfc3339_opts(SecondsFormat::Secs, true)
        )),
        None => error.because("it has not written down who it is yet"),
    };
    error.help("see what it does: pgvault status").help("or use another state directory: PGVAULT_STATE_DIR=DIR")
}

/// Removes what a daemon that was killed left behind. Only the holder of the lock may: nobody else can be serving.
pub fn remove_stale(path: &Path) -> std::io::Result<()> {
    durable::remove_if_there(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::claim(&path, DateTime::UNIX_EPOCH).unwrap();
        let error = StateDir::claim(&path, DateTime::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.code(), ErrorCode::AnotherWriter);
        assert_eq!(error.code().exit_code(), 7);
        assert!(error.causes()[0].contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.causes()[0].contains("since 1970-01-01T00:00:00Z"), "{error}");
        drop(first);
        assert!(StateDir::claim(&path, DateTime::UNIX_EPOCH).is_ok());
    }

    #[test]
    fn what_a_killed_daemon_left_in_the_scratch_folder_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        drop(StateDir::claim(&path, DateTime::UNIX_EPOCH).unwrap());
        let left_over = scratch(&path).join("pgvault-segment.0.tmp");
        fs::write(&left_over, b"x").unwrap();
        let state = StateDir::claim(&path, DateTime::UNIX_EPOCH).unwrap();
        assert!(!left_over.exists() && scratch(&path).is_dir());
        // Whoever comes second leaves alone what the first is at.
        fs::write(&left_over, b"x").unwrap();
        assert!(StateDir::claim(&path, DateTime::UNIX_EPOCH).is_err());
        assert!(left_over.exists());
        drop(state);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateDir::claim(&file.join("state"), DateTime::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.code().exit_code(), 3);
        assert!(error.to_string().contains("PGVAULT_STATE_DIR"), "{error}");
    }
}
