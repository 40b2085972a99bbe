//! Named checks: each says what holds, and what to do where it does not. Pure, from what is known and what was tried.

use chrono::{DateTime, Utc};
use recovery::BackupStatus;
use serde::Serialize;

use super::probe::Probes;
use super::schedule;
use super::status::live_range;
use super::view::{ClusterView, Member};
use crate::error::Error;
use crate::storage::PutIfAbsent;
use crate::wal_pipeline::SpoolLevel;

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
pub const NAMES: [&str; 15] = [
    "configuration",
    "connection",
    "replication",
    "role",
    "wal_level",
    "slots_and_senders",
    "max_slot_wal_keep_size",
    "clock",
    "slot",
    "streaming",
    "synchronous",
    "spool",
    "repository",
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
        clock(view),
        slot(view),
        streaming(view),
        synchronous(view),
        spool(view),
        repository(view, probes),
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

/// How far clocks may be apart: recoverable moments are told by the primary's clock, schedules run by ours.
const MAX_SKEW_MS: u64 = 2_000;

fn clock(view: &ClusterView) -> Finding {
    let name = "clock";
    let worst = view.members.iter().filter_map(|member| Some((member.clock_ahead_ms?, &member.host)));
    match worst.max_by_key(|(ahead, _)| ahead.unsigned_abs()) {
        None => Finding::new(name, Skipped, "not known"),
        Some((ahead, host)) if ahead.unsigned_abs() > MAX_SKEW_MS => {
            let word = if ahead > 0 { "ahead" } else { "behind" };
            let apart = ahead.unsigned_abs() as f64 / 1000.0;
            Finding::new(name, Warn, format!("the clock of {host} is {apart:.1} s {word}: times of recovery are told by it"))
                .fix("synchronise the clocks of both machines: timedatectl set-ntp true")
        }
        Some((ahead, host)) => Finding::new(name, Fine, format!("{host} within {} ms", ahead.unsigned_abs())),
    }
}

fn connection(view: &ClusterView) -> Finding {
    let name = "connection";
    if let Some((member, error)) = view.members.iter().find_map(|member| Some((member, member.error.as_ref()?))) {
        // One member that is down is a warning while another can be streamed from.
        let others = view.members.iter().any(|other| other.host != member.host && other.version.is_some());
        return of_error(name, if others || view.streaming() { Warn } else { Failed }, error);
    }
    if view.members.iter().all(|member| member.version.is_none()) {
        return Finding::new(name, Skipped, "not asked yet");
    }
    let described: Vec<String> = view.members.iter().map(describe).collect();
    if view.members.len() > 1 && view.members.iter().all(|member| member.in_recovery == Some(true)) {
        return Finding::new(name, Failed, format!("no primary among {}", described.join(", ")))
            .fix("promote one of them, or correct the hosts of `conninfo`");
    }
    Finding::new(name, Fine, described.join(", "))
}

fn describe(member: &Member) -> String {
    let version = member.version.map_or_else(String::new, |version| format!(" PostgreSQL {version}"));
    let role = match member.in_recovery {
        Some(true) => " standby",
        Some(false) => " primary",
        None => "",
    };
    format!("{}:{}{version}{role}", member.host, member.port)
}

fn replication(view: &ClusterView, probes: &Probes) -> Finding {
    let name = "replication";
    if let Some(error) = probes.replication.iter().find_map(|result| result.as_ref().err()) {
        let works = view.streaming() || probes.replication.iter().any(Result::is_ok);
        return of_error(name, if works { Warn } else { Failed }, error);
    }
    if view.streaming() || !probes.replication.is_empty() {
        return Finding::new(name, Fine, "replication connections are let in");
    }
    Finding::new(name, Skipped, "not tried")
}

fn role(view: &ClusterView) -> Finding {
    let name = "role";
    let Some((member, rights)) = view.primary().and_then(|member| Some((member, member.rights.as_ref()?))) else {
        return Finding::new(name, Skipped, "no member could be asked");
    };
    let role = &member.role;
    if !rights.superuser && !rights.replication {
        return Finding::new(name, Failed, format!("{role} lacks REPLICATION")).fix(format!("ALTER ROLE \"{role}\" REPLICATION;"));
    }
    if !rights.superuser && !rights.monitor {
        return Finding::new(name, Warn, format!("{role} has REPLICATION and lacks pg_monitor: there is less to show"))
            .fix(format!("GRANT pg_monitor TO \"{role}\";"));
    }
    Finding::new(name, Fine, format!("{role} has REPLICATION and pg_monitor"))
}

fn wal_level(view: &ClusterView) -> Finding {
    let name = "wal_level";
    let level = view.primary().and_then(|member| member.settings.as_ref()?.wal_level.clone());
    match level.as_deref() {
        None => Finding::new(name, Skipped, "not known"),
        Some(level @ ("replica" | "logical")) => Finding::new(name, Fine, level),
        Some(level) => Finding::new(name, Failed, format!("{level}: WAL cannot be streamed"))
            .fix("ALTER SYSTEM SET wal_level = 'replica';  then restart PostgreSQL"),
    }
}

fn slots_and_senders(view: &ClusterView) -> Finding {
    let name = "slots_and_senders";
    let Some(member) = view.primary() else { return Finding::new(name, Skipped, "no primary") };
    let (Some(settings), Some(slots), Some(senders)) = (&member.settings, &member.slots, &member.replication) else {
        return Finding::new(name, Skipped, "not visible to this role");
    };
    let (Some(max_slots), Some(max_senders)) = (settings.max_replication_slots, settings.max_wal_senders) else {
        return Finding::new(name, Skipped, "not known");
    };
    let used = format!("{}/{max_slots} slots, {}/{max_senders} senders used", slots.len(), senders.len());
    let ours = slots.iter().any(|row| Some(&row.name) == view.slot.as_ref());
    let no_slot = view.slot.is_some() && !ours && slots.len() >= max_slots as usize;
    // Streaming and a base backup take one sender each.
    let wanted = if view.streaming() { 1 } else { 2 };
    let free = (max_senders as usize).saturating_sub(senders.len());
    if no_slot || free == 0 {
        return Finding::new(name, Failed, format!("{used}: none is left for pgvault"))
            .fix("ALTER SYSTEM SET max_wal_senders = 10; ALTER SYSTEM SET max_replication_slots = 10;  then restart PostgreSQL");
    }
    if free < wanted {
        return Finding::new(name, Warn, format!("{used}: streaming and a base backup need one sender each"))
            .fix("ALTER SYSTEM SET max_wal_senders = 10;  then restart PostgreSQL");
    }
    Finding::new(name, Fine, used)
}

fn max_slot_wal_keep_size(view: &ClusterView) -> Finding {
    let name = "max_slot_wal_keep_size";
    if view.slot.is_none() {
        return Finding::new(name, Skipped, "no slot is used");
    }
    match view.primary().and_then(|member| member.settings.as_ref()?.max_slot_wal_keep_size) {
        None => Finding::new(name, Skipped, "not known"),
        Some(Some(bytes)) => Finding::new(name, Fine, format!("{} MB", bytes >> 20)),
        Some(None) => Finding::new(name, Warn, "-1: an outage of pgvault can fill the primary's disk")
            .fix("ALTER SYSTEM SET max_slot_wal_keep_size = '8GB'; SELECT pg_reload_conf();"),
    }
}

fn slot(view: &ClusterView) -> Finding {
    let name = "slot";
    let Some(slot) = &view.slot else {
        return Finding::new(name, Warn, "none is used: the server may remove WAL that is still needed")
            .fix("set `slot` in the cluster's section");
    };
    if let Some(reason) = view.wal.as_ref().and_then(|wal| wal.slot_lost.as_ref()) {
        return Finding::new(name, Failed, reason.clone()).fix("take a new base backup: pgvault backup now --wait");
    }
    let looked: Vec<&Member> = view.members.iter().filter(|member| member.slots.is_some()).collect();
    if looked.is_empty() {
        return Finding::new(name, Skipped, "not visible to this role");
    }
    let mut described = Vec::new();
    for member in looked {
        let row = member.slots.iter().flatten().find(|row| row.name == *slot);
        let host = &member.host;
        match row {
            None if member.in_recovery == Some(true) => {
                return Finding::new(
                    name,
                    Warn,
                    format!("slot \"{slot}\" is missing on the standby {host}: a failover to it may leave a gap"),
                )
                .fix(format!("on {host}: SELECT pg_create_physical_replication_slot('{slot}', true);"));
            }
            None => {
                return Finding::new(name, Failed, format!("slot \"{slot}\" does not exist on {host}"))
                    .fix("pgvault slot create");
            }
            Some(row) if row.wal_status.as_deref() == Some("lost") => {
                return Finding::new(
                    name,
                    Failed,
                    format!("slot \"{slot}\" on {host} is lost: WAL that was needed is gone"),
                )
                .fix("pgvault slot drop; pgvault slot create; pgvault backup now --wait");
            }
            Some(row) if row.wal_status.as_deref() == Some("unreserved") => {
                return Finding::new(name, Warn, format!("slot \"{slot}\" on {host} is about to be lost"))
                    .fix("let pgvault catch up: pgvault status");
            }
            Some(row) => {
                let active = if row.active { "active" } else { "inactive" };
                let kept = member
                    .current_lsn
                    .zip(row.restart_lsn)
                    .map(|(now, from)| format!(", holds {} MB", now.bytes_since(from) >> 20));
                described.push(format!("{slot} {active} on {host}{}", kept.unwrap_or_default()));
            }
        }
    }
    Finding::new(name, Fine, described.join("; "))
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
    if let Some(error) = &wal.archive_error {
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

fn synchronous(view: &ClusterView) -> Finding {
    let name = "synchronous";
    let names = view.primary().and_then(|member| member.settings.as_ref()?.synchronous_standby_names.clone());
    let ours = view.application_name.as_str();
    let listed = names.as_deref().map(|names| names.contains(ours) || names.contains('*'));
    match (view.synchronous, listed) {
        (false, Some(true)) if names.as_deref().is_some_and(|names| names.contains(ours)) => Finding::new(
            name,
            Warn,
            "synchronous_standby_names lists this receiver, and `synchronous` is off: commits wait for group flushes",
        )
        .fix("set `synchronous = true` in the cluster's section"),
        (false, _) => Finding::new(name, Skipped, "not asked for"),
        (true, None) => Finding::new(name, Skipped, "not visible to this role"),
        (true, Some(true)) => Finding::new(name, Fine, format!("synchronous_standby_names lists {ours}")),
        (true, Some(false)) => {
            Finding::new(name, Failed, format!("commits do not wait: {ours} is not in synchronous_standby_names"))
                .fix(format!("ALTER SYSTEM SET synchronous_standby_names = '{ours}'; SELECT pg_reload_conf();"))
        }
    }
}

fn spool(view: &ClusterView) -> Finding {
    let name = "spool";
    let Some(wal) = &view.wal else { return Finding::new(name, Skipped, "no daemon runs") };
    let waiting = format!("{} file(s), {} MB wait", wal.spool_segments, wal.spool_bytes >> 20);
    let free = wal.spool_free_bytes.map_or_else(String::new, |bytes| format!(", {} MB free", bytes >> 20));
    let fix = "free the disk, raise `max_size` in [spool], or see why archiving lags: pgvault status";
    match wal.spool_level {
        SpoolLevel::Normal => Finding::new(name, Fine, format!("{waiting}{free}")),
        SpoolLevel::High => Finding::new(name, Warn, format!("nearly full: {waiting}{free}")).fix(fix),
        SpoolLevel::Full => {
            Finding::new(name, Failed, format!("full: {waiting}{free}; nothing more is received")).fix(fix)
        }
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

fn window(view: &ClusterView) -> Finding {
    let name = "window";
    let Some(stored) = view.stored.as_deref() else {
        return Finding::new(name, Skipped, "the repository was not read yet");
    };
    let Some(range) = live_range(view) else {
        return Finding::new(name, Failed, "no moment can be recovered").fix("pgvault backup now --wait");
    };
    let described = format!("from {} to {}", range.from.time, range.to.time);
    match stored.window.gaps.len() {
        0 => Finding::new(name, Fine, described),
        gaps => Finding::new(name, Warn, format!("{described}; {gaps} gap(s)")).fix("pgvault window"),
    }
}

#[cfg(test)]
mod tests;
