//! Why a file could not be fetched, and what comes of it.

use std::path::PathBuf;

use wal::SegmentName;

use super::FetchName;
use crate::error::{Error, ErrorCode};
use crate::repository::RepositoryError;

/// Why an attempt did not end in an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Opening(Error),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("{missing} is not in the repository, but {later}, which comes after it, is")]
    Hole { missing: SegmentName, later: SegmentName },
    #[error("{}: {source}", path.display())]
    Destination { path: PathBuf, source: std::io::Error },
    #[error("local WAL: {0}")]
    Local(std::io::Error),
    #[error("the server that asked for it is gone")]
    NobodyWaits,
    #[error("{0} is no segment of this cluster: its segments have {1} bytes")]
    ForeignName(SegmentName, u64),
}

impl Trouble {
    /// Whether another attempt can end otherwise. A hole can: segments are stored in parallel.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            // A repository that is not there can be one that is not mounted.
            Self::Opening(error) => {
                let code = error.code();
                let lasting =
                    matches!(code, ErrorCode::FormatTooNew | ErrorCode::InvalidConfig | ErrorCode::ForeignCluster);
                !lasting && !self.is_no_key()
            }
            Self::Repository(error) => {
                let lasting = matches!(error, RepositoryError::TooNew { .. } | RepositoryError::Mismatch { .. });
                !lasting && !self.is_no_key()
            }
            Self::Hole { .. } | Self::Local(_) => true,
            Self::Destination { .. } | Self::NobodyWaits | Self::ForeignName(..) => false,
        }
    }

    /// Whether it is encrypted and cannot be read here. That is never "absent": it passes when somebody gives the key.
    pub(super) fn is_no_key(&self) -> bool {
        match self {
            Self::Opening(error) => error.code() == ErrorCode::NoKey,
            Self::Repository(error) => error.is_no_key(),
            _ => false,
        }
    }

    pub(super) fn into_error(self, file: &FetchName) -> Error {
        let (code, help) = match &self {
            Self::Opening(error) if !self.is_no_key() => (error.code(), None),
            Self::Hole { .. } => (ErrorCode::TargetInGap, Some("see what can be recovered: pgvault window")),
            Self::Repository(RepositoryError::Damaged { .. }) => {
                (ErrorCode::Damaged, Some("read everything that is stored: pgvault check --deep"))
            }
            Self::Opening(_) | Self::Repository(_) if self.is_no_key() => (
                ErrorCode::NoKey,
                Some("name the file that holds the identity: [repository] identity_file, or PGVAULT_IDENTITY_FILE"),
            ),
            Self::Repository(RepositoryError::TooNew { .. }) => (ErrorCode::FormatTooNew, None),
            Self::Opening(error) => (error.code(), None),
            Self::Repository(_) => (ErrorCode::RepositoryDenied, Some("check the repository: pgvault repo check")),
            Self::Destination { .. } | Self::NobodyWaits | Self::Local(_) | Self::ForeignName(..) => {
                (ErrorCode::Unclassified, None)
            }
        };
        let error = Error::new(code, format!("cannot fetch {file}: {self}"));
        let error = error.because("recovery is stopped (exit 255) so that it does not end early in silence");
        match help {
            Some(help) => error.help(help),
            None => error,
        }
    }
}
