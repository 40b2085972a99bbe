//! What is the same of all that write a data directory.

use std::path::PathBuf;

use clap::Args;

use super::key_value;
use crate::restore::Effort;

/// Where and how a data directory is written.
#[derive(Args, Debug)]
pub struct Writing {
    /// Put a tablespace elsewhere; paths
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = key_value)]
    tablespaces: Vec<(String, String)>,
    /// Put pg_wal there
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// Parallel requests and writers; default: two for each processor, 4 to 16
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Read at most so many bytes per second from the repository, as in 50MB/s
    #[arg(long, value_name = "RATE", value_parser = crate::config::values::rate)]
    max_rate: Option<u64>,
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

impl Writing {
    /// Where each tablespace that moves was, and shall be.
    pub fn tablespaces(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        self.tablespaces.iter().map(|(old, new)| (PathBuf::from(old), PathBuf::from(new)))
    }

    /// How much is done at a time.
    pub fn effort(&self) -> Effort {
        Effort { jobs: self.jobs.map_or(Effort::default().jobs, usize::from), max_rate: self.max_rate }
    }
}
