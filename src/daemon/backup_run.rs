//! One base backup: from the wish to the engine.

use std::sync::Arc;

use recovery::Backup;

use super::backups::BackupWish;
use super::cluster::Cluster;
use crate::error::{Error, ErrorCode, Result};

/// Takes a backup and tells how far it is.
pub(super) async fn take(cluster: &Arc<Cluster>, number: u64, wish: BackupWish) -> Result<Backup> {
    let _ = (cluster, number, wish);
    Err(Error::new(ErrorCode::NotAvailable, "base backups are not available in this version"))
}
