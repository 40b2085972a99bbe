//! Reading WAL: every page header and every record's checksum is verified, what matters is told as [`WalEvent`]s.
//!
//! The reader takes bytes in pieces of any size and keeps only what it must: the header of a page or of a record that a
//! piece cut through, and the beginning of the few records that matter. Its memory does not depend on what WAL claims.

mod body;
mod enter_page;
mod error;
mod fields;
mod page;
mod record;
mod xact;

#[cfg(test)]
mod tests;

pub use error::{WalError, WalProblem};
pub use page::{LongHeader, PgMajor, read_segment_header};

use crate::{Lsn, RecordInfo, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId, WalEvent};
use page::{LONG_HEADER, USUAL_BLOCK_SIZE};
use record::{Progress, Record, Surroundings};

/// Records start at multiples of this (`MAXALIGN`).
const ALIGNMENT: u64 = 8;

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
    all_records: bool,
    expected: Option<SystemIdentifier>,

    position: Lsn,
    block_size: u32,
    place: Place,
    /// The record at hand while `place` is in a record.
    record: Record,
    /// The part of a page header that was read so far.
    page: ([u8; LONG_HEADER], usize),
    /// Where the last whole record starts.
    previous: Option<Lsn>,
    valid_end: Lsn,
    skipped_to: Option<Lsn>,
    end: WalEnd,

    header: Option<LongHeader>,
    major: Option<PgMajor>,
    timeline: Option<TimelineId>,
}

