//! Everything that is known of one cluster at one moment: what status, metrics and checks are made from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use recovery::{Backup, BackupId, Catalog, UnreadableBackup, Window};
use wal::{Lsn, PgTime, TimelineId};

use super::slots::SlotTrouble;
use crate::config::Schedule;
use crate::error::Error;
use crate::patroni::Topology;
use crate::primary::ServerVersion;
use crate::primary::sql::{ReplicationRow, RoleRights, ServerSettings, SlotRow};
use crate::wal_pipeline::{self, WalStatus};

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
    /// Keys that are set for it and do nothing in this version.
    pub without_effect: Vec<String>,
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
    /// Its members, in the order of the conninfo; then those that only Patroni names.
    pub members: Vec<Member>,
    /// Whether the slots are ours to make; false: the HA manager owns them.
    pub create_slot: bool,
    /// What Patroni tells; `None` when it is not to be asked.
    pub patroni: Option<Topology>,
    /// Base backups of this daemon.
    pub backup: BackupActivity,
    /// The newest one that was committed: known before the repository is listed again.
    pub last_committed: Option<Backup>,
    /// Changes of the primary that this daemon has followed.
    pub failovers: Vec<Failover>,
    /// When all stored WAL was last read and found whole.
    pub wal_verified: Option<DateTime<Utc>>,
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
    /// When each backup was last read whole and found right.
    pub verified: BTreeMap<BackupId, PgTime>,
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
    /// The role that we log in as.
    pub role: String,
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
    /// What our role may do.
    pub rights: Option<RoleRights>,
    /// How far its clock is ahead of ours, in milliseconds.
    pub clock_ahead_ms: Option<i64>,
    /// Why our slot cannot be kept on it, when it cannot.
    pub slot_trouble: Option<SlotTrouble>,
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
    /// Why the server sends the files, where they were to be read from its data directory.
    pub not_files: Option<String>,
    /// Why everything is read, where less might have been.
    pub reason: Option<String>,
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

impl From<&wal_pipeline::Failover> for Failover {
    fn from(failover: &wal_pipeline::Failover) -> Self {
        let text = |(host, port): &(String, u16)| format!("{host}:{port}");
        Self {
            at: failover.at,
            from: failover.from.as_ref().map(text),
            to: Some(text(&failover.to)),
            lsn: failover.lsn,
            timeline: failover.timeline,
            gap: failover.gap,
        }
    }
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

    /// What tells a member from the others: its host, with the port where several members share the host.
    pub fn label_of(&self, member: &Member) -> String {
        if self.members.iter().filter(|other| other.host == member.host).count() > 1 {
            format!("{}:{}", member.host, member.port)
        } else {
            member.host.clone()
        }
    }

    /// Committed backups, oldest first.
    pub fn backups(&self) -> &[Backup] {
        self.stored.as_ref().map_or(&[], |stored| &stored.catalog.backups)
    }

    /// Committed backups whose manifest cannot be read.
    pub fn unreadable_backups(&self) -> &[UnreadableBackup] {
        self.stored.as_ref().map_or(&[], |stored| &stored.catalog.unreadable)
    }

    /// The rows of our slot: member and row.
    pub fn slots(&self) -> impl Iterator<Item = (&Member, &SlotRow)> {
        self.members.iter().flat_map(move |member| {
            let rows = member.slots.iter().flatten();
            rows.filter(|row| Some(&row.name) == self.slot.as_ref()).map(move |row| (member, row))
        })
    }
}

#[cfg(test)]
pub(super) mod samples {
    //! Views for tests.

    use std::collections::BTreeMap;

    use recovery::{Backup, BackupKind, BackupStatus, FileSource, LineageId, Moment, RecoverableRange};
    use wal::{Coverage, PgTime, SegmentSize, SystemIdentifier};

    use super::*;
    use crate::config::values;
    use crate::wal_pipeline::WalState;

    pub(crate) const NOW: &str = "2026-11-20T12:00:00Z";

    pub(crate) fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    /// A cluster of which nothing is known but its configuration.
    pub(crate) fn unknown() -> ClusterView {
        let schedule =
            Schedule { cron: values::cron("0 3 * * *").unwrap(), zone: chrono_tz::UTC, text: "0 3 * * *".to_owned() };
        ClusterView {
            name: "main".to_owned(),
            slot: Some("pgvault".to_owned()),
            max_rpo: Duration::from_secs(5),
            synchronous: false,
            application_name: "pgvault".to_owned(),
            schedule: Some(schedule),
            without_effect: Vec::new(),
            wal: None,
            down_since: None,
            stored: None,
            location: "file:///srv/pgvault".to_owned(),
            repository_error: None,
            members: Vec::new(),
            create_slot: true,
            patroni: None,
            backup: BackupActivity::default(),
            last_committed: None,
            failovers: Vec::new(),
            wal_verified: None,
        }
    }

