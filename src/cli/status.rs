//! `status`: one screen.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::Ended;
use super::args::OfCluster;
use super::context::Context;
use super::output::{Color, Output, bytes, seconds};
use super::source;
use crate::daemon::status::{counted, status};

pub(super) async fn run(context: &Context, of: &OfCluster) -> Ended {
    let document = document(context, of).await?;
    if context.output.json {
        context.output.document(&document);
        return Ok(0);
    }
    let now = context.clock.now();
    for cluster in document["clusters"].as_array().into_iter().flatten() {
        screen(&context.output, cluster, now);
    }
    Ok(0)
}

async fn document(context: &Context, of: &OfCluster) -> Result<Value, crate::error::Error> {
    let config = context.config()?;
    let clusters = context.clusters(&config, of)?;
    if let Some(daemon) = source::daemon(&config).await? {
        return match context.named(of)? {
            Some(name) => daemon.get(&format!("/api/v1/status?cluster={}", source::query(name))).await,
            None => daemon.get("/api/v1/status").await,
        };
    }
    context.output.note("no daemon runs in this state directory: shown is what the repository and the servers tell");
    let mut statuses = Vec::new();
    for cluster in &clusters {
        statuses.push(status(&source::view(context, &config, cluster).await?, context.clock.now()));
    }
    Ok(json!({ "clusters": statuses }))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("?")
}

/// A time from a document, to the second.
pub(super) fn time(value: &Value) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(value.as_str()?).ok().map(|time| time.to_utc())
}

