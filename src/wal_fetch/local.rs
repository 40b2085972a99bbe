//! WAL that this machine has and the repository may not have yet: the spool of a daemon.

use std::fs::File;
use std::io;

use recovery::LineageId;
use wal::SegmentName;

/// A segment file outside the repository.
#[derive(Debug)]
pub struct LocalSegment {
    /// The raw segment, open for reading.
    pub file: File,
    /// How many of its bytes are durable, from its start on.
    pub durable_bytes: u64,
    /// Whether that is all of it.
    pub whole: bool,
}

/// A place on this machine that holds WAL of the lineage.
pub trait LocalSource: Send + Sync {
    /// Which lineage that is; `None` where there is no such place.
    fn lineage(&self) -> Option<LineageId>;

    /// The segment, whole or in part; `None` when nothing of it is there.
    fn segment(&self, name: SegmentName) -> io::Result<Option<LocalSegment>>;

    /// Whether a later segment of the same timeline is there.
    fn has_later(&self, name: SegmentName) -> io::Result<bool>;
}

/// No such place.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLocalSource;

impl LocalSource for NoLocalSource {
    fn lineage(&self) -> Option<LineageId> {
        None
    }

    fn segment(&self, _: SegmentName) -> io::Result<Option<LocalSegment>> {
        Ok(None)
    }

    fn has_later(&self, _: SegmentName) -> io::Result<bool> {
        Ok(false)
    }
}
