//! `standby refresh`: a standby that fell behind, or an old primary after a failover, is brought back.

use std::path::Path;

use serde_json::{Value, json};

use super::words;
use super::{request, show_outcome, show_plan};
use crate::cli::Ended;
use crate::cli::args::StandbyArgs;
use crate::cli::context::Context;
use crate::cli::recover::showing_progress;
use crate::cli::source;
use crate::daemon::status::counted;
use crate::error::Result;
use crate::standby::{self, RefreshOutcome, RefreshPlan, Renewal, Replay};

pub(super) async fn run(context: &Context, args: &StandbyArgs) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    let request = request(context, &config, &cluster, args)?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let plan = standby::plan_refresh(&lineage, request).await?;
    show(context, &plan, args)?;
    if args.writing.dry_run {
        return Ok(0);
    }
    ask(context, &plan, &args.to)?;
    let effort = args.writing.effort();
    let outcome = showing_progress(context, &cluster.name, async |progress| {
        standby::apply_refresh(&plan, &lineage, effort, progress, context.clock.as_ref()).await
    })
    .await?;
    match (&plan.renewal, &outcome) {
        (Renewal::Delta { plan, .. }, RefreshOutcome::Restored(outcome)) => show_outcome(context, plan, outcome, args),
        (Renewal::Replay(replay), RefreshOutcome::Kept { slot, .. }) => show_kept(context, &plan, replay, slot),
        // The outcome is of the plan.
        (Renewal::Delta { .. }, RefreshOutcome::Kept { .. }) | (Renewal::Replay(_), RefreshOutcome::Restored(_)) => {
            Ok(0)
        }
    }
}

/// What was committed beyond the fork may exist nowhere else: nobody loses that without having said so.
fn ask(context: &Context, plan: &RefreshPlan, directory: &Path) -> Result<()> {
    let (Some(first), Some(last)) = (plan.only_here.first(), plan.only_here.last()) else { return Ok(()) };
    let which = if first == last { format!("segment {first}") } else { format!("segments {first} to {last}") };
    context.confirm(&format!(
        "{} has WAL that its branch has left behind and that the repository does not have: {which}. \
         Commits in it may exist nowhere else. Give them up?",
        directory.display()
    ))
}

fn show(context: &Context, plan: &RefreshPlan, args: &StandbyArgs) -> Result<()> {
    let output = &context.output;
    let say = |line: &str| if args.writing.dry_run { output.text(line) } else { output.note(line) };
    let only_here: Vec<String> = plan.only_here.iter().map(ToString::to_string).collect();
    match &plan.renewal {
        Renewal::Delta { plan, reason } => {
            if !output.json {
                say(&format!("Files       some must be put right: {reason}"));
            }
            let more = [("action", json!("delta")), ("reason", json!(reason)), ("only_here", json!(only_here))];
            show_plan(context, plan, args, &more)
        }
        Renewal::Replay(replay) => {
            if output.json {
                output.document(&json!({
                    "type": "plan", "action": "replay", "directory": replay.directory, "wal_from": replay.from,
                    "wal_to": replay.to, "removed_wal": replay.removed, "only_here": only_here,
                    "settings": settings(replay), "primary": words::primary_document(plan.primary.as_ref()),
                    "slot": words::slot_document(&plan.slot),
                }));
                return Ok(());
            }
            say("Files       all stay: nothing to copy");
            say(&format!("WAL         {} .. {}, from the repository and its own pg_wal", replay.from, replay.to));
            if !replay.removed.is_empty() {
                let count = counted(replay.removed.len() as u64, "file");
                say(&format!("Removes     {count} of pg_wal, which its branch has left behind"));
            }
            words::lines(plan.primary.as_ref(), &plan.slot).iter().for_each(|line| say(line));
            if args.writing.dry_run {
                output.text("nothing was changed (--dry-run)");
            }
            Ok(())
        }
    }
}

fn settings(replay: &Replay) -> Vec<String> {
    replay.settings.iter().flat_map(|settings| &settings.settings).map(ToString::to_string).collect()
}

fn show_kept(context: &Context, plan: &RefreshPlan, replay: &Replay, slot: &words::SlotDone) -> Ended {
    let output = &context.output;
    let next = words::next_steps(plan.slot_later.as_ref(), slot);
    if output.json {
        output.document(&json!({
            "type": "result", "action": "replay", "directory": replay.directory, "backup": Value::Null, "restored_bytes": 0,
            "wal_from": replay.from, "wal_to": replay.to, "removed_wal": replay.removed,
            "primary": words::primary_document(plan.primary.as_ref()), "slot": words::slot_done_document(slot), "next": next,
        }));
        return Ok(0);
    }
    output.text(&format!("{}: nothing to copy", replay.directory.display()));
    match &replay.settings {
        Some(_) => {
            output.text(&format!("Then        pg_ctl -D {} start; it follows its primary", replay.directory.display()))
        }
        None => output.text("no settings were written: the HA manager starts it"),
    }
    for step in next {
        output.text(&format!("Later       {step}"));
    }
    Ok(0)
}
