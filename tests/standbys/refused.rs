//! What cannot become a standby is refused, and nothing is changed.

use serde_json::{Value, json};

use super::stage::{Stage, slots, wait_follows};
use crate::support::LIMIT;
use crate::support::members::wait;
use crate::support::pg::{PgNode, major};

/// Refused with this code and exit code, and neither a directory nor a slot was made.
#[track_caller]
fn refused(stage: &Stage, more: &[&str], exit: i32, code: &str) -> Value {
    let node = stage.place("refused");
    let before = slots(&stage.primary);
    let (status, error) = stage.create(&node, more);
    assert_eq!((status, &error["code"]), (exit, &json!(code)), "{error}");
    assert!(!node.data.exists());
    assert_eq!(slots(&stage.primary), before);
    error
}

#[test]
fn a_slot_of_somebody_else_is_never_taken_and_an_idle_one_is_used() {
    let stage = Stage::backed_up(17, &[]);
    refused(&stage, &["--slot", "pgvault"], 7, "E0005");
    refused(&stage, &["--slot", "Not-A-Slot"], 2, "E0002");
    let first = stage.created("first", &["--slot", "taken"]);
    wait_follows(&first, &stage.primary, "taken");
    let error = refused(&stage, &["--slot", "taken"], 7, "E0005");
    assert!(error["message"].as_str().unwrap().contains("another server streams through it"), "{error}");

    stage.primary.sql("SELECT pg_create_physical_replication_slot('idle', true)");
    stage.primary.sql("SELECT pg_create_physical_replication_slot('empty')");
    for (slot, action) in [("idle", "use"), ("empty", "replace")] {
        let node = stage.place(slot);
        let (code, result) = stage.create(&node, &["--slot", slot]);
        assert_eq!((code, &result["slot"]["action"]), (0, &json!(action)), "{result}");
        let kept = format!("SELECT restart_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = '{slot}'");
        assert_eq!(stage.primary.sql(&kept), "t");
    }
}

#[test]
fn a_server_that_is_not_the_primary_of_the_stored_history_is_refused() {
    let mut stage = Stage::backed_up(16, &[]);
    let mut foreign = PgNode::start_new(stage.dir.path(), "foreign", major(16));
    refused(&stage, &["--primary-conninfo", &foreign.conninfo()], 7, "E0205");
    assert!(foreign.stop("immediate", LIMIT));

    // The daemon follows the next primary, while the former one comes back and writes.
    let mut next = stage.primary.make_standby(stage.dir.path(), "next");
    next.start();
    stage.primary.kill();
    next.promote();
    next.sql("INSERT INTO t VALUES (2)");
    stage.installed.config_for(&next, "");
    stage.daemon.signal("HUP");
    stage.installed.wait("the next timeline is stored", LIMIT, || {
        stage.installed.json(&["window", "main"]).1["timelines"].as_array().is_some_and(|all| all.len() == 2)
    });
    stage.primary.start();
    stage.primary.sql("INSERT INTO t VALUES (3)");
    let error = refused(&stage, &[], 7, "E0501");
    assert!(error["message"].as_str().unwrap().contains("which the stored history left at"), "{error}");

    // Of the next one a standby is made, from a backup of the timeline before.
    let node = stage.created("standby", &["--primary-conninfo", &next.conninfo(), "--slot", "s"]);
    wait_follows(&node, &next, "s");
    wait("the row of the next timeline", || node.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t") == "1,2");
    assert_eq!(node.sql("SELECT received_tli FROM pg_stat_wal_receiver"), "2");
}

#[test]
fn what_the_repository_and_the_primary_both_lack_is_refused() {
    let mut stage = Stage::backed_up(15, &[("wal_keep_size", "0"), ("max_wal_size", "2MB"), ("min_wal_size", "2MB")]);
    stage.stored();
    stage.daemon.signal("KILL");
    stage.installed.wait("the daemon is gone", LIMIT, || stage.daemon.has_ended());
    stage.primary.drop_slot("pgvault");
    for _ in 0..4 {
        stage.primary.sql("CREATE TABLE x AS SELECT generate_series(1, 20000) n; DROP TABLE x");
        stage.primary.sql("SELECT pg_switch_wal()");
        stage.primary.sql("CHECKPOINT");
    }
    let error = refused(&stage, &["--slot", "s"], 4, "E0206");
    assert!(error["message"].as_str().unwrap().contains("neither in the repository nor on"), "{error}");
    // Nobody to ask: it can be made, readable as of what is stored.
    assert!(stage.primary.stop("fast", LIMIT));
    let node = stage.place("standby");
    assert_eq!(stage.create(&node, &["--slot", "s"]).0, 0);
}

#[test]
fn a_primary_that_lets_nobody_in_is_an_error_and_not_an_absence() {
    let stage = Stage::backed_up(18, &[]);
    let nobody = format!("host=127.0.0.1 port={} user=nobody", stage.primary.port);
    let node = stage.place("standby");
    let (code, error) = stage.create(&node, &["--primary-conninfo", &nobody]);
    assert_eq!(code, 4, "{error}");
    assert!(error["help"].to_string().contains("--primary-conninfo"), "{error}");
    assert!(!node.data.exists());
}
