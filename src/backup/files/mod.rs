//! The second source of a backup: the data directory itself, where it can be read.
//!
//! [`choose_source`] proves that the directory is the server's and says what need not be read again, [`read_files`] is
//! the backup from `pg_backup_start` to `pg_backup_stop`. What of it is copied is `decide`, how it is gone through `walk`,
//! why a file may be left unread `noted`.

mod choose;
mod control;
mod decide;
mod directory;
mod label;
mod noted;
mod read;
mod source;
mod walk;

pub(super) use choose::{ChosenFiles, choose_source};
pub(super) use noted::{Noted, Trace};
pub(super) use read::read_files;
pub use source::{FilesAccess, try_data_directory};
