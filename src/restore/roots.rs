//! Writing below directories that were opened once, and nowhere else.
//!
//! Paths come from the repository and are taken for hostile: [`DataPath`] has no `..` and is not absolute, and every
//! component is opened with `O_NOFOLLOW` below the one before it, so that no link, whoever made it, leads outside. The
//! only links are those that a restore makes itself, and it never walks through them: `pg_tblspc/<oid>` and a `pg_wal`
//! that lies elsewhere are directories opened on their own.

mod open_directory;
mod target_file;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use recovery::DataPath;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, open, openat, renameat, symlinkat};
use rustix::io::Errno;

use crate::fault_point;
use crate::repository::file_table::{EntryKind, TableEntry};

use super::Owner;
use super::marker::{MARKER, Marker, NEXT_MARKER};

use open_directory::{OpenDirectories, OpenDirectory};

pub(super) use target_file::{Length, TargetFile};

/// `global/pg_control`, without which PostgreSQL does not start.
pub(super) const PG_CONTROL: &[u8] = b"global/pg_control";
/// The name under which it is written until everything else is durable.
const HIDDEN_PG_CONTROL: &str = "pg_control.pgvault-restore";

/// The directories that a restore writes to.
#[derive(Debug)]
pub(super) struct Roots {
    data: OwnedFd,
    wal: Option<OwnedFd>,
    tablespaces: BTreeMap<u32, OwnedFd>,
    owner: Option<Owner>,
    keep: Keep,
    /// Those that files lie in.
    open: OpenDirectories,
}

/// A file to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewFile<'a> {
    pub(super) path: &'a DataPath,
    pub(super) length: Length,
    /// Its permission bits; the owner may read and write until it is finished.
    pub(super) mode: u32,
}

/// What may be done with files that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// There are none: a second one of the same name is an error.
    New,
    /// They are made anew: what is read from them may not be what is on the disk.
    Nothing,
    /// They are taken over; what of them is right need not be written.
    Right,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn mode_of(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o777)
}

/// Makes a directory if it is not there, and opens it.
pub(super) fn open_root(path: &Path, owner: Option<Owner>) -> io::Result<OwnedFd> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let fd = open(path, DIRECTORY, Mode::empty())?;
    give(fd.as_fd(), owner)?;
    Ok(fd)
}

fn give(fd: BorrowedFd<'_>, owner: Option<Owner>) -> io::Result<()> {
    match owner {
        Some(Owner { uid, gid }) => Ok(fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?),
        None => Ok(()),
    }
}

/// Writes a file in an open directory, in place of what is there.
pub(super) fn write_in(
    directory: BorrowedFd<'_>,
    name: &Path,
    bytes: &mut dyn Read,
    owner: Option<Owner>,
) -> io::Result<()> {
    remove_in(directory, name)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, mode_of(0o600))?);
    give(file.as_fd(), owner)?;
    io::copy(bytes, &mut file)?;
    Ok(())
}

