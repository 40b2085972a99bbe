//! The slot on every member: is it there, does it keep WAL, and does it keep no more than the member bears? Pure.

use std::time::Duration;

use super::CheckStatus::{Failed, Ok as Fine, Skipped, Warn};
use super::Finding;
use crate::daemon::slots::SlotTrouble;
use crate::daemon::view::{ClusterView, Member};
use crate::primary::sql::SlotRow;

/// An outage shorter than this happens to everybody.
const SHORT_OUTAGE: Duration = Duration::from_secs(24 * 3600);

pub(super) fn slot(view: &ClusterView) -> Finding {
    let name = "slot";
    let Some(slot) = &view.slot else {
        return Finding::new(name, Warn, "none is used: the server may remove WAL that is still needed")
            .fix("set `slot` in the cluster's section");
    };
    if let Some(reason) = view.wal.as_ref().and_then(|wal| wal.slot_lost.as_ref()) {
        let fix = if view.create_slot {
            "take a new base backup: pgvault backup now --wait".to_owned()
        } else {
            format!("have it made on the primary: SELECT pg_create_physical_replication_slot('{slot}', true);")
        };
        return Finding::new(name, Failed, reason.clone()).fix(fix);
    }
    let found: Vec<Finding> = view.members.iter().filter_map(|member| on_member(view, slot, member)).collect();
    if found.is_empty() {
        return Finding::new(name, Skipped, "not visible to this role");
    }
    let all_fine = found.iter().all(|finding| finding.status == Fine);
    let described: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
    let described = described.join("; ");
    match found.into_iter().rev().max_by_key(|finding| finding.status) {
        Some(worst) if !all_fine => worst,
        _ => Finding::new(name, Fine, described),
    }
}

/// How the slot is on one member; `None` when it could not be looked at.
fn on_member(view: &ClusterView, slot: &str, member: &Member) -> Option<Finding> {
    let name = "slot";
    let rows = member.slots.as_ref()?;
    let host = view.label_of(member);
    let standby = member.in_recovery == Some(true);
    let make = if view.create_slot {
        "pgvault slot create".to_owned()
    } else {
        format!(
            "the HA manager has to make it, or on {host}: SELECT pg_create_physical_replication_slot('{slot}', true);"
        )
    };
    let why = member.slot_trouble.as_ref().map_or_else(String::new, |trouble| format!(": {trouble}"));
    let Some(row) = rows.iter().find(|row| row.name == *slot) else {
        return Some(if standby {
            let message =
                format!("slot \"{slot}\" is missing on the standby {host}: a failover to it may leave a gap{why}");
            Finding::new(name, Warn, message).fix(make)
        } else {
            Finding::new(name, Failed, format!("slot \"{slot}\" does not exist on {host}{why}")).fix(make)
        });
    };
    let anew = "pgvault slot drop; pgvault slot create; pgvault backup now --wait";
    Some(match row.wal_status.as_deref() {
        _ if !row.physical => {
            Finding::new(name, Failed, format!("slot \"{slot}\" on {host} is a logical one: it is somebody else's"))
                .fix("choose another name: `slot` in the cluster's section")
        }
        Some("lost") if standby => {
            let message =
                format!("slot \"{slot}\" on the standby {host} is lost: a failover to it may leave a gap{why}");
            Finding::new(name, Warn, message).fix("pgvault makes it anew: pgvault status")
        }
        Some("lost") => {
            Finding::new(name, Failed, format!("slot \"{slot}\" on {host} is lost: WAL that was needed is gone"))
                .fix(anew)
        }
        Some("unreserved") => Finding::new(name, Warn, format!("slot \"{slot}\" on {host} is about to be lost"))
            .fix("let pgvault catch up: pgvault status"),
        _ if row.restart_lsn.is_none() => {
            let message = format!("slot \"{slot}\" on {host} keeps no WAL: it was made without reserving any");
            Finding::new(name, if standby { Warn } else { Failed }, message).fix(format!(
                "on {host}: SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_physical_replication_slot('{slot}', true);"
            ))
        }
        _ if row.active && !is_source(view, member) => {
            let message = format!("slot \"{slot}\" on {host} is in use by something else than this pgvault");
            Finding::new(name, Warn, message).fix("two receivers cannot share it: give each a slot of its own")
        }
        _ if let Some(SlotTrouble::OtherBranch { slot, .. }) = &member.slot_trouble => {
            Finding::new(name, Warn, format!("slot \"{slot}\" on {host} is left alone{why}")).fix(format!(
                "rebuild the member as a standby (pg_rewind); or, if it is never to be followed, on {host}: SELECT pg_drop_replication_slot('{slot}');"
            ))
        }
        _ if member.slot_trouble.is_some() => {
            Finding::new(name, Warn, format!("slot \"{slot}\" on {host} cannot be kept{why}")).fix("pgvault slot show")
        }
        _ => Finding::new(name, Fine, described(slot, &host, member, row)),
    })
}

