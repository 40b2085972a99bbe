//! What can go wrong on the way of a backup's bytes.

use std::io;

use recovery::pg_manifest::PgManifestError;
use wal::TimelineId;

use super::manifest_check::ManifestMismatch;
use super::members::MemberError;
use super::tar::TarError;
use crate::codec::CompressError;
use crate::error::{Error, ErrorCode};
use crate::primary::PgError;
use crate::repository::RepositoryError;

/// A copy could not be completed. Packs that are stored already are used by the next one.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error(transparent)]
    Server(#[from] PgError),
    #[error("the server sent an archive that is not one: {0}")]
    Tar(#[from] TarError),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Manifest(#[from] PgManifestError),
    #[error(transparent)]
    Mismatch(#[from] ManifestMismatch),
    #[error("the server ended the backup out of turn: {0}")]
    OutOfTurn(&'static str),
    #[error("it began on timeline {start} and ended on timeline {stop}: the server was promoted meanwhile")]
    TimelineChanged { start: TimelineId, stop: TimelineId },
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// A file of the data directory.
    #[error("\"{path}\" cannot be read: {source}")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The data directory is not what the server said, or is no more.
    #[error("{0}")]
    DataDirectory(String),
    #[error("scratch file: {0}")]
    Scratch(#[source] io::Error),
    /// The server refused before it sent anything.
    #[error(transparent)]
    NotStarted(PgError),
    /// What an incremental backup rests on is not as it should be: a full one does not need it.
    #[error("{0}")]
    Doubt(String),
    /// A later stage has failed; its own error tells why.
    #[error("a later stage has stopped")]
    Stopped,
    #[error("a thread of the backup ended unexpectedly: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl CopyError {
    /// Whether a backup that reads everything does not need what failed here.
    pub(super) fn leaves_a_full_backup(&self) -> bool {
        match self {
            Self::Doubt(_) => true,
            // It refused: summaries that are missing, a manifest of another history. Not that it went away.
            Self::NotStarted(error) => error.sqlstate().is_some_and(|state| !state.starts_with("57")),
            _ => false,
        }
    }

    /// The error as a person sees it.
    pub(super) fn explain(self, doing: &str) -> Error {
        let nothing = "nothing of it can be selected; what was stored is used by the next backup";
        let error = match self {
            // What the server says at the end of a backup that cannot be used: it was promoted meanwhile, or replayed WAL
            // that was written without full page images. Taken alone the state would speak of settings.
            Self::Server(error) if error.sqlstate() == Some("55000") => {
                Error::new(ErrorCode::PostgresFailed, doing).because(error).help("take another: pgvault backup now")
            }
            Self::Server(error) | Self::NotStarted(error) => error.explain(doing),
            Self::Repository(error) => {
                let cause = Error::from(error);
                let said = Error::new(cause.code(), doing).because(cause.message());
                cause.help_lines().iter().fold(said, |said, help| said.help(help))
            }
            Self::TimelineChanged { .. } => {
                Error::new(ErrorCode::PostgresFailed, doing).because(&self).help("take another: pgvault backup now")
            }
            Self::Tar(_) | Self::Member(_) | Self::Manifest(_) | Self::Mismatch(_) => {
                Error::new(ErrorCode::Damaged, doing).because(&self)
            }
            Self::File { .. } => Error::new(ErrorCode::PostgresFailed, doing)
                .because(&self)
                .help("let the user of pgvault read the data directory, or have the server send the files: data_directory = \"\""),
            Self::OutOfTurn(_) | Self::Doubt(_) | Self::DataDirectory(_) => Error::new(ErrorCode::PostgresFailed, doing).because(&self),
            Self::Compress(_) | Self::Scratch(_) | Self::Stopped | Self::Thread(_) => {
                Error::new(ErrorCode::Unclassified, doing).because(&self)
            }
        };
        error.because(nothing)
    }
}
