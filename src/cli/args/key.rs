//! `key …`

use std::path::PathBuf;

use clap::Subcommand;

/// `key …`
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make an identity, in a file that nobody else may read, and print its recipient
    Init {
        /// The file; default: `repository.identity_file`, else identity.txt in the state directory
        file: Option<PathBuf>,
    },
    /// Make a new data key for all new objects, and wrap all keys for the configured recipients
    Rotate,
    /// The generations of the key ring, and whom they are for
    List,
}
