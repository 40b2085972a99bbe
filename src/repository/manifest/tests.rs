use wal::WalRange;

use super::*;

pub(crate) fn manifest() -> Manifest {
    let system_identifier = SystemIdentifier::new(u64::MAX - 1);
    Manifest {
        id: "20261119T020512-3f2a".parse().unwrap(),
        cluster: "main".to_owned(),
        lineage: LineageId { system_identifier, number: 1 },
        system_identifier,
        postgres_version: 150_018,
        segment_size: SegmentSize::DEFAULT,
        timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(0x200_0028),
        stop_lsn: Lsn::new(0x200_0100),
        started_at: PgTime::from_unix_micros(1_763_600_000_000_000),
        stopped_at: PgTime::from_unix_micros(1_763_600_001_000_000),
        backup_kind: BackupKind::Full,
        source: FileSource::Stream,
        from_standby: false,
        label: "pgvault 20261119T020512-3f2a".to_owned(),
        annotations: BTreeMap::from([("why".to_owned(), "before the upgrade".to_owned())]),
        tablespaces: vec![
            TablespacePath { oid: 16384, path: b"/srv/fast".to_vec() },
            TablespacePath { oid: 16385, path: b"/srv/\xff".to_vec() },
        ],
        chunk_size: 1 << 20,
        data_checksums: Some(true),
        damaged_files: vec![],
        server_settings: BTreeMap::from([("max_connections".to_owned(), 100)]),
        files: 1,
        directories: 2,
        size_bytes: 3,
        new_bytes: 4,
        stored_bytes: 5,
        patched_chunks: 0,
        parts: vec![PartRef {
            name: "files/00000-0102030405060708.zst".to_owned(),
            sha256: [1; 32],
            size: 9,
            entries: 3,
        }],
        postgres_manifest: Some(StoredObject { name: "backup_manifest-x.zst".to_owned(), sha256: [2; 32], size: 7 }),
        packs: vec![PackRef { sha256: [3; 32], size: 1000 }],
    }
}

#[test]
fn what_was_sealed_is_read_again() {
    let manifest = manifest();
    let sealed = manifest.seal().unwrap();
    assert_eq!(Manifest::unseal(&sealed).unwrap(), manifest);
    let text = String::from_utf8(sealed).unwrap();
    assert!(
        text.starts_with(r#"{"kind":"backup","format":1,"features":[],"id":"20261119T020512-3f2a","cluster":"main""#)
    );
    assert!(
        text.contains(r#""tablespaces":[{"oid":16384,"path":"/srv/fast"},{"oid":16385,"path_hex":"2f7372762fff"}]"#)
    );
    assert!(text.contains(r#""system_identifier":"18446744073709551614""#));
}

#[test]
fn patches_are_a_feature_that_a_reader_must_know() {
    let patched = Manifest { patched_chunks: 1, ..manifest() };
    let sealed = patched.seal().unwrap();
    let text = String::from_utf8(sealed.clone()).unwrap();
    assert!(text.starts_with(r#"{"kind":"backup","format":1,"features":["page-patch"],"#), "{text}");
    assert_eq!(Manifest::unseal(&sealed).unwrap(), patched);
}

#[test]
fn what_cannot_be_is_refused() {
    let good = manifest();
    let bad = [
        Manifest { chunk_size: 0, ..good.clone() },
        Manifest { chunk_size: u32::MAX, ..good.clone() },
        Manifest { stop_lsn: good.start_lsn, ..good.clone() },
        Manifest { system_identifier: SystemIdentifier::new(7), ..good.clone() },
    ];
    for manifest in bad {
        assert!(matches!(Manifest::unseal(&manifest.seal().unwrap()), Err(SealedError::Content { .. })));
    }
}

#[test]
fn a_backup_waits_until_its_wal_is_there() {
    let manifest = manifest();
    let mut coverage = Coverage::new();
    assert_eq!(manifest.to_backup(&coverage).status, BackupStatus::WaitingForWal);
    coverage.insert(WalRange { timeline: TimelineId::FIRST, start: Lsn::new(0x200_0000), end: Lsn::new(0x200_00ff) });
    assert_eq!(manifest.to_backup(&coverage).status, BackupStatus::WaitingForWal);
    coverage.insert(WalRange { timeline: TimelineId::FIRST, start: Lsn::new(0x200_00ff), end: Lsn::new(0x200_0100) });
    assert_eq!(manifest.to_backup(&coverage).status, BackupStatus::Ok);
}

#[test]
fn hostile_bytes_do_not_panic() {
    fuzz_manifest(b"");
    fuzz_manifest(b"{}");
    fuzz_manifest(&manifest().seal().unwrap());
}
