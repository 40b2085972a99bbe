//! Page headers: who wrote the WAL, and where it belongs.

use super::error::{WalError, WalProblem};
use super::fields::{u16_at, u32_at, u64_at};
use crate::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

/// Length of the header that every page has (`SizeOfXLogShortPHD`).
pub(crate) const SHORT_HEADER: usize = 24;
/// Length of the header of a segment's first page (`SizeOfXLogLongPHD`).
pub(crate) const LONG_HEADER: usize = 40;
/// `XLOG_BLCKSZ` unless PostgreSQL was built otherwise.
pub(crate) const USUAL_BLOCK_SIZE: u32 = 8192;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const HAS_LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// A major version of PostgreSQL whose WAL can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PgMajor {
    /// PostgreSQL 14
    V14,
    /// PostgreSQL 15
    V15,
    /// PostgreSQL 16
    V16,
    /// PostgreSQL 17
    V17,
    /// PostgreSQL 18
    V18,
}

impl PgMajor {
    /// Every version that can be read, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The version whose pages have this magic number (`XLOG_PAGE_MAGIC` in xlog_internal.h).
    pub fn from_page_magic(magic: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|major| major.page_magic() == magic)
    }

    /// The version with this number, 18 for PostgreSQL 18.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|major| major.number() == number)
    }

    /// The first two bytes of its pages.
    pub const fn page_magic(self) -> u16 {
        match self {
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// Its number, 18 for PostgreSQL 18.
    pub const fn number(self) -> u32 {
        match self {
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }
}

/// The header of a segment's first page: which cluster, size and version the segment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongHeader {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline of the page. In the segment in which a timeline begins the pages before the switch carry the number of
    /// its *parent*: the number in the segment's name may be higher than this one.
    pub timeline: TimelineId,
    /// Where the page belongs: the segment's first byte.
    pub page_address: Lsn,
    /// Size of the segments.
    pub segment_size: SegmentSize,
    /// Size of the pages.
    pub block_size: u32,
    /// Version of the server that wrote it.
    pub major: PgMajor,
}

/// Reads the header of a segment's first page from the first 40 bytes of the segment.
pub fn read_segment_header(bytes: &[u8]) -> Result<LongHeader, WalError> {
    let header = PageHeader::parse(bytes, Lsn::INVALID)?;
    let error = |problem| WalError { lsn: header.address, problem };
    let long = header.long.ok_or_else(|| error(WalProblem::PageFlags(header.flags)))?;
    if !header.address.as_u64().is_multiple_of(long.segment_size.bytes()) {
        return Err(error(WalProblem::PageAddress(header.address)));
    }
    Ok(LongHeader {
        system_identifier: long.system_identifier,
        timeline: header.timeline,
        page_address: header.address,
        segment_size: long.segment_size,
        block_size: long.block_size,
        major: header.major,
    })
}

/// A page header as it is written, sane by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageHeader {
    pub(crate) major: PgMajor,
    flags: u16,
    pub(crate) timeline: TimelineId,
    pub(crate) address: Lsn,
    /// Bytes of an unfinished record that are still missing at the page's start.
    pub(crate) remaining: u32,
    pub(crate) long: Option<LongPart>,
}

/// What only a long page header has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongPart {
    pub(crate) system_identifier: SystemIdentifier,
    pub(crate) segment_size: SegmentSize,
    pub(crate) block_size: u32,
}

impl PageHeader {
    /// Length of the header that starts with these bytes; at least the two flag bytes must be there.
    pub(crate) fn length(start: &[u8]) -> usize {
        if u16_at(start, 2).is_some_and(|flags| flags & HAS_LONG_HEADER != 0) { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Reads a header; `lsn` is where the bytes lie, for the error only.
    pub(crate) fn parse(bytes: &[u8], lsn: Lsn) -> Result<Self, WalError> {
        let error = |problem| WalError { lsn, problem };
        let short = bytes.get(..SHORT_HEADER).ok_or_else(|| error(WalProblem::TooShort(bytes.len())))?;
        let too_short = || error(WalProblem::TooShort(bytes.len()));
        let magic = u16_at(short, 0).ok_or_else(too_short)?;
        let major = PgMajor::from_page_magic(magic).ok_or_else(|| error(WalProblem::PageMagic(magic)))?;
        let flags = u16_at(short, 2).ok_or_else(too_short)?;
        if flags & !ALL_FLAGS != 0 {
            return Err(error(WalProblem::PageFlags(flags)));
        }
        let timeline =
            u32_at(short, 4).and_then(TimelineId::new).ok_or_else(|| error(WalProblem::PageWithoutTimeline))?;
        let address = Lsn::new(u64_at(short, 8).ok_or_else(too_short)?);
        let remaining = u32_at(short, 16).ok_or_else(too_short)?;
        let long = if flags & HAS_LONG_HEADER == 0 {
            None
        } else {
            Some(LongPart::parse(bytes.get(..LONG_HEADER).ok_or_else(too_short)?, lsn)?)
        };
        Ok(Self { major, flags, timeline, address, remaining, long })
    }

    /// Whether the page starts with the rest of an unfinished record.
    pub(crate) fn continues(&self) -> bool {
        self.flags & FIRST_IS_CONTRECORD != 0
    }

    /// Whether the page starts with the record that replaces one that never arrived whole.
    pub(crate) fn overwrites(&self) -> bool {
        self.flags & FIRST_IS_OVERWRITE_CONTRECORD != 0
    }

    /// The flags as they are written.
    pub(crate) fn flags(&self) -> u16 {
        self.flags
    }
}

impl LongPart {
    fn parse(bytes: &[u8], lsn: Lsn) -> Result<Self, WalError> {
        let error = |problem| WalError { lsn, problem };
        let too_short = || error(WalProblem::TooShort(bytes.len()));
        let system_identifier = SystemIdentifier::new(u64_at(bytes, 24).ok_or_else(too_short)?);
        let size = u64::from(u32_at(bytes, 32).ok_or_else(too_short)?);
        let block_size = u32_at(bytes, 36).ok_or_else(too_short)?;
        let segment_size = SegmentSize::new(size)
            .map_err(|_| error(WalProblem::SegmentSize { found: size, expected: SegmentSize::DEFAULT.bytes() }))?;
        if !block_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&block_size) {
            return Err(error(WalProblem::BlockSize(block_size)));
        }
        Ok(Self { system_identifier, segment_size, block_size })
    }
}
