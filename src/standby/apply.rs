//! Carrying the plan of a standby out.

use super::plan::StandbyPlan;
use super::slot::{self, SlotStep};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::primary::SlotName;
use crate::repository::LineageRepository;
use crate::restore::{self, Effort, RestoreOutcome, RestoreProgressSender};

/// A standby that is complete.
#[derive(Clone, Debug)]
pub struct StandbyOutcome {
    /// Its files.
    pub restore: RestoreOutcome,
    /// Its slot and what was done about it. An error leaves the standby as good as without a primary that answers: it replays
    /// from the repository until the slot is there.
    pub slot: Option<(SlotName, std::result::Result<SlotStep, Error>)>,
}

/// Restores, then makes the slot.
///
/// In this order, because whatever interrupts the restore must leave no slot behind that keeps WAL for nobody and fills the
/// primary's disk. WAL that the primary removes meanwhile reaches the standby from the repository.
pub async fn apply(
    plan: &StandbyPlan,
    lineage: &LineageRepository,
    effort: Effort,
    progress: &RestoreProgressSender,
    clock: &dyn Clock,
) -> Result<StandbyOutcome> {
    let restore = restore::apply(&plan.restore, lineage, effort, progress, clock).await?;
    let slot = match (&plan.slot, &plan.options) {
        (Some((name, _)), Some(options)) => Some((name.clone(), slot::make(options, name, plan.ours.as_ref()).await)),
        _ => None,
    };
    Ok(StandbyOutcome { restore, slot })
}
