//! The way of the WAL for one cluster: receiver, spool and archiver tied together, and what the daemon sees of them.

mod ledger;
mod status;

pub use ledger::{GapRecord, Ledger};
pub use status::{Fact, SpoolLevel, StatusBoard, WalCounters, WalState, WalStatus};
