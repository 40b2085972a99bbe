//! The adapter to PostgreSQL: how to reach a server, the replication protocol, and ordinary SQL sessions.
//!
//! ```text
//! Conninfo -> dial (TCP, unix socket) -> tls -> auth -> Wire -> ReplicationConnection -> WalStream | BaseBackupStream
//!                                                          \-> SqlSession (tokio-postgres on the same connection)
//! ```
//!
//! PostgreSQL 14 to 18; newer majors are allowed with a warning, older ones refused.

mod auth;
mod base_backup;
mod connect;
pub mod conninfo;
mod dial;
pub mod error;
pub mod message;
mod replication;
mod slot;
pub mod sql;
mod stream;
mod tls;
mod transport;
mod version;
mod wire;

pub use base_backup::{
    BackupEvent, BaseBackupOptions, BaseBackupStream, CheckpointMode, ManifestChecksums, MaxRate, Tablespace,
};
pub use connect::{ConnectOptions, Deadlines};
pub use conninfo::{
    AuthMethod, ChannelBinding, Conninfo, ConninfoError, Environment, Host, HostName, RequireAuth, SslMode,
    SslNegotiation, TargetSessionAttrs,
};
pub use error::{HostFailure, PgError, Refusal, ServerError, SqlState};
pub use message::{StatusUpdate, StreamMessage};
pub use replication::{IdentifySystem, ReplicationConnection};
pub use slot::{InvalidSlotName, SlotName, SlotPosition};
pub use stream::{StatusWriter, StreamEvent, WalStream, WalStreamReader};
pub use version::ServerVersion;

/// Decoders of bytes from outside, for fuzz targets: none of them may panic, whatever the bytes are.
pub mod fuzz;
