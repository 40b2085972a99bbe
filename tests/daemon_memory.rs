//! Does the daemon's memory stay small, however large the cluster, and while its store is away?

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::support::attacked::{LIMIT, install, wait_shipped};
use crate::support::fake_s3::{Conditions, FakeS3Process, Wrong};
use crate::support::filler::Filler;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::{Daemon, Pgvault};
use crate::support::scene::store_at;

/// What the daemon may need at most, in MiB.
const LIMIT_MIB: u64 = 200;

/// The most that the process ever had in memory, in MiB (proc_pid_status(5)).
fn peak_mib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn wal_and_a_backup_of_more_than_that_fit_into_it() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &[], &[("max_wal_size", "4GB"), ("wal_level", "replica")]);
    node.start();
    let pgvault = install(dir.path());
    pgvault.config_for(&node, "");
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    // Rows that do not compress: everything that waits to be stored is as large as it was.
    node.sql(
        "CREATE TABLE big AS SELECT n, string_agg(sha256((n * 100 + k)::text::bytea), '') AS pad
         FROM generate_series(1, 60000) n, generate_series(1, 60) k GROUP BY n;
         CREATE TABLE more AS SELECT n, sha256(n::text::bytea) || pad AS pad FROM big;
         CHECKPOINT",
    );
    let size: u64 = node.sql("SELECT pg_database_size('postgres') / 1024 / 1024").parse().unwrap();
    assert!(size > LIMIT_MIB, "{size} MiB");
    wait_shipped(&pgvault, node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap());
    let for_wal = peak_mib(&daemon);
    daemon.stop();
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let for_backup = peak_mib(&daemon);
    println!("{size} MiB: peak {for_wal} MiB when their WAL came, {for_backup} MiB for a backup");
    assert!(for_wal < LIMIT_MIB, "peak {for_wal} MiB for the WAL of {size} MiB");
    assert!(for_backup < LIMIT_MIB, "peak {for_backup} MiB for a backup of {size} MiB");
    daemon.stop();
}

/// What receiving and archiving may need at segments of 16 MB, in MiB.
const WAL_LIMIT_MIB: u64 = 100;

fn wal(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

#[test]
fn a_store_that_is_away_and_comes_back_costs_no_memory() {
    let store = FakeS3Process::start(Conditions::Atomic);
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &[], &[("max_wal_size", "4GB")]);
    node.start();
    let pgvault = install(dir.path());
    pgvault.config_for(&node, "");
    store_at(&pgvault, &store.fake.options());
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    let filler = Filler::start(&node, 40 << 20);
    std::thread::sleep(Duration::from_secs(2));
    let before = peak_mib(&daemon);
    store.fake.sometimes("", 100, Wrong::Status(503, "SlowDown"));
    pgvault.wait("ten segments wait", LIMIT, || wal(&pgvault)["spool_segments"].as_u64().unwrap() > 10);
    let away = peak_mib(&daemon);
    store.fake.heal();
    pgvault.wait("they are drained", LIMIT, || wal(&pgvault)["spool_segments"].as_u64().unwrap() < 5);
    let drained = peak_mib(&daemon);
    filler.stop();
    println!("peak {before} MiB with the store, {away} MiB without it, {drained} MiB after draining");
    assert!(drained < WAL_LIMIT_MIB, "peak {drained} MiB");
    daemon.stop();
}

#[test]
#[ignore = "it writes gigabytes: make chaos"]
fn segments_of_a_gigabyte_need_no_more_than_small_ones() {
    let dir = test_dir();
    let settings = [("max_wal_size", "4GB"), ("min_wal_size", "2GB")];
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1024"], &settings);
    node.start();
    let pgvault = install(dir.path());
    pgvault.config_for(&node, "");
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let filler = Filler::start(&node, 80 << 20);
    let archived = || wal(&pgvault)["archived_lsn"].as_str().map(|lsn| lsn.parse::<wal::Lsn>().unwrap().as_u64());
    let first = archived();
    pgvault.wait("a whole segment is stored", LIMIT * 3, || archived() > first.max(Some(1 << 30)));
    filler.stop();
    let peak = peak_mib(&daemon);
    println!("peak {peak} MiB at segments of 1 GiB");
    assert!(peak < LIMIT_MIB, "peak {peak} MiB");
    let end: wal::Lsn = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    wait_shipped(&pgvault, end);

    // Fetching the open segment, which is stored as tails, needs no more either.
    let segment = wal::SegmentName::containing(wal::TimelineId::FIRST, end, wal::SegmentSize::new(1 << 30).unwrap());
    let to = pgvault.state.join("fetched");
    let fetch = pgvault.command(["wal", "fetch", "main", &segment.to_string(), to.to_str().unwrap()]);
    let mut limited = std::process::Command::new("prlimit");
    limited.arg(format!("--as={}", 700 << 20)).arg(fetch.get_program()).args(fetch.get_args());
    for (name, value) in fetch.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let output = limited.current_dir(&pgvault.dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::metadata(&to).unwrap().len(), 1 << 30);
    daemon.stop();
}
