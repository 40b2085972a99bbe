//! Another history under the same name: begun only when a person asks for it.

use std::fs;
use std::io;
use std::path::Path;

use recovery::LineageId;
use tokio::task::spawn_blocking;
use wal::{PgTime, SegmentNumber};

use super::home::Home;
use super::{WalParts, WalSettings};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::ConnectOptions;
use crate::receiver::{self, Position, ServerPosition, Start};
use crate::repository::{ClusterRepository, LineageRepository, RepositoryError};
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
    let met = receiver::meet(&options, parts.witness.clone(), cluster, &doing).await?;
    let identity = met.identity();
    let (position, standby) = (met.position.clone(), met.in_recovery);
    drop(met);
    let now = PgTime::from(parts.clock.now());
    let newest = repository.newest_lineage().await?.map(|lineage| lineage.id());
    let (lineage, begun) = match repository.lineage_for(&identity, false, now).await {
        // A lineage before the newest one is over, even for a server that it would fit.
        Ok(found) if newest.is_none() => (found, true),
        Ok(found)
            if newest == Some(found.id())
                && goes_on(&found, &position, standby).await?
                && !has_diverged(&Home::of(&found).dir(&spool_dir.join(cluster.as_str())))? =>
        {
            (found, false)
        }
        Ok(_) | Err(RepositoryError::Lineage(_)) => (repository.lineage_for(&identity, true, now).await?, true),
        Err(error) => return Err(error.into()),
    };
    let home = Home::of(&lineage);
    let dir = spool_dir.join(cluster.as_str());
    let moved = spawn_blocking(move || home.become_newest(&dir));
    moved.await.unwrap_or_else(|error| Err(Error::from(SpoolError::Helper(error.to_string()))))?;
    Ok(if begun { NewLineage::Begun(lineage.id()) } else { NewLineage::Continues(lineage.id()) })
}

/// Whether the server's WAL goes on where what is stored ends. Its histories may contradict nothing that is stored, and it may
/// still be on a timeline or a branch that was left, or have lost WAL that is stored.
async fn goes_on(lineage: &LineageRepository, server: &ServerPosition, standby: bool) -> Result<bool> {
    let catalog = lineage.catalog().await?;
    let newest = catalog.coverage.timelines().max();
    let end = newest.and_then(|timeline| catalog.coverage.ranges(timeline).map(|range| range.end).max());
    let (Some(timeline), Some(end)) = (newest, end) else { return Ok(true) };
    let size = lineage.segment_size();
    let segment_start = SegmentNumber::containing(end, size).start(size);
    let held = Position { timeline, end, segment_start };
    if server.history.timeline() == timeline && server.end < end && !standby {
        // What it once flushed and sent it has no more.
        return Ok(false);
    }
    Ok(match receiver::decide(Some(held), &catalog.history(timeline), server, size) {
        Start::First | Start::At { .. } => true,
        // A standby may still get it.
        Start::Ahead { .. } => standby,
        Start::Conflict(_) => false,
    })
}

/// Whether the server has sent other bytes than those held, on the same timeline: no history tells that.
fn has_diverged(spool: &Path) -> Result<bool> {
    let kept = spool.join("divergent");
    let failed = |error: io::Error| {
        Error::new(ErrorCode::Spool, format!("the spool in {} cannot be read: {error}", spool.display()))
    };
    let entries = match fs::read_dir(&kept) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        // Damage of our own disk is kept there as well.
        if !entry.map_err(failed)?.file_name().to_string_lossy().ends_with(".damaged") {
            return Ok(true);
        }
    }
    Ok(false)
}
