//! Does the daemon's memory stay small, however large the cluster, and while its store is away?

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;

use crate::support::attacked::{LIMIT, wait_shipped};
use crate::support::fake_s3::{Conditions, FakeS3Process, Wrong};
use crate::support::filler::Filler;
use crate::support::pg::{PgNode, give_to_server_user, test_dir};
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
    let pgvault = Pgvault::new(dir.path());
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

#[test]
#[ignore = "two hundred thousand files: make chaos"]
fn two_hundred_thousand_files_fit_into_it_and_come_back() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &[], &[("autovacuum", "off")]);
    // As many relations would leave: most of them empty, some a page long.
    let database = node.data.join("base/5");
    for number in 0..200_000_u32 {
        let content: &[u8] = if number % 100 == 0 { &[7; 8192] } else { &[] };
        fs::write(database.join((1_000_000 + number).to_string()), content).unwrap();
    }
    give_to_server_user(&node.data);
    node.start();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config_for(&node, "");
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    // The second is compared with the first.
    for _ in 0..2 {
        let (code, backup) = pgvault.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        assert!(code == 0 && backup["files"].as_u64() > Some(200_000), "{backup}");
    }
    let peak = peak_mib(&daemon);
    println!("200,000 files: peak {peak} MiB");
    assert!(peak < LIMIT_MIB, "peak {peak} MiB");
    daemon.stop();
    let to = dir.path().join("restored");
    pgvault.ok(["recover", "main", "--latest", "--to", to.to_str().unwrap()]);
    for number in (0..200_000_u32).step_by(37) {
        let name = (1_000_000 + number).to_string();
        let restored = fs::read(to.join("base/5").join(&name)).unwrap();
        assert!(restored == fs::read(database.join(&name)).unwrap(), "{name}");
    }
    // The server leaves out files of its own, pg_internal.init.
    let is_ours = |name: &str| name.parse::<u32>().is_ok_and(|number| number >= 1_000_000);
    let names = fs::read_dir(to.join("base/5")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_str().is_some_and(is_ours)).count(), 200_000);
}

#[test]
#[ignore = "a file of nine gigabytes: make chaos"]
fn a_file_beyond_the_octal_sizes_of_tar_fits_into_it_and_comes_back() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &[], &[]);
    let name = "base/5/as large as can be";
    // Eleven octal digits end at 8 GiB: from there on a size is written in base 256.
    let len = (8 << 30) + (1 << 20) + 17;
    let marks = [0_u64, (4 << 30) - 5, (8 << 30) - 5, len - 10];
    let file = fs::File::create(node.data.join(name)).unwrap();
    file.set_len(len).unwrap();
    for at in marks {
        file.write_all_at(b"0123456789", at).unwrap();
    }
    drop(file);
    give_to_server_user(&node.data);
    node.start();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config_for(&node, "");
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    let (code, backup) = pgvault.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert!(code == 0 && backup["size_bytes"].as_u64() > Some(len), "{backup}");
    let peak = peak_mib(&daemon);
    assert!(peak < LIMIT_MIB, "peak {peak} MiB");
    daemon.stop();
    let to = dir.path().join("restored");
    pgvault.ok(["recover", "main", "--latest", "--to", to.to_str().unwrap()]);
    let restored = fs::File::open(to.join(name)).unwrap();
    assert_eq!(restored.metadata().unwrap().len(), len);
    for at in marks {
        let mut found = [0; 10];
        restored.read_exact_at(&mut found, at).unwrap();
        assert_eq!(&found, b"0123456789", "at {at}");
    }
}

/// What receiving and archiving may need at segments of 16 MB, in MiB.
const WAL_LIMIT_MIB: u64 = 100;

fn wal(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

/// The position before which everything is stored in whole segments.
fn archived(pgvault: &Pgvault) -> u64 {
    wal(pgvault)["archived_lsn"].as_str().map_or(0, |lsn| lsn.parse::<wal::Lsn>().unwrap().as_u64())
}

#[test]
fn a_store_that_is_away_and_comes_back_costs_no_memory() {
    let store = FakeS3Process::start(Conditions::Atomic);
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &[], &[("max_wal_size", "4GB")]);
    node.start();
    let pgvault = Pgvault::new(dir.path());
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
    // Some of them while more comes; whether all of them could be depends on the machine.
    let segments = || archived(&pgvault) / (16 << 20);
    let stored = segments();
    store.fake.heal();
    pgvault.wait("some are drained", LIMIT, || segments() >= stored + 5);
    filler.stop();
    pgvault.wait("they are drained", LIMIT, || wal(&pgvault)["spool_segments"].as_u64().unwrap() < 5);
    let drained = peak_mib(&daemon);
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
    let pgvault = Pgvault::new(dir.path());
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
