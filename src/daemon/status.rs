//! The one screen: is all well? Pure, from what is known.

mod document;

use chrono::{DateTime, TimeDelta, Utc};
use recovery::{Backup, BackupId, BackupKind, BackupStatus, UnreadableBackup};
use wal::{Lsn, PgTime};

use super::view::{ClusterView, Member, RunningBackup};
use super::{gaps, schedule};
use crate::primary::ServerVersion;
use crate::wal_pipeline::{SpoolLevel, WalStatus};

pub use document::{
    BackupSummary, BackupsSummary, ClusterStatus, ForkTail, Primary, RepositorySummary, RunningSummary, SlotSummary,
    State, WalSummary, WindowSummary,
};

/// The status of one cluster.
pub fn status(view: &ClusterView, now: DateTime<Utc>) -> ClusterStatus {
    let stored = view.stored.as_deref();
    let wal = view.wal.as_ref();
    let (state, reasons) = verdict(view, now);
    let newest = stored.map(|stored| &stored.catalog);
    ClusterStatus {
        name: view.name.clone(),
        state,
        reasons,
        system_identifier: wal
            .and_then(|wal| wal.system_identifier)
            .or_else(|| newest.map(|catalog| catalog.lineage.system_identifier)),
        lineage: wal.and_then(|wal| wal.lineage).or_else(|| newest.map(|catalog| catalog.lineage)),
        postgres_version: version_number(view).map(version_text),
        timeline: wal
            .and_then(|wal| wal.timeline)
            .or_else(|| newest.and_then(|catalog| catalog.timelines().last().copied())),
        primary: primary(view),
        wal: wal_summary(view),
        slots: slots(view),
        window: window(view),
        backups: backups(view),
        repository: RepositorySummary {
            location: view.location.clone(),
            error: view.repository_error.as_ref().map(crate::error::Error::in_one_line),
            base_bytes: stored.map(|stored| stored.bytes.base),
            wal_bytes: stored.map(|stored| stored.bytes.wal),
        },
        failovers: view.failovers.clone(),
        fork_tails: fork_tails(view),
    }
}

/// Of what is stored, and of what this daemon noticed.
fn fork_tails(view: &ClusterView) -> Vec<ForkTail> {
    let mut tails = view.stored.as_deref().map(|stored| stored.catalog.fork_tails()).unwrap_or_default();
    for noticed in view.wal.iter().flat_map(|wal| &wal.beyond_fork) {
        match tails.iter_mut().find(|tail| (tail.timeline, tail.start) == (noticed.timeline, noticed.start)) {
            Some(tail) => tail.end = tail.end.max(noticed.end),
            None => tails.push(*noticed),
        }
    }
    tails.iter().map(|tail| ForkTail { timeline: tail.timeline, from_lsn: tail.start, to_lsn: tail.end }).collect()
}

fn version_number(view: &ClusterView) -> Option<u32> {
    let of_member = || view.primary().and_then(|member| member.version).map(ServerVersion::number);
    let of_backup = || view.backups().last().map(|backup| backup.postgres_version);
    view.wal.as_ref().and_then(|wal| wal.postgres_version).or_else(of_member).or_else(of_backup)
}

