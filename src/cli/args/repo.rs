//! `repo …`

use clap::{Args, Subcommand};

use super::{OfCluster, Rest};

/// `repo …`
#[derive(Debug, Subcommand)]
pub enum Repo {
    /// Make the repository
    Init,
    /// What the store can do, and whether everything in it is what it must be
    Check(RepoCheck),
    /// What each backup really takes, alone and shared, and the WAL
    Stats(OfCluster),
    /// Copy to another place (not available in this version)
    Copy(Rest),
}

/// `repo check`
#[derive(Args, Debug)]
pub struct RepoCheck {
    /// Read every byte of every backup and of all WAL, not only listings and small documents
    #[arg(long)]
    pub deep: bool,
    /// Packs or pieces of WAL read at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}
