//! Base backups: from BASE_BACKUP to a committed manifest.
//!
//! [`run`] is the whole story; the modules stand in the order in which bytes meet them.

mod request;
mod server;

mod commit;
mod copy;
mod cut;
mod fresh;
mod manifest_check;
mod members;
mod packer;
mod pages;
mod read;
mod run;
pub mod tar;
mod upload;
mod wal_progress;
mod work;

mod error;
mod progress;

pub use copy::CopyLimits;
pub use progress::{BackupPhase, BackupProgress, ProgressSender};
pub use read::BackupStream;
pub use request::{BackupDeps, BackupRequest};
pub use run::{run, take, wait_for_wal};
pub use wal_progress::{PollRepository, WalProgress, covers};
