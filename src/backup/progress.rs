//! How far a backup is.

use tokio::sync::watch;

/// What a backup is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupPhase {
    /// Looking at the repository and the server.
    #[default]
    Check,
    /// The server does its checkpoint.
    Checkpoint,
    /// Files are copied.
    Copy,
    /// The last objects are stored; then it is committed.
    Commit,
    /// Committed; WAL up to its end is not all in the repository yet.
    WaitForWal,
    /// All done.
    Done,
}

impl BackupPhase {
    /// The word in progress lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Checkpoint => "checkpoint",
            Self::Copy => "copy",
            Self::Commit => "commit",
            Self::WaitForWal => "wait_for_wal",
            Self::Done => "done",
        }
    }
}

/// How far a backup is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupProgress {
    /// What it is doing.
    pub phase: BackupPhase,
    /// Its name, once it has one.
    pub id: Option<recovery::BackupId>,
    /// Bytes of files that were read.
    pub done_bytes: u64,
    /// What the server estimated at the start.
    pub total_bytes: Option<u64>,
    /// Files that were read.
    pub files: u64,
    /// Bytes added to the repository so far.
    pub new_bytes: u64,
    /// Bytes that were read from the data directory itself.
    pub read_bytes: u64,
    /// Why the server sends the files, where they were to be read from its data directory.
    pub not_files: Option<String>,
    /// Why everything is read from the server, where less might have been.
    pub reason: Option<String>,
}

/// Where progress goes; look at it with `subscribe`.
pub type ProgressSender = watch::Sender<BackupProgress>;
