//! Reads what became durable, record by record: nothing is stored that is not valid WAL, and every transaction end is
//! noted in the index of the piece in which it ends.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use wal::{Lsn, PgTime, SegmentName, WalError, WalEvent, WalReader, XactIndex};

use super::exposure::Exposure;
use super::pieces::Pieces;
use crate::spool::{Spool, SpoolError};
use crate::wal_pipeline::Fact;

/// Read at once.
const PIECE: usize = 1 << 20;

/// What must be known before a segment can be scanned.
#[derive(Clone, Debug)]
pub(super) struct ScanState {
    /// At the segment's first byte, perhaps in the middle of a record.
    pub(super) reader: WalReader,
    /// Latest transaction end since the lineage began.
    pub(super) max_time: Option<PgTime>,
}

/// A scan that stands somewhere in one segment.
#[derive(Debug)]
pub(super) struct Cursor {
    name: SegmentName,
    before: ScanState,
    reader: WalReader,
    index: XactIndex,
    pieces: Pieces,
    last_commit: Option<Fact>,
}

/// What could not be scanned.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScanError {
    /// Not valid WAL.
    #[error("segment {segment} is not valid WAL: {error}")]
    Damaged {
        /// The segment.
        segment: SegmentName,
        /// What is wrong.
        error: WalError,
    },
    /// The spool could not be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl Cursor {
    /// At the start of a segment.
    pub(super) fn new(spool: &Spool, name: SegmentName, before: ScanState) -> Self {
        Self {
            name,
            reader: before.reader.clone(),
            index: XactIndex::start(before.max_time),
            pieces: Pieces::new(spool.start_of(name), before.max_time),
            before,
            last_commit: None,
        }
    }

    /// The segment.
    pub(super) fn name(&self) -> SegmentName {
        self.name
    }

    /// What was known before this segment: where another timeline's version of it begins as well.
    pub(super) fn before(&self) -> &ScanState {
        &self.before
    }

    /// First byte that was not scanned.
    pub(super) fn position(&self) -> Lsn {
        self.reader.position()
    }

    /// The index of the segment so far.
    pub(super) fn index(&self) -> &XactIndex {
        &self.index
    }

    /// The last commit in the segment so far.
    pub(super) fn last_commit(&self) -> Option<Fact> {
        self.last_commit
    }

    /// What the following segment begins with.
    pub(super) fn after(&self) -> ScanState {
        ScanState { reader: self.reader.clone(), max_time: self.index.max_time }
    }

    /// Start and index of what was scanned since the last tail.
    pub(super) fn tail(&self) -> (Lsn, &XactIndex) {
        self.pieces.uncut()
    }

    /// Start and index of the tail to store now, up to the scan's position.
    pub(super) fn next_tail(&self) -> (Lsn, &XactIndex) {
        self.pieces.next(self.position())
    }

    /// A tail up to the scan's position is stored: the next one begins there.
    pub(super) fn cut_tail(&mut self) {
        self.pieces.cut(self.position(), self.index.max_time);
    }

    /// The repository holds tails up to `end` from an earlier run. Their transaction ends are not counted again.
    pub(super) fn skip_tail(&mut self, end: Lsn) {
        debug_assert!(self.position() == self.pieces.uncut().0, "nothing was scanned yet");
        self.pieces.skip(end);
    }

    /// Scans what is durable up to `until`. Blocks on disk.
    pub(super) fn advance(&mut self, spool: &Spool, until: Lsn, exposure: &mut Exposure) -> Result<(), ScanError> {
        if until <= self.position() {
            return Ok(());
        }
        let start = spool.start_of(self.name);
        let file = spool.open_for_reading(self.name)?;
        let mut buffer = vec![0; PIECE];
        while self.position() < until {
            let left = usize::try_from(until.bytes_since(self.position())).unwrap_or(PIECE);
            let piece = &mut buffer[..left.min(PIECE)];
            read(&file, piece, self.position().bytes_since(start))
                .map_err(|source| SpoolError::Io { path: spool.path(self.name), source })?;
            let Self { reader, index, pieces, last_commit, .. } = self;
            let mut on_event = |event: WalEvent| {
                index.record(&event);
                pieces.record(&event, index.max_time);
                if let WalEvent::Commit(commit) = &event {
                    *last_commit = Some(Fact { lsn: commit.lsn, time: commit.time });
                    exposure.committed(commit.end, commit.time);
                }
            };
            reader.push(piece, &mut on_event).map_err(|error| ScanError::Damaged { segment: self.name, error })?;
        }
        Ok(())
    }
}

fn read(file: &File, piece: &mut [u8], offset: u64) -> std::io::Result<()> {
    file.read_exact_at(piece, offset)
}
