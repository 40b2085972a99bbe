//! Why bytes are not valid WAL.

use crate::{Lsn, SystemIdentifier, TimelineId};

/// Bytes that are not the WAL they should be. Everything before [`WalError::lsn`]'s record was valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("WAL at {lsn}: {problem}")]
pub struct WalError {
    /// Start of the page, or of the record, that is wrong.
    pub lsn: Lsn,
    /// What is wrong.
    pub problem: WalProblem,
}

/// What is wrong with a page or a record of WAL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalProblem {
    /// Fewer bytes than a page header.
    #[error("{0} bytes are too few for a page header")]
    TooShort(usize),
    /// The page does not start as a page of a known major version.
    #[error("page header has magic number {0:04X}, which is no PostgreSQL from 14 to 18")]
    PageMagic(u16),
    /// The page is of another major version than those before it.
    #[error("page header is of PostgreSQL {found}, the pages before it are of {expected}")]
    PageMajor {
        /// What the page says.
        found: u32,
        /// What pages before it said.
        expected: u32,
    },
    /// Flags that no version sets, or no long header at a segment's start.
    #[error("page header has invalid flags {0:04X}")]
    PageFlags(u16),
    /// The page belongs elsewhere in the log.
    #[error("page header says that the page belongs at {0}")]
    PageAddress(Lsn),
    /// Zero, which no page has.
    #[error("page header has timeline 0")]
    PageWithoutTimeline,
    /// Timelines only grow along a log.
    #[error("page is of timeline {found}, a page before it is of timeline {expected}")]
    PageTimeline {
        /// What the page says.
        found: TimelineId,
        /// What a page before it said.
        expected: TimelineId,
    },
    /// WAL of another cluster.
    #[error("page is of system identifier {found}, not {expected}")]
    SystemIdentifier {
        /// What the page says.
        found: SystemIdentifier,
        /// What was expected.
        expected: SystemIdentifier,
    },
    /// Segments of another size.
    #[error("page header says that segments are of {found} bytes, not {expected}")]
    SegmentSize {
        /// What the page says.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// Not a block size of WAL, or another than before.
    #[error("page header says that pages are of {0} bytes")]
    BlockSize(u32),
    /// The page does not go on with the record that is not finished.
    #[error("page does not continue the record at {record}: {expected} bytes of it are missing, the page says {found}")]
    Continuation {
        /// Where the record starts; the reader's start when that is not known.
        record: Lsn,
        /// Bytes missing.
        expected: u64,
        /// Bytes that the page claims to be missing.
        found: u32,
    },
    /// The page goes on with a record where none is unfinished.
    #[error("page continues a record, but none is unfinished")]
    UnexpectedContinuation,
    /// `xl_tot_len` out of bounds.
    #[error("record has invalid length {0}")]
    RecordLength(u32),
    /// No such resource manager.
    #[error("record has invalid resource manager {0}")]
    ResourceManager(u8),
    /// `xl_prev` does not name the record before.
    #[error("record says that the one before it starts at {found}, not at {expected}")]
    Previous {
        /// What the record says.
        found: Lsn,
        /// Where the record before it starts; the reader's start when only that is known.
        expected: Lsn,
    },
    /// The record's bytes are not those that were written.
    #[error("record fails its checksum: {found:08X} instead of {expected:08X}")]
    Checksum {
        /// CRC-32C of the bytes.
        found: u32,
        /// What the record says.
        expected: u32,
    },
    /// The checksum is right, the content is not what the major version writes.
    #[error("record of resource manager {resource_manager}, info {info:02X}, has a layout that is not known")]
    Layout {
        /// Its resource manager.
        resource_manager: u8,
        /// Its `xl_info`.
        info: u8,
    },
    /// Zeros mean that nothing was written from there on; yet something was.
    #[error("WAL ends in zeros at {0}, but other bytes follow")]
    DataAfterZeros(Lsn),
    /// The log has 64 bits.
    #[error("the log would pass its last position")]
    PastTheEnd,
}
