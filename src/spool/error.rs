//! What can go wrong in the spool.

use std::io;
use std::path::{Path, PathBuf};

use wal::SegmentName;

use crate::error::{Error, ErrorCode};

/// The spool cannot do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another process works in the folder.
    #[error("{} is in use by another process", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A helper thread ended without an answer.
    #[error("writing to the spool: {0}")]
    Helper(String),
    /// No room for another segment.
    #[error("no room for segment {segment}: the spool takes {used} of {capacity} bytes")]
    Full {
        /// The segment that could not be taken in.
        segment: SegmentName,
        /// Bytes taken.
        used: u64,
        /// Bytes that may be taken.
        capacity: u64,
    },
}

impl SpoolError {
    /// Names the path that an I/O error is about.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<'_> {
        |source| Self::Io { path: path.to_owned(), source }
    }

    /// Whether the reason is that there is no space.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Damaged { .. } | Self::InUse { .. } | Self::Helper(_) => false,
        }
    }
}

impl From<SpoolError> for Error {
    fn from(error: SpoolError) -> Self {
        let code = if matches!(error, SpoolError::InUse { .. }) { ErrorCode::AnotherWriter } else { ErrorCode::Spool };
        let message = match &error {
            SpoolError::Io { .. } => format!("the spool's disk fails: {error}"),
            SpoolError::Damaged { .. } | SpoolError::InUse { .. } | SpoolError::Helper(_) | SpoolError::Full { .. } => {
                error.to_string()
            }
        };
        let said = Self::new(code, message);
        match error {
            error if error.is_no_space() => said
                .because("WAL is kept in the spool until the repository has it; the server keeps what is not received")
                .help("see why archiving lags: pgvault status; or give the spool more room: [spool] max_size"),
            SpoolError::InUse { .. } => said.help("end the other pgvault, or give this one its own [spool] dir"),
            SpoolError::Damaged { .. } => said.help("move the file away; pgvault asks the server for its WAL again"),
            SpoolError::Io { .. } => said
                .because("it is tried again by itself; nothing was acknowledged that is not durable")
                .help("look at the disk and at who may write there: df, ls -ld, dmesg"),
            SpoolError::Full { .. } | SpoolError::Helper(_) => said,
        }
    }
}
