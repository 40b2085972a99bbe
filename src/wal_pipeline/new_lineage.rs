//! Another history under the same name: begun only when a person asks for it.

use recovery::LineageId;
use tokio::task::spawn_blocking;
use wal::PgTime;

use super::home::Home;
use super::{WalParts, WalSettings};
use crate::error::{Error, Result};
use crate::primary::ConnectOptions;
use crate::receiver;
use crate::repository::{ClusterRepository, RepositoryError};
use crate::spool::SpoolError;

/// What asking for a new lineage came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewLineage {
    /// The server's WAL could not be joined to what is stored: this lineage was begun for it.
    Begun(LineageId),
    /// The server continues this lineage, the newest one: nothing was begun.
    Continues(LineageId),
}

/// Begins a lineage for the server that is there now, where its WAL cannot be joined to the newest one that is stored.
///
/// So the same command line does nothing when it is run again. No pipeline of the cluster may run meanwhile. What is stored
/// stays as it is; WAL of the lineage before that still waits in its spool folder stays there.
///
/// # Errors
/// When the server or the repository cannot be reached; nothing has changed then.
pub async fn new_lineage(parts: &WalParts, repository: &ClusterRepository) -> Result<NewLineage> {
    let WalSettings { cluster, conninfo, application_name, spool_dir, .. } = &parts.settings;
    let doing = format!("cannot begin a new lineage of \"{cluster}\"");
    let options = ConnectOptions::new(conninfo.clone(), application_name.clone());
    let met = receiver::meet(&options, parts.witness.clone(), &doing).await?;
    let identity = met.identity();
    drop(met);
    let now = PgTime::from(parts.clock.now());
    let newest = repository.newest_lineage().await?.map(|lineage| lineage.id());
    let (lineage, begun) = match repository.lineage_for(&identity, false, now).await {
        // A lineage before the newest one is over, even for a server that it would fit.
        Ok(found) if newest.is_none_or(|newest| newest == found.id()) => (found, newest.is_none()),
        Ok(_) | Err(RepositoryError::Lineage(_)) => (repository.lineage_for(&identity, true, now).await?, true),
        Err(error) => return Err(error.into()),
    };
    let home = Home::of(&lineage);
    let dir = spool_dir.join(cluster.as_str());
    let moved = spawn_blocking(move || home.become_newest(&dir));
    moved.await.unwrap_or_else(|error| Err(Error::from(SpoolError::Helper(error.to_string()))))?;
    Ok(if begun { NewLineage::Begun(lineage.id()) } else { NewLineage::Continues(lineage.id()) })
}
