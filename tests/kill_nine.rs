//! Is anything lost or false after `kill -9`, at whatever moment, of whatever pgvault is doing?

#![allow(clippy::print_stdout, reason = "seeds and figures are shown with --nocapture and on failure")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pgvault::fault::{BACKUP_FAULT_POINTS, FAULT_POINTS};
use serde_json::Value;

use crate::support::attacked::{Attacked, Dice, LIMIT, size, spool, wait_shipped};
use crate::support::fake_s3::{Conditions, FakeS3Process, Wrong};
use crate::support::filler::Filler;
use crate::support::oracle::Oracle;
use crate::support::pg::{PgNode, major, test_dir};
use crate::support::pgvault::{Daemon, Pgvault};
use crate::support::plain_restore::wait_until_writable;
use crate::support::scene::store_at;
use crate::support::truth::Target;

/// Passed only at a timeline switch or when WAL is lost.
const NOT_HERE: [&str; 4] =
    ["receiver.history_kept", "receiver.timeline_left", "archiver.history_put", "ledger.gap_recorded"];

#[test]
fn twenty_kills_under_load_lose_nothing() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let context = format!("PGVAULT_TEST_SEED={}", dice.seed);
    let it = Attacked::new(&[], "");
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let load = it.load();
    dice.pause(50, 500);
    daemon.kill();
    let points: Vec<&str> = FAULT_POINTS.iter().copied().filter(|point| !NOT_HERE.contains(point)).collect();
    for round in 0..20 {
        // Every second one dies by itself at a point, if it gets there in time.
        let point = points[usize::try_from(dice.below(points.len() as u64)).unwrap()];
        let fault = format!("{point}:{}", 1 + dice.below(3));
        let variables: &[(&str, &str)] = if round % 2 == 0 { &[] } else { &[("PGVAULT_FAULT_POINT", &fault)] };
        let daemon = it.pgvault.spawn_serve(variables);
        dice.pause(20, 1500);
        daemon.kill();
    }
    load.stop();
    let daemon = it.pgvault.serve();
    it.node.sql("SELECT pg_switch_wal()");
    let end = it.end();
    it.wait_shipped(end);
    let truth = it.truth(reference, end);
    it.assert_stored_exactly(&context);
    daemon.stop();
    it.assert_latest_is_exact(truth, end);
}

/// The backups as `backup list` shows them.
fn backups(pgvault: &Pgvault) -> Vec<Value> {
    let (code, list) = pgvault.json(&["backup", "list"]);
    assert_eq!(code, 0, "{list}");
    list.as_array().unwrap().clone()
}

/// Enough that a backup takes a while, and that does not compress.
fn fill(node: &PgNode) {
    node.sql(
        "CREATE TABLE big AS SELECT n, string_agg(sha256((n * 100 + k)::text::bytea), '') AS pad
         FROM generate_series(1, 50000) n, generate_series(1, 60) k GROUP BY n",
    );
    node.sql("CHECKPOINT");
}

/// Bytes that the running backup has read.
fn done_bytes(pgvault: &Pgvault) -> Option<u64> {
    pgvault.json(&["status", "main"]).1["clusters"][0]["backups"]["running"]["done_bytes"].as_u64()
}

/// Whether a whole pack is stored.
fn has_pack(pgvault: &Pgvault) -> bool {
    let mut folders = vec![pgvault.repository.join("main/packs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.len() > 8_000_000 && !entry.file_name().to_string_lossy().starts_with('.') {
                return true;
            }
        }
    }
    false
}