/// `2026-11-20 05:22:36Z`
pub(super) fn shown(value: &Value) -> String {
    time(value).map_or_else(|| "?".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%SZ").to_string())
}

fn ago(value: &Value, now: DateTime<Utc>) -> String {
    time(value).map_or_else(String::new, |time| format!("{} ago", seconds((now - time).num_seconds().max(0))))
}

fn screen(output: &Output, cluster: &Value, now: DateTime<Utc>) {
    let state = text(cluster, "state");
    let color = match state {
        "ok" => Color::Green,
        "warning" => Color::Yellow,
        _ => Color::Red,
    };
    let primary = &cluster["primary"];
    let primary = if primary.is_null() {
        String::new()
    } else {
        format!("  primary {}:{}", text(primary, "host"), primary["port"])
    };
    let or_unknown = |value: &Value| {
        value.as_str().map_or_else(|| if value.is_null() { "?".to_owned() } else { value.to_string() }, str::to_owned)
    };
    output.text(&format!(
        "{}  {}  PostgreSQL {}{primary}  timeline {}  system {}",
        text(cluster, "name"),
        output.paint(color, state),
        or_unknown(&cluster["postgres_version"]),
        or_unknown(&cluster["timeline"]),
        or_unknown(&cluster["system_identifier"]),
    ));
    let line = |name: &str, text: String| output.text(&format!("  {name:<13}{text}"));
    line("Recoverable", recoverable(&cluster["window"], now));
    line("WAL", wal(&cluster["wal"]));
    for slot in cluster["slots"].as_array().into_iter().flatten() {
        line("Slot", slot_line(slot));
    }
    line("Base backup", backup(&cluster["backups"], now));
    let repository = &cluster["repository"];
    let state = repository["error"].as_str().map_or_else(
        || {
            let sizes = (repository["base_bytes"].as_u64(), repository["wal_bytes"].as_u64());
            let (base, wal) = (sizes.0.unwrap_or_default(), sizes.1.unwrap_or_default());
            let backups = counted(cluster["backups"]["count"].as_u64().unwrap_or_default(), "backup");
            format!("ok  {} base + {} WAL, {backups}", bytes(base), bytes(wal))
        },
        |error| output.paint(Color::Red, error),
    );
    line("Repository", format!("{}  {state}", text(repository, "location")));
    if let Some(failover) = cluster["failovers"].as_array().and_then(|failovers| failovers.last()) {
        let host = |name: &str| failover[name].as_str().unwrap_or("?").to_owned();
        let loss = if failover["gap"] == true { "with a gap" } else { "no loss" };
        line(
            "Failover",
            format!("{} {} -> {} at {} ({loss})", shown(&failover["at"]), host("from"), host("to"), host("lsn")),
        );
    }
    for reason in cluster["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        line("", output.paint(color, &format!("! {reason}")));
    }
}

fn recoverable(window: &Value, now: DateTime<Utc>) -> String {
    let (Some(from), Some(to)) = (time(&window["from"]), time(&window["to"])) else {
        return "nothing yet: there is no usable backup".to_owned();
    };
    let gaps = match window["gaps"].as_u64().unwrap_or_default() {
        0 => String::new(),
        gaps => format!("   {}, see `pgvault window`", counted(gaps, "gap")),
    };
    let length = seconds((to - from).num_seconds());
    format!(
        "{}  ->  {}   ({length}, ends {}){gaps}",
        shown(&window["from"]),
        shown(&window["to"]),
        ago(&window["to"], now)
    )
}

fn wal(wal: &Value) -> String {
    let Some(state) = wal["state"].as_str() else {
        return format!("no daemon; the repository holds WAL up to {}", wal["shipped_lsn"].as_str().unwrap_or("?"));
    };
    let error = wal["error"].as_str().map_or_else(String::new, |error| format!("  {error}"));
    if wal["streaming"] != true {
        return format!("not streaming ({state}){error}");
    }
    let lsn = |name: &str| wal[name].as_str().unwrap_or("-").to_owned();
    let lag = wal["lag_bytes"].as_u64().map_or_else(String::new, |lag| format!("; lag {}", bytes(lag)));
    let rpo = wal["rpo_seconds"].as_f64().map_or_else(String::new, |rpo| format!(", {rpo:.0} s"));
    format!(
        "streaming, flushed {}, archived {}, shipped {}; {} waiting{lag}{rpo}{error}",
        lsn("flushed_lsn"),
        lsn("archived_lsn"),
        lsn("shipped_lsn"),
        counted(wal["spool_segments"].as_u64().unwrap_or_default(), "file"),
    )
}

fn slot_line(slot: &Value) -> String {
    let state = match (slot["active"].as_bool(), slot["wal_status"].as_str()) {
        (_, Some("missing")) => "missing",
        (_, Some("lost")) => "lost",
        (Some(true), _) => "active",
        (Some(false), _) => "inactive",
        (None, _) => "not visible",
    };
    let held = slot["retained_bytes"].as_u64().map_or_else(String::new, |held| format!("; holds {}", bytes(held)));
    let safe = slot["safe_wal_bytes"].as_u64().map_or_else(String::new, |safe| format!(", {} left", bytes(safe)));
    format!("{} {state} on {}{held}{safe}", text(slot, "name"), text(slot, "host"))
}

fn backup(backups: &Value, now: DateTime<Utc>) -> String {
    let mut parts = Vec::new();
    let running = &backups["running"];
    if !running.is_null() {
        let done = running["done_bytes"].as_u64().unwrap_or_default();
        parts.push(format!("running ({}, {} done)", text(running, "phase"), bytes(done)));
    }
    let last = &backups["last"];
    if last.is_null() {
        parts.push("none yet".to_owned());
    } else {
        let size = |name: &str| bytes(last[name].as_u64().unwrap_or_default());
        let took = time(&last["started_at"]).zip(time(&last["stopped_at"])).map(|(from, to)| (to - from).num_seconds());
        let took = took.map_or_else(String::new, |took| format!(", took {}", seconds(took)));
        parts.push(format!(
            "{}  {}  {} -> {} new  {}{took}",
            text(last, "id"),
            if last["damaged"] == true { "damaged" } else { text(last, "status") },
            size("size_bytes"),
            size("new_bytes"),
            ago(&last["stopped_at"], now),
        ));
    }
    if let Some(damaged) = backups["damaged"].as_u64().filter(|&damaged| damaged > 0) {
        parts.push(format!("{} damaged: pgvault backup list", counted(damaged, "backup")));
    }
    if let Some(next) = time(&backups["next_at"]) {
        parts.push(format!("next in {}", seconds((next - now).num_seconds().max(0))));
    }
    if let Some(error) = backups["error"].as_str() {
        parts.push(format!("last run failed: {error}"));
    }
    parts.join("; ")
}
