//! What the spool holds, for another process: the daemon that writes it may run or not.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use wal::{SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, WalError, WalProblem, WalReader};

use super::SpoolError;
use super::recover::{Valid, feed, valid_part};

/// A segment of the spool, found right and durable.
#[derive(Debug)]
pub struct Viewed {
    /// The file, to be read from its start.
    pub file: File,
    /// How many of its bytes are valid WAL and durable, from its start on.
    pub durable_bytes: u64,
    /// Whether that is the whole segment.
    pub whole: bool,
}

/// The spool of one lineage, read only.
#[derive(Clone, Debug)]
pub struct SpoolView {
    dir: PathBuf,
    segment_size: SegmentSize,
    system_identifier: SystemIdentifier,
}

impl SpoolView {
    /// The spool in this folder.
    pub fn new(dir: &Path, segment_size: SegmentSize, system_identifier: SystemIdentifier) -> Self {
        Self { dir: dir.to_owned(), segment_size, system_identifier }
    }

    /// The segment, as much of it as is there. Blocks on disk; all of it is read.
    pub fn segment(&self, name: SegmentName) -> Result<Option<Viewed>, SpoolError> {
        if let Some(whole) = self.whole(name)? {
            return Ok(Some(whole));
        }
        let part = self.part(name)?;
        // It may have been completed meanwhile: then the part is not where the WAL ends.
        Ok(self.whole(name)?.or(part))
    }

    /// Whether WAL that comes after this segment, on its timeline, is there.
    ///
    /// A `.partial` is full size and empty while it is a spare, and may have WAL in it while the one before waits for its
    /// last flush: it counts where nothing of the segment itself is there.
    pub fn has_later(&self, name: SegmentName) -> Result<bool, SpoolError> {
        let mut later_part = false;
        for entry in fs::read_dir(&self.dir).map_err(SpoolError::io(&self.dir))? {
            let entry = entry.map_err(SpoolError::io(&self.dir))?;
            let file = entry.file_name();
            let Some(file) = file.to_str() else { continue };
            let is_later = |text: &str| {
                text.parse::<SegmentName>().is_ok_and(|other| other.timeline() == name.timeline() && other > name)
            };
            if is_later(file) {
                return Ok(true);
            }
            if file.strip_suffix(".partial").is_some_and(is_later) {
                later_part |= has_content(&entry.path()).map_err(SpoolError::io(&entry.path()))?;
            }
        }
        Ok(later_part && !self.dir.join(name.partial()).exists() && !self.dir.join(name.to_string()).exists())
    }

    /// A file under a bare name is complete and durable by the way it came into being; its content is checked all the same.
    fn whole(&self, name: SegmentName) -> Result<Option<Viewed>, SpoolError> {
        let path = self.dir.join(name.to_string());
        let Some(file) = open(&path)? else { return Ok(None) };
        let damaged = |what: String| SpoolError::Damaged { path: path.clone(), what };
        let (size, number) = (self.segment_size, name.number(self.segment_size));
        let found = file.metadata().map_err(SpoolError::io(&path))?.len();
        let Some(number) = number.filter(|_| found == size.bytes()) else {
            return Err(damaged(format!("{found} bytes long instead of {}", size.bytes())));
        };
        let mut reader = WalReader::new(size, number.start(size)).expecting(self.system_identifier);
        match feed(&file, size, &mut reader, &mut |_| {}).map_err(SpoolError::io(&path))? {
            // Whole and with the right checksum, only not understood.
            None | Some(WalError { problem: WalProblem::Layout { .. }, .. }) => {}
            Some(problem) => return Err(damaged(problem.to_string())),
        }
        Ok(Some(Viewed { file, durable_bytes: size.bytes(), whole: true }))
    }

    /// What is valid of a segment that is being written.
    ///
    /// The proof that it is durable: it was read, its records are valid, and *then* this very file was synced. What was
    /// read lies before what the writer appends, and nobody changes it.
    fn part(&self, name: SegmentName) -> Result<Option<Viewed>, SpoolError> {
        let path = self.dir.join(name.partial());
        let Some(file) = open(&path)? else { return Ok(None) };
        let size = self.segment_size;
        if file.metadata().map_err(SpoolError::io(&path))?.len() != size.bytes() {
            return Ok(None);
        }
        let before = name
            .number(size)
            .and_then(SegmentNumber::previous)
            .map(|number| SegmentName::new(name.timeline(), number, size))
            .filter(|before| self.dir.join(before.to_string()).exists());
        let valid = match valid_part(&self.dir, size, self.system_identifier, name, &file, before) {
            // The segment before was stored and removed in between, or this one was completed.
            Err(SpoolError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            valid => valid?,
        };
        let Valid { start, end, padding } = valid;
        let durable_bytes = end.bytes_since(start).saturating_sub(padding);
        if durable_bytes == 0 {
            return Ok(None);
        }
        file.sync_all().map_err(SpoolError::io(&path))?;
        Ok(Some(Viewed { file, durable_bytes, whole: false }))
    }
}

/// Opens a file; none where it is not there or not for this user.
fn open(path: &Path) -> Result<Option<File>, SpoolError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(SpoolError::io(path)(error)),
    }
}

/// Whether a segment's first page header was written.
fn has_content(path: &Path) -> io::Result<bool> {
    let mut header = [0; 40];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Ok(()) => Ok(header.iter().any(|&byte| byte != 0)),
        // Gone, or too short to be one.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
