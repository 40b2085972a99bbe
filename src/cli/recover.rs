//! `recover`: write a data directory that recovers to a moment.

use std::path::Path;

use recovery::settings::{RestoreCommand, SignalFile, StandbySettings};
use recovery::{BackupId, RecoveryRequest, RecoveryTarget, StopAt, TargetAction, TargetTimeline};
use serde_json::{Value, json};
use wal::{Lsn, PgTime, TimelineId};

use super::Ended;
use super::args::{Action, Recover};
use super::context::Context;
use super::output::bytes;
use super::progress::Progress;
use super::source;
use super::window::to_value;
use crate::config::keys::Section;
use crate::config::{ClusterConfig, Config, Origin, Raw};
use crate::daemon::http;
use crate::daemon::status::counted;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{Conninfo, Environment};
use crate::repository::LineageRepository;
use crate::restore::{
    self, ConfigRequest, RestoreOutcome, RestorePlan, RestoreProgress, RestoreProgressSender, RestoreRequest, Tally,
};

pub(super) async fn run(context: &Context, args: &Recover) -> Ended {
    // What was asked for is understood before anything is opened.
    let now = PgTime::from(context.clock.now());
    let target = target(args, now)?;
    contradictions(args, &target)?;
    let timeline = args.timeline.as_deref().map(timeline).transpose()?;
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let backup = match &args.backup {
        Some(id) => Some(backup(&lineage, id).await?),
        None => None,
    };
    let recovery = RecoveryRequest {
        inclusive: !args.exclusive,
        timeline,
        action: args.action.map(action),
        backup,
        ..RecoveryRequest::new(target)
    };
    let request = RestoreRequest {
        directory: args.to.clone(),
        recovery,
        tablespaces: args.writing.tablespaces().collect(),
        wal_dir: args.writing.wal_dir.clone(),
        owner: args.writing.owner.clone(),
        config: if args.no_config { None } else { Some(settings(context, &config, &cluster, args)?) },
        delta: args.delta,
    };
    let plan = restore::plan(&lineage, &request).await?;
    show_plan(context, &plan, args.writing.dry_run)?;
    if args.writing.dry_run {
        return Ok(0);
    }
    apply(context, &lineage, &plan, args).await
}

async fn apply(context: &Context, lineage: &LineageRepository, plan: &RestorePlan, args: &Recover) -> Ended {
    let effort = args.writing.effort();
    let outcome = showing_progress(context, &plan.cluster, async |progress| {
        restore::apply(plan, lineage, effort, progress, context.clock.as_ref()).await
    })
    .await?;
    let output = &context.output;
    if output.json {
        let planned = to_value(&plan.document())?;
        output.document(&json!({
            "type": "result", "directory": outcome.directory, "backup": outcome.backup, "target": planned["target"],
            "timeline": outcome.timeline, "wal_from": planned["wal_from"], "wal_to": planned["wal_to"], "tail": planned["tail"],
            "restored_bytes": outcome.restored_bytes, "kept_bytes": outcome.kept_bytes,
            "removed_files": outcome.removed.files, "removed_bytes": outcome.removed.bytes,
            "seconds": outcome.seconds, "warnings": outcome.warnings,
        }));
        return Ok(0);
    }
    for warning in &outcome.warnings {
        output.note(&format!("note: {warning}"));
    }
    output.text(&restored_line(&outcome));
    if plan.existing.is_some() {
        output.text(&format!(
            "of it {} were there already; removed {}, {}",
            bytes(outcome.kept_bytes),
            counted(outcome.removed.files, "file"),
            bytes(outcome.removed.bytes)
        ));
    }
    if args.no_config {
        output.text("no settings were written: the HA manager starts it");
    } else {
        output.text(&format!("Then        pg_ctl -D {} start; {}", outcome.directory.display(), then(plan)));
    }
    Ok(0)
}

