//! A complete segment that the server sends once more: compared, never written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use wal::{Lsn, SegmentName};

use super::{Held, Spool, SpoolError, WriteError};

/// What we hold of a segment, against what a server sends of it.
#[derive(Debug)]
pub struct SentAgain {
    spool: Spool,
    name: SegmentName,
    file: File,
    start: Lsn,
    position: Lsn,
    end: Lsn,
}

impl Spool {
    /// A complete segment, to be compared; `None` when it is not held, or not any more. Blocks on disk.
    pub fn sent_again(&self, name: SegmentName) -> Result<Option<SentAgain>, SpoolError> {
        if self.get(name) != Some(Held::Complete) {
            return Ok(None);
        }
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Stored and removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SpoolError::io(&path)(error)),
        };
        let start = self.start_of(name);
        let end = self.end_of(name, Held::Complete);
        Ok(Some(SentAgain { spool: self.clone(), name, file, start, position: start, end }))
    }
}

impl SentAgain {
    /// Compares the next bytes, as many as belong to the segment, and returns their number.
    pub fn compare(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        let take = self.end.bytes_since(self.position).min(bytes.len() as u64);
        let take = usize::try_from(take).unwrap_or(bytes.len());
        let mut ours = vec![0; take];
        self.file
            .read_exact_at(&mut ours, self.position.bytes_since(self.start))
            .map_err(SpoolError::io(&self.spool.path(self.name)))?;
        match ours.iter().zip(bytes).position(|(ours, theirs)| ours != theirs) {
            Some(index) => {
                Err(WriteError::Divergence { segment: self.name, at: self.position.saturating_add(index as u64) })
            }
            None => {
                self.position = self.position.saturating_add(take as u64);
                Ok(take)
            }
        }
    }

    /// First byte of the segment.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// First byte that was not compared.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Whether all of it was compared.
    pub fn is_over(&self) -> bool {
        self.position >= self.end
    }
}
