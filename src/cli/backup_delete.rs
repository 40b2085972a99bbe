//! `backup delete`: plan, show, ask, apply.

use recovery::BackupId;
use serde_json::Value;
use wal::PgTime;

use super::Ended;
use super::args::{BackupDelete, OfCluster};
use super::backup_verify::find_id;
use super::context::Context;
use super::output::bytes;
use super::source;
use super::window::to_value;
use crate::backup_delete::{DeletePlan, apply, plan};
use crate::daemon::status::counted;
use crate::error::{Error, ErrorCode, Result};

pub(super) async fn run(context: &Context, args: &BackupDelete) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &OfCluster::default())?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    if args.id == "latest" {
        return Err(Error::new(ErrorCode::Usage, "\"latest\" may be another one by the time it is deleted")
            .help("name it: pgvault backup list"));
    }
    // What was interrupted, a deletion too, is found by what is left of it.
    let known: Vec<BackupId> = lineage.survey().await?.backups.into_keys().collect();
    let id = find_id(&known, &args.id)?;
    let now = || PgTime::from(context.clock.now());
    let planned = plan(&lineage, &id, now()).await?;
    if args.dry_run {
        show(context, &planned)?;
        return Ok(0);
    }
    if !context.output.json {
        lines(&planned).iter().for_each(|line| context.output.note(line));
    }
    context.confirm(&format!("delete backup {id} of {}?", planned.cluster))?;
    // Somebody may have taken his time to answer, and another have pinned it or deleted others meanwhile.
    let planned = plan(&lineage, &id, now()).await?;
    apply(&planned, &lineage).await?;
    source::refresh(&config, &cluster.name).await;
    told(context, &planned)?;
    Ok(0)
}

fn show(context: &Context, plan: &DeletePlan) -> Result<()> {
    if context.output.json {
        context.output.document(&document(plan, "plan")?);
        return Ok(());
    }
    lines(plan).iter().for_each(|line| context.output.text(line));
    context.output.text("nothing was changed (--dry-run)");
    Ok(())
}

fn told(context: &Context, plan: &DeletePlan) -> Result<()> {
    if context.output.json {
        context.output.document(&document(plan, "result")?);
    } else {
        context.output.text(&format!("{} deleted", plan.id));
    }
    Ok(())
}

fn document(plan: &DeletePlan, what: &str) -> Result<Value> {
    let mut document = to_value(plan)?;
    document["type"] = Value::from(what);
    Ok(document)
}

fn lines(plan: &DeletePlan) -> Vec<String> {
    let objects = counted(plan.objects as u64, "object");
    let mut lines = vec![format!("Deletes     backup {}: {objects}, {}", plan.id, bytes(plan.bytes))];
    lines.extend(plan.problem.iter().map(|problem| format!("Note        {problem}")));
    for lost in &plan.lost {
        lines.push(format!(
            "Loses       moments from {} to {} on the way to timeline {}: nothing else leads there",
            lost.from_lsn, lost.to_lsn, lost.timeline
        ));
    }
    lines.push(match &plan.free_packs {
        Some(free) => format!(
            "Keeps       its packs; {} of them, {}, belong to no other backup: the next one may use them",
            free.count,
            bytes(free.bytes)
        ),
        None => "Keeps       its packs; a manifest cannot be read, so who needs them is not known".to_owned(),
    });
    lines
}