/// What was restored, for people.
pub(super) fn restored_line(outcome: &RestoreOutcome) -> String {
    format!(
        "restored {} to {} from backup {} in {:.1} s",
        bytes(outcome.restored_bytes),
        outcome.directory.display(),
        outcome.backup,
        outcome.seconds
    )
}

/// Runs a restore and shows how far it is.
pub(super) async fn showing_progress<T>(
    context: &Context,
    cluster: &str,
    run: impl AsyncFnOnce(&RestoreProgressSender) -> Result<T>,
) -> Result<T> {
    let sender = RestoreProgressSender::new(RestoreProgress::default());
    let show = |shown: &mut Progress, now: RestoreProgress| {
        shown.show(now.phase.as_str(), now.done_bytes, Some(now.total_bytes));
    };
    let progress = Progress::new(&context.output, &context.clock, cluster);
    progress.during(sender.subscribe(), show, run(&sender)).await
}

/// What happens when PostgreSQL is started on what was restored.
fn then(plan: &RestorePlan) -> &'static str {
    let standby = plan.settings.as_ref().is_some_and(|settings| settings.signal == SignalFile::Standby);
    if standby && plan.recovery.stop == StopAt::EndOfWal {
        return "it follows its primary as a standby";
    }
    restore::then(plan.recovery.action)
}

/// Refuses flags that would have no effect together with the others.
fn contradictions(args: &Recover, target: &RecoveryTarget) -> Result<()> {
    let refuse = |what: &str, help: &str| Err(Error::new(ErrorCode::Usage, what.to_owned()).help(help.to_owned()));
    let has_stop = !matches!(target, RecoveryTarget::Latest);
    if args.exclusive && (!has_stop || *target == RecoveryTarget::Immediate) {
        return refuse("--exclusive needs a target to stop before", "add --target-time, --target-lsn or --target-xid");
    }
    if args.standby && args.action.is_some() && !has_stop {
        return refuse(
            "--action has no effect on a standby that follows its primary",
            "leave out --action, or name a target",
        );
    }
    if let Some(words) = &args.primary_conninfo {
        // Read as if it were complete: who runs this may have none of the standby's environment.
        let mut environment = Environment::from_variables::<String, String>([]);
        environment.user = Some("postgres".to_owned());
        if !words.contains("service=")
            && let Err(error) = Conninfo::parse(words, &environment)
        {
            return Err(Error::new(ErrorCode::Usage, "--primary-conninfo cannot be used").because(error));
        }
    }
    Ok(())
}

fn target(args: &Recover, now: PgTime) -> Result<RecoveryTarget> {
    let wanted = &args.target;
    let usage = |error: &dyn std::fmt::Display| {
        Error::new(ErrorCode::Usage, error.to_string()).help("write a position as PostgreSQL does: 0/5000148")
    };
    Ok(if let Some(text) = &wanted.target_time {
        RecoveryTarget::Time(http::moment(text, now)?)
    } else if let Some(text) = &wanted.target_lsn {
        RecoveryTarget::Lsn(text.parse::<Lsn>().map_err(|error| usage(&error))?)
    } else if let Some(xid) = wanted.target_xid {
        RecoveryTarget::Xid(xid)
    } else if let Some(name) = &wanted.target_name {
        RecoveryTarget::Name(name.clone())
    } else if wanted.immediate {
        RecoveryTarget::Immediate
    } else {
        RecoveryTarget::Latest
    })
}

fn timeline(text: &str) -> Result<TargetTimeline> {
    if text == "latest" {
        return Ok(TargetTimeline::Latest);
    }
    text.parse::<TimelineId>().map(TargetTimeline::Number).map_err(|error| {
        Error::new(ErrorCode::Usage, error.to_string()).help("--timeline latest, or a number: pgvault window")
    })
}

fn action(action: Action) -> TargetAction {
    match action {
        Action::Pause => TargetAction::Pause,
        Action::Promote => TargetAction::Promote,
        Action::Shutdown => TargetAction::Shutdown,
    }
}

