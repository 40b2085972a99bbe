//! What making a standby will do: everything is decided and checked here, nothing is changed.

use std::time::Duration;

use recovery::settings::{Setting, StandbySettings, has_password};
use recovery::{RecoveryTarget, TargetTimeline};
use wal::{Lsn, TimelineId};

use super::primary::{self, Found, Primary};
use super::slot::{self, SlotStep};
use super::{branch, bridge};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, SlotName};
use crate::repository::LineageRepository;
use crate::restore::{self, RestorePlan, RestoreRequest};

/// The daemon stores WAL meanwhile: so often, and this long apart, is looked whether it has closed the gap to the primary.
const BRIDGE_LOOKS: u32 = 4;
const BRIDGE_PAUSE: Duration = Duration::from_secs(2);

/// What a person asks for.
#[derive(Clone, Debug)]
pub struct StandbyRequest {
    /// Where to, and what is written there. The branch and what leads to the primary are filled in by the plan.
    pub restore: RestoreRequest,
    /// How the standby reaches its primary: the words that are written, and the same understood. `None` leaves the standby to an
    /// HA manager, and the newest branch is taken.
    pub primary: Option<(String, ConnectOptions)>,
    /// The standby's slot; `None` for a standby without.
    pub slot: Option<SlotName>,
    /// The slot through which pgvault streams: never the standby's.
    pub ours: Option<SlotName>,
}

/// A standby that can be made.
#[derive(Clone, Debug)]
pub struct StandbyPlan {
    /// The restore.
    pub restore: RestorePlan,
    /// The primary, where one was asked.
    pub primary: Option<Found>,
    /// The slot, and what is to be done about it; `None` without one, and while the primary is away.
    pub slot: Option<(SlotName, SlotStep)>,
    /// The slot that the standby should get when its primary is back.
    pub slot_later: Option<SlotName>,
    pub(super) options: Option<ConnectOptions>,
    pub(super) ours: Option<SlotName>,
}

/// Plans a standby; refuses, before anything is touched, what cannot follow its primary.
pub async fn plan(lineage: &LineageRepository, request: StandbyRequest) -> Result<StandbyPlan> {
    let ground = prepare(lineage, &request).await?;
    restored(lineage, request, ground).await
}

/// What is known before it is decided how the files come.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) found: Option<Found>,
    pub(super) timeline: TimelineId,
    pub(super) slot: Option<(SlotName, SlotStep)>,
    /// What is written of the primary and the slot.
    pub(super) standby: Option<StandbySettings>,
}

impl Ground {
    pub(super) fn here(&self) -> Option<&Primary> {
        self.found.as_ref().and_then(Found::here)
    }

    /// The slot that was wanted and cannot be made now.
    pub(super) fn slot_later(&self, wanted: Option<SlotName>) -> Option<SlotName> {
        wanted.filter(|_| matches!(self.found, Some(Found::Away(_))))
    }
}

/// Asks the primary, and finds the branch and the slot.
pub(super) async fn prepare(lineage: &LineageRepository, request: &StandbyRequest) -> Result<Ground> {
    let StandbyRequest { primary, slot: wanted, ours, .. } = request;
    if let Some((words, _)) = primary {
        refuse_secrets(words)?;
    }
    let found = match primary {
        Some((_, options)) => Some(primary::look_until_free(options, wanted.as_ref()).await?),
        None => None,
    };
    let here = found.as_ref().and_then(Found::here);
    if let Some(here) = here {
        refuse_foreign(lineage, here)?;
    }
    let timeline = branch::find(lineage, here.map(|primary| &primary.history)).await?;
    let slot = match (here, wanted) {
        (Some(Primary { slot: Some(found), host, .. }), Some(name)) => {
            Some((name.clone(), slot::decide(*found, name, &host.to_string(), ours.as_ref())?))
        }
        _ => None,
    };
    let standby = primary.as_ref().map(|(words, _)| StandbySettings {
        primary_conninfo: words.clone(),
        slot: slot.as_ref().map(|(name, _)| name.to_string()),
    });
    Ok(Ground { found, timeline, slot, standby })
}

