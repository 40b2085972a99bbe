//! `recover`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{OfCluster, Writing};

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
    /// Where and how it is written
    #[command(flatten)]
    pub writing: Writing,
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
