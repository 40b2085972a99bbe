//! Bringing an old data directory back: what it needs, and doing it.

use std::path::{Path, PathBuf};

use recovery::{NoRefresh, Refresh, RefreshWay, refresh};
use wal::SegmentName;

use super::apply::{StandbyOutcome, apply};
use super::plan::{self, StandbyPlan, StandbyRequest};
use super::replay::Replay;
use super::slot::{self, SlotStep};
use super::{old, primary::Found};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, SlotName};
use crate::repository::LineageRepository;
use crate::restore::{self, Effort, RestoreProgressSender};

/// How an old data directory is brought back.
#[derive(Clone, Debug)]
pub struct RefreshPlan {
    /// What is done with its files.
    pub renewal: Renewal,
    /// The primary, where one was asked.
    pub primary: Option<Found>,
    /// The slot, and what is to be done about it; `None` without one, and while the primary is away.
    pub slot: Option<(SlotName, SlotStep)>,
    /// The slot that the standby should get when its primary is back.
    pub slot_later: Option<SlotName>,
    /// WAL of the directory that its branch has left behind and that the repository does not have: it is lost with it.
    pub only_here: Vec<SegmentName>,
    options: Option<ConnectOptions>,
    ours: Option<SlotName>,
}

/// What is done with the files.
#[derive(Clone, Debug)]
pub enum Renewal {
    /// They stay: it only has to be started.
    Replay(Replay),
    /// What is wrong in them is restored, for this reason.
    Delta {
        /// The restore.
        plan: Box<StandbyPlan>,
        /// Why replaying is not enough.
        reason: String,
    },
}

/// Finds out what the directory needs; refuses, before anything is touched, what cannot be brought back.
pub async fn plan_refresh(lineage: &LineageRepository, mut request: StandbyRequest) -> Result<RefreshPlan> {
    let directory = std::path::absolute(&request.restore.directory).map_err(|error| {
        Error::new(ErrorCode::TargetDirectory, format!("{}: {error}", request.restore.directory.display()))
    })?;
    restore::refuse_running_server(&directory)?;
    let ground = plan::prepare(lineage, &request).await?;
    request.restore.delta = true;
    let (options, ours) = (request.primary.as_ref().map(|(_, options)| options.clone()), request.ours.clone());
    let slot_later = ground.slot_later(request.slot.clone());
    let (primary, slot) = (ground.found.clone(), ground.slot.clone());
    let decided = if restore::is_unfinished(&directory) {
        None
    } else {
        let old = old::read(&directory, lineage.segment_size())?;
        let catalog = lineage.catalog().await?;
        Some(refresh(&old, &catalog, ground.timeline).map_err(|reason| refused(&directory, &reason))?)
    };
    let (renewal, only_here) = match decided {
        Some(Refresh { way: RefreshWay::Replay { from, to }, stray, only_here }) => {
            if let (Some(here), Some(options)) = (ground.here(), &options)
                && !plan::reaches(options, here, to).await?
            {
                return Err(plan::out_of_reach(lineage, here, to));
            }
            let replay = Replay::new(&directory, (from, to), stray, &request, &ground)?;
            (Renewal::Replay(replay), only_here)
        }
        Some(Refresh { way: RefreshWay::Delta(reason), only_here, .. }) => {
            let plan = Box::new(plan::restored(lineage, request, ground).await?);
            (Renewal::Delta { plan, reason: reason.to_string() }, only_here)
        }
        None => {
            let plan = Box::new(plan::restored(lineage, request, ground).await?);
            (Renewal::Delta { plan, reason: "a restore into it has not ended".to_owned() }, Vec::new())
        }
    };
    Ok(RefreshPlan { renewal, primary, slot, slot_later, only_here, options, ours })
}

fn refused(directory: &Path, reason: &NoRefresh) -> Error {
    let refuse = |code| Error::new(code, format!("{} cannot be brought back: {reason}", directory.display()));
    match reason {
        NoRefresh::Foreign { .. } => refuse(ErrorCode::ForeignCluster).help("name the cluster that it belongs to"),
        NoRefresh::OtherMajor { .. } => {
            refuse(ErrorCode::Refused).help("make a new standby in another directory: pgvault standby create")
        }
        NoRefresh::IsPrimary(_) => refuse(ErrorCode::Refused)
            .because("made a standby, there would be no primary left")
            .help("start it; or promote another server first, and wait until pgvault follows that: pgvault status"),
    }
}

/// Does it. The slot is made last, as for a new standby.
pub async fn apply_refresh(
    plan: &RefreshPlan,
    lineage: &LineageRepository,
    effort: Effort,
    progress: &RestoreProgressSender,
    clock: &dyn Clock,
) -> Result<RefreshOutcome> {
    match &plan.renewal {
        Renewal::Delta { plan, .. } => {
            apply(plan, lineage, effort, progress, clock).await.map(RefreshOutcome::Restored)
        }
        Renewal::Replay(replay) => {
            let directory = replay.carry_out()?;
            let slot = match (&plan.slot, &plan.options) {
                (Some((name, _)), Some(options)) => {
                    Some((name.clone(), slot::make(options, name, plan.ours.as_ref()).await))
                }
                _ => None,
            };
            Ok(RefreshOutcome::Kept { directory, slot })
        }
    }
}

/// A directory that was brought back.
#[derive(Clone, Debug)]
pub enum RefreshOutcome {
    /// Its files stayed as they were.
    Kept {
        /// The data directory.
        directory: PathBuf,
        /// Its slot and what was done about it.
        slot: Option<(SlotName, Result<SlotStep>)>,
    },
    /// What was wrong was restored.
    Restored(StandbyOutcome),
}