/// The plan of a standby whose files come from a backup.
pub(super) async fn restored(
    lineage: &LineageRepository,
    request: StandbyRequest,
    ground: Ground,
) -> Result<StandbyPlan> {
    let StandbyRequest { mut restore, primary, slot: wanted, ours } = request;
    restore.recovery.target = RecoveryTarget::Latest;
    restore.recovery.timeline = Some(TargetTimeline::Number(ground.timeline));
    if let Some(config) = &mut restore.config {
        config.standby = ground.standby.clone();
    }
    let options = primary.map(|(_, options)| options);
    let mut restore = match (ground.here(), &options) {
        (Some(here), Some(options)) => joined(lineage, &restore, here, options).await?,
        _ => restore::plan(lineage, &restore).await?,
    };
    if let Some(here) = ground.here() {
        raise_minimums(&mut restore, here);
    }
    let slot_later = ground.slot_later(wanted);
    Ok(StandbyPlan { restore, primary: ground.found, slot: ground.slot, slot_later, options, ours })
}

/// A password would be readable in the data directory, and in every backup of it.
fn refuse_secrets(words: &str) -> Result<()> {
    if !has_password(words) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Usage, "the connection string for the primary contains a password")
        .because("it would be readable in the data directory, and in every backup of it")
        .help("leave the password in a password file: passfile=/var/lib/postgresql/.pgpass"))
}

fn refuse_foreign(lineage: &LineageRepository, primary: &Primary) -> Result<()> {
    let (theirs, stored) = (primary.system_identifier, lineage.system_identifier());
    if theirs == stored {
        return Ok(());
    }
    let message =
        format!("{} has system identifier {theirs}, {} is stored with {stored}", primary.host, lineage.cluster());
    Err(Error::new(ErrorCode::ForeignCluster, message)
        .because("a standby of another cluster cannot be made from these backups")
        .help("point --primary-conninfo at the cluster's primary, or name the cluster that is meant"))
}

/// The plan of a restore behind which the primary's WAL goes on: what is in neither would never reach the standby.
async fn joined(
    lineage: &LineageRepository,
    request: &RestoreRequest,
    primary: &Primary,
    options: &ConnectOptions,
) -> Result<RestorePlan> {
    let mut looks = 0;
    loop {
        let plan = restore::plan(lineage, request).await?;
        let end = plan.recovery.wal_end;
        looks += 1;
        if reaches(options, primary, end).await? {
            return Ok(plan);
        }
        if looks >= BRIDGE_LOOKS {
            return Err(out_of_reach(lineage, primary, end));
        }
        tokio::time::sleep(BRIDGE_PAUSE).await;
    }
}

/// Whether the primary has what follows `end`, where the WAL ends that needs no primary.
pub(super) async fn reaches(options: &ConnectOptions, primary: &Primary, end: Lsn) -> Result<bool> {
    let joins = bridge::joins(options, primary, end).await;
    joins.map_err(|error| error.explain(format!("cannot tell whether {} has WAL from {end}", primary.host)))
}

pub(super) fn out_of_reach(lineage: &LineageRepository, primary: &Primary, end: Lsn) -> Error {
    let message = format!("WAL from {end} on is neither in the repository nor on {}", primary.host);
    Error::new(ErrorCode::WalLost, message)
        .because("a standby would replay up to there and wait for ever")
        .help(format!("see whether the daemon streams: pgvault status {}", lineage.cluster()))
        .help(format!("take a backup, which lies behind it: pgvault backup now {} --wait", lineage.cluster()))
}

/// Gives the standby at least what its primary has now, where the configuration that comes with the backup has less: it would
/// stop replaying where the primary's change is replayed. A value given by hand stays.
fn raise_minimums(plan: &mut RestorePlan, primary: &Primary) {
    let backup = &plan.recovery.backup.server_settings;
    let raised: Vec<Setting> = primary
        .minimums
        .iter()
        .filter(|(name, value)| backup.get(*name).is_none_or(|in_backup| *in_backup < **value))
        .map(|(name, value)| Setting { name: name.clone(), value: value.to_string() })
        .collect();
    if let Some(settings) = &mut plan.settings {
        let given: Vec<String> = settings.settings.iter().map(|setting| setting.name.clone()).collect();
        settings.settings.extend(raised.into_iter().filter(|setting| !given.contains(&setting.name)));
    }
}
