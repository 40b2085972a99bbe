//! `standby create`: the data directory of a new standby from the repository, and its slot on the primary.

use std::path::PathBuf;

use recovery::{RecoveryRequest, RecoveryTarget};
use serde_json::{Value, json, to_value};

use super::Ended;
use super::args::StandbyArgs;
use super::context::Context;
use super::output::bytes;
use super::recover::{self, effort, restore_command, showing_progress};
use super::source;
use crate::config::{ClusterConfig, Config};
use crate::daemon::open;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::SlotName;
use crate::restore::{ConfigRequest, RestoreRequest};
use crate::standby::{self, Found, SlotStep, StandbyOutcome, StandbyPlan, StandbyRequest, derived_name};

/// Where Linux keeps the name of the machine.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

pub(super) async fn create(context: &Context, args: &StandbyArgs) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    let request = request(context, &config, &cluster, args)?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let plan = standby::plan(&lineage, request).await?;
    show_plan(context, &plan, args)?;
    if args.dry_run {
        return Ok(0);
    }
    let effort = effort(args.jobs, args.max_rate);
    let outcome = showing_progress(context, &plan.restore.cluster, async |progress| {
        standby::apply(&plan, &lineage, effort, progress, context.clock.as_ref()).await
    })
    .await?;
    show_outcome(context, &plan, &outcome, args)
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
            options: args.recovery_options.clone(),
        }),
    };
    let tablespaces = args.tablespaces.iter().map(|(old, new)| (PathBuf::from(old), PathBuf::from(new)));
    Ok(StandbyRequest {
        restore: RestoreRequest {
            directory: args.to.clone(),
            recovery: RecoveryRequest::new(RecoveryTarget::Latest),
            tablespaces: tablespaces.collect(),
            wal_dir: args.wal_dir.clone(),
            owner: args.owner.clone(),
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

/// The plan: to stdout with `--dry-run`, else beside the work.
fn show_plan(context: &Context, plan: &StandbyPlan, args: &StandbyArgs) -> Result<()> {
    let output = &context.output;
    let mut document = to_value(plan.restore.document())
        .map_err(|error| Error::new(ErrorCode::Unclassified, "the plan cannot be shown").because(error))?;
    if output.json {
        document["primary"] = primary_document(plan);
        document["slot"] = plan
            .slot
            .as_ref()
            .map_or(Value::Null, |(name, step)| json!({ "name": name.as_str(), "action": step.as_str() }));
        output.document(&document);
        return Ok(());
    }
    let mut lines = recover::lines(&plan.restore, &document, context.global.verbose > 0);
    lines.extend(lines_of_primary(plan));
    for line in lines {
        if args.dry_run { output.text(&line) } else { output.note(&line) }
    }
    if args.dry_run {
        output.text("nothing was changed (--dry-run)");
    }
    Ok(())
}

fn primary_document(plan: &StandbyPlan) -> Value {
    match &plan.primary {
        None => Value::Null,
        Some(Found::Away(why)) => json!({ "reachable": false, "reason": why }),
        Some(Found::Here(primary)) => json!({
            "reachable": true,
            "host": primary.host.to_string(),
            "timeline": primary.history.timeline(),
            "flush_lsn": primary.flush_lsn,
        }),
    }
}

fn lines_of_primary(plan: &StandbyPlan) -> Vec<String> {
    let mut lines = Vec::new();
    match &plan.primary {
        Some(Found::Here(primary)) => lines.push(format!(
            "Primary     {}, timeline {}, WAL up to {}; its data is not read",
            primary.host,
            primary.history.timeline(),
            primary.flush_lsn
        )),
        Some(Found::Away(why)) => lines.push(format!("Primary     away: {why}")),
        None => {}
    }
    if let Some((name, step)) = &plan.slot {
        let what = match step {
            SlotStep::Create => "is made",
            SlotStep::Replace => "keeps no WAL any more and is made anew",
            SlotStep::Use => "is there and not in use",
        };
        lines.push(format!("Slot        {name} {what}"));
    }
    lines
}

fn show_outcome(context: &Context, plan: &StandbyPlan, outcome: &StandbyOutcome, args: &StandbyArgs) -> Ended {
    let output = &context.output;
    let restored = &outcome.restore;
    let next = next_steps(plan, outcome);
    if output.json {
        let slot = outcome.slot.as_ref().map_or(Value::Null, |(name, made)| {
            json!({
                "name": name.as_str(),
                "action": made.as_ref().map(|step| step.as_str()).ok(),
                "error": made.as_ref().err().map(Error::in_one_line),
            })
        });
        output.document(&json!({
            "type": "result", "directory": restored.directory, "backup": restored.backup, "timeline": restored.timeline,
            "restored_bytes": restored.restored_bytes, "seconds": restored.seconds, "warnings": restored.warnings,
            "primary": primary_document(plan), "slot": slot, "next": next,
        }));
        return Ok(0);
    }
    for warning in &restored.warnings {
        output.note(&format!("note: {warning}"));
    }
    if let Some((name, Err(error))) = &outcome.slot {
        output.note(&format!("note: slot \"{name}\" was not made: {}", error.in_one_line()));
    }
    output.text(&format!(
        "restored {} to {} from backup {} in {:.1} s",
        bytes(restored.restored_bytes),
        restored.directory.display(),
        restored.backup,
        restored.seconds
    ));
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

/// What is left for a person to do about the slot.
fn next_steps(plan: &StandbyPlan, outcome: &StandbyOutcome) -> Vec<String> {
    let make = |name: &SlotName| format!("on the primary: SELECT pg_create_physical_replication_slot('{name}', true);");
    if let Some(name) = &plan.slot_later {
        // Named in the settings before it exists, it would keep the standby from streaming.
        return vec![
            make(name),
            format!("then on the standby: ALTER SYSTEM SET primary_slot_name = '{name}'; SELECT pg_reload_conf();"),
        ];
    }
    match &outcome.slot {
        Some((name, Err(_))) => vec![make(name)],
        _ => Vec::new(),
    }
}