/// What the next byte is, apart from page headers.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The first byte of all.
    Start,
    /// The rest of a record that began before the start: so many bytes are missing.
    Skipping(u64),
    /// Padding, or the first byte of a record.
    BetweenRecords,
    /// A byte of the record at hand.
    InRecord,
    /// The empty rest of a segment after a switch.
    Switched,
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
            all_records: false,
            expected: None,
            position: start,
            block_size: USUAL_BLOCK_SIZE,
            place: Place::Start,
            record: Record::new(start),
            page: ([0; LONG_HEADER], 0),
            previous: None,
            valid_end: start,
            skipped_to: None,
            end: WalEnd::Open,
            header: None,
            major: None,
            timeline: None,
        }
    }

    /// Also tells a [`WalEvent::Record`] of every record.
    #[must_use]
    pub fn with_all_records(mut self) -> Self {
        self.all_records = true;
        self
    }

    /// Says which version wrote the WAL, for a reader that starts at a record: else the first page header tells.
    #[must_use]
    pub fn of_major(mut self, major: PgMajor) -> Self {
        self.major = Some(major);
        self
    }

    /// Refuses WAL of another cluster from the first long header on; else that header decides which cluster it is.
    #[must_use]
    pub fn expecting(mut self, system_identifier: SystemIdentifier) -> Self {
        self.expected = Some(system_identifier);
        self
    }

    /// Takes the next bytes, in pieces of any size, and tells the events of the records that they complete.
    ///
    /// After an error nothing more is read: every further push gives the same error.
    pub fn push(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(WalEvent)) -> Result<(), WalError> {
        if let WalEnd::Invalid(error) = &self.end {
            return Err(error.clone());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.step(rest, on_event) {
                Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                Err(error) => {
                    self.end = WalEnd::Invalid(error.clone());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// First byte that was not pushed yet; after an error, where reading stopped.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Where the last whole valid record ends, padding included; the start while none was read. After a switch the empty
    /// rest of the segment counts as far as it was pushed. Recovery from these bytes would end here.
    pub fn valid_end(&self) -> Lsn {
        self.valid_end.min(self.position)
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

    /// Reads up to the end of the next thing there is, and returns how many bytes it took: at least one.
    fn step(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(WalEvent)) -> Result<usize, WalError> {
        if let WalEnd::Zeros(from) = self.end {
            return self.take_zeros(from, bytes);
        }
        let offset = self.position.as_u64() % u64::from(self.block_size);
        let at_page_header = offset == 0 || self.page.1 > 0;
        if at_page_header && !matches!(self.place, Place::Switched) {
            return self.take_page_header(bytes);
        }
        let on_page = usize::try_from(u64::from(self.block_size) - offset).unwrap_or(usize::MAX);
        let bytes = bytes.get(..on_page).unwrap_or(bytes);
        match self.place {
            Place::Start | Place::BetweenRecords => self.take_padding_or_record(bytes, on_event),
            Place::InRecord => self.take_record(bytes, on_event),
            Place::Skipping(missing) => self.take_rest_of_skipped(missing, bytes),
            Place::Switched => self.take_empty_rest_of_segment(bytes),
        }
    }

    fn advance(&mut self, bytes: usize) -> Result<usize, WalError> {
        let error = WalError { lsn: self.position, problem: WalProblem::PastTheEnd };
        self.position = self.position.checked_add(bytes as u64).ok_or(error)?;
        Ok(bytes)
    }

    fn take_padding_or_record(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(WalEvent)) -> Result<usize, WalError> {
        let padding = aligned(self.position).bytes_since(self.position);
        if padding > 0 {
            return self.advance(bytes.len().min(padding as usize));
        }
        self.record = Record::new(self.position);
        self.place = Place::InRecord;
        self.take_record(bytes, on_event)
    }

    fn take_rest_of_skipped(&mut self, missing: u64, bytes: &[u8]) -> Result<usize, WalError> {
        let taken = self.advance(usize::try_from(missing).unwrap_or(usize::MAX).min(bytes.len()))?;
        match missing - taken as u64 {
            0 => self.begin_after_skipping(),
            missing => self.place = Place::Skipping(missing),
        }
        Ok(taken)
    }

    fn take_zeros(&mut self, from: Lsn, bytes: &[u8]) -> Result<usize, WalError> {
        // Whole blocks first: a fold without an early end is what the compiler turns into vector instructions.
        let is_zero = bytes.chunks(4096).all(|block| block.iter().fold(0, |all, &byte| all | byte) == 0);
        if !is_zero {
            let written = bytes.iter().take_while(|&&byte| byte == 0).count() as u64;
            let lsn = self.position.saturating_add(written);
            return Err(WalError { lsn, problem: WalProblem::DataAfterZeros(from) });
        }
        self.advance(bytes.len())
    }

    fn take_empty_rest_of_segment(&mut self, bytes: &[u8]) -> Result<usize, WalError> {
        let left = usize::try_from(self.valid_end.bytes_since(self.position)).unwrap_or(usize::MAX);
        let taken = self.advance(left.min(bytes.len()))?;
        if self.position >= self.valid_end {
            self.place = Place::BetweenRecords;
        }
        Ok(taken)
    }

    fn begin_after_skipping(&mut self) {
        self.skipped_to = Some(aligned(self.position));
        self.place = Place::BetweenRecords;
    }

    fn take_record(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(WalEvent)) -> Result<usize, WalError> {
        let around = Surroundings { major: self.major, previous: self.previous };
        let lsn = self.record.lsn;
        let (taken, progress) = self.record.take(bytes, around).map_err(|problem| WalError { lsn, problem })?;
        let taken = self.advance(taken)?;
        match progress {
            Progress::Unfinished => {}
            Progress::Zeros => self.end = WalEnd::Zeros(lsn),
            Progress::Whole => self.finish_record(on_event)?,
        }
        Ok(taken)
    }

    fn finish_record(&mut self, on_event: &mut dyn FnMut(WalEvent)) -> Result<(), WalError> {
        let record = &self.record;
        let lsn = record.lsn;
        self.place = Place::BetweenRecords;
        let mut end = aligned(self.position);
        if body::is_switch(record) {
            let segment = SegmentNumber::containing_end(end, self.segment_size);
            if end != segment.end(self.segment_size) {
                end = segment.end(self.segment_size);
                self.place = Place::Switched;
            }
        }
        let event = body::event(record, end).map_err(|problem| WalError { lsn, problem })?;
        self.previous = Some(lsn);
        self.valid_end = end;
        if self.all_records {
            on_event(WalEvent::Record(RecordInfo {
                lsn,
                end,
                previous: record.previous(),
                resource_manager: record.resource_manager(),
                info: record.info(),
                xid: record.xid(),
                length: record.length(),
            }));
        }
        if let Some(event) = event {
            on_event(event);
        }
        Ok(())
    }
}

/// The first multiple of the alignment at or after `lsn`.
fn aligned(lsn: Lsn) -> Lsn {
    lsn.saturating_add(lsn.as_u64().wrapping_neg() % ALIGNMENT)
}
