//! `backup verify`: is every byte of a backup there, and what it was?

use recovery::BackupId;
use serde_json::{Value, json};
use tokio::sync::watch;
use wal::PgTime;

use super::Ended;
use super::args::{BackupVerify, OfCluster};
use super::context::Context;
use super::output::{Color, bytes};
use super::progress::Progress;
use super::source;
use super::window::to_value;
use crate::backup_verify::{BackupReport, BackupVerifyProgress, BackupVerifyRequest, run as verify};
use crate::error::{Error, ErrorCode, Result};
use crate::repository::LineageRepository;

pub(super) async fn run(context: &Context, args: &BackupVerify) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &OfCluster::default())?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let listed = lineage.listed_backups().await?;
    let ids = if args.all { listed } else { vec![find_id(&listed, args.id.as_deref().unwrap_or("latest"))?] };
    let request = BackupVerifyRequest {
        quick: args.quick,
        jobs: usize::from(args.jobs),
        mark: !args.no_mark,
        now: PgTime::from(context.clock.now()),
    };
    let mut reports = Vec::new();
    for id in &ids {
        let report = with_progress(context, &lineage, id, &request).await?;
        if !context.output.json {
            screen(context, &report);
        }
        reports.push(report);
    }
    if context.output.json {
        context.output.document(&document(&cluster.name, &lineage, args.all, &reports)?);
    } else if reports.is_empty() {
        context.output.note("there is no backup: pgvault backup now");
    }
    source::refresh(&config, &cluster.name).await;
    Ok(if reports.iter().all(|report| report.ok) { 0 } else { ErrorCode::Damaged.exit_code() })
}

async fn with_progress(
    context: &Context,
    lineage: &LineageRepository,
    id: &BackupId,
    request: &BackupVerifyRequest,
) -> Result<BackupReport> {
    let (sender, told) = watch::channel(BackupVerifyProgress::default());
    let show =
        |shown: &mut Progress, now: BackupVerifyProgress| shown.show("verify", now.done_bytes, Some(now.total_bytes));
    let progress = Progress::new(&context.output, &context.clock, id.as_str());
    progress.during(told, show, verify(lineage, id, request, &sender)).await
}

fn document(cluster: &str, lineage: &LineageRepository, all: bool, reports: &[BackupReport]) -> Result<Value> {
    let mut document = match reports {
        [only] if !all => to_value(only)?,
        several => json!({
            "ok": several.iter().all(|report| report.ok),
            "checked_bytes": several.iter().map(|report| report.checked_bytes).sum::<u64>(),
            "backups": to_value(&several)?,
        }),
    };
    document["type"] = Value::from("result");
    document["cluster"] = Value::from(cluster);
    document["lineage"] = Value::from(lineage.id().to_string());
    Ok(document)
}

fn screen(context: &Context, report: &BackupReport) {
    let output = &context.output;
    if !report.problems.is_empty() {
        let rows = report.problems.iter().map(|problem| vec![problem.object.clone(), problem.what.clone()]);
        output.table(&["OBJECT", "PROBLEM"], rows.collect());
    }
    if report.damaged_files > 0 {
        let named = report.damaged_paths.join(", ");
        output.text(&output.paint(Color::Red, &format!("{} files cannot be restored: {named}", report.damaged_files)));
    }
    if report.damaged_on_the_server > 0 {
        let what = format!("{} files had wrong page checksums on the server", report.damaged_on_the_server);
        output.text(&output.paint(Color::Yellow, &what));
    }
    let counted = if report.quick {
        format!("{} packs and {} segments listed, not read", report.packs, report.segments)
    } else {
        let read = bytes(report.checked_bytes);
        format!("{} files, {} packs, {} segments, {read} read", report.files, report.packs, report.segments)
    };
    let (color, word) = match report.problems.len() {
        0 => (Color::Green, "all is well".to_owned()),
        1 if report.waits_for_wal => (Color::Yellow, "waiting for WAL".to_owned()),
        1 => (Color::Red, "1 problem".to_owned()),
        count => (Color::Red, format!("{count} problems")),
    };
    output.text(&output.paint(color, &format!("{}  {counted}: {word}", report.id)));
    if let Some(reason) = &report.not_marked {
        output.note(&format!("the result could not be noted on the backup: {reason}"));
    }
}

/// A backup by its id, by the start of it, or `latest`.
pub(super) fn find_id(all: &[BackupId], text: &str) -> Result<BackupId> {
    let found: Vec<&BackupId> = match text {
        "latest" => all.last().into_iter().collect(),
        start => all.iter().filter(|id| id.as_str().starts_with(start)).collect(),
    };
    match found.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            Err(Error::new(ErrorCode::NotFound, format!("there is no backup \"{text}\"")).help("pgvault backup list"))
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
            Err(Error::new(ErrorCode::Usage, format!("\"{text}\" is the start of several backups: {}", ids.join(", ")))
                .help("write more of it"))
        }
    }
}
