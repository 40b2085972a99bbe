//! The data directory of a server on this machine: opened once, read below, and proven to be that server's.
//!
//! Whoever can write there must not lead us elsewhere: below what was opened no link is followed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, open, openat, readlinkat, statat};
use rustix::io::Errno;

use super::control::{CONTROL_FILE_SIZE, Control, ControlError};
use super::noted::is_local;
use crate::primary::sql::ServerInstance;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// `pg_control` is written often and in place: its CRC holds within a few tries.
const CONTROL_TRIES: u32 = 200;
const CONTROL_PAUSE: Duration = Duration::from_millis(5);

/// A postmaster takes so long at most from its start to the time that it calls its start.
const STARTS_WITHIN: i64 = 600;

/// What cannot be read, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(super) struct Unreadable {
    pub(super) what: String,
    #[source]
    pub(super) source: io::Error,
}

/// What `postmaster.pid` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Postmaster {
    pub(super) pid: u32,
    pub(super) started_at: i64,
    pub(super) port: u16,
}

/// `global/pg_control`, proven.
#[derive(Clone, Debug)]
pub(super) struct ControlFile {
    pub(super) control: Control,
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    pub(super) mtime: i64,
}

/// A tablespace. Its files are all in `version`.
#[derive(Debug)]
pub(super) struct OpenTablespace {
    pub(super) oid: u32,
    /// Where its link leads; `None` when it lies in `pg_tblspc` itself.
    pub(super) link: Option<Vec<u8>>,
    pub(super) version: OwnedFd,
}

/// The directory.
#[derive(Debug)]
pub(super) struct DataDirectory {
    pub(super) path: PathBuf,
    pub(super) root: OwnedFd,
    pub(super) major: u32,
}

impl DataDirectory {
    pub(super) fn open(path: &Path, major: u32) -> Result<Self, Unreadable> {
        let root = open(path, DIRECTORY, Mode::empty())
            .map_err(|errno| Unreadable { what: path.display().to_string(), source: errno.into() })?;
        Ok(Self { path: path.to_owned(), root, major })
    }

    fn unreadable(&self, name: &str, source: impl Into<io::Error>) -> Unreadable {
        Unreadable { what: self.path.join(name).display().to_string(), source: source.into() }
    }

    /// `global/pg_control`, read until its CRC holds.
    pub(super) fn control(&self) -> Result<ControlFile, Unreadable> {
        const NAME: &str = "global/pg_control";
        let mut tries = 0;
        loop {
            let (bytes, stat) = self.read(NAME, CONTROL_FILE_SIZE)?;
            match Control::parse(&bytes) {
                Ok(control) => {
                    let (mode, mtime) = (stat.st_mode & 0o777, stat.st_mtime);
                    return Ok(ControlFile { control, bytes, mode, mtime });
                }
                Err(ControlError::Checksum | ControlError::Size(_)) if tries < CONTROL_TRIES => sleep(CONTROL_PAUSE),
                Err(error) => return Err(self.unreadable(NAME, io::Error::other(error))),
            }
            tries += 1;
        }
    }

    /// `postmaster.pid` (`CreateLockFile` in miscinit.c): process id, data directory, start, port.
    pub(super) fn postmaster(&self) -> Result<Postmaster, Unreadable> {
        const NAME: &str = "postmaster.pid";
        let (bytes, _) = self.read(NAME, 4096)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let number = |line: usize| lines.get(line)?.parse::<i64>().ok();
        let postmaster = || {
            // A single-user server has a negative number.
            let (pid, port) = (number(0)?.try_into().ok()?, number(3)?.try_into().ok()?);
            Some(Postmaster { pid, started_at: number(2)?, port })
        };
        postmaster().ok_or_else(|| self.unreadable(NAME, io::Error::other("it does not say what it should")))
    }

