//! Ordinary SQL sessions: what the replication protocol does not tell. Everything here is optional for pgvault: a role
//! with REPLICATION alone gets less, never an outage.

use wal::Lsn;

use super::connect::ConnectOptions;
use super::conninfo::Host;
use super::error::PgError;
use super::slot::SlotName;
use super::version::ServerVersion;

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRow {
    /// Its name.
    pub name: String,
    /// Whether it is physical.
    pub physical: bool,
    /// Whether a connection uses it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` when it never reserved WAL.
    pub wal_status: Option<String>,
    /// First byte of WAL that it keeps.
    pub restart_lsn: Option<Lsn>,
    /// How many bytes can be written before it is in danger of being lost; `None` without `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
}

/// A row of `pg_stat_replication`. What the role may not see is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationRow {
    /// The name that the receiver gave itself.
    pub application_name: Option<String>,
    /// Its address; `None` on a unix socket.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup`, ….
    pub state: Option<String>,
    /// `async`, `sync`, `quorum` or `potential`.
    pub sync_state: Option<String>,
    /// What was sent to it.
    pub sent_lsn: Option<Lsn>,
    /// What it reported as durable.
    pub flush_lsn: Option<Lsn>,
}

/// Settings that decide whether backups and streaming work. `None`: not visible to the role, or unknown to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    /// `wal_level`.
    pub wal_level: Option<String>,
    /// `max_slot_wal_keep_size` in bytes; `Some(None)` = no limit.
    pub max_slot_wal_keep_size: Option<Option<u64>>,
    /// `wal_keep_size` in bytes.
    pub wal_keep_size: Option<u64>,
    /// `wal_sender_timeout`; zero = off.
    pub wal_sender_timeout: Option<std::time::Duration>,
    /// `idle_replication_slot_timeout` (18+); zero = off.
    pub idle_replication_slot_timeout: Option<std::time::Duration>,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: Option<String>,
    /// `synchronous_commit`.
    pub synchronous_commit: Option<String>,
    /// `max_connections`.
    pub max_connections: Option<u32>,
    /// `max_worker_processes`.
    pub max_worker_processes: Option<u32>,
    /// `max_wal_senders`.
    pub max_wal_senders: Option<u32>,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: Option<u32>,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: Option<u32>,
    /// `max_replication_slots`.
    pub max_replication_slots: Option<u32>,
    /// `data_checksums`.
    pub data_checksums: Option<bool>,
    /// `full_page_writes`.
    pub full_page_writes: Option<bool>,
    /// `summarize_wal` (17+).
    pub summarize_wal: Option<bool>,
    /// `data_directory`; needs pg_monitor.
    pub data_directory: Option<String>,
}

/// One SQL session with one server.
#[derive(Debug)]
pub struct SqlSession {}

/// Connects to the database of the conninfo, or `postgres`, on the first suitable host.
pub async fn connect(options: &ConnectOptions) -> Result<SqlSession, PgError> {
    todo!("{options:?}")
}

impl SqlSession {
    /// The host that answered.
    pub fn host(&self) -> &Host {
        todo!()
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        todo!()
    }

    /// Whether the connection still stands.
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// `pg_is_in_recovery()`.
    pub async fn is_in_recovery(&self) -> Result<bool, PgError> {
        todo!()
    }

    /// All replication slots; `None` when the role may not see them.
    pub async fn slots(&self) -> Result<Option<Vec<SlotRow>>, PgError> {
        todo!()
    }

    /// The receivers that stream now; `None` when the role may not see them.
    pub async fn replication(&self) -> Result<Option<Vec<ReplicationRow>>, PgError> {
        todo!()
    }

    /// The settings that matter.
    pub async fn settings(&self) -> Result<ServerSettings, PgError> {
        todo!()
    }

    /// End of WAL: the insert position of a primary, the replay position of a standby.
    pub async fn current_lsn(&self) -> Result<Option<Lsn>, PgError> {
        todo!()
    }

    /// `pg_switch_wal()`: the end of the segment that was left. `None` without the right to.
    pub async fn switch_wal(&self) -> Result<Option<Lsn>, PgError> {
        todo!()
    }

    /// `pg_create_restore_point(name)`: where it was written. `None` without the right to.
    pub async fn create_restore_point(&self, name: &str) -> Result<Option<Lsn>, PgError> {
        todo!("{name}")
    }

    /// `pg_create_physical_replication_slot(name, immediately_reserve => true)`. `None` without the right to.
    pub async fn create_physical_slot(&self, name: &SlotName) -> Result<Option<Lsn>, PgError> {
        todo!("{name}")
    }

    /// `pg_replication_slot_advance(name, to)`: where the slot stands then. `None` without the right to.
    pub async fn advance_slot(&self, name: &SlotName, to: Lsn) -> Result<Option<Lsn>, PgError> {
        todo!("{name} {to}")
    }
}
