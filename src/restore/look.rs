//! A look at a directory that is not restored into yet.

use std::path::Path;

use super::marker::MARKER;
use super::server;
use crate::error::{Error, ErrorCode, Result};

/// Refuses a directory in which a server runs.
pub fn refuse_running_server(path: &Path) -> Result<()> {
    match server::of_data_directory(path) {
        None => Ok(()),
        Some(server) => {
            let message = format!("data directory {}: a server runs in it ({server})", path.display());
            Err(Error::new(ErrorCode::TargetDirectory, message).help("stop it first: pg_ctl stop"))
        }
    }
}

/// Whether a restore into the directory has not ended.
pub fn is_unfinished(path: &Path) -> bool {
    path.join(MARKER).exists()
}