#[test]
fn a_killed_backup_is_no_backup_and_the_next_one_uses_what_it_stored() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let it = Attacked::new(&[("max_wal_size", "1GB")], "");
    fill(&it.node);
    for _ in 0..2 {
        let daemon = it.pgvault.serve();
        it.pgvault.wait_streaming();
        // So slow that it is not over between two looks on a busy machine.
        it.pgvault.ok(["backup", "now", "main", "--fast-checkpoint", "--max-rate", "8MB/s"]);
        // Past the first packs of 8 MiB, and one is stored: under load they may be on their way for long.
        let goal = 40_000_000 + dice.below(20_000_000);
        let deadline = Instant::now() + LIMIT;
        while done_bytes(&it.pgvault).is_none_or(|done| done < goal) || !has_pack(&it.pgvault) {
            assert!(Instant::now() < deadline, "the backup does not get on");
        }
        daemon.kill();
        assert_eq!(backups(&it.pgvault), Vec::<Value>::new(), "seed {}", dice.seed);
        let target = it.path("nothing");
        let refused = it.pgvault.run(["recover", "main", "--latest", "--to", target.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(8), "{}", String::from_utf8_lossy(&refused.stderr));
        assert!(!target.exists(), "refused before anything is touched");
    }
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let backups = backups(&it.pgvault);
    assert_eq!(backups.len(), 1);
    assert_eq!(backups[0]["status"], "ok");
    let (new, stored) = (backups[0]["new_bytes"].as_u64().unwrap(), backups[0]["stored_bytes"].as_u64().unwrap());
    println!("the backup after two killed ones: {new} of {stored} bytes are new");
    assert!(new + 7_000_000 < stored, "{new} of {stored} bytes are new: what the killed ones stored is used");
    let load = it.load();
    let reference = it.reference();
    load.wait_for_more(50);
    load.stop();
    let end = it.end();
    it.wait_shipped(end);
    reference.stop();
    daemon.stop();
    let restored = it.recover_latest("restored");
    let sums = "SELECT (SELECT sum(hashtext(pad::text)) FROM big), (SELECT count(*) FROM ledger)";
    assert_eq!(restored.sql(sums), it.node.sql(sums));
}

#[test]
fn a_backup_that_is_killed_at_any_point_is_listed_only_when_it_is_whole() {
    let it = Attacked::new(&[], "");
    // What does not compress, so that what is stored twice would show.
    it.node.sql("CREATE TABLE pads AS SELECT n, sha256(n::text::bytea) AS pad FROM generate_series(1, 100000) n");
    for point in BACKUP_FAULT_POINTS {
        let mut command = it.pgvault.command(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        let output = command.env("PGVAULT_FAULT_POINT", point).output().unwrap();
        assert!(output.status.code().is_none(), "{point} was not passed: {output:?}");
        let listed = backups(&it.pgvault);
        assert_eq!(listed.len(), usize::from(*point == "backup.committed"), "{point}: {listed:?}");
        let (code, report) = it.pgvault.json(&["repo", "check"]);
        // A backup whose last WAL has not come yet is none that can be proven.
        assert!(code == 0 || *point == "backup.committed", "{point}: {report}");
    }
    // It waits for its WAL, if anything, which the next one brings.
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let listed = backups(&it.pgvault);
    assert_eq!(listed.iter().map(|backup| &backup["status"]).collect::<Vec<_>>(), ["ok", "ok"], "{listed:?}");
    let stored = listed[0]["stored_bytes"].as_u64().unwrap();
    for backup in &listed {
        let new = backup["new_bytes"].as_u64().unwrap();
        assert!(new * 2 < stored, "{new} of {stored} bytes are new: what the killed ones stored is used");
    }
    let sum = "SELECT sum(hashtext(pad::text)) FROM pads";
    for backup in &listed {
        let (code, report) = it.pgvault.json(&["backup", "verify", backup["id"].as_str().unwrap()]);
        assert_eq!(code, 0, "{report}");
    }
    assert_eq!(it.recover_latest("restored").sql(sum), it.node.sql(sum));
}

#[test]
fn a_delta_over_a_server_that_went_on_is_exact_at_its_target() {
    let it = Attacked::new(&[("autovacuum", "off")], "");
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    let load = it.load();
    load.wait_for_more(40);
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    load.wait_for_more(60);
    let target = it.end();
    load.wait_for_more(60);
    load.stop();
    it.node.sql("CHECKPOINT");
    let end = it.end();
    it.wait_shipped(end);
    let truth = it.truth(reference, end);
    daemon.stop();
    // Everything in it went on behind the target, its WAL too.
    let old = it.path("old");
    let mut it = it;
    assert!(it.node.stop("fast", LIMIT));
    assert!(Command::new("cp").arg("-a").arg(&it.node.data).arg(&old).status().unwrap().success());
    let mut node = PgNode::at(it.dir.path(), "old", it.node.major);
    let (to, lsn) = (old.to_str().unwrap(), target.to_string());
    it.pgvault.ok(["recover", "main", "--target-lsn", &lsn, "--action", "promote", "--delta", "--to", to]);
    node.configure(&[]);
    node.start();
    wait_until_writable(&node);
    let oracle = Oracle::new(&it.ledger, truth, Vec::new());
    let verdict = oracle.check(&node, &Target::Lsn { lsn: target, inclusive: true });
    assert!(verdict.expected > 60, "{verdict}");
    verdict.assert_exact();
}

/// Whether an unfinished restore lies in a directory: pgvault's mark is there, and PostgreSQL refuses it.
fn assert_cannot_be_started(node: &mut PgNode) {
    assert!(!node.data.join("global/pg_control").exists());
    assert!(!node.try_start(), "an unfinished restore was started");
}

#[test]
fn a_killed_restore_cannot_be_started_and_the_same_command_finishes_it() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let it = Attacked::new(&[("max_wal_size", "1GB")], "");
    fill(&it.node);
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let end = it.end();
    it.wait_shipped(end);
    daemon.stop();
    let mut node = PgNode::at(it.dir.path(), "restored", it.node.major);
    let directory = node.data.to_str().unwrap().to_owned();
    let command = ["recover", "main", "--latest", "--action", "promote", "--to", &directory];
    let mut killed = 0;
    for _ in 0..4 {
        let mut child = it.pgvault.command(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + LIMIT;
        while !Path::new(&directory).join(".pgvault-restore").exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline);
        }
        dice.pause(1, 150);
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            // It was faster: begin anew.
            fs::remove_dir_all(&node.data).unwrap();
            continue;
        }
        killed += 1;
        if node.data.join("base").exists() {
            assert_cannot_be_started(&mut node);
        }
    }
    assert!(killed > 0, "the restore was always faster");
    it.pgvault.ok(command);
    node.configure(&[]);
    node.start();
    wait_until_writable(&node);
    let sums = "SELECT sum(hashtext(pad::text)) FROM big";
    assert_eq!(node.sql(sums), it.node.sql(sums));
}

