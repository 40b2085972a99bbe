//! Servers whose WAL does not continue what is stored: refused with the facts, and with a way out that leaves what is stored.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pgvault::clock::SystemClock;
use pgvault::error::ErrorCode;
use pgvault::wal_pipeline::{NewLineage, WalParts, new_lineage};
use wal::Lsn;

use crate::support::LIMIT;
use crate::support::members::{Members, assert_whole, flushed};
use crate::support::pg::{PgNode, test_dir};
use crate::support::vault::Vault;

const FAST: Duration = LIMIT;

fn write(node: &PgNode, word: &str) -> Lsn {
    node.sql(&format!("INSERT INTO t SELECT n, repeat('{word}', 50) FROM generate_series(1, 2000) n"));
    flushed(node)
}

/// What `serve --new-lineage` does.
fn ask_for_a_new_lineage(vault: &Vault, conninfo: &str) -> NewLineage {
    let repository = vault.repository.cluster(&Vault::cluster());
    let parts = WalParts::with_repository(vault.settings(conninfo), repository.clone(), Arc::new(SystemClock));
    vault.runtime.block_on(new_lineage(&parts, &repository)).unwrap()
}

/// Refused with a help that names the way out; the way out works, once.
fn refused_then_begun(vault: &Vault, node: &PgNode, facts: &[&str]) {
    let before = vault.keys();
    let running = vault.start(&node.conninfo());
    let status = running.wait("refused", |status| status.state.needs_a_person());
    let error = status.error.unwrap();
    assert_eq!(error.code(), ErrorCode::TimelineConflict, "{error}");
    let said = error.to_string();
    for fact in facts {
        assert!(said.contains(fact), "{fact} is not in: {said}");
    }
    assert!(error.help_lines().iter().any(|line| line.contains("pgvault serve --new-lineage main")), "{error:?}");
    running.stop();
    assert_eq!(vault.keys(), before, "nothing is stored of what is refused");
    let first = vault.lineage().id();
    let NewLineage::Begun(second) = ask_for_a_new_lineage(vault, &node.conninfo()) else {
        panic!("it cannot be continued")
    };
    assert_eq!(ask_for_a_new_lineage(vault, &node.conninfo()), NewLineage::Continues(second));
    assert_ne!(first, second);
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    let end = write(node, "new");
    running.wait_shipped(end);
    running.stop();
    assert!(before.iter().all(|key| vault.keys().contains(key)), "what was stored stays");
}

/// A server whose volume was rolled back to before the last `lose`, which is stored up to the position that it returned.
fn rolled_back(dir: &Path, lose: impl Fn(&PgNode) -> Lsn) -> (PgNode, Vault, Lsn) {
    let mut node = PgNode::init(dir, "node", 15, &["--wal-segsize=1"], &[]);
    node.start();
    node.sql("CREATE TABLE t (n int, pad text)");
    assert!(node.stop("fast", FAST));
    let saved = dir.join("saved");
    assert!(Command::new("cp").arg("-a").arg(&node.data).arg(&saved).status().unwrap().success());
    node.start();
    let vault = Vault::new(dir);
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    let end = lose(&node);
    running.wait_shipped(end);
    running.stop();
    assert!(node.stop("fast", FAST));
    std::fs::remove_dir_all(&node.data).unwrap();
    std::fs::rename(&saved, &node.data).unwrap();
    node.start();
    (node, vault, end)
}

#[test]
fn a_server_that_went_back_in_time_is_refused_and_its_way_out_is_a_new_lineage() {
    let dir = test_dir();
    let (node, vault, _) = rolled_back(dir.path(), |node| write(node, "lost"));
    node.sql("CREATE TABLE IF NOT EXISTS t (n int, pad text)");
    refused_then_begun(&vault, &node, &[]);
}

#[test]
fn a_server_that_diverged_on_the_same_timeline_gets_a_new_lineage() {
    let dir = test_dir();
    let (node, vault, ours) = rolled_back(dir.path(), |node| {
        node.sql("INSERT INTO t VALUES (1, 'lost')");
        flushed(node)
    });
    // It is further than what we hold, on another way.
    while write(&node, "other") < ours.saturating_add(1 << 20) {}
    refused_then_begun(&vault, &node, &["other bytes"]);
}

#[test]
fn a_recovery_to_before_the_last_failover_goes_on_in_a_new_lineage() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 3, 15, &[]);
    members.nodes[0].sql("CREATE TABLE t (n int, pad text)");
    let vault = Vault::new(dir.path());
    let running = vault.start(&members.conninfo());
    running.wait_streaming();
    let shared = write(&members.nodes[0], "shared");
    members.wait_replayed(1, shared);
    members.wait_replayed(2, shared);
    // The third stays where it is; it stands for a cluster that was recovered to this moment.
    members.cut_off(2);
    members.wait_replayed(1, write(&members.nodes[0], "more"));
    members.nodes[0].kill();
    members.nodes[1].promote();
    let end = write(&members.nodes[1], "two");
    running.wait_shipped(end);
    running.stop();
    let taken = members.nodes[2].data.join("pg_wal/00000002.history");
    std::fs::copy(members.nodes[1].data.join("pg_wal/00000002.history"), &taken).unwrap();
    crate::support::pg::give_to_server_user(&taken);
    members.nodes[2].promote();
    write(&members.nodes[2], "three");
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(members.nodes[2].sql(timeline), "00000003");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let running = vault.start(&members.nodes[2].conninfo());
    running.wait("refused", |status| status.state.needs_a_person());
    running.stop();
    assert_eq!(members.nodes[2].sql(slots), "0", "a slot on a server that is refused would keep its WAL for nobody");
    refused_then_begun(&vault, &members.nodes[2], &["timeline 3 does not descend from timeline 2"]);
    assert_eq!(members.nodes[2].sql(slots), "1");
    // The old lineage is whole, to its last byte.
    let lineages = vault.keys();
    assert!(
        lineages.iter().any(|key| key.contains("-1/")) && lineages.iter().any(|key| key.contains("-2/")),
        "{lineages:?}"
    );
}

#[test]
fn a_former_primary_can_be_gone_back_to_in_a_new_lineage_only() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 17, &[]);
    members.nodes[0].sql("CREATE TABLE t (n int, pad text)");
    let vault = Vault::new(dir.path());
    let running = vault.start(&members.conninfo());
    running.wait_streaming();
    members.wait_replayed(1, write(&members.nodes[0], "shared"));
    members.nodes[0].kill();
    members.nodes[1].promote();
    let end = write(&members.nodes[1], "two");
    running.wait("the new primary", |status| status.timeline.is_some_and(|timeline| timeline.get() == 2));
    running.wait_shipped(end);
    running.stop();
    assert_whole(&vault, &members.nodes[1], 2, end);
    members.nodes[0].start();
    refused_then_begun(&vault, &members.nodes[0], &["timeline 1", "timeline 2"]);
}
