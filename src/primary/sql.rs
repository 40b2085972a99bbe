//! Ordinary SQL sessions: what the replication protocol does not tell. Everything here is optional for pgvault: a role
//! with REPLICATION alone gets less, never an outage.

use std::time::Duration;

use wal::Lsn;

mod handover;
mod member_slot;
mod online_backup;
mod session;
mod settings;

pub use member_slot::{MemberLook, MemberSlot};
pub use online_backup::{ServerInstance, StoppedBackup, grant};
pub use session::{SqlSession, connect};

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
    /// Why it is lost, in the server's word: `wal_removed`, `idle_timeout`; `None` before PostgreSQL 17.
    pub invalidation_reason: Option<String>,
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

/// What the role may do, beyond connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleRights {
    /// It is a superuser.
    pub superuser: bool,
    /// It has REPLICATION.
    pub replication: bool,
    /// It is a member of `pg_monitor`.
    pub monitor: bool,
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
    pub wal_sender_timeout: Option<Duration>,
    /// `idle_replication_slot_timeout` (18+); zero = off.
    pub idle_replication_slot_timeout: Option<Duration>,
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
