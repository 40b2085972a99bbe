//! Entering a page: whether it belongs here, and how it goes on with the record at hand.

use super::page::{LongPart, PageHeader, SHORT_HEADER};
use super::{LongHeader, Place, WalEnd, WalError, WalProblem, WalReader};
use crate::Lsn;

impl WalReader {
    /// Collects the header of a page and, once it is whole, enters the page.
    pub(super) fn take_page_header(&mut self, bytes: &[u8]) -> Result<usize, WalError> {
        let (header, have) = &mut self.page;
        let wanted = if *have < SHORT_HEADER { SHORT_HEADER } else { PageHeader::length(header) };
        let taken = (wanted - *have).min(bytes.len());
        header[*have..*have + taken].copy_from_slice(&bytes[..taken]);
        *have += taken;
        let (header, have) = self.page;
        let taken = self.advance(taken)?;
        if have < wanted || have < PageHeader::length(&header) {
            return Ok(taken);
        }
        let page_start = self.position.saturating_sub(have as u64);
        if have == SHORT_HEADER && header[..have].iter().all(|&byte| byte == 0) {
            self.end = WalEnd::Zeros(page_start);
            return Ok(taken);
        }
        let parsed = PageHeader::parse(&header[..have], page_start)?;
        self.page.1 = 0;
        self.enter_page(page_start, &parsed).map_err(|problem| WalError { lsn: page_start, problem })?;
        Ok(taken)
    }

    /// `XLogReaderValidatePageHeader` (xlogreader.c), then what the page's start means for the record at hand.
    fn enter_page(&mut self, page_start: Lsn, page: &PageHeader) -> Result<(), WalProblem> {
        if let Some(major) = self.major.filter(|&major| major != page.major) {
            return Err(WalProblem::PageMajor { found: page.major.number(), expected: major.number() });
        }
        if page.address != page_start {
            return Err(WalProblem::PageAddress(page.address));
        }
        let first_of_segment = page_start.as_u64().is_multiple_of(self.segment_size.bytes());
        match page.long {
            Some(long) => self.check_long_header(&long, first_of_segment)?,
            None if first_of_segment => return Err(WalProblem::PageFlags(page.flags())),
            None => {}
        }
        if let Some(timeline) = self.timeline.filter(|&timeline| page.timeline < timeline) {
            return Err(WalProblem::PageTimeline { found: page.timeline, expected: timeline });
        }
        self.remember(page, first_of_segment);
        self.continue_on(page)
    }

    fn check_long_header(&self, long: &LongPart, first_of_segment: bool) -> Result<(), WalProblem> {
        let expected = self.header.map(|header| header.system_identifier).or(self.expected);
        if let Some(expected) = expected.filter(|&expected| expected != long.system_identifier) {
            return Err(WalProblem::SystemIdentifier { found: long.system_identifier, expected });
        }
        if long.segment_size != self.segment_size {
            let (found, expected) = (long.segment_size.bytes(), self.segment_size.bytes());
            return Err(WalProblem::SegmentSize { found, expected });
        }
        let may_decide = self.header.is_none() && first_of_segment;
        if long.block_size != self.block_size && !may_decide {
            return Err(WalProblem::BlockSize(long.block_size));
        }
        Ok(())
    }

    fn remember(&mut self, page: &PageHeader, first_of_segment: bool) {
        self.major = Some(page.major);
        self.timeline = Some(page.timeline);
        if let Some(header) = &mut self.header {
            header.timeline = page.timeline;
        }
        if let Some(long) = page.long.filter(|_| first_of_segment) {
            self.block_size = long.block_size;
            self.header = Some(LongHeader {
                system_identifier: long.system_identifier,
                timeline: page.timeline,
                page_address: page.address,
                segment_size: long.segment_size,
                block_size: long.block_size,
                major: page.major,
            });
        }
    }

    fn continue_on(&mut self, page: &PageHeader) -> Result<(), WalProblem> {
        let (record, missing) = match self.place {
            Place::Start if page.continues() => {
                if page.remaining == 0 {
                    return Err(WalProblem::Continuation { record: self.start, expected: 0, found: 0 });
                }
                self.place = Place::Skipping(page.remaining.into());
                return Ok(());
            }
            Place::Start => {
                self.place = Place::BetweenRecords;
                return Ok(());
            }
            Place::BetweenRecords | Place::Switched if page.continues() => {
                return Err(WalProblem::UnexpectedContinuation);
            }
            Place::BetweenRecords | Place::Switched => return Ok(()),
            Place::Skipping(missing) => (self.start, missing),
            Place::InRecord => (self.record.lsn, self.record.missing()),
        };
        if page.overwrites() {
            // The record never arrived whole before a crash; the one that starts here says so.
            match self.place {
                Place::Skipping(_) => self.begin_after_skipping(),
                _ => self.place = Place::BetweenRecords,
            }
            return Ok(());
        }
        if !page.continues() || u64::from(page.remaining) != missing {
            let found = if page.continues() { page.remaining } else { 0 };
            return Err(WalProblem::Continuation { record, expected: missing, found });
        }
        Ok(())
    }
}
