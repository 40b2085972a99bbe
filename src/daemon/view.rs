//! Everything that is known of one cluster at one moment: what status, metrics and checks are made from.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use recovery::{Backup, BackupId, Catalog, Window};
use wal::{Lsn, TimelineId};

use crate::config::Schedule;
use crate::error::Error;
use crate::primary::ServerVersion;
use crate::primary::sql::{ReplicationRow, ServerSettings, SlotRow};
use crate::wal_pipeline::WalStatus;

/// One cluster, now.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// The slot that it is configured with.
    pub slot: Option<String>,
    /// How often tails are shipped; zero: whole segments only.
    pub max_rpo: Duration,
    /// Whether commits are meant to wait for us.
    pub synchronous: bool,
    /// The name for `synchronous_standby_names`.
    pub application_name: String,
    /// When backups are taken.
    pub schedule: Option<Schedule>,
    /// What its WAL pipeline tells; `None` when no daemon runs.
    pub wal: Option<WalStatus>,
    /// Since when it has not been streaming, while it has not.
    pub down_since: Option<DateTime<Utc>>,
    /// What the repository holds, as last read.
    pub stored: Option<Arc<Stored>>,
    /// Where the repository is.
    pub location: String,
    /// Why the repository cannot be used at present.
    pub repository_error: Option<Error>,
    /// Its members, in the order of the conninfo.
    pub members: Vec<Member>,
    /// Base backups of this daemon.
    pub backup: BackupActivity,
    /// Changes of the primary that this daemon has followed.
    pub failovers: Vec<Failover>,
}

/// What the repository holds of a cluster's newest lineage.
#[derive(Clone, Debug)]
pub struct Stored {
    /// When it was read.
    pub read_at: DateTime<Utc>,
    /// The catalog.
    pub catalog: Catalog,
    /// What can be recovered.
    pub window: Window,
    /// Bytes of base backups, WAL and everything else.
    pub bytes: StoredBytes,
}

/// Stored bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredBytes {
    /// Packs of base backups.
    pub base: u64,
    /// Segments and tails.
    pub wal: u64,
    /// Manifests, tables, marks, histories.
    pub meta: u64,
}

/// One member of a cluster, by SQL. What the role may not see, or could not be asked, is `None`.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Host as configured.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Why it could not be asked; no secret.
    pub error: Option<Error>,
    /// Its version.
    pub version: Option<ServerVersion>,
    /// Whether it is a standby.
    pub in_recovery: Option<bool>,
    /// Its settings.
    pub settings: Option<ServerSettings>,
    /// Its slots.
    pub slots: Option<Vec<SlotRow>>,
    /// Its receivers.
    pub replication: Option<Vec<ReplicationRow>>,
    /// End of its WAL.
    pub current_lsn: Option<Lsn>,
}

/// Base backups as this daemon sees them.
#[derive(Clone, Debug, Default)]
pub struct BackupActivity {
    /// The one that runs.
    pub running: Option<RunningBackup>,
    /// Runs that were committed, and runs that failed.
    pub runs: (u64, u64),
    /// How long the last committed one took.
    pub last_duration: Option<Duration>,
    /// Why the last run failed; `None` once one was committed.
    pub last_error: Option<Error>,
    /// When the next one starts by itself.
    pub next_due: Option<DateTime<Utc>>,
}

/// A base backup in progress.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunningBackup {
    /// Its name, once it has one.
    pub id: Option<BackupId>,
    /// When it was started.
    pub started_at: DateTime<Utc>,
    /// What it is doing.
    pub phase: String,
    /// Bytes read from the server.
    pub done_bytes: u64,
    /// Bytes that the server expects to send, when it told.
    pub total_bytes: Option<u64>,
}

/// A change of the primary.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failover {
    /// When it was followed.
    pub at: DateTime<Utc>,
    /// The host before.
    pub from: Option<String>,
    /// The host after.
    pub to: Option<String>,
    /// Where the new timeline begins.
    pub lsn: Option<Lsn>,
    /// The new timeline.
    pub timeline: TimelineId,
    /// Whether WAL is missing at the switch.
    pub gap: bool,
}

impl ClusterView {
    /// Whether a daemon streams right now.
    pub fn streaming(&self) -> bool {
        self.wal.as_ref().is_some_and(WalStatus::streaming)
    }

    /// The member that takes writes, else the only one.
    pub fn primary(&self) -> Option<&Member> {
        let primary = self.members.iter().find(|member| member.in_recovery == Some(false));
        primary.or_else(|| self.members.first().filter(|_| self.members.len() == 1))
    }

    /// Committed backups, oldest first.
    pub fn backups(&self) -> &[Backup] {
        self.stored.as_ref().map_or(&[], |stored| &stored.catalog.backups)
    }

    /// The rows of our slot: member and row.
    pub fn slots(&self) -> impl Iterator<Item = (&Member, &SlotRow)> {
        self.members.iter().flat_map(move |member| {
            let rows = member.slots.iter().flatten();
            rows.filter(|row| Some(&row.name) == self.slot.as_ref()).map(move |row| (member, row))
        })
    }
}
