//! `standby create`.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::stage::{Stage, rows, slots, wait_follows, wait_replayed, wait_streams};
use crate::support::LIMIT;
use crate::support::members::flushed;
use crate::support::pg::{give_to_server_user, major};
use crate::support::restored::wait_promoted;
use crate::support::scene::{Scene, Setting, configure};

const FAST: Duration = LIMIT;

/// Made under load, it streams through its slot, holds every acknowledged commit, also when it is promoted; and the primary's data
/// was not read for it.
fn follows_and_is_exact(major: u32) {
    let mut scene = Scene::new(Setting::of(major));
    scene.backup();
    scene.node.sql("ALTER SYSTEM SET log_replication_commands = on");
    scene.node.sql("SELECT pg_reload_conf()");
    scene.more(50);
    let logged = scene.node.log().len();
    let mut standby = scene.place();
    let conninfo = scene.node.conninfo();
    let to = standby.data.to_str().unwrap();
    let args = ["standby", "create", "main", "--to", to, "--primary-conninfo", &conninfo, "--slot", "standby_1"];
    let (code, result) = scene.installed.json(&args);
    assert_eq!(code, 0, "{result}");
    assert_eq!(result["slot"], json!({ "name": "standby_1", "action": "create", "error": null }), "{result}");
    configure(&standby);
    standby.start();
    scene.more(50);
    wait_follows(&standby, &scene.node, "standby_1");
    let log = scene.node.log();
    assert!(log[logged..].contains("START_REPLICATION SLOT \"standby_1\""), "{}", &log[logged..]);
    assert!(!log[logged..].contains("BASE_BACKUP"), "{}", &log[logged..]);

    let oracle = scene.settle();
    wait_replayed(&standby, flushed(&scene.node));
    let target = scene.latest();
    oracle.check(&standby, &target).assert_exact();
    assert!(scene.node.stop("fast", FAST));
    standby.promote();
    wait_promoted(&standby);
    oracle.check(&standby, &target).assert_exact();
}

#[test]
fn a_standby_of_14_streams_and_is_exact_and_its_primary_was_not_read() {
    follows_and_is_exact(14);
}

#[test]
fn a_standby_of_15_streams_and_is_exact_and_its_primary_was_not_read() {
    follows_and_is_exact(15);
}

#[test]
fn a_standby_of_16_streams_and_is_exact_and_its_primary_was_not_read() {
    follows_and_is_exact(16);
}

#[test]
fn a_standby_of_17_streams_and_is_exact_and_its_primary_was_not_read() {
    follows_and_is_exact(17);
}

#[test]
fn a_standby_of_18_streams_and_is_exact_and_its_primary_was_not_read() {
    follows_and_is_exact(18);
}

#[test]
fn a_standby_made_while_its_primary_is_down_is_readable_and_joins_it_later() {
    let mut scene = Scene::new(Setting::of(major(17)));
    scene.backup();
    scene.more(20);
    let oracle = scene.settle();
    let target = scene.latest();
    assert!(scene.node.stop("fast", FAST));
    let mut standby = scene.place();
    let conninfo = scene.node.conninfo();
    let to = standby.data.to_str().unwrap();
    let args = ["standby", "create", "main", "--to", to, "--primary-conninfo", &conninfo, "--slot", "later"];
    let (code, result) = scene.installed.json(&args);
    assert_eq!((code, &result["primary"]["reachable"]), (0, &json!(false)), "{result}");
    configure(&standby);
    standby.start();
    oracle.check(&standby, &target).assert_exact();

    scene.node.start();
    scene.node.sql("CREATE TABLE t AS SELECT 1 AS n");
    wait_streams(&standby);
    wait_replayed(&standby, flushed(&scene.node));
    assert_eq!(rows(&standby), "1");
    // What it said is to be done later.
    let steps: Vec<&str> = result["next"].as_array().unwrap().iter().map(|step| step.as_str().unwrap()).collect();
    let run = |node: &crate::support::pg::PgNode, step: &str| {
        for statement in step.split_once(": ").unwrap().1.split_terminator(';') {
            node.sql(statement);
        }
    };
    assert_eq!(steps.len(), 2, "{steps:?}");
    run(&scene.node, steps[0]);
    run(&standby, steps[1]);
    wait_follows(&standby, &scene.node, "later");
}

#[test]
fn a_hot_standby_has_at_least_what_its_primary_has_by_now() {
    let mut stage = Stage::backed_up(18, &[("max_connections", "40")]);
    stage.primary.sql("ALTER SYSTEM SET max_connections = 77");
    stage.primary.sql("ALTER SYSTEM SET max_locks_per_transaction = 99");
    assert!(stage.primary.stop("fast", FAST));
    stage.primary.start();
    stage.installed.wait_streaming();
    stage.insert(2);
    let standby = stage.created("standby", &[]);
    wait_streams(&standby);
    wait_replayed(&standby, flushed(&stage.primary));
    assert_eq!(rows(&standby), "1,2");
    assert_eq!(standby.sql("SHOW max_connections"), "77");
    assert_eq!(standby.sql("SHOW max_locks_per_transaction"), "99");
    assert_eq!(standby.sql("SELECT pg_get_wal_replay_pause_state()"), "not paused");
    // The name of its slot came from the cluster and this machine.
    let slot = slots(&stage.primary);
    assert!(slot.starts_with("main_"), "{slot}");
    wait_follows(&standby, &stage.primary, &slot);
}

