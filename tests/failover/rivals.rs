//! More than one server takes writes: nothing is mixed, and it is told.

use pgvault::error::ErrorCode;
use pgvault::wal_pipeline::{WalState, WalStatus};
use wal::{Lsn, TimelineId};

use crate::support::LIMIT;
use crate::support::members::{Members, assert_whole, flushed, history_of, wait};
use crate::support::pg::{PgNode, test_dir};
use crate::support::proxy::Proxy;
use crate::support::vault::{Running, Vault};

fn fill(node: &PgNode, word: &str) -> Lsn {
    node.sql(&format!("INSERT INTO t SELECT n, repeat('{word}', 100) FROM generate_series(1, 2000) n"));
    flushed(node)
}

fn begin<'a>(members: &Members, vault: &'a Vault) -> Running<'a> {
    members.nodes[0].sql("CREATE TABLE t (n int, pad text)");
    let running = vault.start(&members.conninfo());
    running.wait_streaming();
    running
}

fn streams(status: &WalStatus, node: &PgNode, timeline: u32) -> bool {
    let source = status.source.as_ref().map(|(_, port)| *port);
    status.streaming() && status.timeline == TimelineId::new(timeline) && source == Some(node.port)
}

#[test]
fn a_former_primary_that_comes_back_and_writes_is_never_followed() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    members.wait_replayed(1, fill(&members.nodes[0], "one"));
    members.nodes[0].kill();
    members.nodes[1].promote();
    fill(&members.nodes[1], "two");
    running.wait("the new primary", |status| streams(status, &members.nodes[1], 2));
    // It comes back as if nothing had happened, and gets ahead.
    members.nodes[0].start();
    for _ in 0..4 {
        fill(&members.nodes[0], "stale");
    }
    let status = running
        .wait("the conflict is told", |status| status.conflict.is_some() && streams(status, &members.nodes[1], 2));
    let conflict = status.conflict.as_ref().unwrap();
    assert_eq!(conflict.code(), ErrorCode::TimelineConflict);
    let said = conflict.to_string();
    for node in &members.nodes {
        assert!(said.contains(&format!("127.0.0.1:{}", node.port)), "{said}");
    }
    // Nor is it when it is the only one that answers, or when pgvault begins anew.
    running.stop();
    let running = vault.start(&members.conninfo());
    running.wait("the right one", |status| streams(status, &members.nodes[1], 2));
    let end = fill(&members.nodes[1], "on");
    running.wait_shipped(end);
    members.nodes[1].kill();
    let status = running.wait("nobody to follow", |status| status.state.needs_a_person());
    assert_eq!(status.error.unwrap().code(), ErrorCode::TimelineConflict);
    members.nodes[1].start();
    running.wait("the right one again", |status| streams(status, &members.nodes[1], 2));
    members.nodes[0].kill();
    running.wait("the conflict is over", |status| status.conflict.is_none());
    let end = fill(&members.nodes[1], "end");
    running.wait_shipped(end);
    running.stop();
    assert_whole(&vault, &members.nodes[1], 2, end);
    // Nothing of what it wrote after the fork was taken in.
    let fork = history_of(&members.nodes[1], 2).parent().unwrap().switch_point;
    let coverage = vault.runtime.block_on(vault.lineage().catalog()).unwrap().coverage;
    let left = coverage.ranges(TimelineId::FIRST).map(|range| range.end).max().unwrap();
    assert!(left <= fork.saturating_add(4096), "timeline 1 is stored up to {left}, and was left at {fork}");
}

