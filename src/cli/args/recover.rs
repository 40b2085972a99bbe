//! `recover`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{OfCluster, key_value};

/// `recover`
#[derive(Args, Debug)]
pub struct Recover {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// Directory to write; must be empty or absent, unless --delta
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The moment
    #[command(flatten)]
    pub target: Target,
    /// Stop just before the target
    #[arg(long)]
    pub exclusive: bool,
    /// A branch of the history: a number, or latest
    #[arg(long, value_name = "N")]
    pub timeline: Option<String>,
    /// At the target: wait readable, become writable, or stop
    #[arg(long, value_enum)]
    pub action: Option<Action>,
    /// The backup to start from; default: the nearest one
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Write over an old data directory of this cluster: keep what is right in it, remove what the backup does not have
    #[arg(long)]
    pub delta: bool,
    /// Write a standby
    #[arg(long)]
    pub standby: bool,
    /// libpq words of the primary, for the standby
    #[arg(long, value_name = "S", requires = "standby")]
    pub primary_conninfo: Option<String>,
    /// Replication slot of the standby
    #[arg(long, value_name = "NAME", requires = "standby")]
    pub slot: Option<String>,
    /// Write no recovery settings and no signal file: an HA manager does
    #[arg(long, conflicts_with_all = ["standby", "recovery_options", "action"])]
    pub no_config: bool,
    /// Put a tablespace elsewhere; paths
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = key_value)]
    pub tablespaces: Vec<(String, String)>,
    /// Put pg_wal there
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// Parallel requests and writers; default: two for each processor, 4 to 16
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Read at most so many bytes per second from the repository, as in 50MB/s
    #[arg(long, value_name = "RATE", value_parser = crate::config::values::rate)]
    pub max_rate: Option<u64>,
    /// Give the files to this user
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// More recovery settings
    #[arg(long = "recovery-option", value_name = "K=V", value_parser = key_value)]
    pub recovery_options: Vec<(String, String)>,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The moment to recover to; one of them.
#[derive(Args, Debug, Default)]
#[group(id = "target", multiple = false)]
pub struct Target {
    /// Before the first commit later than this, with a zone: 2026-11-20 05:22:36+00, "5 minutes ago"
    #[arg(help_heading = "Target", long, value_name = "T")]
    pub target_time: Option<String>,
    /// At this position
    #[arg(help_heading = "Target", long, value_name = "L")]
    pub target_lsn: Option<String>,
    /// At the end of this transaction
    #[arg(help_heading = "Target", long, value_name = "X")]
    pub target_xid: Option<u32>,
    /// At this restore point
    #[arg(help_heading = "Target", long, value_name = "N")]
    pub target_name: Option<String>,
    /// At the end of the stored WAL (the default)
    #[arg(help_heading = "Target", long)]
    pub latest: bool,
    /// As soon as the backup is consistent
    #[arg(help_heading = "Target", long)]
    pub immediate: bool,
}

/// What PostgreSQL does at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Wait, readable
    Pause,
    /// Become writable on a new timeline
    Promote,
    /// Stop
    Shutdown,
}
