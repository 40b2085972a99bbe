//! What does a restart find after the process died at a named point? Nothing lost, nothing false.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgvault::fault::FAULT_POINTS;
use pgvault::wal_pipeline::WalStatus;
use wal::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::vault::Vault;

/// Points on the way of a timeline switch; the others are passed by WAL that simply flows.
const AT_A_SWITCH: [&str; 3] = ["receiver.history_kept", "receiver.timeline_left", "archiver.history_put"];
/// Passed only when WAL is lost.
const AT_A_LOSS: [&str; 1] = ["ledger.gap_recorded"];

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// A pipeline in a process of its own, told by its environment where and when to die. Not a test by itself.
#[test]
#[ignore = "the other tests of this file start it"]
fn a_process_that_dies() {
    let Ok(dir) = std::env::var("PGVAULT_TEST_CRASH_DIR") else { return };
    let conninfo = std::env::var("PGVAULT_TEST_CRASH_CONNINFO").unwrap();
    let vault = Vault::on_disk(Path::new(&dir));
    let running = vault.start(&conninfo);
    running.wait("the end of this process", |_: &WalStatus| false);
}

/// Starts the process and waits until it has died at the point.
fn die_at(point: &str, count: u64, dir: &Path, conninfo: &str, meanwhile: impl FnOnce()) {
    let mut child = start(&format!("{point}:{count}"), dir, conninfo);
    meanwhile();
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.signal(), Some(6), "{point}: {status}");
            return;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{point} was never passed {count} times");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn start(point: &str, dir: &Path, conninfo: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::a_process_that_dies", "--exact", "--ignored"])
        .env("PGVAULT_FAULT_POINT", point)
        .env("PGVAULT_TEST_CRASH_DIR", dir)
        .env("PGVAULT_TEST_CRASH_CONNINFO", conninfo)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A server that writes all the time, in segments of 1 MiB, and keeps everything.
fn busy_server(dir: &Path) -> (PgNode, Child) {
    let mut node = PgNode::init(dir, "node", 15, &["--wal-segsize=1"], &[("wal_keep_size", "1GB")]);
    node.start();
    let init = node.tool("pgbench").args(["-i", "-q"]).output().unwrap();
    assert!(init.status.success());
    let load = load(&node);
    (node, load)
}

fn load(node: &PgNode) -> Child {
    let quiet = || Stdio::null();
    node.tool("pgbench").args(["-c", "2", "-T", "3600", "-n"]).stdout(quiet()).stderr(quiet()).spawn().unwrap()
}

fn end(mut load: Child) {
    load.kill().unwrap();
    load.wait().unwrap();
}

/// After everything is stored: every segment is there, is the server's, and nothing was refused.
fn assert_whole(vault: &Vault, timeline: u32, pg_wal: &Path) {
    let names = vault.segments();
    let numbers: Vec<u64> = names
        .iter()
        .filter(|name| name.timeline().get() == timeline)
        .map(|name| name.number(size()).unwrap().get())
        .collect();
    assert!(!numbers.is_empty());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    for name in names.iter().filter(|name| name.timeline().get() == timeline) {
        let theirs = fs::read(pg_wal.join(name.to_string())).unwrap();
        assert!(vault.segment(*name) == theirs, "{name}");
    }
    let refused: Vec<String> = vault.keys().into_iter().filter(|key| key.contains("/conflict/")).collect();
    assert_eq!(refused, Vec::<String>::new());
}

#[test]
fn while_wal_flows() {
    let dir = test_dir();
    let (node, load) = busy_server(dir.path());
    for point in FAULT_POINTS.iter().filter(|point| !AT_A_SWITCH.contains(point) && !AT_A_LOSS.contains(point)) {
        die_at(point, 2, dir.path(), &node.conninfo(), || {});
    }
    end(load);
    let vault = Vault::on_disk(dir.path());
    let running = vault.start(&node.conninfo());
    node.sql("SELECT pg_switch_wal()");
    let end: Lsn = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    running.wait_shipped(end);
    assert_eq!(running.now().gaps, []);
    running.stop();
    assert_whole(&vault, 1, &node.data.join("pg_wal"));
}

#[test]
fn at_a_timeline_switch() {
    for point in AT_A_SWITCH {
        let dir = test_dir();
        let (mut node, load) = busy_server(dir.path());
        let mut standby = node.make_standby(dir.path(), "standby");
        standby.start();
        die_at(point, 1, dir.path(), &standby.conninfo(), || {
            let deadline = Instant::now() + LIMIT;
            while standby.sql("SELECT count(*) FROM pg_stat_replication") != "1" {
                assert!(Instant::now() < deadline, "never streaming");
                std::thread::sleep(Duration::from_millis(50));
            }
            end(load);
            assert!(node.stop("fast", LIMIT));
            standby.promote();
            standby.sql("CREATE TABLE after (n int)");
        });
        let vault = Vault::on_disk(dir.path());
        let running = vault.start(&standby.conninfo());
        standby.sql("SELECT pg_switch_wal()");
        let end: Lsn = standby.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        let two = TimelineId::new(2).unwrap();
        running.wait("stored", |status| status.timeline == Some(two) && status.shipped >= Some(end));
        assert_eq!(running.now().gaps, [], "{point}");
        running.stop();
        let history = vault.runtime.block_on(vault.lineage().history(two)).unwrap();
        let switch = history.parent().unwrap().switch_point;
        let left = SegmentName::containing(TimelineId::FIRST, switch, size());
        assert!(!vault.segments().contains(&left), "{point}");
        assert_eq!(vault.tail(left).unwrap().1, switch, "{point}");
        assert_whole(&vault, 2, &standby.data.join("pg_wal"));
    }
}
