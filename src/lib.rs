//! pgvault: a backup server for PostgreSQL.
//!
//! One daemon streams WAL from a primary through a replication slot, takes base backups, ships both to a repository
//! and drives recoveries to a moment. The modules stand in the order in which a byte of WAL meets them:
//!
//! ```text
//! primary -> receiver -> spool -> archiver -> codec -> repository -> storage
//! ```
//!
//! The pure crates [`wal`], [`recovery`] and [`retention`] decide; this one does.

// The way of the WAL.
pub mod archiver;
pub mod codec;
pub mod patroni;
pub mod primary;
pub mod receiver;
pub mod repository;
pub mod spool;
pub mod storage;
pub mod wal_pipeline;

// Operations: each has one narrative function; those that destroy or overwrite are plan() and apply().
pub mod backup;
pub mod backup_delete;
pub mod backup_verify;
pub mod repo_check;
pub mod restore;
pub mod standby;
pub mod wal_fetch;
pub mod wal_verify;

// How it runs.
pub mod cli;
pub mod config;
pub mod daemon;

// Small tools.
pub mod clock;
pub mod durable;
pub mod error;
pub mod fault;
