//! Which commits does a server with pgvault as its only synchronous standby let through, and what is it told?

use std::fs;
use std::process::{Child, Stdio};

use crate::support::attacked::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::proxy::Proxy;
use crate::support::tap::tapped;

fn config(pgvault: &Pgvault, proxy: &Proxy, more: &str) {
    pgvault.config(&format!(
        "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=postgres\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n\
         application_name = \"the_vault\"\nsynchronous = true\n{more}\n",
        proxy.port()
    ));
}

fn wait_synchronous(pgvault: &Pgvault, node: &PgNode) {
    pgvault.wait("synchronous", LIMIT, || node.sql("SELECT sync_state FROM pg_stat_replication") == "sync");
}

/// A commit under `mode` in a session of its own.
fn commit(node: &PgNode, mode: &str) -> Child {
    let sql =
        format!("SET application_name = 'mode'; SET synchronous_commit = {mode}; INSERT INTO t VALUES ('{mode}')");
    let mut psql = node.tool("psql");
    psql.args(["-X", "-q", "-c", &sql]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    psql.spawn().unwrap()
}

fn is_waiting(node: &PgNode) -> bool {
    node.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mode' AND wait_event = 'SyncRep'") == "1"
}

#[test]
fn commits_pass_in_every_mode_and_remote_apply_only_when_it_was_asked_for() {
    let dir = test_dir();
    let settings = [("synchronous_standby_names", "the_vault"), ("synchronous_commit", "local")];
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &settings);
    node.start();
    node.sql("CREATE TABLE t (mode text)");
    let (proxy, told) = tapped(node.port);
    let pgvault = Pgvault::new(dir.path());
    config(&pgvault, &proxy, "");
    let daemon = pgvault.serve();
    wait_synchronous(&pgvault, &node);
    for mode in ["local", "remote_write", "on"] {
        assert!(commit(&node, mode).wait().unwrap().success());
    }
    // Nothing is applied in an archive, and nothing is said to be.
    let mut waiting = commit(&node, "remote_apply");
    pgvault.wait("it waits", LIMIT, || is_waiting(&node));
    assert!(commit(&node, "on").wait().unwrap().success(), "others do not wait with it");
    assert!(is_waiting(&node) && waiting.try_wait().unwrap().is_none());
    assert_eq!(node.sql("SELECT count(replay_lsn) FROM pg_stat_replication"), "0");
    assert!(told.lock().unwrap().updates.iter().all(|update| update.apply.as_u64() == 0));

    // Asked for, it is what is durable, and whoever waits is let go.
    config(&pgvault, &proxy, "report_apply = true");
    daemon.stop();
    let before = told.lock().unwrap().updates.len();
    let daemon = pgvault.serve();
    assert!(waiting.wait().unwrap().success());
    assert!(commit(&node, "remote_apply").wait().unwrap().success());
    for update in &told.lock().unwrap().updates[before..] {
        assert_eq!(update.apply, update.flush, "{update:?}");
        assert!(update.flush <= update.write, "{update:?}");
    }
    assert_eq!(node.sql("SELECT count(*) FROM t"), "6");

    // Stopped, it would make the server keep WAL for ever: somebody has to be told.
    daemon.stop();
    let (_, check) = pgvault.json(&["check", "main"]);
    let checks = check["clusters"][0]["checks"].as_array().unwrap();
    let of = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!(of("max_slot_wal_keep_size")["status"], "warn", "{check:#}");
    assert!(of("max_slot_wal_keep_size")["fix"].as_str().unwrap().contains("ALTER SYSTEM"), "{check:#}");
    fs::remove_dir_all(&pgvault.repository).unwrap();
}
