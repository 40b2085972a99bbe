//! How far a restore is.

use tokio::sync::watch;

/// What a restore is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RestorePhase {
    /// Looking at the directory.
    #[default]
    Check,
    /// Files are written.
    Copy,
    /// Files are made durable.
    Sync,
    /// All done.
    Done,
}

impl RestorePhase {
    /// The word in progress lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Copy => "copy",
            Self::Sync => "sync",
            Self::Done => "done",
        }
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// What it is doing.
    pub phase: RestorePhase,
    /// Bytes of files that were written and proven.
    pub done_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

/// Where progress goes; look at it with `subscribe`.
pub type RestoreProgressSender = watch::Sender<RestoreProgress>;
