use std::collections::BTreeMap;

use recovery::{BackupId, BackupKind, FileSource, LineageId};
use wal::{Coverage, PgTime, SegmentSize, SystemIdentifier, WalRange};

use super::*;

const STATE: ServerState = ServerState { major: 17, timeline: TimelineId::FIRST, flush_lsn: Lsn::new(0x900_0000) };

fn backup(start: u64) -> Backup {
    let at = PgTime::from_micros(i64::try_from(start).unwrap());
    Backup {
        id: BackupId::new(at, 7),
        status: BackupStatus::Ok,
        kind: BackupKind::Full,
        source: FileSource::Stream,
        system_identifier: SystemIdentifier::new(7),
        postgres_version: 170_011,
        timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(start),
        stop_lsn: Lsn::new(start + 0x100),
        started_at: at,
        stopped_at: at,
        size_bytes: 1,
        stored_bytes: 1,
        new_bytes: 1,
        files: 1,
        tablespaces: Vec::new(),
        keep: false,
        damaged: false,
        annotations: BTreeMap::new(),
        server_settings: BTreeMap::new(),
    }
}

fn catalog(backups: Vec<Backup>, ranges: &[(u64, u64)]) -> Catalog {
    let mut coverage = Coverage::new();
    for &(start, end) in ranges {
        coverage.insert(WalRange { timeline: TimelineId::FIRST, start: Lsn::new(start), end: Lsn::new(end) });
    }
    Catalog {
        cluster: "main".to_owned(),
        lineage: LineageId { system_identifier: SystemIdentifier::new(7), number: 1 },
        segment_size: SegmentSize::DEFAULT,
        backups,
        unreadable: Vec::new(),
        coverage,
        tails: Vec::new(),
        histories: BTreeMap::new(),
        lost: Vec::new(),
    }
}

#[test]
fn the_newest_backup_is_built_on_when_nothing_speaks_against_it() {
    let whole = [(0x100_0000, 0x800_0000)];
    let catalog = catalog(vec![backup(0x200_0000), backup(0x300_0000)], &whole);
    assert_eq!(rest_on(&catalog, STATE).unwrap().start_lsn, Lsn::new(0x300_0000));
}

#[test]
fn every_doubt_is_told() {
    let whole = [(0x100_0000, 0x800_0000)];
    let good = || backup(0x300_0000);
    let because = |backup: Backup, ranges: &[(u64, u64)], state: ServerState| {
        let backups = vec![self::backup(0x200_0000), backup];
        rest_on(&catalog(backups, ranges), state).unwrap_err()
    };
    let second = TimelineId::new(2).unwrap();
    let cases = [
        (because(good(), &whole, ServerState { timeline: second, ..STATE }), "the server is on"),
        (because(Backup { status: BackupStatus::WaitingForWal, ..good() }, &whole, STATE), "is not all stored"),
        (because(Backup { damaged: true, ..good() }, &whole, STATE), "is damaged"),
        (because(Backup { postgres_version: 160_001, ..good() }, &whole, STATE), "is of PostgreSQL 16"),
        (because(good(), &whole, ServerState { flush_lsn: Lsn::new(0x300_0001), ..STATE }), "the server is at"),
        (because(good(), &[(0x100_0000, 0x400_0000), (0x500_0000, 0x800_0000)], STATE), "has a gap"),
        (rest_on(&catalog(Vec::new(), &whole), STATE).unwrap_err(), "no backup yet"),
    ];
    for (reason, what) in cases {
        assert!(reason.contains(what), "{what}: {reason}");
    }
    // A gap before it does not matter.
    let catalog = catalog(vec![good()], &[(0x100_0000, 0x200_0000), (0x300_0000, 0x800_0000)]);
    assert!(rest_on(&catalog, STATE).is_ok());
}

#[test]
fn incremental_backups_in_a_row_are_counted_from_the_newest() {
    let incremental = |start| Backup { kind: BackupKind::Incremental, ..backup(start) };
    let count = |backups| in_a_row(&catalog(backups, &[]));
    assert_eq!(count(vec![]), 0);
    assert_eq!(count(vec![incremental(1), backup(2)]), 0);
    assert_eq!(count(vec![incremental(1), backup(2), incremental(3), incremental(4)]), 2);
}
