//! Does our reader find in real WAL exactly what PostgreSQL's own pg_waldump finds?

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use wal::{Lsn, PgMajor, PgTime, RecordInfo, SegmentName, SegmentSize, WalEnd, WalEvent, WalReader};

use crate::support::pg::{PgNode, test_dir};
use crate::support::waldump::{self, Dumped};

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
    let (first, bytes) = all_wal(&node.data.join("pg_wal"), size);
    let start = first.number(size).unwrap().start(size);
    let truth = waldump::dump(major, &node.data.join("pg_wal"), first.timeline(), start);

    let ours = read(&bytes, size, start);

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
    assert_same_events(&ours.events, &truth.records);
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
    let mut arguments: Vec<String> = ["-n", "-c", "6", "-t", "60"].map(str::to_owned).into();
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
        "DO $$ BEGIN FOR i IN 1..1500 LOOP EXECUTE format('CREATE TABLE many_%s (a int primary key, b text)', i); END LOOP; END $$",
    );
    // Records longer than a segment: a message, and the commit of a prepared transaction that drops many relations.
    node.sql("SELECT length(pg_logical_emit_message(true, 'x', repeat('a', 20000000))::text)");
    node.sql(
        "BEGIN; DO $$ BEGIN FOR i IN 1..1500 LOOP EXECUTE format('DROP TABLE many_%s', i); END LOOP; END $$; PREPARE TRANSACTION 'many'",
    );
    node.sql("COMMIT PREPARED 'many'");
    node.sql("BEGIN; DO $$ BEGIN FOR i IN 1..500 LOOP EXECUTE format('CREATE TABLE few_%s (a int)', i); END LOOP; END $$; ROLLBACK");
    assert!(node.stop("fast", std::time::Duration::from_secs(60)));
    node.configure(&[("max_connections", "77"), ("max_prepared_transactions", "30")]);
    node.start();
    node.sql("INSERT INTO work(t) VALUES ('last')");
    assert!(node.stop("fast", std::time::Duration::from_secs(60)));
    node
}

fn pgbench(node: &PgNode, arguments: &[&str]) {
    let output = node.tool("pgbench").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The name of the first segment in the directory, and the bytes of all of them.
fn all_wal(dir: &Path, size: SegmentSize) -> (SegmentName, Vec<u8>) {
    let mut names: Vec<SegmentName> = fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    names.sort_unstable();
    let numbers: Vec<u64> = names.iter().map(|name| name.number(size).unwrap().get()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{names:?}");
    (names[0], names.iter().flat_map(|name| fs::read(dir.join(name.to_string())).unwrap()).collect())
}

struct Read {
    records: Vec<RecordInfo>,
    events: Vec<WalEvent>,
    valid_end: Lsn,
    major: Option<u32>,
}

/// Reads in pieces of many sizes; every byte after the valid end must be zero.
fn read(bytes: &[u8], size: SegmentSize, start: Lsn) -> Read {
    let mut reader = WalReader::new(size, start).with_all_records();
    let (mut records, mut events) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    for piece in [1, 7, 100, 8192, 65536, 3, 131_072, 24].into_iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(piece));
        rest = later;
        reader
            .push(now, &mut |event| match event {
                WalEvent::Record(record) => records.push(record),
                event => events.push(event),
            })
            .unwrap();
        if rest.is_empty() {
            break;
        }
    }
    assert!(matches!(reader.end(), WalEnd::Zeros(_)), "{:?}", reader.end());
    let major = reader.page_info().map(|header| PgMajor::number(header.major));
    Read { records, events, valid_end: reader.valid_end(), major }
}

/// Every event of ours is one of pg_waldump's records of that kind with the same content, and the other way round.
fn assert_same_events(ours: &[WalEvent], truth: &[Dumped]) {
    let truth: Vec<(Lsn, String)> = truth.iter().filter_map(|record| Some((record.lsn, truth_of(record)?))).collect();
    let ours: Vec<(Lsn, String)> = ours.iter().map(|event| (event.lsn(), ours_as_text(event))).collect();
    for (ours, truth) in ours.iter().zip(&truth) {
        assert_eq!(ours, truth);
    }
    assert_eq!(ours.len(), truth.len());
    for kind in [
        "commit ",
        "commit prepared ",
        "abort ",
        "abort prepared ",
        "prepare ",
        "restore point ",
        "switch",
        "checkpoint ",
        "parameters ",
    ] {
        let found = truth.iter().filter(|(_, text)| text.starts_with(kind)).count();
        assert!(found > 0, "the load made no {kind}");
    }
}

