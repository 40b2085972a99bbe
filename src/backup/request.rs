//! What a backup is asked to be, and what it works with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::copy::CopyLimits;
use super::wal_progress::WalProgress;
use crate::clock::Clock;
use crate::primary::{CheckpointMode, ConnectOptions, MaxRate};
use crate::repository::LineageRepository;

/// What a backup is asked to be.
#[derive(Clone, Debug)]
pub struct BackupRequest {
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
