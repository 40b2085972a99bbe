//! Walking old directories, to count or to remove.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use super::{Existing, Known, Tree, TreeKind};
use crate::restore::marker::{MARKER, NEXT_MARKER};

/// Deeper than this lies nothing of PostgreSQL.
const MAX_DEPTH: usize = 64;

/// So many things that are left alone are named.
const MAX_LEFT: usize = 20;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One walk over all directories.
#[derive(Debug)]
pub(in crate::restore) struct Walk<'a> {
    known: &'a Known,
    links: &'a BTreeMap<Vec<u8>, PathBuf>,
    remove: bool,
    pub(super) found: Existing,
    /// What files that stay or go take on the disk.
    pub(super) taken_bytes: u64,
    /// What the files that are compared have in the backup.
    pub(super) wanted_bytes: u64,
}

/// A directory that is open.
#[derive(Clone, Copy)]
struct Open<'d> {
    fd: BorrowedFd<'d>,
    device: u64,
    depth: usize,
    /// Whether it may have a `lost+found`.
    is_mount: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(known: &'a Known, links: &'a BTreeMap<Vec<u8>, PathBuf>, remove: bool) -> Self {
        Self { known, links, remove, found: Existing::default(), taken_bytes: 0, wanted_bytes: 0 }
    }

    /// Walks one directory. One that is not there holds nothing.
    pub(super) fn tree(&mut self, tree: &Tree) -> io::Result<()> {
        let fd = match rustix::fs::open(&tree.path, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            fd => fd?,
        };
        let device = device(&rustix::fs::fstat(&fd)?);
        let open = Open { fd: fd.as_fd(), device, depth: 0, is_mount: true };
        let left = matches!(tree.kind, TreeKind::Tablespace(_)).then_some(&tree.path);
        self.directory(open, &mut tree.kind.prefix(), left)
    }

    /// Walks a directory that the backup has. `left`: the path of a directory of which only what the backup has is ours.
    fn directory(&mut self, at: Open<'_>, path: &mut Vec<u8>, left: Option<&PathBuf>) -> io::Result<()> {
        for name in names(at.fd)? {
            if (at.is_mount && name.to_bytes() == b"lost+found")
                || (at.depth == 0 && [MARKER.as_bytes(), NEXT_MARKER.as_bytes()].contains(&name.to_bytes()))
            {
                continue;
            }
            let looked = statat(at.fd, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW);
            let Some(meta) = unless_gone(looked).map_err(|e| named(path, &name, e))? else { continue };
            let above = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let kind = FileType::from_raw_mode(meta.st_mode);
            let size = match kind {
                FileType::RegularFile => self.known.size_of(path),
                _ => None,
            };
            // Where a link shall be, a directory is in the way.
            if kind.is_dir() && self.known.has_directory(path) && !self.links.contains_key(path.as_slice()) {
                let below = openat(at.fd, name.as_c_str(), DIRECTORY, Mode::empty())?;
                let open = below_of(at, &below, &meta, path)?;
                self.directory(open, path, None)?;
            } else if let Some(size) = size {
                self.compared(&meta, size);
            } else if let Some(directory) = left {
                if self.found.left.len() < MAX_LEFT {
                    self.found.left.push(directory.join(OsStr::from_bytes(name.to_bytes())));
                }
            } else if !self.is_our_link(at.fd, &name, kind, path) {
                self.gone(at, &name, &meta, path)?;
            }
            path.truncate(above);
        }
        Ok(())
    }

    fn compared(&mut self, meta: &Stat, size: u64) {
        let bytes = u64::try_from(meta.st_size).unwrap_or_default();
        self.found.compared.add(bytes);
        self.wanted_bytes += size;
        self.take(meta);
    }

    /// Counts, and removes, what the backup does not have, with everything below it.
    fn gone(&mut self, at: Open<'_>, name: &CStr, meta: &Stat, path: &mut Vec<u8>) -> io::Result<()> {
        if !FileType::from_raw_mode(meta.st_mode).is_dir() {
            self.found.removed.add(u64::try_from(meta.st_size).unwrap_or_default());
            self.take(meta);
            return self.unlink(at, name, AtFlags::empty());
        }
        let Some(below) = unless_gone(openat(at.fd, name, DIRECTORY, Mode::empty()))? else { return Ok(()) };
        let open = below_of(at, &below, meta, path)?;
        if open.is_mount {
            let path = path.escape_ascii();
            return Err(io::Error::other(format!("\"{path}\" is a mount point, and the backup has no such directory")));
        }
        for name in names(open.fd)? {
            let looked = statat(open.fd, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW);
            let Some(meta) = unless_gone(looked)? else { continue };
            let above = path.len();
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            self.gone(open, &name, &meta, path)?;
            path.truncate(above);
        }
        self.found.removed_directories += 1;
        self.unlink(at, name, AtFlags::REMOVEDIR)
    }

    fn unlink(&self, at: Open<'_>, name: &CStr, flags: AtFlags) -> io::Result<()> {
        if self.remove {
            unless_gone(unlinkat(at.fd, name, flags))?;
        }
        Ok(())
    }

    /// Whether this is a link that the restore would make just so.
    fn is_our_link(&self, directory: BorrowedFd<'_>, name: &CStr, kind: FileType, path: &[u8]) -> bool {
        let Some(target) = self.links.get(path).filter(|_| kind.is_symlink()) else { return false };
        readlinkat(directory, name, Vec::new()).is_ok_and(|there| there.as_bytes() == target.as_os_str().as_bytes())
    }

    /// What has another name stays on the disk whatever we do.
    fn take(&mut self, meta: &Stat) {
        if meta.st_nlink == 1 {
            self.taken_bytes += u64::try_from(meta.st_blocks).unwrap_or_default() * 512;
        }
    }
}

fn below_of<'d>(at: Open<'_>, fd: &'d OwnedFd, meta: &Stat, path: &[u8]) -> io::Result<Open<'d>> {
    if at.depth >= MAX_DEPTH {
        return Err(io::Error::other(format!("\"{}\" lies too deep", path.escape_ascii())));
    }
    let device = device(meta);
    Ok(Open { fd: fd.as_fd(), device, depth: at.depth + 1, is_mount: device != at.device })
}

/// None for what went away since its name was read: the prefetcher of a server that has just stopped removes its own folder.
fn unless_gone<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(Errno::NOENT) => Ok(None),
        result => Ok(Some(result?)),
    }
}

fn device(meta: &Stat) -> u64 {
    meta.st_dev
}

/// The names in a directory, read before anything in it is changed.
fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn named(path: &[u8], name: &CStr, error: io::Error) -> io::Error {
    let (path, name) = (path.escape_ascii(), name.to_bytes().escape_ascii());
    io::Error::new(error.kind(), format!("\"{path}/{name}\": {error}"))
}
