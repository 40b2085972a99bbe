//! Does our reader find in real WAL exactly what PostgreSQL's own pg_waldump finds?

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use wal::{
    Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, TimelinePath, WalEvent, WalReader,
    XactIndex,
};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::{wal_truth, waldump};

/// What the WAL of a busy past must hold.
const EVERY_KIND: [&str; 9] = [
    "commit ",
    "commit prepared ",
    "abort ",
    "abort prepared ",
    "prepare ",
    "restore point ",
    "switch",
    "checkpoint ",
    "parameters ",
];

#[test]
fn agrees_with_pg_waldump_on_postgresql_14() {
    agrees_with_pg_waldump(14, 16);
}

#[test]
fn agrees_with_pg_waldump_on_postgresql_15() {
    agrees_with_pg_waldump(15, 16);
}

#[test]
fn agrees_with_pg_waldump_on_postgresql_16() {
    agrees_with_pg_waldump(16, 4);
}

#[test]
fn agrees_with_pg_waldump_on_postgresql_17() {
    agrees_with_pg_waldump(17, 1);
}

#[test]
fn agrees_with_pg_waldump_on_postgresql_18() {
    agrees_with_pg_waldump(18, 16);
}

fn agrees_with_pg_waldump(major: u32, segment_mb: u64) {
    let dir = test_dir();
    let node = node_with_busy_past(dir.path(), major, segment_mb);
    let size = SegmentSize::new(segment_mb << 20).unwrap();
    let (first, bytes) = wal_truth::all_wal(&node.data.join("pg_wal"), size);
    let start = first.number(size).unwrap().start(size);
    let truth = waldump::dump(major, &node.data.join("pg_wal"), first.timeline(), start);

    let ours = wal_truth::read(&bytes, size, start);

    assert_eq!(ours.major, Some(major));
    for (ours, truth) in ours.records.iter().zip(&truth.records) {
        let same = ours.lsn == truth.lsn
            && ours.previous == truth.previous
            && ours.xid == truth.xid
            && ours.length == truth.length;
        assert!(same, "ours {ours:?}, pg_waldump {truth:?}");
    }
    assert_eq!(ours.records.len(), truth.records.len());
    assert_eq!(ours.valid_end, truth.end, "where valid WAL ends");
    wal_truth::assert_same_events(&ours.events, &truth.records, &EVERY_KIND);
}

#[test]
fn a_record_lost_in_a_crash_is_read_as_given_up() {
    for major in [14, 18] {
        let dir = test_dir();
        let settings = [("wal_recycle", "off"), ("wal_keep_size", "1GB")];
        let mut node = PgNode::init(dir.path(), "node", major, &["--wal-segsize=1"], &settings);
        node.start();
        node.sql("CREATE TABLE t(i int); CHECKPOINT; INSERT INTO t VALUES (1)");
        let size = SegmentSize::new(1 << 20).unwrap();
        let before: Lsn = node.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        node.sql("SELECT length(pg_logical_emit_message(false, 'x', repeat('a', 5000000))::text), pg_switch_wal()");
        node.kill();
        let kept = SegmentNumber::containing(before, size).next();
        let pg_wal = node.data.join("pg_wal");
        for name in wal_truth::segment_names(&pg_wal) {
            if name.number(size).unwrap() > kept {
                fs::remove_file(pg_wal.join(name.to_string())).unwrap();
            }
        }
        node.start();
        node.sql("INSERT INTO t VALUES (2)");
        assert!(node.stop("fast", LIMIT));

        let (first, bytes) = wal_truth::all_wal(&pg_wal, size);
        let start = first.number(size).unwrap().start(size);
        let truth = waldump::dump(major, &pg_wal, first.timeline(), start);
        let ours = wal_truth::read(&bytes, size, start);
        assert_eq!(ours.valid_end, truth.end);
        wal_truth::assert_same_events(&ours.events, &truth.records, &["overwrite "]);
        let given_up = ours.events.iter().find_map(|event| match event {
            WalEvent::Overwrite { overwritten, .. } => Some(*overwritten),
            _ => None,
        });
        assert!(given_up.unwrap() >= before);
    }
}

