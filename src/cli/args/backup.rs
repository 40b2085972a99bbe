//! `backup …`

use clap::{Args, Subcommand, ValueEnum};

use super::{OfCluster, key_value};

/// `backup …`
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Start a base backup
    Now(BackupNow),
    /// All backups, newest last
    List(OfCluster),
    /// One backup
    Show {
        /// Its id, the start of it, or `latest`
        id: String,
    },
    /// Read every byte of a backup and prove it
    Verify(BackupVerify),
    /// Pin a backup: retention leaves it alone
    Keep(BackupPin),
    /// Unpin a backup
    Release(BackupPin),
    /// Delete a backup: its manifest and tables; packs and WAL stay
    Delete(BackupDelete),
}

/// `backup now`
#[derive(Args, Debug)]
pub struct BackupNow {
    /// Which cluster
    #[command(flatten)]
    pub of: OfCluster,
    /// Return when the backup is committed and usable
    #[arg(long)]
    pub wait: bool,
    /// How much to read from the server: what changed where it can tell (17 and later), everything, or what changed
    /// whenever possible. Every backup restores alone, whichever it was
    #[arg(long, value_enum, default_value_t = Kind::Auto)]
    pub kind: Kind,
    /// A name for people, kept as the annotation `name`
    #[arg(long)]
    pub name: Option<String>,
    /// Something to remember with it
    #[arg(long = "annotation", value_name = "K=V", value_parser = key_value)]
    pub annotations: Vec<(String, String)>,
    /// Checkpoint at once in place of a spread one
    #[arg(long)]
    pub fast_checkpoint: bool,
    /// At most so many bytes per second, as in 50MB/s
    #[arg(long, value_name = "RATE", value_parser = crate::config::values::rate)]
    pub max_rate: Option<u64>,
}

/// `backup verify`
#[derive(Args, Debug)]
pub struct BackupVerify {
    /// Its id, the start of it, or `latest`; default: latest
    pub id: Option<String>,
    /// Every backup
    #[arg(long, conflicts_with = "id")]
    pub all: bool,
    /// From listings alone: look for what is missing or has another length, read no data
    #[arg(long)]
    pub quick: bool,
    /// Packs read at the same time; each takes about 70 MB of memory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Only report: put no mark on the backup
    #[arg(long)]
    pub no_mark: bool,
}

/// `backup keep|release`
#[derive(Args, Debug)]
pub struct BackupPin {
    /// Its id, the start of it, or `latest`
    pub id: String,
    /// Why
    #[arg(long, default_value = "")]
    pub note: String,
}

/// `backup delete`
#[derive(Args, Debug)]
pub struct BackupDelete {
    /// Its id, or the start of it
    pub id: String,
    /// Show what would go, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// How a backup is read from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// As is best
    Auto,
    /// Every file
    Full,
    /// What changed since another one
    Incremental,
}
