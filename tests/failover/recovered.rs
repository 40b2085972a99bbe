//! What was committed before, during and after a failover is recovered, exactly.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wal::{Lsn, SegmentSize, TimelineId};

use crate::support::ledger::Ledger;
use crate::support::members::{Members, flushed, wait};
use crate::support::oracle::Oracle;
use crate::support::pg::{PgNode, major, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::restored::wait_promoted;
use crate::support::scene::{LIMIT, configure, wait_stored};
use crate::support::truth::{Target, Truth};

/// An installation that knows all members.
fn install(dir: &Path, members: &Members) -> Pgvault {
    let installed = Pgvault::new(dir);
    let conninfo = members.conninfo();
    installed.config(&format!("[cluster.main]\nconninfo = \"{conninfo}\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n"));
    installed
}

fn status(installed: &Pgvault) -> Value {
    installed.json(&["status", "main"]).1["clusters"][0].clone()
}

fn wait_timeline(installed: &Pgvault, timeline: u32, node: &PgNode) {
    installed.wait(&format!("timeline {timeline} is streamed"), LIMIT, || {
        let status = status(installed);
        status["wal"]["streaming"] == true && status["timeline"] == timeline && status["primary"]["port"] == node.port
    });
}

fn backup(installed: &Pgvault) -> Value {
    let (code, backup) = installed.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert_eq!((code, &backup["status"]), (0, &Value::from("ok")), "{backup}");
    backup
}

/// What a server that has everything from the first segment on says about what happened.
fn truth(dir: &Path, node: &PgNode, timeline: u32) -> Truth {
    let reference = dir.join("reference");
    fs::create_dir_all(&reference).unwrap();
    for entry in fs::read_dir(node.data.join("pg_wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, reference.join(path.file_name().unwrap())).unwrap();
        }
    }
    Truth::read(&reference, TimelineId::new(timeline).unwrap(), SegmentSize::new(1 << 20).unwrap())
}

fn recover(installed: &Pgvault, dir: &Path, major: u32, name: &str, args: &[&str]) -> PgNode {
    let mut node = PgNode::at(dir, name, major);
    let to: PathBuf = node.data.clone();
    installed.ok(["recover", "main", "--to", to.to_str().unwrap()].into_iter().chain(args.iter().copied()));
    configure(&node);
    node.start();
    wait_promoted(&node);
    node
}

#[test]
fn no_commit_is_lost_when_the_primary_is_killed_under_load_and_a_standby_promoted() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, major(17), &[]);
    // Acknowledged means that the standby has it: it is what the next primary goes on with.
    members.nodes[0].sql("ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'");
    members.nodes[0].sql("SELECT pg_reload_conf()");
    wait("the standby is synchronous", || {
        members.nodes[0].sql("SELECT sync_state FROM pg_stat_replication WHERE application_name = 'walreceiver'")
            == "sync"
    });
    let ledger = Ledger::create(&members.nodes[0], &dir.path().join("ledger"), None);
    let installed = install(dir.path(), &members);
    let daemon = installed.serve();
    installed.wait_streaming();
    backup(&installed);
    let load = ledger.load(&members.nodes[0], 3);
    load.wait_for_more(60);
    members.nodes[0].kill();
    members.nodes[1].sql("ALTER SYSTEM RESET synchronous_standby_names");
    members.nodes[1].promote();
    load.redirect(&members.nodes[1]);
    load.wait_for_more(60);
    wait_timeline(&installed, 2, &members.nodes[1]);
    let second = backup(&installed);
    assert_eq!(second["timeline"], 2, "{second}");
    load.wait_for_more(30);
    load.stop();
    let end = wait_stored(&installed, &members.nodes[1]);
    let status = status(&installed);
    let failover = &status["failovers"][0];
    assert_eq!((&failover["timeline"], &failover["gap"]), (&Value::from(2), &Value::from(false)), "{status}");
    assert_eq!(failover["to"], format!("127.0.0.1:{}", members.nodes[1].port));
    assert_eq!(status["window"]["gaps"], 0);
    daemon.stop();
    assert!(members.nodes[1].stop("fast", LIMIT));
    let oracle = Oracle::new(&ledger, truth(dir.path(), &members.nodes[1], 2), Vec::new());
    let first = ["--latest", "--action", "promote"];
    let restored = recover(&installed, dir.path(), major(17), "restored", &first);
    let verdict = oracle.check(&restored, &Target::EndOfWal(end));
    assert!(verdict.is_exact(), "{verdict}\n{}", restored.log());
    assert!(verdict.found >= 150, "{verdict}");
}