#[test]
fn of_two_primaries_ours_is_kept_until_one_of_them_is_gone() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    members.wait_replayed(1, fill(&members.nodes[0], "one"));
    members.nodes[1].promote();
    fill(&members.nodes[1], "two");
    let ours = |status: &WalStatus| status.conflict.is_some() && streams(status, &members.nodes[0], 1);
    running.wait("the conflict is told, and ours is kept", ours);
    let ahead = fill(&members.nodes[0], "ours");
    running.wait_shipped(ahead);
    running.wait("ours is still kept", ours);
    // A restart decides nothing that nobody has decided.
    running.stop();
    let running = vault.start(&members.conninfo());
    running.wait("still ours", |status| streams(status, &members.nodes[0], 1) && status.conflict.is_some());
    // Now one of them goes: the other one is followed, and what only the first had is kept and told.
    assert!(members.nodes[0].stop("fast", LIMIT));
    let status =
        running.wait("the other one", |status| streams(status, &members.nodes[1], 2) && !status.beyond_fork.is_empty());
    let beyond = status.beyond_fork[0];
    assert!(beyond.end >= ahead && beyond.timeline == TimelineId::FIRST, "{beyond:?}");
    running.wait("the conflict is over", |status| status.conflict.is_none());
    let end = fill(&members.nodes[1], "end");
    running.wait_shipped(end);
    assert_eq!(running.now().gaps, vec![]);
    running.stop();
    assert_whole(&vault, &members.nodes[1], 2, end);
    assert_whole(&vault, &members.nodes[0], 1, ahead);
}

#[test]
fn two_standbys_promoted_at_one_position_are_two_servers() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 3, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    let end = fill(&members.nodes[0], "one");
    running.wait_shipped(end);
    // Both have everything, its last checkpoint too.
    assert!(members.nodes[0].stop("fast", LIMIT));
    let replayed = |node: &PgNode| node.sql("SELECT pg_last_wal_replay_lsn()");
    wait("both have all", || replayed(&members.nodes[1]) == replayed(&members.nodes[2]));
    // One of the two is ours before there is anything to choose: else neither would be followed.
    let of_a_standby =
        |status: &WalStatus| status.source.as_ref().is_some_and(|(_, port)| *port != members.nodes[0].port);
    running.wait("a standby is streamed from", |status| status.streaming() && of_a_standby(status));
    members.nodes[1].promote();
    members.nodes[2].promote();
    assert_eq!(history_of(&members.nodes[1], 2), history_of(&members.nodes[2], 2), "they tell the same");
    let status = running.wait("the conflict is told", |status| status.conflict.is_some() && status.streaming());
    let (_, port) = status.source.clone().unwrap();
    let (ours, other) = if port == members.nodes[1].port { (1, 2) } else { (2, 1) };
    let said = status.conflict.unwrap().to_string();
    assert!(said.contains(&format!("followed: 127.0.0.1:{port}")), "{said}");
    assert!(said.contains(&format!("not followed: 127.0.0.1:{}", members.nodes[other].port)), "{said}");
    let end = fill(&members.nodes[ours], "ours");
    running.wait_shipped(end);
    while fill(&members.nodes[other], "other") < end.saturating_add(1 << 20) {}
    // A restart decides nothing that nobody has decided.
    running.stop();
    let running = vault.start(&members.conninfo());
    running.wait("still ours", |status| streams(status, &members.nodes[ours], 2) && status.conflict.is_some());
    let end = fill(&members.nodes[ours], "ours still");
    running.wait_shipped(end);
    // With ours gone the other one is asked, and its WAL is not what we hold: nothing of it is taken in.
    members.nodes[ours].kill();
    running.wait("divergence", |status| status.state == WalState::Diverged);
    running.stop();
    members.nodes[ours].start();
    assert_whole(&vault, &members.nodes[ours], 2, end);
}

#[test]
fn one_server_under_two_names_is_no_conflict() {
    let dir = test_dir();
    let members = Members::start(dir.path(), 1, 15, &[("log_replication_commands", "on")]);
    let node = &members.nodes[0];
    node.sql("CREATE TABLE t (n int, pad text)");
    let vault = Vault::new(dir.path());
    let running = vault.start(&format!("host=127.0.0.1,localhost port={0},{0} user=postgres", node.port));
    running.wait_streaming();
    // Under both names.
    let asked = || node.log().matches("TEMPORARY PHYSICAL").count() >= 2;
    wait("whether they are one", asked);
    running.wait_shipped(fill(node, "one"));
    running.wait("no conflict", |status| status.streaming() && status.conflict.is_none());
    wait("nothing is left of the question", || node.sql("SELECT count(*) FROM pg_replication_slots") == "1");
    assert!(running.now().conflict.is_none());
    running.stop();
}

