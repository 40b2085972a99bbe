//! The file at `%p`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::asker::Asker;
use super::local::LocalSegment;
use super::locked_file::{WithoutLocks, open_locked};
use super::trouble::Trouble;
use crate::fault_point;

/// How much of a segment is served, the rest of its `size` being zeros; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) keep: u64,
    pub(super) size: u64,
}

/// A file that appears at its destination whole or not at all.
///
/// PostgreSQL removes what is at `%p` before it asks, and syncs what it got when it gives it its name in `pg_wal`
/// (`KeepFileRestoredFromArchive`, xlogarchive.c: `durable_rename`); after a crash before that it asks again. The content
/// is synced here as well: a file that is there is correct whoever asked, and what a prefetcher has synced in advance
/// costs the server nothing. One request runs at a time, so the temporary name is nearly always the same: what a kill
/// leaves behind, the next request writes over, unless whoever made it still lives and holds its lock.
#[derive(Debug)]
pub(super) struct Destination {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    asker: Asker,
    published: bool,
}

impl Destination {
    pub(super) fn open(path: &Path, asker: &Asker) -> Result<Self, Trouble> {
        let trouble = |source| Trouble::Destination { path: path.to_owned(), source };
        let name = path.file_name().ok_or_else(|| trouble(io::ErrorKind::InvalidInput.into()))?;
        let mut temporary_name = OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(".pgvault");
        let mut temporary = path.with_file_name(&temporary_name);
        let file = match open_empty(&temporary).map_err(trouble)? {
            Some(file) => file,
            None => {
                // Somebody who was forgotten still writes there.
                temporary_name.push(format!("-{}", std::process::id()));
                temporary = path.with_file_name(&temporary_name);
                open_empty(&temporary).map_err(trouble)?.ok_or_else(|| trouble(io::ErrorKind::WouldBlock.into()))?
            }
        };
        Ok(Self { file, temporary, path: path.to_owned(), asker: asker.clone(), published: false })
    }

    /// The file, empty at first, for somebody else to fill.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(super) fn trouble(&self, source: io::Error) -> Trouble {
        Trouble::Destination { path: self.path.clone(), source }
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.file.write_all(bytes).map_err(|source| self.trouble(source))
    }

    /// Takes the durable bytes of a local segment, and zeros behind them up to `size`.
    pub(super) fn copy_padded(&mut self, segment: LocalSegment, size: u64) -> Result<(), Trouble> {
        let LocalSegment { file, durable_bytes, .. } = segment;
        let copied = io::copy(&mut file.take(durable_bytes), &mut self.file).map_err(|source| self.trouble(source))?;
        if copied < durable_bytes {
            return Err(Trouble::Local(io::ErrorKind::UnexpectedEof.into()));
        }
        self.file.set_len(size.max(copied)).map_err(|source| self.trouble(source))
    }

    /// Makes everything behind its first `len` bytes zeros, up to `size`.
    pub(super) fn pad(&mut self, len: u64, size: u64) -> Result<(), Trouble> {
        self.cut(Some(Cut { keep: len, size }))
    }

    /// Makes everything behind the cut zeros.
    pub(super) fn cut(&mut self, cut: Option<Cut>) -> Result<(), Trouble> {
        let Some(Cut { keep, size }) = cut.filter(|cut| cut.keep < cut.size) else { return Ok(()) };
        let result = self.file.set_len(keep).and_then(|()| self.file.set_len(size));
        result.map_err(|source| self.trouble(source))
    }

    pub(super) fn publish(mut self) -> Result<(), Trouble> {
        self.file.sync_data().map_err(|source| self.trouble(source))?;
        fault_point!("fetch.synced");
        if !self.asker.still_waits() {
            return Err(Trouble::NobodyWaits);
        }
        fs::rename(&self.temporary, &self.path).map_err(|source| self.trouble(source))?;
        self.published = true;
        fault_point!("fetch.published");
        Ok(())
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.temporary)
        {
            tracing::debug!(path = %self.temporary.display(), %error, "temporary file not removed");
        }
    }
}

/// Opens a file of our own, empty; none when another process holds it.
fn open_empty(path: &Path) -> io::Result<Option<File>> {
    let file = open_locked(path, WithoutLocks::Nobody)?;
    file.map(|file| file.set_len(0).map(|()| file)).transpose()
}
