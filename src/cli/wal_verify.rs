//! `wal verify`: is all stored WAL there, whole, and one log?

use serde_json::{Value, json};
use tokio::sync::watch;
use wal::{Lsn, TimelineId};

use super::Ended;
use super::args::WalVerify;
use super::context::Context;
use super::output::{Color, bytes};
use super::progress::Progress;
use super::source;
use super::window::to_value;
use crate::config::Config;
use crate::daemon::verified::{self, Kind};
use crate::error::{ErrorCode, Result};
use crate::wal_verify::{KnownEnd, VerifyProgress, VerifyReport, VerifyRequest, run as verify};

pub(super) async fn run(context: &Context, args: &WalVerify) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    // Asked first: what is stored meanwhile only makes more of it.
    let known_end = daemons_end(&config, &cluster.name).await.filter(|_| args.to.is_none() && args.timeline.is_none());
    let lineage = source::lineage(context, &config, &cluster).await?;
    let request = VerifyRequest {
        from: args.from,
        to: args.to,
        timeline: args.timeline,
        quick: args.quick,
        jobs: usize::from(args.jobs),
        known_end: known_end
            .filter(|(lineage_of_daemon, ..)| *lineage_of_daemon == lineage.id().to_string())
            .map(|(_, timeline, lsn)| KnownEnd { timeline, lsn, because: "the daemon has stored WAL" }),
    };
    let report = with_progress(context, &cluster.name, &lineage, &request).await?;
    let everything = args.from.is_none() && args.to.is_none() && args.timeline.is_none() && !args.quick;
    if report.is_ok() && everything {
        verified::note(&config.state_dir, &cluster.name, Kind::Wal, context.clock.now());
    }
    let document = document(&cluster.name, &lineage.id().to_string(), &request, &report)?;
    if context.output.json {
        context.output.document(&document);
    } else {
        screen(context, &report, args.quick);
    }
    Ok(if report.is_ok() { 0 } else { ErrorCode::Damaged.exit_code() })
}

async fn with_progress(
    context: &Context,
    name: &str,
    lineage: &crate::repository::LineageRepository,
    request: &VerifyRequest,
) -> Result<VerifyReport> {
    let (sender, told) = watch::channel(VerifyProgress::default());
    let show = |shown: &mut Progress, now: VerifyProgress| shown.show("verify", now.done_bytes, Some(now.total_bytes));
    let progress = Progress::new(&context.output, &context.clock, name);
    progress.during(told, show, verify(lineage, request, &sender)).await
}

/// How far the daemon that runs here has stored WAL: lineage, timeline, position.
async fn daemons_end(config: &Config, cluster: &str) -> Option<(String, TimelineId, Lsn)> {
    let daemon = source::daemon_if_allowed(config).await?;
    let status = match daemon.get(&format!("/api/v1/status?cluster={}", source::query(cluster))).await {
        Ok(status) => status,
        Err(error) => {
            tracing::info!(error = error.message(), "the daemon cannot tell how far it has stored WAL");
            return None;
        }
    };
    let of_cluster = &status["clusters"][0];
    let timeline = u32::try_from(of_cluster["timeline"].as_u64()?).ok().and_then(TimelineId::new)?;
    let shipped: Lsn = of_cluster["wal"]["shipped_lsn"].as_str()?.parse().ok()?;
    Some((of_cluster["lineage"].as_str()?.to_owned(), timeline, shipped))
}

fn document(cluster: &str, lineage: &str, request: &VerifyRequest, report: &VerifyReport) -> Result<Value> {
    Ok(json!({
        "type": "result",
        "cluster": cluster,
        "lineage": lineage,
        "ok": report.is_ok(),
        "quick": request.quick,
        "from_lsn": request.from,
        "to_lsn": request.to,
        "timeline": request.timeline,
        "segments": report.segments,
        "tails": report.tails,
        "checked_bytes": report.checked_bytes,
        "gaps": to_value(&report.gaps)?,
        "problems": to_value(&report.problems)?,
    }))
}

fn screen(context: &Context, report: &VerifyReport, quick: bool) {
    let output = &context.output;
    for gap in &report.gaps {
        let line =
            format!("known gap on timeline {}: {} .. {}  {}", gap.timeline, gap.from_lsn, gap.to_lsn, gap.reason);
        output.text(&output.paint(Color::Yellow, &line));
    }
    let rows = report.problems.iter().map(|problem| {
        let lsn = |lsn: Option<Lsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
        let timeline = problem.timeline.map_or_else(|| "-".to_owned(), |timeline| timeline.to_string());
        vec![timeline, lsn(problem.from_lsn), lsn(problem.to_lsn), problem.object.clone(), problem.what.clone()]
    });
    if !report.problems.is_empty() {
        output.table(&["TIMELINE", "FROM", "TO", "OBJECT", "PROBLEM"], rows.collect());
    }
    let read = if quick { "listed, not read".to_owned() } else { format!("{} read", bytes(report.checked_bytes)) };
    let counted = format!("{} segments and {} tails, {read}", report.segments, report.tails);
    let (color, word) = match report.problems.len() {
        0 => (Color::Green, "all is well".to_owned()),
        1 => (Color::Red, "1 problem".to_owned()),
        count => (Color::Red, format!("{count} problems")),
    };
    output.text(&output.paint(color, &format!("{counted}: {word}")));
}