#[test]
fn both_branches_are_recovered_when_the_next_primary_lacks_what_was_acknowledged() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, major(15), &[]);
    members.nodes[0].sql("CREATE TABLE t (word text)");
    let installed = install(dir.path(), &members);
    let daemon = installed.serve();
    installed.wait_streaming();
    backup(&installed);
    let write = |node: &PgNode, word: &str| -> Lsn {
        node.sql(&format!("INSERT INTO t SELECT '{word}' FROM generate_series(1, 3000)"));
        flushed(node)
    };
    members.wait_replayed(1, write(&members.nodes[0], "shared"));
    members.cut_off(1);
    let acknowledged = write(&members.nodes[0], "only here");
    installed.wait("what only the old primary has is stored", LIMIT, || {
        let shipped = status(&installed)["wal"]["shipped_lsn"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok());
        shipped >= Some(acknowledged)
    });
    members.nodes[0].kill();
    members.nodes[1].promote();
    write(&members.nodes[1], "after");
    wait_timeline(&installed, 2, &members.nodes[1]);
    wait_stored(&installed, &members.nodes[1]);
    // It is told, and is no gap.
    let told = status(&installed);
    assert!(told["reasons"].to_string().contains("beyond the fork"), "{told}");
    assert_eq!((&told["window"]["gaps"], &told["failovers"][0]["gap"]), (&Value::from(0), &Value::from(false)));
    daemon.stop();
    let words = |node: &PgNode| node.sql("SELECT string_agg(DISTINCT word, ', ' ORDER BY word), count(*) FROM t");
    let new = recover(&installed, dir.path(), major(15), "new", &["--latest", "--action", "promote"]);
    assert_eq!(words(&new), "after, shared|6000");
    let old =
        recover(&installed, dir.path(), major(15), "old", &["--latest", "--timeline", "1", "--action", "promote"]);
    assert_eq!(words(&old), "only here, shared|6000");
    // It is still told after a restart.
    let daemon = installed.serve();
    installed
        .wait("the tail beyond the fork is listed", LIMIT, || status(&installed)["fork_tails"][0]["timeline"] == 1);
    daemon.stop();
}

#[test]
fn a_backup_that_a_failover_interrupts_is_none_and_the_next_one_is_good() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, major(18), &[]);
    members.nodes[0].sql("CREATE TABLE t AS SELECT n, repeat('x', 500) AS pad FROM generate_series(1, 40000) n");
    members.wait_replayed(1, flushed(&members.nodes[0]));
    let installed = install(dir.path(), &members);
    let daemon = installed.serve();
    installed.wait_streaming();
    installed.ok(["backup", "now", "main", "--fast-checkpoint", "--max-rate", "2MB"]);
    installed.wait("the backup copies", LIMIT, || {
        status(&installed)["backups"]["running"]["done_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20)
    });
    members.nodes[0].kill();
    members.nodes[1].promote();
    members.nodes[1].sql("INSERT INTO t VALUES (0, 'after')");
    wait_timeline(&installed, 2, &members.nodes[1]);
    installed.wait("the backup has ended", LIMIT, || status(&installed)["backups"]["running"].is_null());
    assert_eq!(installed.json(&["backup", "list", "main"]).1.as_array().map(Vec::len), Some(0));
    assert_eq!(backup(&installed)["timeline"], 2);
    wait_stored(&installed, &members.nodes[1]);
    daemon.stop();
    let restored = recover(&installed, dir.path(), major(18), "restored", &["--latest", "--action", "promote"]);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "40001");
}