fn described(slot: &str, host: &str, member: &Member, row: &SlotRow) -> String {
    let active = if row.active { "active" } else { "inactive" };
    let kept = member
        .current_lsn
        .zip(row.restart_lsn)
        .map(|(now, from)| format!(", holds {} MB", now.bytes_since(from) >> 20))
        .unwrap_or_default();
    format!("{slot} {active} on {host}{kept}")
}

/// Whether the daemon streams from this member, as far as is known: without a daemon anybody may be it.
fn is_source(view: &ClusterView, member: &Member) -> bool {
    let Some(wal) = view.wal.as_ref().filter(|wal| wal.streaming()) else { return true };
    wal.source.as_ref().is_none_or(|(host, port)| (host, *port) == (&member.host, member.port))
}

pub(super) fn max_slot_wal_keep_size(view: &ClusterView) -> Finding {
    let name = "max_slot_wal_keep_size";
    if view.slot.is_none() {
        return Finding::new(name, Skipped, "no slot is used");
    }
    let limit = |member: &Member| member.settings.as_ref().and_then(|settings| settings.max_slot_wal_keep_size);
    let unlimited: Vec<String> =
        view.members.iter().filter(|member| limit(member) == Some(None)).map(|member| view.label_of(member)).collect();
    if !unlimited.is_empty() {
        let hosts = unlimited.join(", ");
        return Finding::new(name, Warn, format!("-1 on {hosts}: an outage of pgvault can fill the disk there"))
            .fix("ALTER SYSTEM SET max_slot_wal_keep_size = '8GB'; SELECT pg_reload_conf();");
    }
    match view.members.iter().filter_map(limit).flatten().min() {
        None => Finding::new(name, Skipped, "not known"),
        Some(bytes) => Finding::new(name, Fine, format!("{} MB", bytes >> 20)),
    }
}

pub(super) fn idle_replication_slot_timeout(view: &ClusterView) -> Finding {
    let name = "idle_replication_slot_timeout";
    if view.slot.is_none() {
        return Finding::new(name, Skipped, "no slot is used");
    }
    let limit = |member: &Member| member.settings.as_ref().and_then(|settings| settings.idle_replication_slot_timeout);
    let set = view.members.iter().filter_map(|member| Some((limit(member).filter(|limit| !limit.is_zero())?, member)));
    match set.min_by_key(|(limit, _)| *limit) {
        None => Finding::new(name, Fine, "off: no slot is lost for being idle"),
        Some((limit, member)) => {
            let text = crate::config::values::format_duration(limit);
            let message =
                format!("{text} on {}: an outage of pgvault that is longer loses the slot", view.label_of(member));
            if limit < SHORT_OUTAGE {
                Finding::new(name, Warn, message)
                    .fix("ALTER SYSTEM SET idle_replication_slot_timeout = '7d'; SELECT pg_reload_conf();")
            } else {
                Finding::new(name, Fine, message)
            }
        }
    }
}
