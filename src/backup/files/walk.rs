//! The walk through a data directory, in the order of names: what is left out, what is as it was, what is to be read.
//!
//! Files come and go meanwhile. One that is gone is left out, one that comes after its directory was listed as well: WAL has
//! the rest of its story, as for BASE_BACKUP.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use recovery::DataPath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::decide::{Decision, decide, must_not_be_a_link};
use super::directory::list;
use super::noted::{Noted, Trace, note, settled};
use crate::backup::cut::{Cutter, EntryHead};
use crate::backup::error::CopyError;
use crate::backup::members::MemberError;
use crate::backup::opened::OpenedFile;
use crate::backup::pages::relation_segment;
use crate::backup::progress::ProgressSender;
use crate::backup::reference::{OldFile, Reference};

/// So many entries are looked at in one go, and so many files opened.
const GROUP: usize = 32;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
// Without waiting: what was a file a moment ago may be a pipe.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// What the walk goes by.
#[derive(Debug)]
pub(super) struct Terms {
    /// The backup that it is compared with, and what that one noted; `None`: every file is read.
    pub(super) noted: Option<(Arc<Noted>, Arc<Reference>)>,
    /// Files of it with damaged pages: they are read whatever was noted.
    pub(super) damaged: HashSet<String>,
    /// Files whose times lie before this moment are noted.
    pub(super) settled_before: DateTime<Utc>,
    /// On these file systems.
    pub(super) local: HashSet<u64>,
    /// Directories whose content comes elsewhere.
    pub(super) inside: HashSet<(u64, u64)>,
    /// PostgreSQL's major version.
    pub(super) major: u32,
    /// Goes with every file that is open.
    pub(super) reading: mpsc::Sender<()>,
}

/// The walk.
pub(super) struct Walk<'a> {
    pub(super) terms: Arc<Terms>,
    pub(super) cutter: &'a mut Cutter,
    pub(super) progress: &'a ProgressSender,
    pub(super) traces: Vec<Trace>,
}

/// What was found of an entry.
enum Found {
    /// A directory; whether its content is looked at.
    Directory(EntryHead, bool),
    /// `pg_wal`.
    Wal(EntryHead),
    /// A file that is as the reference has it.
    Same(EntryHead, OldFile, Trace),
    /// A file to be read, of this length.
    Read(EntryHead, u64, OpenedFile, Option<Trace>),
}

impl Walk<'_> {
    /// Gives the cutter everything in `directory`, which lies at `path`.
    pub(super) fn directory<'b>(
        &'b mut self,
        directory: Arc<OwnedFd>,
        path: Vec<u8>,
    ) -> BoxFuture<'b, Result<(), CopyError>> {
        async move {
            let listed = Arc::clone(&directory);
            let failed = |path: &[u8], errno: Errno| unreadable(path, errno);
            let names = spawn_blocking(move || list(&*listed)).await?.map_err(|errno| failed(&path, errno))?;
            for names in names.chunks(GROUP) {
                let (terms, directory, path) = (Arc::clone(&self.terms), Arc::clone(&directory), path.clone());
                let names = names.to_vec();
                let of = Arc::clone(&directory);
                let found = spawn_blocking(move || look_at(&terms, &of, &path, &names)).await??;
                for found in found {
                    self.give(found, &directory).await?;
                }
                self.tell();
            }
            Ok(())
        }
        .boxed()
    }

    async fn give(&mut self, found: Found, directory: &Arc<OwnedFd>) -> Result<(), CopyError> {
        match found {
            Found::Directory(head, false) => self.cutter.directory(head).await,
            Found::Directory(head, true) => {
                let path = head.path.as_bytes().to_vec();
                self.cutter.directory(head).await?;
                let (parent, name) = (Arc::clone(directory), file_name(&path).to_vec());
                let inner =
                    spawn_blocking(move || openat(&*parent, OsStr::from_bytes(&name), DIRECTORY, Mode::empty()));
                match inner.await? {
                    Ok(inner) => self.directory(Arc::new(inner), path).await,
                    // A database that was dropped.
                    Err(Errno::NOENT) => Ok(()),
                    Err(errno) => Err(unreadable(&path, errno)),
                }
            }
            Found::Wal(head) => {
                let (mode, mtime) = (head.mode, head.mtime);
                self.cutter.directory(head).await?;
                let folders: &[&[u8]] =
                    if self.terms.major >= 17 { &[b"archive_status", b"summaries"] } else { &[b"archive_status"] };
                for folder in folders {
                    let path = data_path(&[b"pg_wal/", *folder].concat())?;
                    self.cutter.directory(EntryHead { path, mode, mtime }).await?;
                }
                Ok(())
            }
            Found::Same(head, old, trace) => {
                note(&mut self.traces, trace);
                self.cutter.same_file(head, old).await
            }
            Found::Read(head, size, file, trace) => {
                if let Some(trace) = trace {
                    note(&mut self.traces, trace);
                }
                self.cutter.file_to_read(head, size, file).await
            }
        }
    }

    fn tell(&self) {
        let totals = self.cutter.totals();
        self.progress.send_if_modified(|progress| {
            (progress.done_bytes, progress.files) = (totals.bytes, totals.files);
            true
        });
    }
}