/// A backup by its id, the start of it, or `latest`.
async fn backup(lineage: &LineageRepository, id: &str) -> Result<BackupId> {
    let catalog = lineage.catalog().await?;
    let readable = catalog.backups.iter().rev().map(|backup| &backup.id);
    // Whoever names one that cannot be read is told so; `latest` is the newest that can.
    let unreadable = catalog.unreadable.iter().map(|backup| &backup.id).filter(|_| id != "latest");
    let mut found = readable.chain(unreadable).filter(|known| id == "latest" || known.as_str().starts_with(id));
    let unknown =
        || Error::new(ErrorCode::NotFound, format!("there is no backup \"{id}\"")).help("pgvault backup list");
    let first = found.next().ok_or_else(unknown)?;
    match found.next() {
        Some(second) if id != "latest" => {
            Err(Error::new(ErrorCode::Usage, format!("\"{id}\" is the start of several backups: {second}, {first}"))
                .help("write more of it"))
        }
        _ => Ok(first.clone()),
    }
}

/// What is written besides the backup's files.
fn settings(context: &Context, config: &Config, cluster: &ClusterConfig, args: &Recover) -> Result<ConfigRequest> {
    let standby = match (&args.primary_conninfo, args.standby) {
        (Some(primary_conninfo), true) => {
            Some(StandbySettings { primary_conninfo: primary_conninfo.clone(), slot: args.slot.clone() })
        }
        (None, true) => {
            return Err(Error::new(ErrorCode::Usage, "--standby needs --primary-conninfo")
                .help("--primary-conninfo \"host=pg1 user=replicator\", without a password: ~/.pgpass of the standby holds it"));
        }
        _ => None,
    };
    Ok(ConfigRequest {
        restore_command: restore_command(context, config, cluster)?,
        standby,
        options: args.writing.recovery_options.clone(),
    })
}

/// The program as it runs now, with everything that leads it to the same repository; never a secret.
pub(super) fn restore_command(context: &Context, config: &Config, cluster: &ClusterConfig) -> Result<RestoreCommand> {
    let program = std::env::current_exe()
        .map_err(|error| Error::new(ErrorCode::Unclassified, "cannot tell where this program lies").because(error))?;
    let named = context.global.config.is_some() || context.variables.get("PGVAULT_CONFIG").is_some();
    // The system's files are found without being named, drop-ins included.
    let file = if named { config.files.first() } else { None };
    Ok(RestoreCommand {
        program: as_text(&program)?,
        config: file.map(|path| as_text(path)).transpose()?,
        arguments: arguments(config),
        cluster: cluster.name.clone(),
        timeline: None,
        until: None,
    })
}

/// What the environment of this command says of the repository and PostgreSQL's will not: as flags.
fn arguments(config: &Config) -> Vec<String> {
    let at = Section::Repository;
    let mut arguments = Vec::new();
    let mut set =
        |name: &str, value: &str| arguments.extend(["--set".to_owned(), format!("repository.{name}={value}")]);
    let from_file =
        |name: &str| matches!(config.settings.get(&at, name).map(|setting| &setting.origin), Some(Origin::File(_)));
    if !from_file("url") {
        set("url", &config.repository.storage.url);
    }
    for (section, name, setting) in config.settings.iter() {
        let elsewhere = matches!(setting.origin, Origin::Variable(_) | Origin::Flag(_));
        if *section != at || name == "url" || !elsewhere {
            continue;
        }
        match &setting.raw {
            Raw::Text(text) => set(name, text),
            Raw::Bool(value) => set(name, &value.to_string()),
            Raw::Integer(value) => set(name, &value.to_string()),
            Raw::List(items) => set(name, &items.join(",")),
        }
    }
    arguments
}

fn as_text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorCode::Usage, format!("{} is not UTF-8: it cannot stand in a restore_command", path.display()))
    })
}

