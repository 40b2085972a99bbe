//! What can go wrong with stored objects, in the repository's words.

use std::io;
use std::path::PathBuf;

use recovery::LineageId;
use wal::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

use crate::error::{Error, ErrorCode};
use crate::repository::{ClusterName, KeyError, layout};
use crate::storage::{ObjectKey, StorageError, StorageErrorKind};

/// Something about a stored object, or about what was to be stored.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// It is not there: the store said so for exactly this key, not a listing.
    #[error("{0} is not in the repository")]
    NotFound(String),
    /// The key holds other bytes. What was to be stored lies under `kept_as`.
    #[error("{key} already holds other bytes; what was to be stored is kept as {kept_as}")]
    Conflict {
        /// The key that is taken.
        key: ObjectKey,
        /// Where the refused bytes lie now.
        kept_as: ObjectKey,
    },
    /// Stored bytes are not what they must be.
    #[error("{key} is damaged: {what}")]
    Damaged {
        /// The object.
        key: ObjectKey,
        /// What is wrong with it.
        what: String,
    },
    /// A newer pgvault wrote it.
    #[error("{key} needs a newer pgvault: {what}")]
    TooNew {
        /// The object.
        key: ObjectKey,
        /// Format or feature that this version does not know.
        what: String,
    },
    /// What was to be stored is not what it was said to be. Nothing was stored.
    #[error("{what} does not fit: {problem}")]
    Mismatch {
        /// What was to be stored.
        what: String,
        /// How it differs from what it should be.
        problem: String,
    },
    /// The server's history is not the history of the lineage.
    #[error(transparent)]
    Lineage(Box<LineageMismatch>),
    /// Keys are missing or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A local file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The receiver of fetched bytes failed.
    #[error("writing what was fetched: {0}")]
    Sink(io::Error),
}

/// The two facts that do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("cluster \"{cluster}\": {fact}")]
pub struct LineageMismatch {
    /// The cluster.
    pub cluster: ClusterName,
    /// What differs.
    pub fact: MismatchFact,
}

/// How a server differs from the lineage that the repository holds.
#[derive(Debug, thiserror::Error)]
pub enum MismatchFact {
    /// Another initdb.
    #[error("the server has system identifier {server}, the repository holds lineage {stored}")]
    ForeignSystem {
        /// What the server says.
        server: SystemIdentifier,
        /// The newest lineage of the cluster.
        stored: LineageId,
    },
    /// The same timeline number with another ancestry.
    #[error(
        "the server says that timeline {timeline} came from {server}, the repository's lineage {stored_lineage} \
         says from {stored}"
    )]
    OtherHistory {
        /// The lineage.
        stored_lineage: LineageId,
        /// The timeline about which they differ.
        timeline: TimelineId,
        /// Its ancestry as the server tells it.
        server: Ancestry,
        /// Its ancestry as the repository holds it.
        stored: Ancestry,
    },
    /// The server's timeline has nothing in common with any that is stored.
    #[error(
        "the server is on timeline {timeline}, whose history names none of the timelines {stored:?} of the repository's \
         lineage {stored_lineage}"
    )]
    NoCommonTimeline {
        /// The lineage.
        stored_lineage: LineageId,
        /// The server's timeline.
        timeline: TimelineId,
        /// The timelines of which something is stored.
        stored: Vec<TimelineId>,
    },
    /// Another segment size under the same identifier.
    #[error("the server's WAL segments have {} bytes, those of lineage {stored_lineage} {}", server.bytes(), stored.bytes())]
    SegmentSize {
        /// The lineage.
        stored_lineage: LineageId,
        /// What the server says.
        server: SegmentSize,
        /// What the lineage has.
        stored: SegmentSize,
    },
}

/// The ancestors of a timeline and where each was left, oldest first; prints `1 at 0/3000060, 2 at 0/5000000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestry(pub Vec<(TimelineId, Lsn)>);

impl std::fmt::Display for Ancestry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no other timeline");
        }
        for (index, (timeline, lsn)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{timeline} at {lsn}")?;
        }
        Ok(())
    }
}

impl RepositoryError {
    /// The object is damaged.
    pub fn damaged(key: &ObjectKey, what: impl ToString) -> Self {
        Self::Damaged { key: key.clone(), what: what.to_string() }
    }

    /// What was to be stored is not what it was said to be.
    pub fn mismatch(what: impl ToString, problem: impl ToString) -> Self {
        Self::Mismatch { what: what.to_string(), problem: problem.to_string() }
    }

