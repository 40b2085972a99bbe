//! The file at `%p`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::Trouble;
use super::local::LocalSegment;

/// How much of a segment is served, the rest of its `size` being zeros; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) keep: u64,
    pub(super) size: u64,
}

/// A file that appears at its destination whole or not at all.
///
/// PostgreSQL removes what is at `%p` before it asks, and syncs what it got when it gives it its name in `pg_wal`
/// (`KeepFileRestoredFromArchive`, xlogarchive.c); the content is synced here as well, so that a file that is there is
/// correct whoever asked. One request runs at a time, so the temporary name is always the same: what a kill leaves
/// behind, the next request writes over.
#[derive(Debug)]
pub(super) struct Destination {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Destination {
    pub(super) fn open(path: &Path) -> Result<Self, Trouble> {
        let trouble = |source| Trouble::Destination { path: path.to_owned(), source };
        let name = path.file_name().ok_or_else(|| trouble(io::ErrorKind::InvalidInput.into()))?;
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(".pgvault");
        let temporary = path.with_file_name(temporary_name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default())
            .open(&temporary)
            .map_err(trouble)?;
        Ok(Self { file, temporary, path: path.to_owned(), published: false })
    }

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
        fs::rename(&self.temporary, &self.path).map_err(|source| self.trouble(source))?;
        self.published = true;
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
