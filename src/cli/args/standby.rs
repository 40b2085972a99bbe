//! `standby …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{OfCluster, key_value};

/// `standby …`
#[derive(Debug, Subcommand)]
pub enum Standby {
    /// Write the data directory of a new standby, and make its slot on the primary
    Create(Box<StandbyArgs>),
    /// Bring back a standby that fell behind, or an old primary after a failover
    Refresh(Box<StandbyArgs>),
}

/// `standby create` and `standby refresh`
#[derive(Args, Debug)]
pub struct StandbyArgs {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// The standby's data directory
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// libpq words of the primary, without a password: written as primary_conninfo
    #[arg(long, value_name = "S", required_unless_present = "no_config")]
    pub primary_conninfo: Option<String>,
    /// Replication slot of the standby; "" = none [default: <cluster>_<host>]
    #[arg(long, value_name = "NAME", conflicts_with = "no_config")]
    pub slot: Option<String>,
    /// Write data only, no settings and no signal file, and make no slot: an HA manager does
    #[arg(long, conflicts_with = "recovery_options")]
    pub no_config: bool,
    /// Put a tablespace elsewhere; paths
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = key_value)]
    pub tablespaces: Vec<(String, String)>,
    /// Put pg_wal there
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// Parallel requests and writers
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
