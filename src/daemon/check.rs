//! Named checks: each says what holds, and what to do where it does not. Pure, from what is known and what was tried.

mod patroni;
mod server;
mod slots;
mod spool;
mod synchronous;

use chrono::{DateTime, Utc};
use recovery::BackupStatus;
use serde::Serialize;

use super::probe::Probes;
use super::status::{BackupSummary, counted, live_range};
use super::view::{ClusterView, Stored};
use super::{gaps, schedule};
use crate::error::Error;
use crate::storage::PutIfAbsent;
use patroni::patroni;
use server::{clock, connection, replication, role, slots_and_senders, wal_level};
use slots::{idle_replication_slot_timeout, max_slot_wal_keep_size, slot};
use spool::spool;
pub(super) use spool::until_full;
use synchronous::synchronous;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Could not be looked at, or does not apply.
    Skipped,
    /// Works, and may not for long.
    Warn,
    /// Does not work.
    Failed,
}

impl CheckStatus {
    /// For `pgvault_check_ok`.
    pub fn as_number(self) -> f64 {
        match self {
            Self::Ok | Self::Warn => 1.0,
            Self::Failed => 0.0,
            Self::Skipped => f64::NAN,
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name: stable, also a label of `pgvault_check_ok`.
    pub name: &'static str,
    /// How it ended.
    pub status: CheckStatus,
    /// What holds, with the values.
    pub message: String,
    /// What to do, with a command.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding without a remedy.
    pub fn new(name: &'static str, status: CheckStatus, message: impl Into<String>) -> Self {
        Self { name, status, message: message.into(), fix: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// Every check, in the order in which they are shown. Fixed, so that every series of `pgvault_check_ok` always exists.
pub const NAMES: [&str; 18] = [
    "configuration",
    "connection",
    "replication",
    "role",
    "wal_level",
    "slots_and_senders",
    "max_slot_wal_keep_size",
    "idle_replication_slot_timeout",
    "clock",
    "patroni",
    "slot",
    "streaming",
    "synchronous",
    "spool",
    "repository",
    "data_directory",
    "backups",
    "window",
];

/// Looks at one cluster.
pub fn findings(view: &ClusterView, probes: &Probes, now: DateTime<Utc>) -> Vec<Finding> {
    vec![
        configuration(view),
        connection(view),
        replication(view, probes),
        role(view),
        wal_level(view),
        slots_and_senders(view),
        max_slot_wal_keep_size(view),
        idle_replication_slot_timeout(view),
        clock(view),
        patroni(view),
        slot(view),
        streaming(view),
        synchronous(view),
        spool(view),
        repository(view, probes),
        data_directory(probes),
        backups(view, now),
        window(view),
    ]
}

/// The worst of them.
pub fn worst(findings: &[Finding]) -> CheckStatus {
    findings.iter().map(|finding| finding.status).max().unwrap_or(CheckStatus::Ok)
}

use CheckStatus::{Failed, Ok as Fine, Skipped, Warn};

/// An error as a finding: its message, its first cause, its first help.
fn of_error(name: &'static str, status: CheckStatus, error: &Error) -> Finding {
    let message = match error.causes().first() {
        Some(cause) => format!("{}: {cause}", error.message()),
        None => error.message().to_owned(),
    };
    Finding { name, status, message, fix: error.help_lines().first().cloned() }
}

fn configuration(view: &ClusterView) -> Finding {
    match view.without_effect.as_slice() {
        [] => Finding::new("configuration", Fine, "every key that is set has an effect"),
        some => Finding::new("configuration", Warn, some.join("; ")).fix("remove these keys, or do not count on them"),
    }
}

fn streaming(view: &ClusterView) -> Finding {
    let name = "streaming";
    let Some(wal) = &view.wal else {
        return Finding::new(name, Failed, "no daemon runs: nothing is streamed").fix("pgvault serve");
    };
    if !wal.streaming() {
        let message = format!("WAL is not streaming: {}", wal.state.as_str());
        return match &wal.error {
            Some(error) => {
                let finding = of_error(name, Failed, error);
                Finding { message: format!("{message}: {}", finding.message), ..finding }
            }
            None => Finding::new(name, Failed, message).fix("pgvault status"),
        };
    }
    if let Some(error) = wal.conflict.as_ref().or(wal.archive_error.as_ref()) {
        return of_error(name, Failed, error);
    }
    let lag = super::status::lag(wal, wal.shipped.max(wal.archived));
    let lag = lag.map_or_else(String::new, |bytes| format!("; the repository is {bytes} bytes behind"));
    if view.max_rpo.as_secs_f64() > 0.0 && wal.rpo_seconds > view.max_rpo.as_secs_f64() * 3.0 + 5.0 {
        return Finding::new(
            name,
            Warn,
            format!("commits of the last {:.0} s are not in the repository{lag}", wal.rpo_seconds),
        )
        .fix("look at the store: pgvault repo check");
    }
    Finding::new(name, Fine, format!("WAL is streaming{lag}"))
}

fn data_directory(probes: &Probes) -> Finding {
    let name = "data_directory";
    match &probes.data_directory {
        None => Finding::new(name, Skipped, "backups are sent by the server"),
        Some(Ok(())) => Finding::new(name, Fine, "backups read it"),
        Some(Err(reason)) => Finding::new(name, Warn, format!("backups are sent by the server, for it cannot be read: {reason}"))
            .fix("let pgvault read the data directory of the server and start a backup (README), or set data_directory = \"\""),
    }
}

fn repository(view: &ClusterView, probes: &Probes) -> Finding {
    let name = "repository";
    if let Some(error) = &view.repository_error {
        return of_error(name, Failed, error);
    }
    match &probes.repository {
        Some(Err(error)) => of_error(name, Failed, error),
        Some(Ok(probe)) => {
            let rights =
                if probe.may_delete { "write, read, list, delete" } else { "write, read, list (no right to delete)" };
            let absent = match probe.put_if_absent {
                PutIfAbsent::Atomic => "keeps two writers apart",
                PutIfAbsent::Unreliable => "put-if-absent is not dependable here; names and reading back are relied on",
            };
            Finding::new(name, Fine, format!("{}: {rights} in {} ms; {absent}", view.location, probe.took.as_millis()))
        }
        None if view.stored.is_some() => Finding::new(name, Fine, format!("{} can be read", view.location)),
        None => Finding::new(name, Skipped, "not read yet"),
    }
}

fn backups(view: &ClusterView, now: DateTime<Utc>) -> Finding {
    let name = "backups";
    let now_command = "pgvault backup now --wait";
    if view.stored.is_none() {
        return Finding::new(name, Skipped, "the repository was not read yet");
    }
    let list = super::status::backup_list(view);
    if let Some(damaged) = damaged(&list) {
        return damaged;
    }
    let usable = list.iter().filter(|backup| backup.status == BackupStatus::Ok).count();
    let Some(newest) = list.iter().rfind(|backup| backup.status == BackupStatus::Ok) else {
        let running =
            view.backup.running.is_some() || list.iter().any(|backup| backup.status == BackupStatus::WaitingForWal);
        return if running {
            Finding::new(name, Warn, "the first backup is not usable yet").fix("wait for it: pgvault backup list")
        } else {
            Finding::new(name, Failed, "there is no usable backup").fix(now_command)
        };
    };
    if let Some(error) = &view.backup.last_error {
        return Finding { fix: Some(now_command.to_owned()), ..of_error(name, Warn, error) };
    }
    let age = newest.stopped_at.map(|stopped| now - stopped.to_datetime()).unwrap_or_default();
    let interval = view.schedule.as_ref().and_then(|schedule| schedule::longest_interval(schedule, now));
    let described = format!("{usable} usable, the newest is {} h {} min old", age.num_hours(), age.num_minutes() % 60);
    match interval {
        Some(interval) if age > interval * 2 => {
            Finding::new(name, Failed, format!("{described}: two scheduled ones were missed")).fix(now_command)
        }
        Some(interval) if age > interval + interval / 2 => {
            Finding::new(name, Warn, format!("{described}: one is overdue")).fix(now_command)
        }
        _ => Finding::new(name, Fine, described),
    }
}

/// Damage in a backup: of a page on the server when it was taken, or of what is stored of it, up to a manifest that cannot be
/// read.
fn damaged(list: &[BackupSummary]) -> Option<Finding> {
    let is_usable = |backup: &&BackupSummary| backup.status == BackupStatus::Ok;
    let hurt = || list.iter().filter(|backup| backup.damaged && (is_usable(backup) || backup.problem.is_some()));
    let newest = hurt().next_back()?;
    let id = newest.id.as_ref()?;
    let unreadable = newest.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
    let which = format!("damage was found in {}, last in {id}{unreadable}", counted(hurt().count() as u64, "backup"));
    let see = if newest.problem.is_some() {
        format!("put its manifest back from a copy of the repository, or give it up: pgvault backup delete {id}")
    } else {
        format!("pgvault backup verify {id}; then take another: pgvault backup now --kind full --wait")
    };
    Some(if list.iter().filter(is_usable).all(|backup| backup.damaged) {
        Finding::new("backups", Failed, format!("no backup can be restored cleanly: {which}")).fix(see)
    } else {
        Finding::new("backups", Warn, which).fix(see)
    })
}

/// A timeline that lacks its history file. PostgreSQL recovers to none but the first without one.
fn without_history(stored: &Stored) -> Option<wal::TimelineId> {
    stored.catalog.timelines().into_iter().find(|&timeline| stored.catalog.lacks_history(timeline))
}

fn window(view: &ClusterView) -> Finding {
    let name = "window";
    let Some(stored) = view.stored.as_deref() else {
        return Finding::new(name, Skipped, "the repository was not read yet");
    };
    let Some(range) = live_range(view) else {
        return Finding::new(name, Failed, "no moment can be recovered").fix("pgvault backup now --wait");
    };
    if let Some(gap) = gaps::open(view) {
        return Finding::new(name, Failed, gap.to_string()).fix("pgvault backup now --wait");
    }
    let described = format!("from {} to {}", range.from.time, range.to.time);
    if let Some(timeline) = without_history(stored) {
        let message =
            format!("the history file of timeline {timeline} is not in the repository: nothing on it can be recovered");
        return Finding::new(name, Failed, message).fix("pgvault wal verify");
    }
    match gaps::all(view).len() {
        0 => Finding::new(name, Fine, described),
        gaps => {
            Finding::new(name, Warn, format!("{described}; {}", counted(gaps as u64, "gap"))).fix("pgvault wal gaps")
        }
    }
}

#[cfg(test)]
mod tests;