    /// A backup that ended at this time.
    pub(crate) fn backup(stopped_at: &str) -> Backup {
        let stopped_at = PgTime::from(at(stopped_at));
        Backup {
            id: BackupId::new(stopped_at, 1),
            status: BackupStatus::Ok,
            kind: BackupKind::Full,
            source: FileSource::Stream,
            system_identifier: SystemIdentifier::new(7),
            postgres_version: 170_005,
            timeline: TimelineId::FIRST,
            start_lsn: Lsn::new(0x200_0028),
            stop_lsn: Lsn::new(0x200_0120),
            started_at: stopped_at,
            stopped_at,
            size_bytes: 1000,
            stored_bytes: 500,
            new_bytes: 100,
            files: 10,
            tablespaces: Vec::new(),
            keep: false,
            damaged: false,
            annotations: BTreeMap::new(),
            server_settings: BTreeMap::new(),
        }
    }

    /// A repository with these backups, recoverable from the first on.
    pub(crate) fn stored(backups: Vec<Backup>) -> Arc<Stored> {
        let moment = |lsn: u64, time: PgTime| Moment { time, lsn: Lsn::new(lsn), timeline: TimelineId::FIRST };
        let ranges = backups.first().map(|first| RecoverableRange {
            from: moment(0x200_0120, first.stopped_at),
            to: moment(0x500_0000, PgTime::from(at(NOW))),
            first_backup: first.id.clone(),
            branch: TimelineId::FIRST,
        });
        let catalog = Catalog {
            cluster: "main".to_owned(),
            lineage: LineageId { system_identifier: SystemIdentifier::new(7), number: 1 },
            segment_size: SegmentSize::new(16 << 20).unwrap(),
            backups,
            unreadable: Vec::new(),
            coverage: Coverage::new(),
            tails: Vec::new(),
            histories: BTreeMap::new(),
            lost: Vec::new(),
        };
        let window = Window { ranges: ranges.into_iter().collect(), ..Window::default() };
        Arc::new(Stored {
            read_at: at(NOW),
            catalog,
            window,
            verified: BTreeMap::new(),
            bytes: StoredBytes { base: 1, wal: 2, meta: 3 },
        })
    }

    /// A primary as pgvault wants it.
    pub(crate) fn primary() -> Member {
        Member {
            host: "pg1".to_owned(),
            port: 5432,
            role: "pgvault".to_owned(),
            version: Some(ServerVersion::new(170_005)),
            in_recovery: Some(false),
            settings: Some(ServerSettings {
                wal_level: Some("replica".to_owned()),
                max_slot_wal_keep_size: Some(Some(8 << 30)),
                max_wal_senders: Some(10),
                max_replication_slots: Some(10),
                ..ServerSettings::default()
            }),
            slots: Some(vec![SlotRow {
                name: "pgvault".to_owned(),
                physical: true,
                active: true,
                wal_status: Some("reserved".to_owned()),
                restart_lsn: Some(Lsn::new(0x500_0000)),
                safe_wal_size: Some(8 << 30),
                invalidation_reason: None,
            }]),
            replication: Some(Vec::new()),
            current_lsn: Some(Lsn::new(0x500_0148)),
            rights: Some(RoleRights { superuser: false, replication: true, monitor: true }),
            clock_ahead_ms: Some(3),
            slot_trouble: None,
            error: None,
        }
    }

    /// A cluster with which all is well.
    pub(crate) fn well() -> ClusterView {
        let wal = WalStatus {
            state: WalState::Streaming,
            timeline: Some(TimelineId::FIRST),
            source: Some(("pg1".to_owned(), 5432)),
            primary: Some(("pg1".to_owned(), 5432)),
            postgres_version: Some(170_005),
            received: Some(Lsn::new(0x500_0148)),
            flushed: Some(Lsn::new(0x500_0148)),
            archived: Some(Lsn::new(0x500_0000)),
            shipped: Some(Lsn::new(0x500_0100)),
            server_end: Some(Lsn::new(0x500_0148)),
            ..WalStatus::default()
        };
        ClusterView {
            wal: Some(wal),
            stored: Some(stored(vec![backup("2026-11-20T03:05:00Z")])),
            members: vec![primary()],
            ..unknown()
        }
    }
}