    /// Turns the store's "not found" and "corrupt" for `key` into ours; everything else stays what it is.
    pub fn from_get(key: &ObjectKey, error: StorageError) -> Self {
        match error.kind {
            StorageErrorKind::NotFound => Self::NotFound(key.to_string()),
            StorageErrorKind::Corrupt => Self::damaged(key, error.message),
            _ => Self::Storage(error),
        }
    }

    /// Whether the object is authoritatively absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// Whether it is this one object that cannot be read: damaged, of a newer pgvault, or gone since it was listed. The store
    /// answered, and the keys are there.
    pub fn is_about_the_object(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::TooNew { .. } | Self::NotFound(_))
    }

    /// Whether keys are missing, or are others.
    pub fn is_no_key(&self) -> bool {
        code_of(self) == ErrorCode::NoKey
    }

    /// Whether the same request may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Storage(error) if error.kind == StorageErrorKind::Transient)
    }
}

impl From<RepositoryError> for Error {
    fn from(error: RepositoryError) -> Self {
        let code = code_of(&error);
        let said = Self::new(code, error.to_string());
        match error {
            RepositoryError::Conflict { .. } => said
                .because("two different histories were stored under one name; nothing was overwritten")
                .help("find out which server is the right one: pgvault status; then open a new lineage for the other"),
            RepositoryError::Damaged { .. } => said
                .help("read everything that is stored: pgvault check --deep")
                .help("take a new base backup: pgvault backup now"),
            RepositoryError::TooNew { .. } => said.help("use the version of pgvault that wrote it, or a newer one"),
            RepositoryError::Lineage(mismatch) => said
                .because("WAL and backups of two histories must not be joined: a restore would be silently wrong")
                .help(format!(
                    "when this server shall be backed up under this name from now on: pgvault serve --new-lineage {}",
                    mismatch.cluster
                )),
            RepositoryError::Storage(error) => match error.kind {
                StorageErrorKind::Denied => said.help("check credentials, bucket and rights: pgvault repo check"),
                StorageErrorKind::NoKey => with_key_help(said),
                StorageErrorKind::Full => said.help("free space, or let retention delete more: pgvault retention plan"),
                _ => said,
            },
            RepositoryError::Key(KeyError::NoRecipients) => said
                .help("name whom the keys are for: [repository] encryption = [\"age1…\"]; make one: pgvault key init"),
            RepositoryError::Key(KeyError::NoKeyRing) => said.help("make the key ring: pgvault repo init"),
            RepositoryError::Key(KeyError::NotAnIdentity { .. }) => {
                said.help("it holds lines AGE-SECRET-KEY-1…, as `pgvault key init` and `age-keygen` write them")
            }
            RepositoryError::Key(_) => with_key_help(said),
            RepositoryError::NotFound(what) if what.ends_with(layout::MARKER) => {
                said.help("make a repository there: pgvault repo init")
            }
            _ => said,
        }
    }
}

fn with_key_help(error: Error) -> Error {
    error
        .because("without one of the identities it is wrapped for, nobody can read what is encrypted")
        .help("name the file that holds the identity: [repository] identity_file = \"/path\", or PGVAULT_IDENTITY_FILE=/path")
        .help("see which generations there are and whom they are for: pgvault key list")
}

fn code_of(error: &RepositoryError) -> ErrorCode {
    match error {
        RepositoryError::NotFound(_) => ErrorCode::NotFound,
        RepositoryError::Conflict { .. } => ErrorCode::Conflict,
        RepositoryError::Damaged { .. } => ErrorCode::Damaged,
        RepositoryError::TooNew { .. } => ErrorCode::FormatTooNew,
        RepositoryError::Mismatch { .. } => ErrorCode::Damaged,
        RepositoryError::Key(KeyError::NoRecipients) => ErrorCode::InvalidConfig,
        RepositoryError::Key(_) => ErrorCode::NoKey,
        RepositoryError::Lineage(mismatch) => match mismatch.fact {
            MismatchFact::OtherHistory { .. } | MismatchFact::NoCommonTimeline { .. } => ErrorCode::TimelineConflict,
            MismatchFact::ForeignSystem { .. } | MismatchFact::SegmentSize { .. } => ErrorCode::ForeignCluster,
        },
        RepositoryError::Storage(error) => match error.kind {
            StorageErrorKind::NotFound => ErrorCode::NotFound,
            StorageErrorKind::Corrupt => ErrorCode::Damaged,
            StorageErrorKind::NoKey => ErrorCode::NoKey,
            StorageErrorKind::Denied
            | StorageErrorKind::Transient
            | StorageErrorKind::Full
            | StorageErrorKind::Other => ErrorCode::RepositoryDenied,
        },
        RepositoryError::Io { .. } | RepositoryError::Sink(_) => ErrorCode::Unclassified,
    }
}
