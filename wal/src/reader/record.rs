//! One record: its header, its checksum, and as much of its body as matters.

use super::body::Body;
use super::error::WalProblem;
use super::fields::{u32_at, u64_at};
use super::page::PgMajor;
use crate::Lsn;

/// Length of a record's header (`SizeOfXLogRecord`).
pub(crate) const HEADER: usize = 24;
/// Bytes of the header that its checksum covers: all but the checksum.
const HEADER_BEFORE_CRC: usize = 20;
/// Longest record that any major can read (`MaxAllocSize`; from 16 on `XLogRecordMaxSize`, a little less).
const MAX_LENGTH: u32 = 0x3FFF_FFFF;
/// Highest number of PostgreSQL's own resource managers (rmgrlist.h: RM_LOGICALMSG_ID in 14 to 18).
const MAX_BUILTIN: u8 = 21;
/// Lowest number that extensions may take (from 15 on).
const MIN_CUSTOM: u8 = 128;

/// A record of which at least the first byte was read.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) lsn: Lsn,
    header: [u8; HEADER],
    /// Bytes of the record read so far, its header included.
    read: u32,
    /// `xl_tot_len`; zero while it is not known.
    length: u32,
    crc: u32,
    body: Body,
}

/// What reading a piece of a record came to.
pub(crate) enum Progress {
    /// More bytes are needed.
    Unfinished,
    /// The record is whole and its checksum right.
    Whole,
    /// There is no record here, only zeros.
    Zeros,
}

/// What the record must agree with.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings {
    /// The version; none while no page header was seen, which checks only what all versions share.
    pub(crate) major: Option<PgMajor>,
    /// Where the record before it starts, if known.
    pub(crate) previous: Option<Lsn>,
}

impl Record {
    pub(crate) fn new(lsn: Lsn) -> Self {
        Self { lsn, header: [0; HEADER], read: 0, length: 0, crc: 0, body: Body::Ignored }
    }

    /// Bytes that are still missing; only meaningful once the length is known, which the page of its first byte tells.
    pub(crate) fn missing(&self) -> u64 {
        u64::from(self.length.saturating_sub(self.read))
    }

    /// Takes bytes of the record from one page; tells how many of them are the record's.
    pub(crate) fn take(&mut self, page: &[u8], around: Surroundings) -> Result<(usize, Progress), WalProblem> {
        let mut used = 0;
        if (self.read as usize) < HEADER {
            used = self.take_header(page);
            if self.length == 0 && self.read >= 4 {
                self.length = u32_at(&self.header, 0).unwrap_or(0);
                if self.length == 0 {
                    let zeros = self.header[..self.read as usize].iter().all(|&byte| byte == 0);
                    let progress = if zeros { Ok((used, Progress::Zeros)) } else { Err(WalProblem::RecordLength(0)) };
                    return progress;
                }
                if self.length < HEADER as u32 || self.length > MAX_LENGTH {
                    return Err(WalProblem::RecordLength(self.length));
                }
            }
            if (self.read as usize) < HEADER {
                return Ok((used, Progress::Unfinished));
            }
            self.check_header(around)?;
            self.body = Body::of(self.resource_manager(), self.info(), around.major);
        }
        let wanted = (self.length - self.read) as usize;
        let body = &page[used..];
        let body = &body[..wanted.min(body.len())];
        self.crc = crc32c::crc32c_append(self.crc, body);
        self.body.feed(body);
        self.read += body.len() as u32;
        used += body.len();
        if self.read < self.length {
            return Ok((used, Progress::Unfinished));
        }
        self.check_crc()?;
        Ok((used, Progress::Whole))
    }

    fn take_header(&mut self, page: &[u8]) -> usize {
        let read = self.read as usize;
        let taken = (HEADER - read).min(page.len());
        self.header[read..read + taken].copy_from_slice(&page[..taken]);
        self.read += taken as u32;
        taken
    }

    /// `ValidXLogRecordHeader` (xlogreader.c).
    fn check_header(&self, around: Surroundings) -> Result<(), WalProblem> {
        let resource_manager = self.resource_manager();
        let custom = resource_manager >= MIN_CUSTOM && around.major.is_none_or(|major| major >= PgMajor::V15);
        if resource_manager > MAX_BUILTIN && !custom {
            return Err(WalProblem::ResourceManager(resource_manager));
        }
        let found = self.previous();
        match around.previous {
            Some(expected) if found != expected => Err(WalProblem::Previous { found, expected }),
            None if found >= self.lsn => Err(WalProblem::Previous { found, expected: self.lsn }),
            _ => Ok(()),
        }
    }

    /// CRC-32C over the body, then the header up to the checksum (`ValidXLogRecord`).
    fn check_crc(&self) -> Result<(), WalProblem> {
        let found = crc32c::crc32c_append(self.crc, &self.header[..HEADER_BEFORE_CRC]);
        let expected = u32_at(&self.header, HEADER_BEFORE_CRC).unwrap_or_default();
        if found == expected { Ok(()) } else { Err(WalProblem::Checksum { found, expected }) }
    }

    pub(crate) fn length(&self) -> u32 {
        self.length
    }

    pub(crate) fn xid(&self) -> u32 {
        u32_at(&self.header, 4).unwrap_or_default()
    }

    pub(crate) fn previous(&self) -> Lsn {
        Lsn::new(u64_at(&self.header, 8).unwrap_or_default())
    }

    pub(crate) fn info(&self) -> u8 {
        self.header[16]
    }

    pub(crate) fn resource_manager(&self) -> u8 {
        self.header[17]
    }

    pub(crate) fn body(&self) -> &Body {
        &self.body
    }
}
