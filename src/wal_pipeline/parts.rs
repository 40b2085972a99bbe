//! What a pipeline is made of.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::StatusBoard;
use crate::clock::Clock;
use crate::primary::{Conninfo, SlotName};
use crate::receiver::Witness;
use crate::repository::{ClusterName, ClusterRepository};

/// What the configuration says about one cluster's WAL.
#[derive(Clone, Debug)]
pub struct WalSettings {
    /// The cluster.
    pub cluster: ClusterName,
    /// Hosts, credentials, TLS.
    pub conninfo: Conninfo,
    /// The name for `synchronous_standby_names`.
    pub application_name: String,
    /// The replication slot; `None` streams without one: the server may remove WAL that we still need.
    pub slot: Option<SlotName>,
    /// Whether the slot is ours to create; `false` when an HA manager owns it.
    pub create_slot: bool,
    /// How often the tail of the open segment is shipped; zero ships whole segments only.
    pub max_rpo: Duration,
    /// Make everything durable at once and tell: commits wait for it.
    pub synchronous: bool,
    /// Also report what is durable as applied, for `synchronous_commit = remote_apply`. No row can be read here.
    pub report_apply: bool,
    /// Folder of all spools; this cluster's lies in `<dir>/<cluster>/<lineage>`.
    pub spool_dir: PathBuf,
    /// Bytes that this cluster's spool takes at most; `None` leaves it to the file system.
    pub spool_max_size: Option<u64>,
    /// Folder for the pipeline's own small files (`<state_dir>/<cluster>/<lineage>/gaps.json`).
    pub state_dir: PathBuf,
    /// Segments that are stored at the same time, at least one.
    pub uploads: usize,
    /// How long members that do not answer are waited for when the server that is followed has removed WAL that is needed next:
    /// they may have it.
    pub wait_for_silent: Duration,
    /// How long a stop may take to store what the spool still holds; the rest is stored after the next start.
    pub drain: Duration,
}

/// Everything that one cluster's pipeline works with.
#[derive(Clone, Debug)]
pub struct WalParts {
    /// What the configuration says.
    pub settings: WalSettings,
    /// Where WAL is stored; `None` while the repository could not be opened yet: WAL is received into the spool meanwhile.
    pub repository: watch::Receiver<Option<ClusterRepository>>,
    /// Who else may say which member leads, such as Patroni.
    pub witness: Witness,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where the pipeline tells what it does.
    pub board: StatusBoard,
}

impl WalParts {
    /// For a repository that is open already.
    pub fn with_repository(settings: WalSettings, repository: ClusterRepository, clock: Arc<dyn Clock>) -> Self {
        // A watch keeps its last value after its sender is gone.
        let (_, repository) = watch::channel(Some(repository));
        Self { settings, repository, witness: Witness::silent(), clock, board: StatusBoard::new() }
    }
}
