//! Standbys from the repository: made, and brought back, without reading a byte of the data from the primary.
//!
//! [`plan`] asks the primary who it is, finds the branch that leads to it and its slot, and plans the restore; [`apply`] carries
//! that out and makes the slot. A primary that is down is done without. What is written follows the primary: the files come from
//! the newest backup, the WAL up to now from `pgvault wal fetch`, and what comes then from the primary through the slot.

mod apply;
mod branch;
mod bridge;
mod old;
mod plan;
mod primary;
mod refresh;
mod replay;
mod slot;

pub use apply::{StandbyOutcome, apply};
pub use plan::{StandbyPlan, StandbyRequest, plan};
pub use primary::{Found, Primary};
pub use refresh::{RefreshOutcome, RefreshPlan, Renewal, apply_refresh, plan_refresh};
pub use replay::Replay;
pub use slot::{SlotStep, derived_name};