#[test]
fn a_promotion_is_read_through_along_the_path_of_the_new_timeline() {
    let dir = test_dir();
    let major = 16;
    let settings = [("wal_keep_size", "1GB"), ("wal_recycle", "off")];
    let mut primary = PgNode::init(dir.path(), "primary", major, &["--wal-segsize=1"], &settings);
    primary.start();
    primary.sql("CREATE TABLE t(i int)");
    let mut standby = primary.make_standby(dir.path(), "standby");
    standby.start();
    primary.sql("INSERT INTO t SELECT generate_series(1, 50000)");
    let written: Lsn = primary.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let deadline = Instant::now() + LIMIT;
    while standby.sql("SELECT pg_last_wal_replay_lsn()").parse::<Lsn>().unwrap() < written {
        assert!(Instant::now() < deadline, "the standby does not follow:\n{}", standby.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(primary.stop("immediate", LIMIT));
    standby.promote();
    standby.sql("INSERT INTO t SELECT generate_series(1, 50000)");
    assert!(standby.stop("fast", LIMIT));

    let size = SegmentSize::new(1 << 20).unwrap();
    let pg_wal = standby.data.join("pg_wal");
    let second = TimelineId::new(2).unwrap();
    let history = TimelineHistory::parse(second, &fs::read(pg_wal.join("00000002.history")).unwrap()).unwrap();
    let path = TimelinePath::new(&history, size);
    let numbers: Vec<SegmentNumber> =
        wal_truth::segment_names(&pg_wal).iter().map(|name| name.number(size).unwrap()).collect();
    let (first, last) = (*numbers.iter().min().unwrap(), *numbers.iter().max().unwrap());
    let bytes: Vec<u8> = (first.get()..=last.get())
        .map(SegmentNumber::new)
        .map(|number| SegmentName::new(path.timeline_at(number.start(size)), number, size))
        .flat_map(|name| fs::read(pg_wal.join(name.to_string())).unwrap())
        .collect();
    let ours = wal_truth::read(&bytes, size, first.start(size));

    let of_switch = SegmentNumber::containing(history.entries()[0].switch_point, size);
    let truth = waldump::dump(major, &pg_wal, second, of_switch.start(size));
    let from = truth.records[0].lsn;
    let since: Vec<WalEvent> = ours.events.iter().filter(|event| event.lsn() >= from).cloned().collect();
    wal_truth::assert_same_events(&since, &truth.records, &["end of recovery 2 1"]);
    assert_eq!(ours.valid_end, truth.end);

    let of_new_timeline = fs::read(pg_wal.join(SegmentName::new(second, of_switch, size).to_string())).unwrap();
    let header = wal::read_segment_header(&of_new_timeline).unwrap();
    assert_eq!(header.timeline, TimelineId::FIRST, "the pages before the switch are copies of the parent's");
}

/// How fast a real server's WAL is read: `cargo test --release --test suite how_fast -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn how_fast_the_wal_of_a_busy_server_is_read() {
    let dir = test_dir();
    let node = node_with_busy_past(dir.path(), 17, 16);
    let (first, bytes) = wal_truth::all_wal(&node.data.join("pg_wal"), SegmentSize::DEFAULT);
    let start = first.number(SegmentSize::DEFAULT).unwrap().start(SegmentSize::DEFAULT);
    let began = Instant::now();
    let mut reader = WalReader::new(SegmentSize::DEFAULT, start);
    let mut index = XactIndex::start(None);
    for piece in bytes.chunks(128 << 10) {
        reader.push(piece, &mut |event| index.record(&event)).unwrap();
    }
    let valid = reader.valid_end().bytes_since(start) as f64;
    println!("{:.0} MB/s, {} transaction ends", valid / 1e6 / began.elapsed().as_secs_f64(), index.commits);
}

/// A server, stopped cleanly, in whose WAL there is everything that the reader tells of.
fn node_with_busy_past(base: &Path, major: u32, segment_mb: u64) -> PgNode {
    let settings = [
        ("max_prepared_transactions", "20"),
        ("max_locks_per_transaction", "512"),
        ("wal_keep_size", "2GB"),
        ("max_wal_size", "4GB"),
        ("wal_recycle", "off"),
        ("autovacuum_naptime", "1s"),
    ];
    let mut node = PgNode::init(base, "node", major, &[&format!("--wal-segsize={segment_mb}")], &settings);
    node.start();
    pgbench(&node, &["-i", "-q", "-s", "1"]);
    node.sql("CREATE TABLE work(id bigserial, t text); SELECT pg_create_restore_point('before the load')");

    let scripts: BTreeMap<&str, &str> = [
        ("plain.sql", "BEGIN; INSERT INTO work(t) VALUES ('x'); UPDATE pgbench_accounts SET abalance = 1 WHERE aid = :client_id * 1000 + 1; COMMIT;"),
        ("abort.sql", "BEGIN; INSERT INTO work(t) VALUES ('y'); SAVEPOINT a; INSERT INTO work(t) VALUES ('z'); ROLLBACK;"),
        ("savepoints.sql", "BEGIN; SAVEPOINT a; INSERT INTO work(t) VALUES ('1'); SAVEPOINT b; INSERT INTO work(t) VALUES ('2'); ROLLBACK TO b; SAVEPOINT c; INSERT INTO work(t) VALUES ('3'); COMMIT;"),
        ("prepared.sql", "BEGIN; SAVEPOINT a; INSERT INTO work(t) VALUES ('p'); CREATE TABLE t:client_id (i int); DROP TABLE t:client_id; PREPARE TRANSACTION 'p:client_id';\nCOMMIT PREPARED 'p:client_id';"),
        ("rolled_back.sql", "BEGIN; CREATE TABLE r:client_id (i int); INSERT INTO r:client_id VALUES (1); PREPARE TRANSACTION 'r:client_id';\nROLLBACK PREPARED 'r:client_id';"),
    ]
    .into();
    let mut arguments: Vec<String> = ["-n", "-c", "6", "-t", "25"].map(str::to_owned).into();
    for (name, script) in &scripts {
        fs::write(base.join(name), script).unwrap();
        arguments.push("-f".to_owned());
        arguments.push(base.join(name).to_str().unwrap().to_owned());
    }
    let mut load = node.tool("pgbench").args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for number in 0..4 {
        node.sql(&format!("SELECT pg_create_restore_point('during the load {number}'), pg_switch_wal()"));
        node.sql("CHECKPOINT");
    }
    assert!(load.wait().unwrap().success());

    node.sql(
        "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE many_%s (a int primary key, b text)', i); END LOOP; END $$",
    );
    // Records longer than a segment: a message, and the commit of a prepared transaction that drops many relations.
    node.sql("SELECT length(pg_logical_emit_message(true, 'x', repeat('a', 20000000))::text)");
    node.sql(
        "BEGIN; DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('DROP TABLE many_%s', i); END LOOP; END $$; PREPARE TRANSACTION 'many'",
    );
    node.sql("COMMIT PREPARED 'many'");
    node.sql("BEGIN; DO $$ BEGIN FOR i IN 1..100 LOOP EXECUTE format('CREATE TABLE few_%s (a int)', i); END LOOP; END $$; ROLLBACK");
    assert!(node.stop("fast", LIMIT));
    node.configure(&[("max_connections", "77"), ("max_prepared_transactions", "30")]);
    node.start();
    node.sql("INSERT INTO work(t) VALUES ('last')");
    assert!(node.stop("fast", LIMIT));
    node
}

fn pgbench(node: &PgNode, arguments: &[&str]) {
    let output = node.tool("pgbench").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