/// The plan: to stdout with `--dry-run`, else beside the work.
fn show_plan(context: &Context, plan: &RestorePlan, dry_run: bool) -> Result<()> {
    let output = &context.output;
    let document = to_value(&plan.document())?;
    if output.json {
        output.document(&document);
        return Ok(());
    }
    for line in lines(plan, &document, context.global.verbose > 0) {
        if dry_run { output.text(&line) } else { output.note(&line) }
    }
    if dry_run {
        if plan.settings.is_some() {
            output.text(&format!("Then        pg_ctl -D {} start; {}", plan.directory.display(), then(plan)));
        }
        output.text("nothing was changed (--dry-run)");
    }
    Ok(())
}

pub(super) fn lines(plan: &RestorePlan, document: &Value, verbose: bool) -> Vec<String> {
    let recovery = &plan.recovery;
    let text = |name: &str| document[name].as_str().unwrap_or("-").to_owned();
    let inclusive = if recovery.inclusive { "" } else { ", exclusive" };
    let mut lines = vec![
        format!(
            "Target      {} (timeline {}{inclusive})   in the recoverable window: yes",
            recovery.target, recovery.timeline
        ),
        format!(
            "Base        {}   {}, ends {}",
            recovery.backup.id,
            bytes(recovery.backup.size_bytes),
            recovery.backup.stopped_at
        ),
        format!("WAL         {} .. {}   {}", text("wal_from"), text("wal_to"), counted(plan.wal_segments, "segment")),
        format!("Download    {} from the repository", bytes(plan.download_bytes)),
    ];
    if let Some(tail) = &plan.tail {
        lines.push(format!(
            "Tail        segment {} is not complete: {} of it reach to {}",
            tail.segment,
            counted(tail.pieces.len() as u64, "stored tail"),
            tail.end
        ));
    }
    for place in &plan.places {
        lines.push(format!(
            "Disk        {} needs {}, has {} free",
            place.path.display(),
            bytes(place.needs_bytes),
            bytes(place.free_bytes)
        ));
    }
    if let Some(existing) = &plan.existing {
        let shown = |tally: &Tally| format!("{}, {}", counted(tally.files, "file"), bytes(tally.bytes));
        lines.push(format!(
            "Compares    {}: what is right is kept, what is not is overwritten",
            shown(&existing.compared)
        ));
        lines.push(format!("Adds        {}", shown(&existing.missing)));
        lines.push(format!("Removes     {}, which the backup does not have", shown(&existing.removed)));
        lines.extend(existing.left.iter().map(|path| format!("Leaves      {} alone", path.display())));
    }
    if let Some(wal) = &plan.wal_dir {
        lines.push(format!("pg_wal      {}", wal.display()));
    }
    for tablespace in &plan.tablespaces {
        lines.push(format!("Tablespace  {} -> {}", tablespace.old.display(), tablespace.new.display()));
    }
    if let Some(commit) = recovery.commit_before {
        lines.push(format!(
            "Last        commit that will be there: {} at {}, transaction {}",
            commit.time, commit.lsn, commit.xid
        ));
    }
    if let Some(commit) = recovery.commit_after {
        lines.push(format!(
            "First       commit that will not: {} at {}, transaction {}",
            commit.time, commit.lsn, commit.xid
        ));
    }
    let settings: Vec<&str> = document["settings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match &plan.settings {
        Some(written) => lines.push(format!(
            "Writes      {}, postgresql.auto.conf ({}), {}",
            plan.directory.display(),
            counted(settings.len() as u64, "line"),
            written.signal.file_name()
        )),
        None => lines.push(format!("Writes      {}, no settings (--no-config)", plan.directory.display())),
    }
    if verbose {
        lines.extend(settings.iter().map(|setting| format!("            {setting}")));
    }
    lines.extend(recovery.notes.iter().map(|note| format!("Note        {note}")));
    lines
}
