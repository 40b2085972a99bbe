//! What can be recovered, and from what.
//!
//! This crate is pure: a [`Catalog`] is an immutable snapshot of what a repository holds of one lineage; from it follow
//! the moments that can be recovered ([`window()`]), the plan of one recovery or the reason why it is not possible
//! ([`plan()`]), and the settings that make PostgreSQL do it. Where a decision depends on what is written in the WAL, it
//! asks: see [`Facts`].

mod backup;
mod branch;
mod catalog;
mod data_path;
mod facts;
mod locate;
mod not_recoverable;
pub mod pg_manifest;
mod plan;
mod refresh;
mod required_wal;
mod select;
pub mod settings;
mod standby;
mod target;
pub mod time_text;
mod window;

pub use backup::{
    Backup, BackupId, BackupKind, BackupStatus, FileSource, ParseBackupIdError, Tablespace, UnreadableBackup,
};
pub use branch::{Branch, SegmentSource, Stretch, branches, live_timeline, parting};
pub use catalog::{Catalog, LineageId, LostWal, ParseLineageIdError, TailEnd};
pub use data_path::{DataPath, InvalidDataPath};
pub use facts::{Answer, CommitsAround, Facts, LastSettled, Question, RecordSpan, WalEnd};
pub use not_recoverable::NotRecoverable;
pub use plan::{NoPlan, Note, RecoveryPlan, StopAt, plan};
pub use refresh::{DeltaReason, NoRefresh, OldDirectory, Refresh, RefreshWay, refresh};
pub use required_wal::{RequiredWal, required_wal};
pub use standby::{NoStandby, standby_timeline};
pub use target::{RecoveryRequest, RecoveryTarget, TargetAction, TargetTimeline};
pub use window::{Moment, RecoverableRange, TimelineFork, Window, WindowGap, window};
