//! `backup now|list|show`.

use std::sync::Arc;
use std::time::Duration;

use recovery::BackupStatus;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Ended;
use super::args::{BackupNow, Kind, OfCluster};
use super::context::Context;
use super::output::bytes;
use super::progress::Progress;
use super::source;
use super::status::{shown, time};
use super::window::to_value;
use crate::backup::{BackupProgress, ProgressSender};
use crate::config::{ClusterConfig, Config};
use crate::daemon::backup_run::{self, Place};
use crate::daemon::backups::{BackupWish, WishedKind};
use crate::daemon::control::Client;
use crate::daemon::{open, probe, status, stored};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::metered::NoMeter;
use crate::wal_pipeline::{WalParts, WalPipeline, WalSettings};

/// How often a waiting client asks the daemon, which answers earlier when the backup has ended.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// How long streaming may take to begin where no daemon streams.
const STREAMING_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn now(context: &Context, args: &BackupNow) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    let wish = wish(args);
    match source::daemon(&config).await? {
        Some(daemon) => by_daemon(context, &daemon, &cluster, &wish, args.wait).await,
        None => by_ourselves(context, &config, &cluster, wish).await,
    }
}

fn wish(args: &BackupNow) -> BackupWish {
    let mut annotations: std::collections::BTreeMap<String, String> = args.annotations.iter().cloned().collect();
    if let Some(name) = &args.name {
        annotations.insert("name".to_owned(), name.clone());
    }
    BackupWish {
        kind: match args.kind {
            Kind::Auto => WishedKind::Auto,
            Kind::Full => WishedKind::Full,
            Kind::Incremental => WishedKind::Incremental,
        },
        annotations,
        fast_checkpoint: args.fast_checkpoint,
        max_rate: args.max_rate,
    }
}

async fn by_daemon(
    context: &Context,
    daemon: &Client,
    cluster: &ClusterConfig,
    wish: &BackupWish,
    wait: bool,
) -> Ended {
    let name = source::query(&cluster.name);
    let started = daemon.post(&format!("/api/v1/backups?cluster={name}"), &to_value(wish)?).await?;
    let run = &started["run"];
    if !wait {
        let output = &context.output;
        if output.json {
            output.document(&json!({ "type": "result", "cluster": cluster.name, "started": true, "run": run }));
        } else {
            output.text(&format!("backup of {} started; see: pgvault backup list", cluster.name));
        }
        return Ok(0);
    }
    let mut progress = Progress::new(&context.output, &context.clock, &cluster.name);
    loop {
        let next = Instant::now() + ASK_EVERY;
        let wait_ms = ASK_EVERY.as_millis();
        let document = daemon.get(&format!("/api/v1/backups/run?cluster={name}&run={run}&wait_ms={wait_ms}")).await?;
        let state = &document["progress"];
        match document["state"].as_str() {
            Some("running") => progress.show(
                state["phase"].as_str().unwrap_or_default(),
                state["done_bytes"].as_u64().unwrap_or_default(),
                state["total_bytes"].as_u64(),
            ),
            Some("ok") => {
                progress.end();
                tell_reason(context, wish.kind, state["not_files"].as_str(), state["reason"].as_str());
                committed(context, &document["backup"]);
                return Ok(0);
            }
            _ => {
                progress.end();
                return Err(crate::daemon::http::error_of(&document["error"]));
            }
        }
        // An older daemon answers at once.
        sleep_until(next).await;
    }
}

