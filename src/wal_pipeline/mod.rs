//! The way of the WAL for one cluster: receiver, spool and archiver tied together, and what the daemon sees of them.

mod gap_store;
mod home;
mod ledger;
mod new_lineage;
mod parts;
mod pipeline;
mod status;
mod usage;

pub(crate) use gap_store::GapStore;
pub use home::Home;
pub use ledger::{GapRecord, Ledger};
pub use new_lineage::{NewLineage, new_lineage};
pub use parts::{WalParts, WalSettings};
pub use pipeline::WalPipeline;
pub use status::{Fact, Failover, FollowedBranch, SpoolLevel, StatusBoard, WalCounters, WalState, WalStatus};
