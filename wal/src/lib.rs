//! PostgreSQL's own words for its write-ahead log: positions, timelines, segments, pages and records.
//!
//! This crate is pure: no I/O, no clock, no async, no logging. It reads from left to right:
//! an [`Lsn`] lies on a [`TimelineId`]; [`SegmentSize`] cuts the log into segments numbered by [`SegmentNumber`] and
//! named by [`SegmentName`]; a [`TimelineHistory`] tells how timelines fork; [`Coverage`] says which WAL is there;
//! a [`WalReader`] checks every page and record and tells as [`WalEvent`]s which transactions ended when, which an
//! [`XactIndex`] sums up.

mod control_file;
mod coverage;
mod event;
mod history;
mod lsn;
mod reader;
mod segment;
mod system_identifier;
mod time;
mod timeline;
mod xact_index;

pub use control_file::{ClusterState, ControlFile, ControlFileError};
pub use coverage::{Coverage, Gap, PathLeg, TimelinePath, WalRange};
pub use event::{Checkpoint, EndOfRecovery, Prepared, RecordInfo, RestorePoint, ServerParameters, WalEvent, XactEnd};
pub use history::{HistoryEntry, ParseHistoryError, TimelineHistory};
pub use lsn::{Lsn, ParseLsnError};
pub use reader::{LongHeader, PgMajor, WalEnd, WalError, WalProblem, WalReader, read_segment_header};
pub use segment::{ParseSegmentNameError, SegmentName, SegmentNumber, SegmentSize, SegmentSizeError};
pub use system_identifier::{ParseSystemIdentifierError, SystemIdentifier};
pub use time::{ParsePgTimeError, PgTime};
pub use timeline::{ParseTimelineError, TimelineId};
pub use xact_index::{RestorePointMark, XactIndex, XactMark};