fn ours_as_text(event: &WalEvent) -> String {
    let end = |kind: &str, xact: &wal::XactEnd| {
        format!("{kind} {}{} {}", if xact.prepared { "prepared " } else { "" }, xact.xid, xact.time)
    };
    match event {
        WalEvent::Commit(xact) => end("commit", xact),
        WalEvent::Abort(xact) => end("abort", xact),
        WalEvent::Prepare(prepared) => format!("prepare {} {}", prepared.xid, prepared.time),
        WalEvent::RestorePoint(point) => format!("restore point {}", point.name),
        WalEvent::Switch { .. } => "switch".to_owned(),
        WalEvent::Checkpoint(c) => format!("checkpoint {} {} {}", c.redo, c.timeline, c.shutdown),
        WalEvent::Parameters(p) => format!(
            "parameters {} {} {} {} {}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction
        ),
        WalEvent::EndOfRecovery(e) => format!("end of recovery {} {}", e.timeline, e.previous_timeline),
        WalEvent::Overwrite { overwritten, .. } => format!("overwrite {overwritten}"),
        WalEvent::Record(_) => unreachable!(),
    }
}

/// What pg_waldump says of a record, in the words of `ours_as_text`; none for records that we do not tell of.
fn truth_of(record: &Dumped) -> Option<String> {
    let desc = record.description.as_str();
    let after = |prefix: &str| desc.strip_prefix(prefix).map(str::to_owned);
    let time = |text: &str| -> PgTime {
        let text = text.split(" UTC").next().unwrap().replacen(' ', "T", 1);
        format!("{text}Z").parse().unwrap_or_else(|error| panic!("{desc}: {error}"))
    };
    let of_prepared = |kind: &str, text: String| {
        let (xid, rest) = text.split_once(": ").unwrap();
        format!("{kind} prepared {xid} {}", time(rest))
    };
    let field = |name: &str| {
        let rest = &desc[desc.find(name).unwrap_or_else(|| panic!("no {name} in {desc}")) + name.len()..];
        rest.trim_start_matches([' ', '=']).split([' ', ';']).next().unwrap().to_owned()
    };
    match record.resource_manager.as_str() {
        "Transaction" => {
            if let Some(rest) = after("COMMIT_PREPARED ") {
                Some(of_prepared("commit", rest))
            } else if let Some(rest) = after("ABORT_PREPARED ") {
                Some(of_prepared("abort", rest))
            } else if let Some(rest) = after("COMMIT ") {
                Some(format!("commit {} {}", record.xid, time(&rest)))
            } else if let Some(rest) = after("ABORT ") {
                Some(format!("abort {} {}", record.xid, time(&rest)))
            } else if after("PREPARE ").is_some() {
                let prepared_at = waldump::prepared_at(desc);
                Some(format!("prepare {} {}", record.xid, time(&prepared_at)))
            } else {
                None
            }
        }
        "XLOG" => {
            if let Some(name) = after("RESTORE_POINT ") {
                Some(format!("restore point {name}"))
            } else if desc.starts_with("SWITCH") {
                Some("switch".to_owned())
            } else if desc.starts_with("CHECKPOINT_SHUTDOWN") || desc.starts_with("CHECKPOINT_ONLINE") {
                let redo: Lsn = field("redo").parse().unwrap();
                Some(format!("checkpoint {redo} {} {}", field("tli"), desc.contains("SHUTDOWN")))
            } else if desc.starts_with("PARAMETER_CHANGE") {
                let names = [
                    "max_connections",
                    "max_worker_processes",
                    "max_wal_senders",
                    "max_prepared_xacts",
                    "max_locks_per_xact",
                ];
                Some(format!("parameters {}", names.map(field).join(" ")))
            } else {
                None
            }
        }
        _ => None,
    }
}
