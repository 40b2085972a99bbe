//! What can be recovered, and from what.
//!
//! This crate is pure: a [`Catalog`] is an immutable snapshot of what a repository holds of one lineage; from it follow
//! the moments that can be recovered, the plan of one recovery, or the reason why it is not possible.

mod backup;
mod catalog;
mod data_path;

pub use backup::{Backup, BackupId, BackupKind, BackupStatus, ParseBackupIdError, Tablespace};
pub use catalog::{Catalog, LineageId, ParseLineageIdError, TailEnd};
pub use data_path::{DataPath, InvalidDataPath};