/// Takes the backup in this process, and streams WAL meanwhile so that it becomes usable.
async fn by_ourselves(context: &Context, config: &Config, cluster: &ClusterConfig, wish: BackupWish) -> Ended {
    context.output.note("no daemon runs: the backup is taken here, with streaming for as long as it takes");
    let kind = wish.kind;
    // Its spool and slot are the daemon's: nobody else may use them meanwhile.
    let _state = crate::daemon::state_dir::StateDir::claim(&config.state_dir, context.clock.now())?;
    // What cannot be reached is said at once: the pipeline would try for ever.
    let let_in = probe::replication(&open::connect_options(config, cluster)?).await;
    if !let_in.iter().any(Result::is_ok) {
        let others: Vec<String> =
            let_in.iter().skip(1).flat_map(|other| other.as_ref().err().map(Error::in_one_line)).collect();
        if let Some(Err(error)) = let_in.into_iter().next() {
            return Err(others.into_iter().fold(error, Error::because));
        }
    }
    let repository = open::repository(config, &context.clock, Arc::new(NoMeter), open::Missing::Create).await?;
    let stored_cluster = repository.cluster(&open::cluster_name(cluster)?);
    let settings = WalSettings { drain: Duration::from_secs(60), ..open::wal_settings(config, cluster)? };
    let parts = WalParts::with_repository(settings, stored_cluster.clone(), Arc::clone(&context.clock));
    let board = parts.board.clone();
    let stop = CancellationToken::new();
    let pipeline = tokio::spawn(WalPipeline::run(parts, stop.clone()));

    let mut status = board.subscribe();
    let decided = status.wait_for(|status| status.streaming() || status.state.needs_a_person());
    // Only whether: what `wait_for` returns keeps the pipeline from telling anything more.
    let streams = tokio::time::timeout(STREAMING_WITHIN, decided).await.is_ok_and(|decided| decided.is_ok());
    let seen = board.read(|status| (status.streaming(), status.error.clone()));
    let outcome = match (streams, seen) {
        (true, (true, _)) => {
            let lineage = stored::newest_lineage(&stored_cluster).await?;
            let connect = open::connect_options(config, cluster)?;
            let place = Place {
                connect: &connect,
                lineage: &lineage,
                state_dir: config.state_dir.clone(),
                board: &board,
                clock: &context.clock,
                data_directory: cluster.data_directory.clone(),
                max_rate: cluster.max_rate,
            };
            let sender = ProgressSender::new(BackupProgress::default());
            let show = |shown: &mut Progress, now: BackupProgress| {
                shown.show(now.phase.as_str(), now.done_bytes, now.total_bytes);
            };
            let progress = Progress::new(&context.output, &context.clock, &cluster.name);
            let run = backup_run::run(&place, wish, &sender, &stop);
            let backup = progress.during(sender.subscribe(), show, run).await;
            let BackupProgress { not_files, reason, .. } = sender.borrow().clone();
            tell_reason(context, kind, not_files.as_deref(), reason.as_deref());
            backup
        }
        (_, (_, Some(error))) => Err(error),
        _ => Err(Error::new(
            ErrorCode::PostgresFailed,
            format!("streaming from {} did not begin within {} s", cluster.name, STREAMING_WITHIN.as_secs()),
        )
        .help("see why: pgvault check")),
    };
    stop.cancel();
    if let Ok(Err(error)) = pipeline.await {
        context.output.note(&format!("streaming ended with: {error}"));
    }
    let backup = outcome?;
    let view = source::view(context, config, cluster).await?;
    let known = view.backups().iter().find(|known| known.id == backup.id).unwrap_or(&backup);
    committed(context, &to_value(&status::backup_summary(&view, known))?);
    Ok(0)
}

/// Says why the server sent the files and why all of them were read, when that is not what was asked for.
fn tell_reason(context: &Context, kind: WishedKind, not_files: Option<&str>, reason: Option<&str>) {
    if let Some(not_files) = not_files {
        context.output.note(&format!("warning: the server sent the files: {not_files}"));
    }
    let Some(reason) = reason else { return };
    let what = match kind {
        WishedKind::Incremental => "not incremental",
        WishedKind::Auto | WishedKind::Full => "all files were read",
    };
    context.output.note(&format!("{what}: {reason}; what did not change is not stored again"));
}

fn committed(context: &Context, backup: &Value) {
    let output = &context.output;
    if output.json {
        let mut document = backup.clone();
        document["type"] = Value::from("result");
        output.document(&document);
        return;
    }
    let size = |name: &str| bytes(backup[name].as_u64().unwrap_or_default());
    let text = |name: &str| backup[name].as_str().unwrap_or_default().to_owned();
    output.text(&format!("{}  {}  {}, {} new", text("id"), text("status"), size("size_bytes"), size("new_bytes")));
}

