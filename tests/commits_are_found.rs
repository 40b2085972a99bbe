//! Does a search of stored WAL find exactly what reading all of it finds?
//!
//! The WAL is a real server's, with the times of its commits moved about as by a clock that is set again and again.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use pgvault::repository::xact_search::WalSearch;
use wal::{Lsn, PgTime, RestorePoint, SegmentSize, TimelineId, WalEvent, XactEnd, XactMark};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::{stored_wal, wal_truth};

const SCRIPTS: [(&str, &str); 3] = [
    ("commit.sql", "INSERT INTO work(t) VALUES (repeat('x', 300));"),
    ("abort.sql", "BEGIN; INSERT INTO work(t) VALUES ('y'); ROLLBACK;"),
    (
        "prepared.sql",
        "BEGIN; INSERT INTO work(t) VALUES ('p'); PREPARE TRANSACTION 'p:client_id';\nCOMMIT PREPARED 'p:client_id';",
    ),
];

fn busy_node(base: &Path) -> PgNode {
    let settings = [("max_prepared_transactions", "20"), ("wal_keep_size", "1GB"), ("wal_recycle", "off")];
    let mut node = PgNode::init(base, "node", 17, &["--wal-segsize=1"], &settings);
    node.start();
    node.sql("CREATE TABLE work(id bigserial, t text)");
    let mut arguments: Vec<String> = ["-n", "-c", "8", "-t", "150"].map(str::to_owned).into();
    for (name, script) in SCRIPTS {
        fs::write(base.join(name), script).unwrap();
        arguments.push("-f".to_owned());
        arguments.push(base.join(name).to_str().unwrap().to_owned());
    }
    let mut load = node.tool("pgbench").args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for number in 0..4 {
        node.sql(&format!("SELECT pg_create_restore_point('during the load {}')", number % 3));
        node.sql("SELECT length(pg_logical_emit_message(true, 'x', repeat('a', 400000))::text)");
    }
    assert!(load.wait().unwrap().success());
    // A record longer than a segment, and WAL without any commit.
    node.sql("SELECT length(pg_logical_emit_message(true, 'x', repeat('a', 2500000))::text)");
    node.sql("SELECT length(pg_logical_emit_message(false, 'x', repeat('b', 1500000))::text)");
    node.sql("INSERT INTO work(t) VALUES ('last')");
    assert!(node.stop("fast", LIMIT));
    node
}

#[tokio::test]
async fn every_commit_of_a_busy_server_is_found_where_it_is() {
    let dir = test_dir();
    let node = busy_node(dir.path());
    let size = SegmentSize::new(1 << 20).unwrap();
    let (first, mut bytes) = wal_truth::all_wal(&node.data.join("pg_wal"), size);
    let start = first.number(size).unwrap().start(size);
    let written = stored_wal::read(&bytes, size, start);
    let moved = stored_wal::disturb_clock(&mut bytes, start, &written);
    let truth = stored_wal::read(&bytes, size, start);
    let xacts: Vec<(XactEnd, bool)> = truth
        .events
        .iter()
        .filter_map(|event| match event {
            WalEvent::Commit(xact) => Some((*xact, true)),
            WalEvent::Abort(xact) => Some((*xact, false)),
            _ => None,
        })
        .collect();
    let goes_back = xacts.windows(2).filter(|pair| pair[1].0.time < pair[0].0.time).count();
    assert!(
        xacts.len() > 1000 && goes_back > 300,
        "{} transaction ends, {moved} moved, {goes_back} go back",
        xacts.len()
    );

    let storage = stored_wal::local(&dir.path().join("repository")).await;
    let lineage = stored_wal::lineage(storage, &bytes, 17).await;
    stored_wal::store(&lineage, TimelineId::FIRST, start, &bytes, truth.end, 20_000).await;
    let catalog = lineage.catalog().await.unwrap();
    let search = WalSearch::new(&lineage, &catalog, TimelineId::FIRST);

    // From the beginning, and from somewhere in the middle, as after a base backup.
    for from in [start, xacts[xacts.len() / 3].0.end] {
        let to = truth.end;
        let within = || xacts.iter().filter(move |(xact, _)| xact.lsn >= from);
        let end = search.end(from, to).await.unwrap();
        assert_eq!((end.end, end.last_record), (to, truth.records.last().map(|record| record.lsn)));
        let last = within().next_back().map(|(xact, _)| XactMark::from(xact));
        assert_eq!(search.last_xact(from, to).await.unwrap(), last);
        for (around, _) in within().step_by(199).chain(within().next_back()) {
            let before_it = xacts.iter().filter(|(xact, _)| xact.end <= around.lsn).map(|(xact, _)| xact.time).max();
            assert_eq!(search.max_time(around.lsn).await.unwrap(), before_it);
            for than in [around.time, PgTime::from_micros(around.time.as_micros() - 1)] {
                let stop = within().map(|(xact, _)| *xact).find(|xact| xact.time > than);
                assert_eq!(search.first_later(from, to, Some(than), false).await.unwrap(), stop, "later than {than}");
            }
            let xid: Vec<XactEnd> = within().map(|(xact, _)| *xact).filter(|xact| xact.xid == around.xid).collect();
            assert_eq!(search.xid(from, to, around.xid).await.unwrap(), xid);
            let commits: Vec<XactMark> = within().filter(|(_, commit)| *commit).map(|(xact, _)| xact.into()).collect();
            let found = search.commits_around(from, to, around.lsn).await.unwrap();
            assert_eq!(found.before, commits.iter().rev().find(|mark| mark.lsn < around.lsn).copied());
            assert_eq!(found.after, commits.iter().find(|mark| mark.lsn >= around.lsn).copied());
        }
        let points: Vec<&RestorePoint> = truth
            .events
            .iter()
            .filter_map(|event| match event {
                WalEvent::RestorePoint(point) if point.lsn >= from && point.name == "during the load 0" => Some(point),
                _ => None,
            })
            .collect();
        let found = search.restore_points(from, to, "during the load 0").await.unwrap();
        assert_eq!(found.iter().collect::<Vec<_>>(), points);
        let next = truth.records.iter().find(|record| record.lsn > from).unwrap();
        let found = search.first_record(Lsn::new(from.as_u64() + 1), to).await.unwrap().unwrap();
        assert_eq!((found.lsn, found.end), (next.lsn, next.end));
    }
}
