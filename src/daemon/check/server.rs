//! Checks of the servers: what they allow, and what they keep for us.

use super::CheckStatus::{Failed, Ok as Fine, Skipped, Warn};
use super::{Finding, of_error};
use crate::daemon::probe::Probes;
use crate::daemon::view::{ClusterView, Member};

/// How far clocks may be apart: recoverable moments are told by the primary's clock, schedules run by ours.
const MAX_SKEW_MS: u64 = 2_000;

pub(super) fn clock(view: &ClusterView) -> Finding {
    let name = "clock";
    let worst = view.members.iter().filter_map(|member| Some((member.clock_ahead_ms?, &member.host)));
    match worst.max_by_key(|(ahead, _)| ahead.unsigned_abs()) {
        None => Finding::new(name, Skipped, "not known"),
        Some((ahead, host)) if ahead.unsigned_abs() > MAX_SKEW_MS => {
            let word = if ahead > 0 { "ahead" } else { "behind" };
            let apart = ahead.unsigned_abs() as f64 / 1000.0;
            Finding::new(
                name,
                Warn,
                format!("the clock of {host} is {apart:.1} s {word}: times of recovery are told by it"),
            )
            .fix("synchronise the clocks of both machines: timedatectl set-ntp true")
        }
        Some((ahead, host)) => Finding::new(name, Fine, format!("{host} within {} ms", ahead.unsigned_abs())),
    }
}

pub(super) fn connection(view: &ClusterView) -> Finding {
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

pub(super) fn replication(view: &ClusterView, probes: &Probes) -> Finding {
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

pub(super) fn role(view: &ClusterView) -> Finding {
    let name = "role";
    let Some((member, rights)) = view.primary().and_then(|member| Some((member, member.rights.as_ref()?))) else {
        return Finding::new(name, Skipped, "no member could be asked");
    };
    let role = &member.role;
    if !rights.superuser && !rights.replication {
        return Finding::new(name, Failed, format!("{role} lacks REPLICATION"))
            .fix(format!("ALTER ROLE \"{role}\" REPLICATION;"));
    }
    if !rights.superuser && !rights.monitor {
        return Finding::new(name, Warn, format!("{role} has REPLICATION and lacks pg_monitor: there is less to show"))
            .fix(format!("GRANT pg_monitor TO \"{role}\";"));
    }
    Finding::new(name, Fine, format!("{role} has REPLICATION and pg_monitor"))
}

pub(super) fn wal_level(view: &ClusterView) -> Finding {
    let name = "wal_level";
    let level = view.primary().and_then(|member| member.settings.as_ref()?.wal_level.clone());
    match level.as_deref() {
        None => Finding::new(name, Skipped, "not known"),
        Some(level @ ("replica" | "logical")) => Finding::new(name, Fine, level),
        Some(level) => Finding::new(name, Failed, format!("{level}: WAL cannot be streamed"))
            .fix("ALTER SYSTEM SET wal_level = 'replica';  then restart PostgreSQL"),
    }
}

pub(super) fn slots_and_senders(view: &ClusterView) -> Finding {
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
