//! Base backups: from BASE_BACKUP to a committed manifest.

mod cut;
mod error;
mod manifest_check;
mod members;
mod pages;
mod progress;
pub mod tar;

pub use progress::{BackupPhase, BackupProgress, ProgressSender};
