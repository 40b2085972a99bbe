//! `repo …`

use clap::Subcommand;

use super::{OfCluster, Rest};

/// `repo …`
#[derive(Debug, Subcommand)]
pub enum Repo {
    /// Make the repository
    Init,
    /// Write, read and compare, and say what the store can do
    Check,
    /// What each backup really takes, alone and shared, and the WAL
    Stats(OfCluster),
    /// Copy to another place (not available in this version)
    Copy(Rest),
}
