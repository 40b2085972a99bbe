//! The header of stored WAL: what a segment or a tail is, and which transactions ended in it. FORMAT.md 4.2.

use wal::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId, XactIndex};

use crate::codec::envelope::{self, Parsed};
use crate::codec::{ContentHash, FORMAT_VERSION};
use crate::repository::layout::{LineageObject, TailName};
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};
use crate::storage::ObjectKey;

/// What a piece of stored WAL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalKind {
    /// A complete segment.
    Segment,
    /// Part of a segment that is not complete yet.
    Tail,
}

/// The header of one stored piece of WAL.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WalHeader {
    /// Segment or tail.
    pub kind: WalKind,
    /// The format version that a reader must know.
    pub format: u32,
    /// The features that a reader must know.
    pub features: Vec<String>,
    /// The cluster's system identifier.
    pub system_identifier: SystemIdentifier,
    /// The timeline in the segment's name.
    pub timeline: TimelineId,
    /// The segment.
    pub segment: SegmentName,
    /// Size of the cluster's segments.
    pub segment_size: SegmentSize,
    /// First byte of this piece.
    pub start_lsn: Lsn,
    /// Bytes of plaintext.
    pub length: u64,
    /// Of the plaintext.
    pub blake3: ContentHash,
    /// `server_version_num` of the server that it came from.
    pub postgres_version: u32,
    /// Its transaction ends and restore points.
    pub index: XactIndex,
}

impl WalHeader {
    /// First byte after this piece.
    pub fn end_lsn(&self) -> Lsn {
        self.start_lsn.saturating_add(self.length)
    }

    /// The header as it stands in front of the stored WAL.
    pub(super) fn to_bytes(&self) -> RepositoryResult<Vec<u8>> {
        let problem = |error: &dyn std::fmt::Display| RepositoryError::mismatch(self.segment, error);
        let json = serde_json::to_vec(self).map_err(|error| problem(&error))?;
        envelope::write(&json).map_err(|error| problem(&error))
    }
}

/// What lies under one key of WAL: the key, and what its header must say.
#[derive(Clone, Debug)]
pub(super) struct WalPlace {
    pub(super) key: ObjectKey,
    pub(super) kind: WalKind,
    segment: SegmentName,
    pub(super) segment_size: SegmentSize,
    pub(super) start: Lsn,
    pub(super) length: u64,
    pub(super) system_identifier: SystemIdentifier,
}

impl WalPlace {
    /// Where this segment lies; an error when no segment of this lineage has that name.
    pub(super) fn segment(lineage: &LineageRepository, name: SegmentName) -> RepositoryResult<Self> {
        let size = lineage.segment_size();
        let number = name.number(size).ok_or_else(|| {
            RepositoryError::mismatch(name, format!("no segment of {} bytes has this name", size.bytes()))
        })?;
        Ok(Self {
            key: lineage.keys().key(&LineageObject::Segment(name)),
            kind: WalKind::Segment,
            segment: name,
            segment_size: size,
            start: number.start(size),
            length: size.bytes(),
            system_identifier: lineage.system_identifier(),
        })
    }

    /// Where this tail lies; an error when it does not lie in its segment.
    pub(super) fn tail(lineage: &LineageRepository, name: TailName) -> RepositoryResult<Self> {
        let whole = Self::segment(lineage, name.segment)?;
        if name.from < whole.start || name.to > whole.end() || name.from >= name.to {
            let problem = format!("{} to {} is no part of it", name.from, name.to);
            return Err(RepositoryError::mismatch(name.segment, problem));
        }
        Ok(Self {
            key: lineage.keys().key(&LineageObject::Tail(name)),
            kind: WalKind::Tail,
            start: name.from,
            length: name.to.bytes_since(name.from),
            ..whole
        })
    }

    pub(super) fn end(&self) -> Lsn {
        self.start.saturating_add(self.length)
    }

    /// The timeline in the segment's name.
    pub(super) fn timeline(&self) -> TimelineId {
        self.segment.timeline()
    }

    /// Whether the piece begins with its segment's first page.
    pub(super) fn starts_segment(&self) -> bool {
        self.start.as_u64().is_multiple_of(self.segment_size.bytes())
    }

    /// The header for what is to be stored here.
    pub(super) fn header(&self, blake3: ContentHash, postgres_version: u32, index: XactIndex) -> WalHeader {
        WalHeader {
            kind: self.kind,
            format: FORMAT_VERSION,
            features: Vec::new(),
            system_identifier: self.system_identifier,
            timeline: self.segment.timeline(),
            segment: self.segment,
            segment_size: self.segment_size,
            start_lsn: self.start,
            length: self.length,
            blake3,
            postgres_version,
            index,
        }
    }

    /// Reads the header from the first bytes of the object; `None` when more of them are needed, and how many.
    pub(super) fn parse(&self, prefix: &[u8]) -> RepositoryResult<Result<(WalHeader, usize), usize>> {
        match envelope::parse(prefix).map_err(|error| RepositoryError::damaged(&self.key, error))? {
            Parsed::NeedMore { len } => Ok(Err(len)),
            Parsed::Whole { json, len } => Ok(Ok((self.checked(json)?, len))),
        }
    }

    /// The header, once it is known that this version can read it and that it belongs here: an object that was put under
    /// another's name is damage, whatever its checksums say.
    fn checked(&self, json: &[u8]) -> RepositoryResult<WalHeader> {
        let damaged = |what: String| RepositoryError::damaged(&self.key, what);
        let common: Common = serde_json::from_slice(json).map_err(|error| damaged(format!("its header: {error}")))?;
        if common.format > u64::from(FORMAT_VERSION) {
            let what = format!("format version {}", common.format);
            return Err(RepositoryError::TooNew { key: self.key.clone(), what });
        }
        if let Some(feature) = common.features.first() {
            let what = format!("feature \"{feature}\"");
            return Err(RepositoryError::TooNew { key: self.key.clone(), what });
        }
        let header: WalHeader =
            serde_json::from_slice(json).map_err(|error| damaged(format!("its header: {error}")))?;
        let expected = self.header(header.blake3, header.postgres_version, header.index.clone());
        if header != expected {
            return Err(damaged(format!(
                "its header is that of {:?} {} of system {}, {} bytes from {}",
                header.kind, header.segment, header.system_identifier, header.length, header.start_lsn
            )));
        }
        Ok(header)
    }
}

#[derive(serde::Deserialize)]
struct Common {
    format: u64,
    features: Vec<String>,
}
