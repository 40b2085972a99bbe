//! The documents of INTERFACE section 4, `status` and `backup list`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use recovery::{BackupId, BackupKind, BackupStatus, FileSource, LineageId};
use serde::Serialize;
use wal::{Lsn, PgTime, SystemIdentifier, TimelineId};

use crate::daemon::view::Failover;

/// How a cluster fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All is well.
    Ok,
    /// A person should look today.
    Warning,
    /// A person should look now.
    Critical,
}

/// INTERFACE section 4, `status`.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// How it fares.
    pub state: State,
    /// Why it is not ok, worst first.
    pub reasons: Vec<String>,
    /// The number that initdb gave.
    pub system_identifier: Option<SystemIdentifier>,
    /// Under which lineage it is stored.
    pub lineage: Option<LineageId>,
    /// `17.5`
    pub postgres_version: Option<String>,
    /// The timeline that is received, else the newest stored one.
    pub timeline: Option<TimelineId>,
    /// Where WAL comes from.
    pub primary: Option<Primary>,
    /// The WAL.
    pub wal: WalSummary,
    /// Our slot on every member that could be asked.
    pub slots: Vec<SlotSummary>,
    /// What can be recovered.
    pub window: WindowSummary,
    /// Base backups.
    pub backups: BackupsSummary,
    /// The repository.
    pub repository: RepositorySummary,
    /// Changes of the primary.
    pub failovers: Vec<Failover>,
    /// WAL of timelines that were left, beyond where they were left: perhaps nowhere else.
    pub fork_tails: Vec<ForkTail>,
}

/// WAL beyond a fork.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ForkTail {
    /// The timeline to name as `--timeline`.
    pub timeline: TimelineId,
    /// Where it was left.
    pub from_lsn: Lsn,
    /// Where what is held of it ends.
    pub to_lsn: Lsn,
}

/// Where WAL comes from.
#[derive(Clone, Debug, Serialize)]
pub struct Primary {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// The WAL of a cluster.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WalSummary {
    /// Whether it flows.
    pub streaming: bool,
    /// What the pipeline does: `streaming`, `connecting`, …; null without a daemon.
    pub state: Option<&'static str>,
    /// What is wrong.
    pub error: Option<String>,
    /// First byte that has not been received.
    pub received_lsn: Option<Lsn>,
    /// First byte that is not durable here.
    pub flushed_lsn: Option<Lsn>,
    /// End of whole segments in the repository.
    pub archived_lsn: Option<Lsn>,
    /// End of what the repository holds, tails included.
    pub shipped_lsn: Option<Lsn>,
    /// How far the repository is behind the server.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest commit that is not in the repository.
    pub rpo_seconds: Option<f64>,
    /// The last commit in the repository.
    pub last_commit_at: Option<PgTime>,
    /// Files waiting here.
    pub spool_segments: Option<u64>,
    /// Bytes waiting here.
    pub spool_bytes: Option<u64>,
    /// Bytes that may still wait here.
    pub spool_free_bytes: Option<u64>,
    /// When no more can wait here, if it goes on filling as it does; null while it does not.
    pub spool_full_seconds: Option<f64>,
}

/// Our slot on one member.
#[derive(Clone, Debug, Serialize)]
pub struct SlotSummary {
    /// Its name.
    pub name: String,
    /// The member.
    pub host: String,
    /// Whether a connection uses it.
    pub active: Option<bool>,
    /// `reserved`, `extended`, `unreserved`, `lost`, `missing`.
    pub wal_status: Option<String>,
    /// WAL that the member keeps for it.
    pub retained_bytes: Option<u64>,
    /// WAL that can be written before it is in danger; null without a limit.
    pub safe_wal_bytes: Option<i64>,
}

/// What can be recovered: the range that ends last.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WindowSummary {
    /// First moment.
    pub from: Option<PgTime>,
    /// Last moment.
    pub to: Option<PgTime>,
    /// Missing stretches of WAL.
    pub gaps: usize,
}

/// Base backups.
#[derive(Clone, Debug, Serialize)]
pub struct BackupsSummary {
    /// Committed ones.
    pub count: usize,
    /// Those in which damage was found.
    pub damaged: usize,
    /// The newest.
    pub last: Option<BackupSummary>,
    /// The one in progress.
    pub running: Option<RunningSummary>,
    /// When the next one starts by itself.
    pub next_at: Option<DateTime<Utc>>,
    /// Why the last run failed.
    pub error: Option<String>,
}

/// A base backup in progress.
#[derive(Clone, Debug, Serialize)]
pub struct RunningSummary {
    /// Its name.
    pub id: Option<BackupId>,
    /// When it was started.
    pub started_at: PgTime,
    /// What it is doing.
    pub phase: String,
    /// Bytes read.
    pub done_bytes: u64,
    /// Bytes expected.
    pub total_bytes: Option<u64>,
}

/// INTERFACE section 4, an element of `backup list`.
#[derive(Clone, Debug, Serialize)]
pub struct BackupSummary {
    /// Its name.
    pub id: Option<BackupId>,
    /// Its cluster.
    pub cluster: String,
    /// Its lineage.
    pub lineage: Option<LineageId>,
    /// Where it stands.
    pub status: BackupStatus,
    /// How it was read; `None` when its manifest cannot be read.
    pub kind: Option<BackupKind>,
    /// From where: `stream` or `files`; `None` while it runs.
    pub source: Option<FileSource>,
    /// When it started.
    pub started_at: Option<PgTime>,
    /// When it ended.
    pub stopped_at: Option<PgTime>,
    /// Where replay starts.
    pub start_lsn: Option<Lsn>,
    /// From where on it can be recovered.
    pub stop_lsn: Option<Lsn>,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
    /// `17.5`
    pub postgres_version: Option<String>,
    /// Bytes of its files.
    pub size_bytes: Option<u64>,
    /// Compressed bytes of all it refers to.
    pub stored_bytes: Option<u64>,
    /// Bytes that it added.
    pub new_bytes: Option<u64>,
    /// Number of files.
    pub files: Option<u64>,
    /// Pinned by hand.
    pub keep: bool,
    /// Whether damage was found: on the server when it was taken, or by a verification.
    pub damaged: bool,
    /// Why its manifest cannot be read: then it is never chosen, and nothing else is known of it.
    pub problem: Option<String>,
    /// When it was last read whole and found right.
    pub verified_at: Option<PgTime>,
    /// What people wrote on it.
    pub annotations: BTreeMap<String, String>,
    /// The last moment that is reached from it.
    pub recoverable_to: Option<PgTime>,
}

impl BackupSummary {
    /// A backup of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self {
            id: None,
            cluster: String::new(),
            lineage: None,
            status: BackupStatus::Failed,
            kind: None,
            source: None,
            started_at: None,
            stopped_at: None,
            start_lsn: None,
            stop_lsn: None,
            timeline: None,
            postgres_version: None,
            size_bytes: None,
            stored_bytes: None,
            new_bytes: None,
            files: None,
            keep: false,
            damaged: false,
            problem: None,
            verified_at: None,
            annotations: BTreeMap::new(),
            recoverable_to: None,
        }
    }
}

/// The repository.
#[derive(Clone, Debug, Serialize)]
pub struct RepositorySummary {
    /// Where it is.
    pub location: String,
    /// What is wrong with it.
    pub error: Option<String>,
    /// Bytes of base backups.
    pub base_bytes: Option<u64>,
    /// Bytes of WAL.
    pub wal_bytes: Option<u64>,
}