#[test]
fn no_secret_is_ever_written_and_a_password_is_refused() {
    let stage = Stage::backed_up(15, &[]);
    let node = stage.place("standby");
    let conninfo = stage.primary.conninfo();
    for words in [
        format!("{conninfo} password=hemlig"),
        format!("postgresql://postgres:hemlig@127.0.0.1:{}/", stage.primary.port),
    ] {
        let (code, error) = stage.create(&node, &["--primary-conninfo", &words]);
        assert_eq!((code, &error["code"]), (2, &json!("E0002")), "{error}");
        assert!(!error.to_string().contains("hemlig"), "{error}");
    }
    assert!(!node.data.exists());
    assert_eq!(slots(&stage.primary), "");
    // A password that only the environment knows is used and stays there.
    let mut command = stage.installed.command(["standby", "create", "main", "--slot", "s", "--primary-conninfo"]);
    let output = command.args([&conninfo, "--to"]).arg(&node.data).env("PGPASSWORD", "hemlig").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(slots(&stage.primary), "s");
    let auto_conf = fs::read_to_string(node.data.join("postgresql.auto.conf")).unwrap();
    assert!(auto_conf.contains("primary_slot_name = 's'"), "{auto_conf}");
    assert!(!auto_conf.contains("hemlig"), "{auto_conf}");
}

#[test]
fn for_an_ha_manager_only_data_is_written() {
    let stage = Stage::start(16, &[]);
    // What an earlier life left in the primary's settings must not act on the standby, and may hold a password.
    stage.primary.sql("ALTER SYSTEM SET primary_conninfo = 'host=old password=hemlig'");
    stage.primary.sql("ALTER SYSTEM SET restore_command = 'false'");
    stage.primary.sql("ALTER SYSTEM SET work_mem = '5MB'");
    stage.backup();
    let mut node = stage.place("standby");
    let (code, result) = stage.create(&node, &["--no-config"]);
    assert_eq!((code, &result["slot"], &result["primary"]), (0, &json!(null), &json!(null)), "{result}");
    assert_eq!(slots(&stage.primary), "");
    for signal in ["standby.signal", "recovery.signal"] {
        assert!(!node.data.join(signal).exists(), "{signal}");
    }
    let auto_conf = fs::read_to_string(node.data.join("postgresql.auto.conf")).unwrap();
    assert!(auto_conf.contains("work_mem"), "{auto_conf}");
    for gone in ["primary_conninfo", "restore_command", "pgvault"] {
        assert!(!auto_conf.contains(gone), "{auto_conf}");
    }
    // What a manager then does.
    configure(&node);
    node.configure(&[("primary_conninfo", &stage.primary.conninfo())]);
    fs::write(node.data.join("standby.signal"), "").unwrap();
    give_to_server_user(&node.data.join("standby.signal"));
    node.start();
    wait_streams(&node);
    wait_replayed(&node, flushed(&stage.primary));
}

#[test]
fn tablespaces_and_pg_wal_go_where_they_are_told() {
    let stage = Stage::start(17, &[]);
    let (old, new) = (stage.dir.path().join("old space"), stage.dir.path().join("new space"));
    let wal = stage.dir.path().join("wal");
    fs::create_dir(&old).unwrap();
    give_to_server_user(&old);
    stage.primary.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", old.display()));
    stage.primary.sql("CREATE TABLE there (n int) TABLESPACE space");
    stage.backup();
    stage.primary.sql("INSERT INTO there VALUES (7)");
    let moved = format!("{}={}", old.display(), new.display());
    let standby = stage.created("standby", &["--tablespace", &moved, "--wal-dir", wal.to_str().unwrap(), "--slot", ""]);
    wait_streams(&standby);
    wait_replayed(&standby, flushed(&stage.primary));
    assert_eq!(standby.sql("SELECT n FROM there"), "7");
    assert_eq!(
        standby.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'"),
        new.to_str().unwrap()
    );
    assert_eq!(fs::read_link(standby.data.join("pg_wal")).unwrap(), wal);
    assert_eq!(slots(&stage.primary), "", "none was wanted");
}

#[test]
fn a_dry_run_changes_nothing() {
    let stage = Stage::backed_up(17, &[]);
    let node = stage.place("standby");
    let (code, plan) = stage.create(&node, &["--dry-run", "--slot", "s"]);
    assert_eq!((code, &plan["type"]), (0, &json!("plan")), "{plan}");
    assert_eq!(plan["slot"], json!({ "name": "s", "action": "create" }));
    assert_eq!(plan["primary"]["timeline"], 1);
    assert!(plan["settings"].as_array().unwrap().contains(&json!("recovery_target_timeline = 'latest'")), "{plan}");
    assert!(!node.data.exists());
    assert_eq!(slots(&stage.primary), "");
}
