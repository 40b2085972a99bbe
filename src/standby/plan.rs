//! What making a standby will do: everything is decided and checked here, nothing is changed.

use std::time::Duration;

use recovery::settings::{Setting, StandbySettings, has_password};
use recovery::{RecoveryTarget, TargetTimeline};

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
    let StandbyRequest { mut restore, primary, slot: wanted, ours } = request;
    if let Some((words, _)) = &primary {
        refuse_secrets(words)?;
    }
    let found = match &primary {
        Some((_, options)) => Some(primary::look(options, wanted.as_ref()).await?),
        None => None,
    };
    let here = found.as_ref().and_then(Found::here);
    if let Some(here) = here {
        refuse_foreign(lineage, here)?;
    }
    let timeline = branch::find(lineage, here.map(|primary| &primary.history)).await?;
    restore.recovery.target = RecoveryTarget::Latest;
    restore.recovery.timeline = Some(TargetTimeline::Number(timeline));

    let slot = match (here, &wanted) {
        (Some(Primary { slot: Some(found), host, .. }), Some(name)) => {
            Some((name.clone(), slot::decide(*found, name, &host.to_string(), ours.as_ref())?))
        }
        _ => None,
    };
    if let (Some(config), Some((words, _))) = (&mut restore.config, &primary) {
        let name = slot.as_ref().map(|(name, _)| name.to_string());
        config.standby = Some(StandbySettings { primary_conninfo: words.clone(), slot: name });
    }
    let options = primary.map(|(_, options)| options);
    let mut restore = match (here, &options) {
        (Some(here), Some(options)) => joined(lineage, &restore, here, options).await?,
        _ => restore::plan(lineage, &restore).await?,
    };
    if let Some(here) = here {
        raise_minimums(&mut restore, here);
    }
    let slot_later = wanted.filter(|_| matches!(found, Some(Found::Away(_))));
    Ok(StandbyPlan { restore, primary: found, slot, slot_later, options, ours })
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
        let joins = bridge::joins(options, primary, end).await;
        if joins.map_err(|error| error.explain(format!("cannot tell whether {} has WAL from {end}", primary.host)))? {
            return Ok(plan);
        }
        if looks >= BRIDGE_LOOKS {
            let message = format!("WAL from {end} on is neither in the repository nor on {}", primary.host);
            return Err(Error::new(ErrorCode::WalLost, message)
                .because("a standby would replay up to there and wait for ever")
                .help(format!("see whether the daemon streams: pgvault status {}", lineage.cluster()))
                .help(format!(
                    "take a backup, which lies behind it: pgvault backup now {} --wait",
                    lineage.cluster()
                )));
        }
        tokio::time::sleep(BRIDGE_PAUSE).await;
    }
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