/// The first member is reached through a proxy that can swallow everything.
fn behind_a_proxy(members: &Members) -> (Proxy, String) {
    let proxy = Proxy::start(members.nodes[0].port);
    let conninfo = members.conninfo().replace(&members.nodes[0].port.to_string(), &proxy.port().to_string());
    (proxy, conninfo)
}

#[test]
fn a_primary_that_has_fallen_silent_is_left_for_the_one_that_was_promoted() {
    let dir = test_dir();
    let members = Members::start(dir.path(), 2, 15, &[]);
    let (proxy, conninfo) = behind_a_proxy(&members);
    members.nodes[0].sql("CREATE TABLE t (n int, pad text)");
    let vault = Vault::new(dir.path());
    let running = vault.start(&conninfo);
    running
        .wait("the first", |status| status.streaming() && status.primary.as_ref().is_some_and(|p| p.1 == proxy.port()));
    members.wait_replayed(1, fill(&members.nodes[0], "one"));
    // No connection breaks; nothing comes any more.
    proxy.stall_both(true);
    members.nodes[1].promote();
    fill(&members.nodes[1], "two");
    running.wait("the promoted one", |status| streams(status, &members.nodes[1], 2));
    proxy.stall_both(false);
    running.wait("the conflict is told", |status| status.conflict.is_some());
    let end = fill(&members.nodes[1], "end");
    running.wait_shipped(end);
    running.wait("it is still followed", |status| streams(status, &members.nodes[1], 2));
    running.stop();
    assert_whole(&vault, &members.nodes[1], 2, end);
}

#[test]
#[ignore = "takes half a minute: make chaos"]
fn a_primary_that_only_we_cannot_reach_is_replaced_by_its_standby_for_so_long() {
    let dir = test_dir();
    let members = Members::start(dir.path(), 2, 15, &[]);
    let (proxy, conninfo) = behind_a_proxy(&members);
    members.nodes[0].sql("CREATE TABLE t (n int, pad text)");
    let vault = Vault::new(dir.path());
    let running = vault.start(&conninfo);
    running
        .wait("the first", |status| status.streaming() && status.primary.as_ref().is_some_and(|p| p.1 == proxy.port()));
    proxy.stall_both(true);
    running.wait("its standby", |status| streams(status, &members.nodes[1], 1));
    running.wait_shipped(fill(&members.nodes[0], "unseen"));
    assert_eq!(running.now().primary, None);
    proxy.stall_both(false);
    running.wait("the primary again", |status| {
        status.streaming() && status.primary.as_ref().is_some_and(|p| p.1 == proxy.port())
    });
    let end = fill(&members.nodes[0], "end");
    running.wait_shipped(end);
    let status = running.now();
    assert_eq!((status.failovers.len(), status.gaps.len()), (0, 0));
    running.stop();
    assert_whole(&vault, &members.nodes[0], 1, end);
}

#[test]
fn a_member_of_another_cluster_is_told_and_not_followed() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 1, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    running.wait_shipped(fill(&members.nodes[0], "one"));
    running.stop();
    let mut other = PgNode::init(dir.path(), "other", 15, &["--wal-segsize=1"], &[]);
    other.start();
    let identifier = other.sql("SELECT system_identifier FROM pg_control_system()");
    members.nodes.insert(0, other);
    let running = vault.start(&members.conninfo());
    let status = running.wait("the stranger is told", |status| status.conflict.is_some());
    assert!(status.conflict.as_ref().unwrap().to_string().contains(&identifier));
    running.wait("the right one", |status| streams(status, &members.nodes[1], 1));
    assert_eq!(members.nodes[0].sql("SELECT count(*) FROM pg_replication_slots"), "0");
    running.stop();
    // Where nothing is known yet, nobody can say which one is meant.
    let fresh = dir.path().join("fresh");
    std::fs::create_dir(&fresh).unwrap();
    let vault = Vault::new(&fresh);
    let running = vault.start(&members.conninfo());
    running
        .wait("refused", |status| status.error.as_ref().is_some_and(|error| error.code() == ErrorCode::ForeignCluster));
    assert!(vault.keys().iter().all(|key| !key.contains("lineage")), "{:?}", vault.keys());
    running.stop();
}