fn remove_in(directory: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Puts a marker into an open directory, in place of another one: at no moment is there none, or half of one beside
/// files. When it returns, the marker is there after a power loss, too.
pub(super) fn put_marker(directory: BorrowedFd<'_>, marker: &Marker, owner: Option<Owner>) -> io::Result<()> {
    write_in(directory, Path::new(NEXT_MARKER), &mut marker.text().as_bytes(), owner)?;
    let next = openat(directory, NEXT_MARKER, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fsync(next)?;
    renameat(directory, NEXT_MARKER, directory, MARKER)?;
    Ok(rustix::fs::fsync(directory)?)
}

impl Roots {
    pub(super) fn new(data: OwnedFd, owner: Option<Owner>, keep: Keep) -> Self {
        Self { data, wal: None, tablespaces: BTreeMap::new(), owner, keep, open: OpenDirectories::default() }
    }

    pub(super) fn keep(&self) -> Keep {
        self.keep
    }

    pub(super) fn set_wal(&mut self, wal: OwnedFd) {
        self.wal = Some(wal);
    }

    pub(super) fn add_tablespace(&mut self, oid: u32, directory: OwnedFd) {
        self.tablespaces.insert(oid, directory);
    }

    /// Makes a link in the data directory or one level below it. One that leads there already stays as it is: whoever dies
    /// here finds the directories of a former restore by it.
    pub(super) fn link(&self, path: &str, target: &Path) -> io::Result<()> {
        let path = data_path(path)?;
        let mut components: Vec<&[u8]> = path.components().collect();
        let name = OsStr::from_bytes(components.pop().unwrap_or_default());
        let parent = self.walk(self.data.as_fd(), &components)?;
        if self.keep != Keep::New {
            match rustix::fs::readlinkat(&parent, name, Vec::new()) {
                Ok(there) if there.as_bytes() == target.as_os_str().as_bytes() => return Ok(()),
                _ => remove_in(parent.as_fd(), name.as_ref())?,
            }
        }
        symlinkat(target, &parent, name)?;
        if let Some(Owner { uid, gid }) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Makes a directory; one that is there gets the mode and the owner.
    pub(super) fn make_directory(&self, path: &DataPath, mode: u32) -> io::Result<()> {
        let (root, components) = self.root_of(path);
        let fd = self.walk(root, &components)?;
        if self.keep != Keep::New {
            give(fd.as_fd(), self.owner)?;
        }
        // Whatever the backup says: we must be able to write into it.
        fchmod(&fd, mode_of(mode | 0o700))?;
        Ok(())
    }

    /// Makes a file of `size` bytes out of what is there, zeros where nothing is kept; says how many of its first bytes
    /// were there before.
    pub(super) fn take(&self, path: &DataPath, size: u64, mode: u32) -> io::Result<u64> {
        let (parent, name) = self.parent(path)?;
        if self.keep == Keep::Right
            && let Some(there) = self.take_over(parent.as_fd(), &name, size, mode)?
        {
            return Ok(there);
        }
        let file = NewFile { path, length: Length::WithHoles(size), mode };
        self.make_in(&parent, &[name], &[file]).map(|_| 0).map_err(|(_, error)| error)
    }

    /// Makes new files of one directory, in place of what is there. An error says with which of them it ended.
    pub(super) fn make(&self, files: &[NewFile<'_>]) -> Result<Vec<TargetFile>, (usize, io::Error)> {
        let Some(first) = files.first() else { return Ok(Vec::new()) };
        let (parent, _) = self.parent(first.path).map_err(|error| (0, error))?;
        let names: Vec<PathBuf> = files.iter().map(|file| name_in_parent(file.path)).collect();
        self.make_in(&parent, &names, files)
    }

    fn make_in(
        &self,
        parent: &OpenDirectory,
        names: &[PathBuf],
        files: &[NewFile<'_>],
    ) -> Result<Vec<TargetFile>, (usize, io::Error)> {
        if self.keep != Keep::New {
            for (at, name) in names.iter().enumerate() {
                remove_in(parent.as_fd(), name).map_err(|error| (at, error))?;
            }
        }
        let made = parent.make(names, mode_of(0o600)).map_err(|(at, error)| (at, error.into()))?;
        let complete = |(at, (fd, file))| self.complete(parent, fd, file).map_err(|error| (at, error));
        made.into_iter().zip(files).enumerate().map(complete).collect()
    }

    /// Gives a new file its owner, mode and length.
    fn complete(&self, parent: &OpenDirectory, fd: OwnedFd, file: &NewFile<'_>) -> io::Result<TargetFile> {
        let found = rustix::fs::fstat(&fd)?;
        if self.owner.is_some_and(|owner| (owner.uid, owner.gid) != (found.st_uid, found.st_gid)) {
            give(fd.as_fd(), self.owner)?;
        }
        // The umask may have taken some.
        if found.st_mode & 0o7777 != (file.mode | 0o600) & 0o777 {
            fchmod(&fd, mode_of(file.mode | 0o600))?;
        }
        let target = TargetFile::new(File::from(fd), file.length.is_large() && parent.writes_past_the_cache);
        target.set_length(file.length)?;
        Ok(target)
    }

    /// Makes a file that is there ours, of this size; `None` when it has to be made anew.
    ///
    /// A file with another name besides is left to that name: it may be somebody's copy (`cp -al`, `pg_upgrade --link`), and
    /// writing in place would change it.
    fn take_over(&self, parent: BorrowedFd<'_>, name: &Path, size: u64, mode: u32) -> io::Result<Option<u64>> {
        // Not waiting for somebody to open the other end of a pipe.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::ACCESS | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = rustix::fs::fstat(&fd)?;
        let is_file = rustix::fs::FileType::from_raw_mode(found.st_mode).is_file();
        let wanted = self.owner.map_or_else(|| rustix::process::geteuid().as_raw(), |owner| owner.uid);
        // Without an owner to give it to we are not root, and could not change whose it is.
        if !is_file || found.st_nlink != 1 || (found.st_uid != wanted && self.owner.is_none()) {
            return Ok(None);
        }
        if self.owner.is_some_and(|owner| (owner.uid, owner.gid) != (found.st_uid, found.st_gid)) {
            give(fd.as_fd(), self.owner)?;
        }
        let file = File::from(fd);
        let there = u64::try_from(found.st_size).unwrap_or_default();
        if there != size {
            file.set_len(size)?;
        }
        if found.st_mode & 0o7777 != (mode | 0o600) & 0o777 {
            fchmod(&file, mode_of(mode | 0o600))?;
        }
        Ok(Some(there.min(size)))
    }

    /// Opens a file that is there, to read and write.
    pub(super) fn open_file(&self, path: &DataPath) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let fd = openat(&parent, &name, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(fd))
    }

    /// Opens a file that was made or taken before; `length` is what it was made with.
    pub(super) fn open_again(&self, path: &DataPath, length: Length) -> io::Result<TargetFile> {
        let (parent, name) = self.parent(path)?;
        let fd = openat(&parent, &name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok(TargetFile::new(File::from(fd), length.is_large() && parent.writes_past_the_cache))
    }

    /// The content of a small file; `None` when it is not there.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let (parent, name) = self.parent(&data_path(path)?)?;
        match openat(&parent, &name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => {
                let mut bytes = Vec::new();
                File::from(fd).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a small file in place of what is there. It becomes durable with everything else.
    pub(super) fn write(&self, path: &str, bytes: &mut dyn Read) -> io::Result<()> {
        let (parent, name) = self.parent(&data_path(path)?)?;
        write_in(parent.as_fd(), &name, bytes, self.owner)
    }

    /// Removes a file if it is there.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(&data_path(path)?)?;
        remove_in(parent.as_fd(), &name)
    }

    /// Whether a directory is there.
    pub(super) fn has_directory(&self, path: &str) -> io::Result<bool> {
        let path = data_path(path)?;
        let (mut directory, components) = {
            let (root, components) = self.root_of(&path);
            (openat(root, ".", DIRECTORY, Mode::empty())?, components)
        };
        for component in components {
            directory = match openat(&directory, OsStr::from_bytes(component), DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(true)
    }

    /// The permission bits for the data directory: what PostgreSQL accepts, with the group let in where the backup let it
    /// in (`data_directory_mode`, 0700 or 0750).
    pub(super) fn directory_mode(&self) -> io::Result<u32> {
        let global = openat(&self.data, "global", DIRECTORY, Mode::empty())?;
        let mode = rustix::fs::fstat(global)?.st_mode;
        Ok(if mode & 0o050 == 0o050 { 0o750 } else { 0o700 })
    }

    /// Gives the directories themselves their permission bits.
    pub(super) fn set_directory_mode(&self, mode: u32) -> io::Result<()> {
        for root in self.all() {
            fchmod(root, mode_of(mode))?;
        }
        Ok(())
    }

    /// Takes the markers away, that of the data directory last: as long as it is there, the same restore can be run again.
    pub(super) fn remove_markers(&self) -> io::Result<()> {
        for root in self.all() {
            fault_point!("restore.unmark");
            remove_in(root.as_fd(), Path::new(MARKER))?;
            rustix::fs::fsync(root)?;
        }
        Ok(())
    }

    /// Puts this marker into every directory.
    pub(super) fn put_markers(&self, marker: &Marker) -> io::Result<()> {
        self.all().try_for_each(|root| put_marker(root.as_fd(), marker, self.owner))
    }

    /// Every directory, the data directory last.
    fn all(&self) -> impl Iterator<Item = &OwnedFd> {
        self.tablespaces.values().chain(&self.wal).chain([&self.data])
    }

    /// Takes the `pg_control` of an old or finished cluster away: from here on PostgreSQL cannot start. Durable when it
    /// returns.
    pub(super) fn unpublish_pg_control(&self) -> io::Result<()> {
        let global = match openat(&self.data, "global", DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            global => global?,
        };
        remove_in(global.as_fd(), Path::new("pg_control"))?;
        Ok(rustix::fs::fsync(global)?)
    }

    /// Gives `pg_control` its name.
    pub(super) fn publish_pg_control(&self) -> io::Result<()> {
        let (parent, name) = self.parent(&data_path("global/pg_control")?)?;
        let hidden = openat(&parent, &name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fsync(hidden)?;
        rustix::fs::fsync(&parent)?;
        renameat(&parent, &name, &parent, "pg_control")?;
        rustix::fs::fsync(&parent)?;
        Ok(())
    }

    /// The root below which `path` lies and the way from there.
    fn root_of<'p>(&self, path: &'p DataPath) -> (BorrowedFd<'_>, Vec<&'p [u8]>) {
        let mut components: Vec<&[u8]> = path.components().collect();
        if let Some(oid) = tablespace_of(path)
            && let Some(root) = self.tablespaces.get(&oid)
        {
            return (root.as_fd(), components.split_off(2));
        }
        match &self.wal {
            Some(wal) if components[0] == b"pg_wal" => (wal.as_fd(), components.split_off(1)),
            _ => (self.data.as_fd(), components),
        }
    }

    /// The open directory that `path` lies in, made where it is missing, and the name in it.
    fn parent(&self, path: &DataPath) -> io::Result<(Arc<OpenDirectory>, PathBuf)> {
        let (root, mut components) = self.root_of(path);
        // A tablespace's or pg_wal's own link is no file to write.
        let name = components.pop().ok_or(io::ErrorKind::IsADirectory)?;
        let of_parent = path.as_bytes().len().saturating_sub(name.len() + 1);
        let key = path.as_bytes().get(..of_parent).unwrap_or_default();
        let parent = self.open.get(key, || self.walk(root, &components))?;
        Ok((parent, name_in_parent(path)))
    }

    fn walk(&self, root: BorrowedFd<'_>, components: &[&[u8]]) -> io::Result<OwnedFd> {
        let mut directory = openat(root, ".", DIRECTORY, Mode::empty())?;
        for component in components {
            let name = OsStr::from_bytes(component);
            directory = match openat(&directory, name, DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => self.make_below(&directory, name)?,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(directory)
    }

    fn make_below(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
        match mkdirat(parent, name, mode_of(0o700)) {
            // Another worker was faster.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
        give(directory.as_fd(), self.owner)?;
        Ok(directory)
    }
}

/// The name of a file in its directory while it is being restored.
fn name_in_parent(path: &DataPath) -> PathBuf {
    if path.as_bytes() == PG_CONTROL { HIDDEN_PG_CONTROL.into() } else { OsStr::from_bytes(path.file_name()).into() }
}

pub(super) fn data_path(path: &str) -> io::Result<DataPath> {
    DataPath::new(path.as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The oid in `pg_tblspc/<oid>…`.
fn tablespace_of(path: &DataPath) -> Option<u32> {
    let mut components = path.components();
    if components.next()? != b"pg_tblspc" {
        return None;
    }
    let digits = components.next()?;
    let plain = digits.iter().all(u8::is_ascii_digit) && digits.first() != Some(&b'0');
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

/// The tablespace that the entry's file lies in, and its size.
pub(super) fn size_in_tablespace(entry: &TableEntry) -> Option<(u32, u64)> {
    match &entry.kind {
        EntryKind::File(file) => Some((tablespace_of(&entry.path)?, file.size)),
        EntryKind::Directory => None,
    }
}

#[cfg(test)]
mod tests;
