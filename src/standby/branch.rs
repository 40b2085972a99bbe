//! The branch on which the standby is made; a failover of a moment ago is waited for.

use std::time::Duration;

use recovery::{NoStandby, standby_timeline};
use wal::{TimelineHistory, TimelineId};

use crate::error::{Error, ErrorCode, Result};
use crate::repository::LineageRepository;

/// A daemon that runs has the history and the first WAL of a new timeline stored within seconds.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(2);

/// The timeline of the standby; see [`standby_timeline`].
pub(super) async fn find(lineage: &LineageRepository, primary: Option<&TimelineHistory>) -> Result<TimelineId> {
    let mut looks = 0;
    loop {
        let catalog = lineage.catalog().await?;
        looks += 1;
        match standby_timeline(&catalog, primary) {
            Ok(timeline) => return Ok(timeline),
            Err(NoStandby::NotStoredYet { .. } | NoStandby::NoWalYet { .. }) if looks < LOOKS => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(reason) => return Err(refused(lineage.cluster().as_str(), &reason)),
        }
    }
}

fn refused(cluster: &str, reason: &NoStandby) -> Error {
    let refuse = |code| Error::new(code, format!("no standby of {cluster} can be made: {reason}"));
    match reason {
        NoStandby::NothingStored => {
            refuse(ErrorCode::NoBackup).help("start the daemon, which streams WAL and takes backups: pgvault serve")
        }
        NoStandby::NotStoredYet { .. } | NoStandby::NoWalYet { .. } => refuse(ErrorCode::NoBackup)
            .because("the standby would not find the way to its primary's timeline in the archive")
            .help(format!("see whether the daemon follows the primary: pgvault status {cluster}")),
        NoStandby::Left { .. } => refuse(ErrorCode::TimelineConflict)
            .because("it is a former primary: a standby of it would not be one of the cluster")
            .help("name the present primary: --primary-conninfo"),
        NoStandby::OtherHistory { .. } => {
            refuse(ErrorCode::ForeignCluster).help(format!("see what is stored: pgvault window {cluster}"))
        }
    }
}