/// The only segment that is not complete, in the spool of a daemon that does not run: its path and where its WAL ends. There
/// is none in the moment between two segments.
fn open_segment(pgvault: &Pgvault) -> Option<(std::path::PathBuf, usize)> {
    let found: Vec<_> = fs::read_dir(spool(pgvault))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "partial"))
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            (path, used)
        })
        .filter(|(_, used)| *used > 0)
        .collect();
    assert!(found.len() < 2, "{found:?}");
    found.into_iter().next()
}

/// Kills the daemon in the middle of a segment, damages the open segment, and starts it again under load.
fn damage_the_open_segment(damage: impl Fn(&mut Dice, &mut Vec<u8>, usize)) {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let context = format!("PGVAULT_TEST_SEED={}", dice.seed);
    let it = Attacked::new(&[], "");
    let mut daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let load = it.load();
    for _ in 0..3 {
        let (path, used) = loop {
            load.wait_for_more(60);
            daemon.kill();
            if let Some(found) = open_segment(&it.pgvault) {
                break found;
            }
            daemon = it.pgvault.serve();
            it.pgvault.wait_streaming();
        };
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, size().bytes());
        damage(&mut dice, &mut bytes, used);
        fs::write(&path, &bytes).unwrap();
        daemon = it.pgvault.serve();
        it.pgvault.wait_streaming();
    }
    load.stop();
    it.node.sql("SELECT pg_switch_wal()");
    let end = it.end();
    it.wait_shipped(end);
    let truth = it.truth(reference, end);
    it.assert_stored_exactly(&context);
    daemon.stop();
    it.assert_latest_is_exact(truth, end);
}

#[test]
fn a_torn_end_of_the_spool_is_received_again() {
    damage_the_open_segment(|dice, bytes, used| {
        let torn = 1 + usize::try_from(dice.below(used.min(20_000) as u64)).unwrap();
        for byte in &mut bytes[used - torn..used] {
            *byte = u8::try_from(dice.below(256)).unwrap();
        }
    });
}

#[test]
fn garbage_behind_the_end_of_the_spool_is_no_wal() {
    damage_the_open_segment(|dice, bytes, used| {
        for byte in &mut bytes[used..] {
            *byte = u8::try_from(dice.below(256)).unwrap();
        }
    });
}

