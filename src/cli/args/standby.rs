//! `standby …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{OfCluster, Writing};

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
    /// Where and how it is written
    #[command(flatten)]
    pub writing: Writing,
}
