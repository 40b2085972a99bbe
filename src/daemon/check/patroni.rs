//! Does Patroni see what we see, and does it leave our slots alone? Pure.

use super::CheckStatus::{Failed, Ok as Fine, Skipped, Warn};
use super::Finding;
use crate::daemon::view::ClusterView;
use crate::patroni::{Role, SlotOwner, Topology};

pub(super) fn patroni(view: &ClusterView) -> Finding {
    let name = "patroni";
    let Some(topology) = &view.patroni else {
        return Finding::new(name, Skipped, "not asked: no patroni_urls");
    };
    if topology.members.is_empty() {
        let why = topology.error.as_deref().unwrap_or("not asked yet");
        return Finding::new(name, Warn, format!("Patroni tells nothing: {why}"))
            .fix("correct `patroni_urls`, and see what one of them answers: curl http://HOST:8008/cluster");
    }
    let slots = view.slot.as_deref().and_then(|slot| about_slot(slot, view.create_slot, topology));
    if let Some(finding) = slots.or_else(|| disagreement(view, topology)) {
        return finding;
    }
    if let Some(error) = &topology.error {
        return Finding::new(name, Warn, format!("Patroni does not answer: {error}"))
            .fix("see what it answers: curl http://HOST:8008/cluster");
    }
    let leader = topology
        .leader()
        .map_or_else(|| "no leader".to_owned(), |leader| format!("leader {} ({})", leader.name, leader.host));
    let paused = if topology.paused { ", paused" } else { "" };
    Finding::new(name, Fine, format!("{leader}, {} members{paused}", topology.members.len()))
}

/// Whether Patroni and pgvault agree who keeps the slot.
fn about_slot(slot: &str, ours: bool, topology: &Topology) -> Option<Finding> {
    let name = "patroni";
    if let Some(member) = topology.members.iter().find(|member| member.slot_name() == slot) {
        let message = format!("slot \"{slot}\" is also the slot that Patroni makes for its member \"{}\"", member.name);
        return Some(
            Finding::new(name, Failed, message)
                .fix("choose another name: `slot` in the cluster's section, or the member's"),
        );
    }
    match (topology.slots.as_ref()?.owner_of(slot), ours) {
        (SlotOwner::Ignored, true) | (SlotOwner::Permanent, false) => None,
        (SlotOwner::Nobody, true) => {
            let message = format!("Patroni drops slot \"{slot}\" wherever it is not in use: it is not in ignore_slots");
            let fix = format!("patronictl edit-config:  ignore_slots: [{{name: {slot}, type: physical}}]");
            Some(Finding::new(name, Failed, message).fix(fix))
        }
        (SlotOwner::Permanent, true) => {
            let message =
                format!("slot \"{slot}\" has two owners: it is in Patroni's `slots`, and create_slot is true");
            Some(Finding::new(name, Warn, message).fix("set `create_slot = false` in the cluster's section"))
        }
        (SlotOwner::Ignored | SlotOwner::Nobody, false) => {
            let message = format!("nobody makes slot \"{slot}\" on the next leader: it is not in Patroni's `slots`");
            let fix = format!("patronictl edit-config:  slots: {{{slot}: {{type: physical}}}}");
            Some(Finding::new(name, Warn, message).fix(fix))
        }
    }
}

/// Whether Patroni's leader is the one that takes writes, and the one that we stream from.
fn disagreement(view: &ClusterView, topology: &Topology) -> Option<Finding> {
    let name = "patroni";
    let fix = "normal for seconds during a failover; else compare: patronictl list, pgvault status";
    let leader = topology.leader().filter(|leader| leader.role == Role::Leader)?;
    let is_leader = |host: &str, port: u16| topology.member_at(host, port).is_some_and(|member| member == leader);
    if let Some(member) = view.members.iter().find(|member| is_leader(&member.host, member.port))
        && member.in_recovery == Some(true)
    {
        let message = format!("Patroni's leader {} is a standby", leader.name);
        return Some(Finding::new(name, Warn, message).fix(fix));
    }
    let (host, port) = view.wal.as_ref().filter(|wal| wal.streaming())?.source.as_ref()?;
    (!is_leader(host, *port)).then(|| {
        let message =
            format!("Patroni's leader is {} ({}), WAL is streamed from {host}:{port}", leader.name, leader.host);
        Finding::new(name, Warn, message).fix(fix)
    })
}