/// Looks at some entries of a directory. Waits for the disk.
fn look_at(terms: &Terms, directory: &OwnedFd, path: &[u8], names: &[Vec<u8>]) -> Result<Vec<Found>, CopyError> {
    let mut found = Vec::new();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
        found.extend(look_at_one(terms, directory, &path, OsStr::from_bytes(name))?);
    }
    Ok(found)
}

fn look_at_one(terms: &Terms, directory: &OwnedFd, path: &[u8], name: &OsStr) -> Result<Option<Found>, CopyError> {
    let there = |name: &OsStr| match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(unreadable(path, errno)),
    };
    let decision = decide(path);
    let left_out = match &decision {
        Decision::Skip => true,
        Decision::CopyUnless(init_fork) => there(OsStr::from_bytes(init_fork))?.is_some(),
        _ => false,
    };
    if left_out {
        return Ok(None);
    }
    let Some(stat) = there(name)? else { return Ok(None) };
    let head = |mode: u32| Ok::<_, CopyError>(EntryHead { path: data_path(path)?, mode, mtime: stat.st_mtime });
    let mode = stat.st_mode & 0o777;
    match (FileType::from_raw_mode(stat.st_mode), decision) {
        (FileType::Directory, Decision::Wal) => Ok(Some(Found::Wal(head(mode)?))),
        (FileType::Directory, Decision::Empty | Decision::Tablespaces) => {
            Ok(Some(Found::Directory(head(mode)?, false)))
        }
        (FileType::Directory, _) => {
            let walked = !terms.inside.contains(&(stat.st_dev, stat.st_ino));
            Ok(Some(Found::Directory(head(mode)?, walked)))
        }
        // Restored they are directories (`convert_link_to_directory` in basebackup.c).
        (FileType::Symlink, Decision::Wal) => Ok(Some(Found::Wal(head(0o700)?))),
        (FileType::Symlink, Decision::Empty) => Ok(Some(Found::Directory(head(0o700)?, false))),
        (FileType::RegularFile, _) => file(terms, directory, path, name, &stat),
        (kind, _) => {
            let shown = path.escape_ascii();
            if kind == FileType::Symlink && must_not_be_a_link(path) {
                let said =
                    format!("\"{shown}\" is a symbolic link: no server starts from a backup without what it leads to");
                return Err(CopyError::DataDirectory(said));
            }
            tracing::warn!(path = %shown, ?kind, "left out of the backup, as BASE_BACKUP does: neither file nor directory");
            Ok(None)
        }
    }
}

fn file(
    terms: &Terms,
    directory: &OwnedFd,
    path: &[u8],
    name: &OsStr,
    stat: &Stat,
) -> Result<Option<Found>, CopyError> {
    let data_path = data_path(path)?;
    let head = |stat: &Stat| EntryHead { path: data_path.clone(), mode: stat.st_mode & 0o777, mtime: stat.st_mtime };
    let is_noted = relation_segment(&data_path).is_some();
    if is_noted && let Some((old, trace)) = as_it_was(terms, &data_path, stat)? {
        return Ok(Some(Found::Same(head(stat), old, trace)));
    }
    let open = || {
        let file = openat(directory, name, FILE, Mode::empty())?;
        let stat = fstat(&file)?;
        Ok((file, stat))
    };
    let (file, stat) = match open() {
        Ok(opened) => opened,
        // Dropped since it was listed.
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(unreadable(path, errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    // Of the open file, before a byte of it is read: that is what the next backup's look is compared with.
    let settled = is_noted && terms.local.contains(&stat.st_dev) && settled(&stat, terms.settled_before);
    let trace = settled.then(|| Trace::of(path, &stat));
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    let head = head(&stat);
    let opened = OpenedFile::new(data_path, File::from(file), terms.reading.clone());
    Ok(Some(Found::Read(head, size, opened, trace)))
}

/// The file as the reference has it, when it was noted then just as it is now.
fn as_it_was(terms: &Terms, path: &DataPath, stat: &Stat) -> Result<Option<(OldFile, Trace)>, CopyError> {
    let Some((noted, reference)) = &terms.noted else { return Ok(None) };
    let trace = Trace::of(path.as_bytes(), stat);
    let is_damaged = || path.as_utf8().is_none_or(|path| terms.damaged.contains(path));
    if !terms.local.contains(&stat.st_dev) || !noted.contains(&trace) || is_damaged() {
        return Ok(None);
    }
    let old = reference.find(path)?.filter(|old| i64::try_from(old.size) == Ok(stat.st_size));
    Ok(old.map(|old| (old, trace)))
}

fn unreadable(path: &[u8], errno: Errno) -> CopyError {
    CopyError::File { path: path.escape_ascii().to_string(), source: errno.into() }
}

pub(super) fn data_path(path: &[u8]) -> Result<DataPath, CopyError> {
    Ok(DataPath::new(path).map_err(MemberError::from)?)
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}