#[test]
fn a_spool_file_that_was_cut_short_is_received_again() {
    damage_the_open_segment(|dice, bytes, used| {
        bytes.truncate(usize::try_from(dice.below(used as u64)).unwrap());
    });
}

fn kill_and_start(it: &Attacked, daemon: Daemon, change: impl FnOnce()) -> Daemon {
    daemon.kill();
    change();
    it.pgvault.serve()
}

#[test]
fn a_bit_that_flipped_in_the_spool_is_never_shipped() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let context = format!("PGVAULT_TEST_SEED={}", dice.seed);
    // Nothing of the open segment is stored before the damage.
    let it = Attacked::new(&[], "");
    let mut daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    for round in 0..4 {
        let load = it.load();
        load.wait_for_more(60);
        load.stop();
        let end = it.end();
        it.wait_shipped(end);
        let bit = dice.below(8);
        let share = dice.below(1000);
        daemon = kill_and_start(&it, daemon, || {
            let (path, used) = open_segment(&it.pgvault).expect("the daemon was idle in mid-segment");
            let mut bytes = fs::read(&path).unwrap();
            let at = usize::try_from(used as u64 * share / 1000).unwrap();
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
        });
        // Either the checksum tells, and the segment is received again; or the server's bytes tell, and a person decides.
        let deadline = Instant::now() + LIMIT;
        let state = loop {
            let (_, status) = it.pgvault.json(&["status", "main"]);
            let state = status["clusters"][0]["wal"]["state"].as_str().unwrap_or_default().to_owned();
            if state == "streaming" || state == "diverged" {
                break state;
            }
            assert!(Instant::now() < deadline, "{context}: {status:#}");
        };
        println!("round {round}: {state}");
        if state == "diverged" {
            let (_, status) = it.pgvault.json(&["status", "main"]);
            assert_eq!(status["clusters"][0]["state"], "critical", "{status:#}");
            // What a person does who has compared: takes the damaged file away.
            daemon = kill_and_start(&it, daemon, || {
                fs::remove_file(open_segment(&it.pgvault).expect("it was damaged").0).unwrap();
            });
            it.pgvault.wait_streaming();
        }
    }
    it.node.sql("SELECT pg_switch_wal()");
    let end = it.end();
    it.wait_shipped(end);
    let truth = it.truth(reference, end);
    it.assert_stored_exactly(&context);
    daemon.stop();
    it.assert_latest_is_exact(truth, end);
}

#[test]
#[ignore = "a gigabyte of WAL: make chaos"]
fn a_restart_with_a_gigabyte_in_the_spool_streams_again_within_seconds() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", major(17), &[], &[("max_wal_size", "4GB")]);
    node.start();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config_for(&node, "");
    let store = FakeS3Process::start(Conditions::Atomic);
    store_at(&pgvault, &store.fake.options());
    let mut daemon = pgvault.serve();
    pgvault.wait_streaming();
    store.fake.sometimes("", 100, Wrong::Status(503, "SlowDown"));
    let filler = Filler::start(&node, 60 << 20);
    let waits = || pgvault.json(&["status", "main"]).1["clusters"][0]["wal"]["spool_bytes"].as_u64().unwrap();
    pgvault.wait("a gigabyte waits", LIMIT * 3, || waits() > 1 << 30);
    filler.stop();
    let mut times = Vec::new();
    for away in [true, true, true, false] {
        if !away {
            store.fake.heal();
        }
        let begun = Instant::now();
        daemon.kill();
        daemon = pgvault.spawn_serve(&[]);
        let address = format!("127.0.0.1:{}", pgvault.http_port);
        while !std::net::TcpStream::connect(&address).is_ok_and(|_| {
            pgvault
                .http("/metrics")
                .1
                .lines()
                .any(|line| line.starts_with("pgvault_wal_streaming") && line.ends_with(" 1"))
        }) {
            assert!(begun.elapsed() < LIMIT, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        times.push((away, begun.elapsed()));
    }
    println!("from kill -9 to streaming with {} MiB in the spool (store away or not): {times:?}", waits() >> 20);
    wait_shipped(&pgvault, node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap());
    daemon.stop();
}
