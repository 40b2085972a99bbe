//! `standby create`: the data directory of a new standby from the repository, and its slot on the primary. `standby refresh`: the
//! same from an old data directory.

mod refresh;
mod words;

use recovery::{RecoveryRequest, RecoveryTarget};
use serde_json::{Value, json, to_value};

use super::Ended;
use super::args::StandbyArgs;
use super::context::Context;
use super::recover::{self, restore_command, restored_line, showing_progress};
use super::source;
use crate::config::{ClusterConfig, Config};
use crate::daemon::open;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::SlotName;
use crate::restore::{ConfigRequest, RestoreRequest};
use crate::standby::{self, StandbyOutcome, StandbyPlan, StandbyRequest, derived_name};

/// Where Linux keeps the name of the machine.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

pub(super) async fn create(context: &Context, args: &StandbyArgs) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    let request = request(context, &config, &cluster, args)?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let plan = standby::plan(&lineage, request).await?;
    show_plan(context, &plan, args, &[])?;
    if args.writing.dry_run {
        return Ok(0);
    }
    let effort = args.writing.effort();
    let outcome = showing_progress(context, &plan.restore.cluster, async |progress| {
        standby::apply(&plan, &lineage, effort, progress, context.clock.as_ref()).await
    })
    .await?;
    show_outcome(context, &plan, &outcome, args)
}

/// `standby refresh`
pub(super) async fn bring_back(context: &Context, args: &StandbyArgs) -> Ended {
    refresh::run(context, args).await
}

fn request(context: &Context, config: &Config, cluster: &ClusterConfig, args: &StandbyArgs) -> Result<StandbyRequest> {
    let primary = match &args.primary_conninfo {
        Some(words) => Some((words.clone(), open::connect_to(config, cluster, words)?)),
        None => None,
    };
    let written = match args.no_config {
        true => None,
        false => Some(ConfigRequest {
            restore_command: restore_command(context, config, cluster)?,
            standby: None,
            options: args.writing.recovery_options.clone(),
        }),
    };
    Ok(StandbyRequest {
        restore: RestoreRequest {
            directory: args.to.clone(),
            recovery: RecoveryRequest::new(RecoveryTarget::Latest),
            tablespaces: args.writing.tablespaces().collect(),
            wal_dir: args.writing.wal_dir.clone(),
            owner: args.writing.owner.clone(),
            config: written,
            delta: false,
        },
        primary,
        slot: if args.no_config { None } else { slot_name(cluster, args.slot.as_deref())? },
        ours: open::slot_name(cluster)?,
    })
}

/// The standby's slot: as it was named, or after the cluster and this machine.
fn slot_name(cluster: &ClusterConfig, given: Option<&str>) -> Result<Option<SlotName>> {
    match given {
        Some("") => Ok(None),
        Some(name) => SlotName::new(name)
            .map(Some)
            .map_err(|error| Error::new(ErrorCode::Usage, error.to_string()).help("--slot NAME")),
        None => {
            let host = std::fs::read_to_string(HOST_NAME).unwrap_or_default();
            derived_name(&cluster.name, &host).map(Some).ok_or_else(|| {
                Error::new(ErrorCode::Usage, "no slot can be named after this cluster and this machine")
                    .help("--slot NAME")
            })
        }
    }
}

/// The plan: to stdout with `--dry-run`, else beside the work. `more` is what else the document says.
fn show_plan(context: &Context, plan: &StandbyPlan, args: &StandbyArgs, more: &[(&str, Value)]) -> Result<()> {
    let output = &context.output;
    let mut document = to_value(plan.restore.document())
        .map_err(|error| Error::new(ErrorCode::Unclassified, "the plan cannot be shown").because(error))?;
    if output.json {
        document["primary"] = words::primary_document(plan.primary.as_ref());
        document["slot"] = words::slot_document(&plan.slot);
        more.iter().for_each(|(name, value)| document[*name] = value.clone());
        output.document(&document);
        return Ok(());
    }
    let mut lines = recover::lines(&plan.restore, &document, context.global.verbose > 0);
    lines.extend(words::lines(plan.primary.as_ref(), &plan.slot));
    for line in lines {
        if args.writing.dry_run { output.text(&line) } else { output.note(&line) }
    }
    if args.writing.dry_run {
        output.text("nothing was changed (--dry-run)");
    }
    Ok(())
}

fn show_outcome(context: &Context, plan: &StandbyPlan, outcome: &StandbyOutcome, args: &StandbyArgs) -> Ended {
    let output = &context.output;
    let restored = &outcome.restore;
    let next = words::next_steps(plan.slot_later.as_ref(), &outcome.slot);
    if output.json {
        let document = json!({
            "type": "result", "directory": restored.directory, "backup": restored.backup, "timeline": restored.timeline,
            "restored_bytes": restored.restored_bytes, "seconds": restored.seconds, "warnings": restored.warnings,
            "primary": words::primary_document(plan.primary.as_ref()), "slot": words::slot_done_document(&outcome.slot),
            "next": next,
        });
        output.document(&document);
        return Ok(0);
    }
    for warning in &restored.warnings {
        output.note(&format!("note: {warning}"));
    }
    if let Some((name, Err(error))) = &outcome.slot {
        output.note(&format!("note: slot \"{name}\" was not made: {}", error.in_one_line()));
    }
    output.text(&restored_line(restored));
    if args.no_config {
        output.text("no settings were written: the HA manager starts it");
    } else {
        output.text(&format!("Then        pg_ctl -D {} start; it follows its primary", restored.directory.display()));
    }
    for step in next {
        output.text(&format!("Later       {step}"));
    }
    Ok(0)
}
