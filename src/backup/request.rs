//! What a backup is asked to be, and what it works with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::copy::CopyLimits;
use super::files::FilesAccess;
use super::wal_progress::WalProgress;
use crate::clock::Clock;
use crate::primary::{CheckpointMode, ConnectOptions, MaxRate};
use crate::repository::LineageRepository;

/// How much of the cluster is read from the server. Restoring needs nothing else, whichever it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadKind {
    /// What changed where the server can tell (PostgreSQL 17 and later), else everything; changed chunks are stored as the
    /// difference to older ones.
    #[default]
    Auto,
    /// Everything, and changed chunks are stored whole.
    Full,
    /// As `Auto`, every time.
    Incremental,
}

/// What a backup is asked to be.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// How much is read.
    pub kind: ReadKind,
    /// What goes into `backup_label`; its id when there is none.
    pub label: Option<String>,
    /// What people wrote on it.
    pub annotations: BTreeMap<String, String>,
    /// How the server does its checkpoint.
    pub checkpoint: CheckpointMode,
    /// Limit of the transfer.
    pub max_rate: Option<MaxRate>,
    /// How much to do at once.
    pub limits: CopyLimits,
}

impl Default for BackupRequest {
    /// A spread checkpoint, no limit.
    fn default() -> Self {
        Self {
            kind: ReadKind::Auto,
            label: None,
            annotations: BTreeMap::new(),
            checkpoint: CheckpointMode::Spread,
            max_rate: None,
            limits: CopyLimits::default(),
        }
    }
}

/// What a backup works with.
pub struct BackupDeps<'a> {
    /// The server.
    pub server: &'a ConnectOptions,
    /// Its data directory, where it is to be read instead of having the server send it.
    pub files: Option<FilesAccess>,
    /// Where it goes: the lineage of this server, which the caller has established.
    pub repository: &'a LineageRepository,
    /// File of the index of known chunks, `<state_dir>/chunks/<cluster>.redb`; without one it is kept in memory.
    pub index_file: Option<PathBuf>,
    /// Who knows when WAL is in the repository.
    pub wal: &'a dyn WalProgress,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Keeps the names of backups apart that start in the same second.
    pub random: u16,
    /// Asks to stop: the connection is dropped, packs that are stored stay for the next backup.
    pub cancel: &'a CancellationToken,
}