    fn read(&self, name: &str, most: usize) -> Result<(Vec<u8>, rustix::fs::Stat), Unreadable> {
        let read = || {
            let file = openat(&self.root, name, FILE, Mode::empty())?;
            let stat = fstat(&file)?;
            let mut bytes = vec![0; most];
            let mut len = 0;
            while len < most {
                match rustix::io::pread(&file, &mut bytes[len..], len as u64) {
                    Ok(0) => break,
                    Ok(count) => len += count,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            bytes.truncate(len);
            Ok((bytes, stat))
        };
        read().map_err(|errno: Errno| self.unreadable(name, errno))
    }

    /// The tablespaces, each opened.
    pub(super) fn tablespaces(&self, control: &Control) -> Result<Vec<OpenTablespace>, Unreadable> {
        const NAME: &str = "pg_tblspc";
        let links = openat(&self.root, NAME, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|errno| self.unreadable(NAME, errno))?;
        let names = list(&links).map_err(|errno| self.unreadable(NAME, errno))?;
        let version = control.tablespace_directory(self.major);
        let mut tablespaces = Vec::new();
        for name in names {
            let Some(oid) = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok()) else { continue };
            let unreadable = |errno: Errno| self.unreadable(&format!("{NAME}/{oid}"), errno);
            let name = OsStr::from_bytes(&name);
            let kind = match statat(&links, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(unreadable(errno)),
            };
            let link = match kind {
                FileType::Symlink => Some(readlinkat(&links, name, Vec::new()).map_err(unreadable)?.into_bytes()),
                FileType::Directory => None,
                _ => continue,
            };
            let inner = || {
                openat(
                    &openat(&links, name, DIRECTORY, Mode::empty())?,
                    &*version,
                    DIRECTORY | OFlags::NOFOLLOW,
                    Mode::empty(),
                )
            };
            match inner() {
                Ok(version) => tablespaces.push(OpenTablespace { oid, link, version }),
                // Dropped at this moment: gone with its link.
                Err(Errno::NOENT) if matches!(statat(&links, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) => {}
                Err(errno) => return Err(unreadable(errno)),
            }
        }
        Ok(tablespaces)
    }

    /// The file systems whose files may be noted: those of the directory and its tablespaces that are local.
    pub(super) fn local_devices(&self, tablespaces: &[OpenTablespace]) -> Result<HashSet<u64>, Unreadable> {
        let mut local = HashSet::new();
        let roots = [&self.root].into_iter().chain(tablespaces.iter().map(|tablespace| &tablespace.version));
        for root in roots {
            if is_local(root).map_err(|source| self.unreadable("", source))? {
                local.insert(fstat(root).map_err(|errno| self.unreadable("", errno))?.st_dev);
            }
        }
        Ok(local)
    }

    /// Tablespaces that lie inside the data directory, by device and inode: their files come with the tablespace.
    pub(super) fn inside(tablespaces: &[OpenTablespace]) -> Result<HashSet<(u64, u64)>, Unreadable> {
        let root = |tablespace: &OpenTablespace| {
            let stat = statat(&tablespace.version, "..", AtFlags::empty());
            stat.map(|stat| (stat.st_dev, stat.st_ino))
        };
        tablespaces
            .iter()
            .map(|tablespace| {
                root(tablespace).map_err(|errno| Unreadable {
                    what: format!("tablespace {}", tablespace.oid),
                    source: errno.into(),
                })
            })
            .collect()
    }
}

/// What of the directory is not what the server says, both facts; `None` when it is that server's.
///
/// A clone has the system identifier of its original, and a standby the checkpoints of its primary as well. But no two
/// servers share the second in which the control file changed last, that in which their postmaster started, and a port.
pub(super) fn difference(control: &Control, postmaster: Postmaster, server: &ServerInstance) -> Option<String> {
    let facts = [
        ("system identifier", control.system_identifier.to_string(), server.system_identifier.to_string()),
        ("checkpoint", control.checkpoint.to_string(), server.checkpoint.to_string()),
        ("redo position", control.redo.to_string(), server.redo.to_string()),
        ("timeline", control.timeline.to_string(), server.timeline.to_string()),
        ("last change of pg_control", control.changed_at.to_string(), server.control_changed_at.to_string()),
        ("port", postmaster.port.to_string(), server.port.to_string()),
    ];
    let unlike = facts.into_iter().find(|(_, here, there)| here != there);
    if let Some((what, here, there)) = unlike {
        return Some(format!("its {what} is {here}, the server's is {there}"));
    }
    let after = server.started_at - postmaster.started_at;
    if !(-1..=STARTS_WITHIN).contains(&after) {
        let (here, there) = (postmaster.started_at, server.started_at);
        return Some(format!("its postmaster started at {here} (Unix seconds), the server's at {there}"));
    }
    (!control.is_running).then(|| "no server runs in it, as its pg_control has it".to_owned())
}

/// Names in a directory, sorted.
pub(super) fn list(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::{Lsn, SystemIdentifier, TimelineId};

    #[test]
    fn a_directory_belongs_to_the_server_only_when_everything_agrees() {
        let control = Control {
            system_identifier: SystemIdentifier::new(7),
            catalog_version: 1,
            is_running: true,
            changed_at: 1000,
            checkpoint: Lsn::new(0x60),
            redo: Lsn::new(0x28),
            timeline: TimelineId::FIRST,
            recovery_timeline: None,
        };
        let postmaster = Postmaster { pid: 9, started_at: 500, port: 5432 };
        let server = ServerInstance {
            system_identifier: SystemIdentifier::new(7),
            control_changed_at: 1000,
            checkpoint: Lsn::new(0x60),
            redo: Lsn::new(0x28),
            timeline: TimelineId::FIRST,
            started_at: 501,
            port: 5432,
        };
        assert_eq!(difference(&control, postmaster, &server), None);
        let others = [
            ServerInstance { system_identifier: SystemIdentifier::new(8), ..server.clone() },
            ServerInstance { control_changed_at: 1001, ..server.clone() },
            ServerInstance { checkpoint: Lsn::new(0x61), ..server.clone() },
            ServerInstance { redo: Lsn::new(0x29), ..server.clone() },
            ServerInstance { started_at: 498, ..server.clone() },
            ServerInstance { started_at: 5000, ..server.clone() },
            ServerInstance { port: 5433, ..server.clone() },
        ];
        for other in others {
            assert!(difference(&control, postmaster, &other).is_some(), "{other:?}");
        }
        let stopped = Control { is_running: false, ..control };
        assert!(difference(&stopped, postmaster, &server).unwrap().contains("no server runs"));
    }
}