/// `170005` as `17.5`.
pub fn version_text(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

fn primary(view: &ClusterView) -> Option<Primary> {
    let connected = view.wal.as_ref().and_then(|wal| wal.primary.clone());
    let asked =
        || view.primary().filter(|member| member.error.is_none()).map(|member| (member.host.clone(), member.port));
    connected.or_else(asked).map(|(host, port)| Primary { host, port })
}

fn wal_summary(view: &ClusterView) -> WalSummary {
    let last_stored = view.stored.as_deref().and_then(|stored| stored.window.ranges.first()).map(|range| range.to);
    let Some(wal) = &view.wal else {
        return WalSummary {
            shipped_lsn: last_stored.map(|moment| moment.lsn),
            last_commit_at: last_stored.map(|moment| moment.time),
            ..WalSummary::default()
        };
    };
    WalSummary {
        streaming: wal.streaming(),
        state: Some(wal.state.as_str()),
        error: wal.error.as_ref().or(wal.archive_error.as_ref()).map(|error| error.in_one_line()),
        received_lsn: wal.received,
        flushed_lsn: wal.flushed,
        archived_lsn: wal.archived,
        shipped_lsn: wal.shipped.max(wal.archived),
        lag_bytes: lag(wal, wal.shipped.max(wal.archived)),
        rpo_seconds: Some(wal.rpo_seconds),
        last_commit_at: wal.last_archived_commit.map(|commit| commit.time),
        spool_segments: Some(wal.spool_segments),
        spool_bytes: Some(wal.spool_bytes),
        spool_free_bytes: wal.spool_free_bytes,
        spool_full_seconds: wal.spool_time_left.map(|left| left.as_secs_f64()),
    }
}

/// How far a position is behind the server's.
pub fn lag(wal: &WalStatus, position: Option<Lsn>) -> Option<u64> {
    Some(wal.server_end.max(wal.received)?.bytes_since(position?))
}

fn slots(view: &ClusterView) -> Vec<SlotSummary> {
    let Some(slot) = &view.slot else { return Vec::new() };
    let summary = |member: &Member| -> SlotSummary {
        let row = member.slots.iter().flatten().find(|row| row.name == *slot);
        let missing = member.slots.is_some() && row.is_none();
        let retained = row.and_then(|row| Some(member.current_lsn?.bytes_since(row.restart_lsn?)));
        SlotSummary {
            name: slot.clone(),
            host: view.label_of(member),
            active: row.map(|row| row.active),
            wal_status: if missing { Some("missing".to_owned()) } else { row.and_then(|row| row.wal_status.clone()) },
            retained_bytes: retained,
            safe_wal_bytes: row.and_then(|row| row.safe_wal_size),
        }
    };
    view.members.iter().map(summary).collect()
}

/// The range that a person means by "how far back, and until when": the one whose end moves on with the WAL.
fn window(view: &ClusterView) -> WindowSummary {
    let gaps = gaps::all(view).len();
    let Some(range) = live_range(view) else { return WindowSummary { gaps, ..WindowSummary::default() } };
    let live_end = view.wal.as_ref().and_then(|wal| wal.last_archived_commit).map(|commit| commit.time);
    WindowSummary { from: Some(range.from.time), to: Some(range.to.time).max(live_end), gaps }
}

/// The recoverable range that ends last on the live branch.
pub fn live_range(view: &ClusterView) -> Option<&recovery::RecoverableRange> {
    let window = &view.stored.as_deref()?.window;
    let branch = window.ranges.first()?.branch;
    window.ranges.iter().filter(|range| range.branch == branch).max_by_key(|range| range.to.lsn)
}

fn backups(view: &ClusterView) -> BackupsSummary {
    BackupsSummary {
        count: view.backups().len() + view.unreadable_backups().len(),
        damaged: damaged(view),
        last: view.backups().last().map(|backup| backup_summary(view, backup)),
        running: view.backup.running.as_ref().map(running_summary),
        next_at: view.backup.next_due,
        error: view.backup.last_error.as_ref().map(|error| error.message().to_owned()),
    }
}

/// How many backups are damaged, those included whose manifest cannot be read.
fn damaged(view: &ClusterView) -> usize {
    view.backups().iter().filter(|backup| backup.damaged).count() + view.unreadable_backups().len()
}

fn running_summary(running: &RunningBackup) -> RunningSummary {
    RunningSummary {
        id: running.id.clone(),
        started_at: PgTime::from(running.started_at),
        phase: running.phase.clone(),
        done_bytes: running.done_bytes,
        total_bytes: running.total_bytes,
    }
}

/// One element of `backup list`.
pub fn backup_summary(view: &ClusterView, backup: &Backup) -> BackupSummary {
    let shipped = view.wal.as_ref().and_then(|wal| wal.shipped.max(wal.archived));
    // The catalog is a snapshot; the pipeline knows of WAL that was stored since.
    let arrived = backup.status == BackupStatus::WaitingForWal && shipped >= Some(backup.stop_lsn);
    BackupSummary {
        id: Some(backup.id.clone()),
        cluster: view.name.clone(),
        lineage: view.stored.as_deref().map(|stored| stored.catalog.lineage),
        status: if arrived { BackupStatus::Ok } else { backup.status },
        kind: Some(backup.kind),
        source: Some(backup.source),
        started_at: Some(backup.started_at),
        stopped_at: Some(backup.stopped_at),
        start_lsn: Some(backup.start_lsn),
        stop_lsn: Some(backup.stop_lsn),
        timeline: Some(backup.timeline),
        postgres_version: Some(version_text(backup.postgres_version)),
        size_bytes: Some(backup.size_bytes),
        stored_bytes: Some(backup.stored_bytes),
        new_bytes: Some(backup.new_bytes),
        files: Some(backup.files),
        keep: backup.keep,
        damaged: backup.damaged,
        problem: None,
        verified_at: view.stored.as_deref().and_then(|stored| stored.verified.get(&backup.id).copied()),
        annotations: backup.annotations.clone(),
        recoverable_to: recoverable_to(view, backup),
    }
}

/// What is known of a backup whose manifest cannot be read. `failed`, because no recovery starts from it.
fn unreadable_summary(view: &ClusterView, backup: &UnreadableBackup) -> BackupSummary {
    BackupSummary {
        id: Some(backup.id.clone()),
        cluster: view.name.clone(),
        lineage: view.stored.as_deref().map(|stored| stored.catalog.lineage),
        status: BackupStatus::Failed,
        started_at: backup.id.started_at(),
        keep: backup.keep,
        damaged: true,
        problem: Some(backup.reason.clone()),
        ..BackupSummary::unknown()
    }
}

/// `backup list`: committed backups oldest first, then the one in progress.
pub fn backup_list(view: &ClusterView) -> Vec<BackupSummary> {
    let mut list: Vec<BackupSummary> = view.backups().iter().map(|backup| backup_summary(view, backup)).collect();
    if !view.unreadable_backups().is_empty() {
        list.extend(view.unreadable_backups().iter().map(|backup| unreadable_summary(view, backup)));
        list.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    }
    let committed = |id: &Option<BackupId>| view.backups().iter().any(|backup| Some(&backup.id) == id.as_ref());
    if let Some(running) = view.backup.running.as_ref().filter(|running| !committed(&running.id)) {
        list.push(BackupSummary {
            id: running.id.clone(),
            cluster: view.name.clone(),
            lineage: view.wal.as_ref().and_then(|wal| wal.lineage),
            status: BackupStatus::Running,
            kind: Some(BackupKind::Full),
            started_at: Some(PgTime::from(running.started_at)),
            timeline: view.wal.as_ref().and_then(|wal| wal.timeline),
            postgres_version: version_number(view).map(version_text),
            size_bytes: running.total_bytes,
            ..BackupSummary::unknown()
        });
    }
    list
}

/// The last moment of the ranges that a backup leads to.
fn recoverable_to(view: &ClusterView, backup: &Backup) -> Option<PgTime> {
    let window = &view.stored.as_deref()?.window;
    let reaches =
        |range: &&recovery::RecoverableRange| range.from.lsn <= backup.stop_lsn && backup.stop_lsn <= range.to.lsn;
    let range = window.ranges.iter().filter(reaches).max_by_key(|range| range.to.lsn)?;
    let live = live_range(view).is_some_and(|live| live.to == range.to);
    let live_end =
        view.wal.as_ref().filter(|_| live).and_then(|wal| wal.last_archived_commit).map(|commit| commit.time);
    Some(range.to.time).max(live_end)
}

/// A number and what is counted: `1 file`, `2 files`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A connection that is gone for less is a hiccup.
const PATIENCE: TimeDelta = TimeDelta::minutes(2);

/// How a cluster fares, and why.
fn verdict(view: &ClusterView, now: DateTime<Utc>) -> (State, Vec<String>) {
    let mut critical = Vec::new();
    let mut warning = Vec::new();
    match &view.wal {
        None => warning.push("no daemon runs: nothing is streamed".to_owned()),
        Some(wal) => wal_verdict(view, wal, now, &mut critical, &mut warning),
    }
    if let Some(error) = &view.repository_error {
        critical.push(format!("repository: {}", error.in_one_line()));
    }
    if let Some(gap) = gaps::open(view) {
        critical.push(gap.to_string());
    }
    let gaps = gaps::all(view).len();
    if gaps > 0 {
        warning.push(format!("{} in the stored WAL: pgvault wal gaps", counted(gaps as u64, "gap")));
    }
    backup_verdict(view, now, &mut critical, &mut warning);
    let state = match (critical.is_empty(), warning.is_empty()) {
        (false, _) => State::Critical,
        (true, false) => State::Warning,
        (true, true) => State::Ok,
    };
    critical.extend(warning);
    (state, critical)
}

fn wal_verdict(
    view: &ClusterView,
    wal: &WalStatus,
    now: DateTime<Utc>,
    critical: &mut Vec<String>,
    warning: &mut Vec<String>,
) {
    let why = wal.error.as_ref().map_or_else(String::new, |error| format!(": {}", error.in_one_line()));
    if wal.state.needs_a_person() {
        critical.push(format!("WAL {}{why}", wal.state.as_str()));
    } else if !wal.streaming() {
        let long = view.down_since.is_some_and(|since| now - since > PATIENCE);
        let text = format!("WAL is not streaming ({}){why}", wal.state.as_str());
        if long { critical.push(text) } else { warning.push(text) }
    }
    if let Some(conflict) = &wal.conflict {
        critical.push(conflict.in_one_line());
    }
    if let Some(reason) = &wal.slot_lost {
        critical.push(format!("slot: {reason}"));
    }
    match wal.spool_level {
        SpoolLevel::Full => critical.push("the spool is full".to_owned()),
        SpoolLevel::High => warning.push(format!("the spool is nearly full{}", super::check::until_full(wal))),
        SpoolLevel::Normal => {}
    }
    if let Some(error) = &wal.archive_error {
        let room = super::check::until_full(wal).replace("; full", "; the spool is full");
        warning.push(format!("archiving: {}{room}", error.in_one_line()));
    }
    let promised = view.max_rpo.as_secs_f64();
    if promised > 0.0 && wal.rpo_seconds > promised * 3.0 + 5.0 {
        warning.push(format!("commits of the last {:.0} s are not in the repository", wal.rpo_seconds));
    }
    for tail in &wal.beyond_fork {
        warning.push(format!(
            "timeline {} was left at {}, and what was acknowledged beyond the fork, up to {}, exists here: pgvault recover --timeline {}",
            tail.timeline, tail.start, tail.end, tail.timeline
        ));
    }
}

fn backup_verdict(view: &ClusterView, now: DateTime<Utc>, critical: &mut Vec<String>, warning: &mut Vec<String>) {
    if let Some(error) = &view.backup.last_error {
        warning.push(format!("the last backup failed: {}", error.message()));
    }
    let usable = view.backups().iter().rev().find(|backup| backup.status != BackupStatus::Failed);
    match usable {
        None if view.repository_error.is_some() => {}
        None if view.stored.is_none() => warning.push("there is no backup yet".to_owned()),
        None if damaged(view) > 0 => critical.push("damage was found in every backup: pgvault check".to_owned()),
        None if view.backup.running.is_some() => warning.push("the first backup is running".to_owned()),
        None => critical.push("there is no backup".to_owned()),
        Some(backup) => {
            let damaged = damaged(view) as u64;
            if view.backups().iter().all(|backup| backup.damaged) {
                critical.push("damage was found in every backup: pgvault check".to_owned());
            } else if damaged > 0 {
                warning.push(format!("damage was found in {}: pgvault check", counted(damaged, "backup")));
            }
            let interval = view.schedule.as_ref().and_then(|schedule| schedule::longest_interval(schedule, now));
            let age = now - backup.stopped_at.to_datetime();
            if interval.is_some_and(|interval| age > interval + interval / 2) {
                warning.push(format!("the last backup is {} h old", age.num_hours()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
