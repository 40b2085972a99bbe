//! `repo init|check|stats`.

use std::sync::Arc;

use serde_json::{Value, json};
use wal::PgTime;

use super::Ended;
use super::args::{OfCluster, RepoCheck};
use super::context::Context;
use super::output::{Color, bytes};
use super::source;
use super::window::to_value;
use crate::daemon::{open, probe};
use crate::error::{Error, ErrorCode};
use crate::repo_check::{self, RepoCheckRequest, RepoReport};
use crate::repository::ClusterUsage;
use crate::storage::PutIfAbsent;
use crate::storage::metered::NoMeter;

/// Makes the repository where there is none.
pub(super) async fn init(context: &Context) -> Ended {
    let config = context.config()?;
    let repository = open::repository(&config, &context.clock, Arc::new(NoMeter), open::Missing::Create).await?;
    let marker = repository.marker();
    if context.output.json {
        context.output.document(&json!({ "repository": repository.location(), "id": marker.id }));
    } else {
        context.output.text(&format!("repository {} is ready, id {}", repository.location(), marker.id.as_str()));
    }
    Ok(0)
}

/// Writes, reads, lists and compares; then looks at everything that is there.
pub(super) async fn check(context: &Context, args: &RepoCheck) -> Ended {
    let config = context.config()?;
    let repository = source::repository(context, &config).await?;
    let probe = probe::repository(&repository, &context.clock).await?;
    let atomic = probe.put_if_absent == PutIfAbsent::Atomic;
    let clusters = repository.clusters().await?;
    let request = RepoCheckRequest {
        deep: args.deep,
        jobs: usize::from(args.jobs),
        mark: true,
        now: PgTime::from(context.clock.now()),
    };
    let report = repo_check::run(&repository, &request).await?;
    let code = if report.is_ok() { 0 } else { ErrorCode::Damaged.exit_code() };
    if context.output.json {
        let clusters: Vec<String> = clusters.iter().map(ToString::to_string).collect();
        context.output.document(&json!({
            "type": "result", "repository": repository.location(), "ok": report.is_ok(), "deep": args.deep, "put_if_absent": atomic, "may_delete": probe.may_delete,
            "milliseconds": probe.took.as_millis(), "clusters": clusters, "key_generation": repository.objects().key_generation(),
            "objects": report.objects, "listed_bytes": report.listed_bytes, "backups": report.backups,
            "checked_bytes": report.checked_bytes, "orphan_packs": report.orphan_packs, "orphan_bytes": report.orphan_bytes,
            "problems": to_value(&report.problems)?, "remarks": to_value(&report.remarks)?,
        }));
        return Ok(code);
    }
    let output = &context.output;
    output.text(&format!("{}  ok, {} ms", repository.location(), probe.took.as_millis()));
    output.text(if atomic {
        "  keeps two writers apart (put-if-absent)"
    } else {
        "  put-if-absent is not dependable here: names that cannot collide and reading back are relied on"
    });
    output.text(if probe.may_delete { "  this writer may delete" } else { "  this writer may not delete" });
    output.text(&match repository.objects().key_generation() {
        Some(generation) => format!("  encrypted, with the key of generation {generation}"),
        None => "  not encrypted".to_owned(),
    });
    let names: Vec<String> = clusters.iter().map(ToString::to_string).collect();
    output.text(&format!("  clusters: {}", if names.is_empty() { "none yet".to_owned() } else { names.join(", ") }));
    show_report(context, &report, args.deep);
    Ok(code)
}

fn show_report(context: &Context, report: &RepoReport, deep: bool) {
    let output = &context.output;
    let (objects, listed) = (report.objects, bytes(report.listed_bytes));
    output.text(&format!("  {objects} objects, {listed}, {} backups", report.backups));
    if report.orphan_packs > 0 {
        let orphans = bytes(report.orphan_bytes);
        output.text(&format!(
            "  {} packs, {orphans}, belong to no backup: the next one may use them",
            report.orphan_packs
        ));
    }
    for remark in &report.remarks {
        output.text(&output.paint(Color::Yellow, &format!("  {}  {}", remark.object, remark.what)));
    }
    if !report.problems.is_empty() {
        let rows = report.problems.iter().map(|problem| vec![problem.object.clone(), problem.what.clone()]);
        output.table(&["OBJECT", "PROBLEM"], rows.collect());
    }
    let looked = if deep { format!("{} read", bytes(report.checked_bytes)) } else { "listed, not read".to_owned() };
    let (color, word) = match report.problems.len() {
        0 => (Color::Green, "all is well".to_owned()),
        1 => (Color::Red, "1 problem".to_owned()),
        count => (Color::Red, format!("{count} problems")),
    };
    output.text(&output.paint(color, &format!("  {looked}: {word}")));
}

/// What everything takes, and who it is there for.
pub(super) async fn stats(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let repository = source::repository(context, &config).await?;
    let named = context.named(of)?.map(str::to_owned);
    let mut clusters: Vec<(String, ClusterUsage)> = Vec::new();
    for name in repository.clusters().await? {
        if named.as_ref().is_none_or(|named| named == name.as_str()) {
            clusters.push((name.to_string(), repository.cluster(&name).usage().await?));
        }
    }
    if let (Some(name), true) = (&named, clusters.is_empty()) {
        return Err(Error::new(ErrorCode::NotFound, format!("nothing of cluster \"{name}\" is stored"))
            .help("see what is there: pgvault repo check"));
    }
    let total: u64 = clusters.iter().map(|(_, usage)| usage.total_bytes).sum();
    if context.output.json {
        let mut documents = Vec::new();
        for (name, usage) in &clusters {
            let mut document = to_value(usage)?;
            document["name"] = Value::from(name.as_str());
            documents.push(document);
        }
        let location = repository.location();
        context.output.document(&json!({ "repository": location, "clusters": documents, "total_bytes": total }));
        return Ok(0);
    }
    for (name, usage) in &clusters {
        show(context, name, usage);
    }
    context.output.text(&format!("{}  {} in all", repository.location(), bytes(total)));
    Ok(0)
}

fn show(context: &Context, name: &str, usage: &ClusterUsage) {
    let output = &context.output;
    let rows = usage.backups.iter().map(|backup| {
        let kind = to_value(&backup.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default();
        let sizes = [backup.size_bytes, backup.new_bytes, backup.own_bytes, backup.shared_bytes].map(bytes);
        [backup.id.to_string(), kind].into_iter().chain(sizes).collect()
    });
    output.text(&format!("{name}  {}", bytes(usage.total_bytes)));
    if !usage.backups.is_empty() {
        output.table(&["BACKUP", "KIND", "SIZE", "ADDED", "OWN", "SHARED"], rows.collect());
    }
    output.text(&format!(
        "  packs {}, file tables {}, WAL {} in {} segments, tails {}",
        bytes(usage.pack_bytes),
        bytes(usage.backup_meta_bytes),
        bytes(usage.wal_bytes),
        usage.wal_segments,
        bytes(usage.tail_bytes)
    ));
    if usage.unreferenced_bytes > 0 {
        output.text(&format!("  {} of the packs belong to no finished backup", bytes(usage.unreferenced_bytes)));
    }
}
