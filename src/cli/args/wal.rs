//! `wal …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use wal::{Lsn, TimelineId};

use super::OfCluster;

/// `wal …`
#[derive(Debug, Subcommand)]
pub enum Wal {
    /// Fetch one file: the restore_command
    Fetch(WalFetch),
    /// Fetch ahead of a recovery; `wal fetch` starts it
    #[command(hide = true)]
    Prefetch(WalPrefetch),
    /// Stored ranges, by timeline
    List(OfCluster),
    /// Missing ranges
    Gaps(OfCluster),
    /// Make the primary finish its segment
    Switch(OfCluster),
    /// Read all stored WAL and prove that it is whole and one log
    Verify(WalVerify),
}

/// `wal verify`
#[derive(Args, Debug)]
pub struct WalVerify {
    /// Cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// From this position on
    #[arg(long, value_name = "LSN")]
    pub from: Option<Lsn>,
    /// Up to this position
    #[arg(long, value_name = "LSN")]
    pub to: Option<Lsn>,
    /// This timeline only
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
    /// From listings alone: look for what is missing, read no WAL
    #[arg(long)]
    pub quick: bool,
    /// Pieces read at the same time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}

/// `wal fetch`
#[derive(Args, Debug)]
pub struct WalFetch {
    /// The branch that is recovered: what it has left behind is not served
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
    /// Where recovery will stop: WAL missing behind it is no hole
    #[arg(long, value_name = "LSN")]
    pub until: Option<Lsn>,
    /// How long trouble is put up with before exit 255 [default: 2min; segments on a standby: 10s]
    #[arg(long, value_name = "TIME", value_parser = crate::config::values::duration)]
    pub patience: Option<std::time::Duration>,
    /// How much is fetched ahead of what is asked for, on the file system of %p; 0: nothing
    #[arg(long, value_name = "SIZE", value_parser = crate::config::values::size, default_value = "256MB")]
    pub prefetch: u64,
    /// Cluster
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// Name of the file: %f
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Where to write it: %p
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// `wal prefetch`: what `wal fetch` was given, without the file
#[derive(Args, Debug)]
pub struct WalPrefetch {
    /// As for `wal fetch`
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
    /// As for `wal fetch`
    #[arg(long, value_name = "LSN")]
    pub until: Option<Lsn>,
    /// As for `wal fetch`
    #[arg(long, value_name = "SIZE", value_parser = crate::config::values::size, default_value = "256MB")]
    pub prefetch: u64,
    /// Cluster
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// The folder to work in
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}
