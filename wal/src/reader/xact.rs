//! The bodies of commit and abort records, read as their bytes come.
//!
//! A commit record can be as long as the list of relations it drops, and the number of a prepared transaction stands behind
//! that list: so the body is walked, not stored.

use super::page::PgMajor;
use crate::PgTime;

const HAS_INFO: u8 = 0x80;
const OPERATION: u8 = 0x70;

/// What a record of resource manager "Transaction" is (`XLOG_XACT_OPMASK` in xact.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum XactOperation {
    Commit,
    Prepare,
    Abort,
    CommitPrepared,
    AbortPrepared,
}

impl XactOperation {
    /// None for records that neither end nor prepare a transaction.
    pub(crate) fn from_info(info: u8) -> Option<Self> {
        match info & OPERATION {
            0x00 => Some(Self::Commit),
            0x10 => Some(Self::Prepare),
            0x20 => Some(Self::Abort),
            0x30 => Some(Self::CommitPrepared),
            0x40 => Some(Self::AbortPrepared),
            _ => None,
        }
    }

    pub(crate) fn is_of_prepared(self) -> bool {
        matches!(self, Self::CommitPrepared | Self::AbortPrepared)
    }
}

/// The optional parts before a prepared transaction's number, in the order of `ParseCommitRecord` (xactdesc.c).
#[derive(Clone, Copy, Debug)]
enum Part {
    Database,
    Subtransactions,
    Relations,
    Statistics,
    Invalidations,
    PreparedXid,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Database,
        Self::Subtransactions,
        Self::Relations,
        Self::Statistics,
        Self::Invalidations,
        Self::PreparedXid,
    ];

    fn flag(self) -> u32 {
        match self {
            Self::Database => 1 << 0,
            Self::Subtransactions => 1 << 1,
            Self::Relations => 1 << 2,
            Self::Statistics => 1 << 8,
            Self::Invalidations => 1 << 3,
            Self::PreparedXid => 1 << 4,
        }
    }

    /// Bytes of one item of the lists.
    fn item_size(self, major: PgMajor) -> u64 {
        match self {
            Self::Database => 8,
            Self::Subtransactions | Self::PreparedXid => 4,
            Self::Relations => 12,
            // PostgreSQL 18 widened the object's number to 64 bits.
            Self::Statistics => {
                if major >= PgMajor::V18 {
                    16
                } else {
                    12
                }
            }
            Self::Invalidations => 16,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    BlockId,
    DataLength { width: usize },
    Time,
    Flags,
    Count(usize),
    PreparedXid,
    Done,
    Unknown,
}

/// Walks the body of a commit or abort record, from behind the record's header.
#[derive(Clone, Debug)]
pub(crate) struct XactBody {
    major: PgMajor,
    prepared: bool,
    has_flags: bool,
    step: Step,
    skip: u64,
    field: [u8; 8],
    have: usize,
    flags: u32,
    time: PgTime,
    prepared_xid: u32,
}

impl XactBody {
    pub(crate) fn new(major: PgMajor, info: u8, prepared: bool) -> Self {
        Self {
            major,
            prepared,
            has_flags: info & HAS_INFO != 0,
            step: Step::BlockId,
            skip: 0,
            field: [0; 8],
            have: 0,
            flags: 0,
            time: PgTime::from_micros(0),
            prepared_xid: 0,
        }
    }

    /// When the transaction ended and, if it was prepared, its number; none when the body was not understood.
    pub(crate) fn finish(&self) -> Option<(PgTime, u32)> {
        matches!(self.step, Step::Done).then_some((self.time, self.prepared_xid))
    }

    /// Takes the next bytes of the body.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let width = match self.step {
                Step::BlockId => 1,
                Step::DataLength { width } => width,
                Step::Time => 8,
                Step::Flags | Step::Count(_) | Step::PreparedXid => 4,
                Step::Done | Step::Unknown => return,
            };
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= skipped as u64;
            let taken = (width - self.have).min(bytes.len() - skipped);
            self.field[self.have..self.have + taken].copy_from_slice(&bytes[skipped..skipped + taken]);
            self.have += taken;
            bytes = &bytes[skipped + taken..];
            if self.have == width {
                self.have = 0;
                self.step = self.next();
            }
        }
    }

    /// What comes after the field that is complete now.
    fn next(&mut self) -> Step {
        let [a, b, c, d, ..] = self.field;
        let number = u32::from_le_bytes([a, b, c, d]);
        match self.step {
            Step::BlockId => match a {
                // XLR_BLOCK_ID_DATA_SHORT, _LONG, _ORIGIN, _TOPLEVEL_XID (xlogrecord.h)
                255 => Step::DataLength { width: 1 },
                254 => Step::DataLength { width: 4 },
                253 => self.skip_then(2, Step::BlockId),
                252 => self.skip_then(4, Step::BlockId),
                _ => Step::Unknown,
            },
            Step::DataLength { .. } => Step::Time,
            Step::Time => {
                self.time = PgTime::from_micros(i64::from_le_bytes(self.field));
                match (self.prepared, self.has_flags) {
                    (false, _) => Step::Done,
                    (true, true) => Step::Flags,
                    (true, false) => Step::Unknown,
                }
            }
            Step::Flags => {
                self.flags = number;
                self.next_part(0)
            }
            Step::Count(part) => match i32::from_le_bytes([a, b, c, d]) {
                count @ 0.. => {
                    self.skip += u64::from(count.unsigned_abs()) * Part::ALL[part].item_size(self.major);
                    self.next_part(part + 1)
                }
                _ => Step::Unknown,
            },
            Step::PreparedXid => {
                self.prepared_xid = number;
                Step::Done
            }
            done @ (Step::Done | Step::Unknown) => done,
        }
    }

    fn skip_then(&mut self, bytes: u64, step: Step) -> Step {
        self.skip += bytes;
        step
    }

    /// The first part from `index` on that this body has and that must be looked at.
    fn next_part(&mut self, index: usize) -> Step {
        for (index, part) in Part::ALL.into_iter().enumerate().skip(index) {
            if self.flags & part.flag() == 0 {
                continue;
            }
            match part {
                Part::Database => self.skip += part.item_size(self.major),
                Part::PreparedXid => return Step::PreparedXid,
                Part::Subtransactions | Part::Relations | Part::Statistics | Part::Invalidations => {
                    return Step::Count(index);
                }
            }
        }
        Step::Unknown
    }
}
