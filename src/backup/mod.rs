//! Base backups: from BASE_BACKUP to a committed manifest.
//!
//! [`run`] is the whole story; the modules stand in the order in which bytes meet them.

mod request;
mod server;

mod attempt;
mod choose;
mod commit;
mod copy;
mod cut;
mod files;
mod fresh;
mod incremental;
mod intake;
mod manifest_check;
mod members;
mod opened;
mod packer;
mod pages;
mod patch;
mod read;
mod read_back;
mod reader;
mod reference;
mod run;
pub mod tar;
mod upload;
mod wal_progress;
mod work;

mod error;
mod progress;

pub use commit::LONGEST;
pub use copy::CopyLimits;
pub use files::{FilesAccess, try_data_directory};
pub use incremental::fuzz_incremental;
pub use progress::{BackupPhase, BackupProgress, ProgressSender};
pub use read::BackupStream;
pub use request::{BackupDeps, BackupRequest, ReadKind};
pub use run::{run, take, wait_for_wal};
pub use wal_progress::{PollRepository, WalProgress, covers};