pub(super) async fn list(context: &Context, of: &OfCluster) -> Ended {
    let document = backups(context, of).await?;
    let output = &context.output;
    if output.json {
        output.document(&document);
        return Ok(0);
    }
    let backups = document.as_array().cloned().unwrap_or_default();
    if backups.is_empty() {
        output.note("there is no backup: pgvault backup now");
        return Ok(0);
    }
    let text = |value: &Value| {
        value.as_str().map_or_else(|| if value.is_null() { "-".to_owned() } else { value.to_string() }, str::to_owned)
    };
    let size = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), bytes);
    let rows = backups.iter().map(|backup| {
        vec![
            text(&backup["id"]),
            text(&backup["cluster"]),
            if backup["damaged"] == true { "damaged".to_owned() } else { text(&backup["status"]) },
            text(&backup["kind"]),
            text(&backup["source"]),
            shown(&backup["started_at"]),
            text(&backup["timeline"]),
            size(&backup["size_bytes"]),
            size(&backup["new_bytes"]),
            if time(&backup["verified_at"]).is_some() { shown(&backup["verified_at"]) } else { "-".to_owned() },
            if time(&backup["recoverable_to"]).is_some() { shown(&backup["recoverable_to"]) } else { "-".to_owned() },
        ]
    });
    output.table(
        &["ID", "CLUSTER", "STATUS", "KIND", "SOURCE", "STARTED", "TL", "SIZE", "NEW", "VERIFIED", "RECOVERS TO"],
        rows.collect(),
    );
    Ok(0)
}

/// The document of `backup list`.
async fn backups(context: &Context, of: &OfCluster) -> Result<Value> {
    let config = context.config()?;
    let clusters = context.clusters(&config, of)?;
    if let Some(daemon) = source::daemon_if_allowed(&config).await {
        return match context.named(of)? {
            Some(name) => daemon.get(&format!("/api/v1/backups?cluster={}", source::query(name))).await,
            None => daemon.get("/api/v1/backups").await,
        };
    }
    let mut all = Vec::new();
    for cluster in &clusters {
        let view = source::stored_view(context, &config, cluster).await?;
        all.extend(status::backup_list(&view));
    }
    to_value(&all)
}

pub(super) async fn show(context: &Context, id: &str) -> Ended {
    let document = backups(context, &OfCluster::default()).await?;
    let all = document.as_array().cloned().unwrap_or_default();
    let backup = find(&all, id)?;
    let output = &context.output;
    if output.json {
        output.document(&backup);
        return Ok(0);
    }
    let rows = backup.as_object().into_iter().flatten().map(|(name, value)| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            Value::Number(number) if name.ends_with("_bytes") => {
                format!("{} ({number})", bytes(number.as_u64().unwrap_or_default()))
            }
            other => other.to_string(),
        };
        vec![name.clone(), text]
    });
    output.table(&["", ""], rows.collect());
    Ok(0)
}

/// A backup by its id, by the start of it, or `latest`: the newest usable one.
fn find(all: &[Value], id: &str) -> Result<Value> {
    let usable = |backup: &&Value| backup["status"] == to_word(BackupStatus::Ok);
    if id == "latest" {
        return all.iter().rfind(usable).cloned().ok_or_else(|| {
            Error::new(ErrorCode::NotFound, "there is no usable backup").help("pgvault backup now --wait")
        });
    }
    let starts: Vec<&Value> =
        all.iter().filter(|backup| backup["id"].as_str().is_some_and(|known| known.starts_with(id))).collect();
    match starts.as_slice() {
        [only] => Ok((*only).clone()),
        [] => Err(Error::new(ErrorCode::NotFound, format!("there is no backup \"{id}\"")).help("pgvault backup list")),
        several => {
            let ids: Vec<&str> = several.iter().filter_map(|backup| backup["id"].as_str()).collect();
            Err(Error::new(ErrorCode::Usage, format!("\"{id}\" is the start of several backups: {}", ids.join(", ")))
                .help("write more of it"))
        }
    }
}

fn to_word(status: BackupStatus) -> &'static str {
    match status {
        BackupStatus::Ok => "ok",
        BackupStatus::Running => "running",
        BackupStatus::WaitingForWal => "waiting_for_wal",
        BackupStatus::Failed => "failed",
    }
}
