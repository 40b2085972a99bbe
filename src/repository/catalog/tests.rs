use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use recovery::{BackupId, BackupKind, BackupStatus, TailEnd};
use wal::{Lsn, PgTime, WalRange, XactIndex};

use crate::codec::digest::sha256;
use crate::repository::layout::{LineageObject, MarkKind, TailName};
use crate::repository::manifest::{FileSource, Manifest};
use crate::repository::test_wal::{
    SIZE, SYSTEM, VERSION, WalWriter, lineage, meta, name, replace, segment, segment_size, timeline,
};
use crate::repository::{LineageRepository, MarkDocument, PlainSource, RepositoryError};
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Body, ObjectKey, Storage, StorageErrorKind};

fn id(day: u32) -> BackupId {
    format!("202611{day:02}T020512-3f2a").parse().unwrap()
}

fn manifest(lineage: &LineageRepository, day: u32, start: u64, stop: u64) -> Manifest {
    Manifest {
        id: id(day),
        cluster: lineage.cluster().to_string(),
        lineage: lineage.id(),
        system_identifier: SYSTEM,
        postgres_version: VERSION,
        segment_size: segment_size(),
        timeline: timeline(1),
        start_lsn: Lsn::new(start),
        stop_lsn: Lsn::new(stop),
        started_at: PgTime::from_micros(i64::from(day)),
        stopped_at: PgTime::from_micros(i64::from(day) + 1),
        backup_kind: BackupKind::Full,
        source: FileSource::Stream,
        from_standby: false,
        label: "pgvault".to_owned(),
        annotations: BTreeMap::new(),
        tablespaces: vec![],
        chunk_size: 1 << 20,
        data_checksums: Some(true),
        damaged_files: vec![],
        server_settings: BTreeMap::new(),
        files: 0,
        directories: 0,
        size_bytes: 0,
        new_bytes: 0,
        patched_chunks: 0,
        stored_bytes: 0,
        parts: vec![],
        postgres_manifest: None,
        packs: vec![],
    }
}

async fn commit(lineage: &LineageRepository, manifest: &Manifest) -> ObjectKey {
    let key = lineage.keys().key(&LineageObject::Manifest(manifest.id.clone()));
    let bytes = Bytes::from(manifest.seal().unwrap());
    let digest = sha256(&bytes);
    lineage.objects().storage().put_new(&key, Body::Bytes(bytes), digest).await.unwrap();
    key
}

async fn put_segment(lineage: &LineageRepository, number: u64) {
    let plain = PlainSource::Bytes(segment(1, number, 10, 100));
    lineage.put_segment(&meta(1, number), &XactIndex::start(None), plain).await.unwrap();
}

fn mark(what: MarkKind) -> MarkDocument {
    MarkDocument { what, at: PgTime::from_micros(5), by: "test".to_owned(), note: String::new() }
}

#[tokio::test]
async fn the_catalog_tells_coverage_tails_histories_and_backups() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    for number in [5, 6, 8] {
        put_segment(&lineage, number).await;
    }
    let mut tail = WalWriter::new(1, 9);
    tail.noop(20_000);
    tail.store(&lineage, 7_000).await;
    lineage.put_history(timeline(2), format!("1\t{}\tx\n", Lsn::new(8 * SIZE)).as_bytes()).await.unwrap();
    commit(&lineage, &manifest(&lineage, 2, 6 * SIZE + 40, 8 * SIZE + 500)).await;
    commit(&lineage, &manifest(&lineage, 1, 5 * SIZE + 40, 7 * SIZE)).await;
    lineage.put_mark(&id(1), &mark(MarkKind::Keep)).await.unwrap();
    // Begun and never committed, and things that are nobody's.
    for odd in ["backups/20261105T020512-0000/files/00000-0000000000000000.zst", "wal/README", "notes.txt"] {
        let key = ObjectKey::new(format!("{}{odd}", lineage.keys().prefix())).unwrap();
        storage.put_new(&key, Body::Bytes(Bytes::from_static(b"x")), sha256(b"x")).await.unwrap();
    }

    let catalog = lineage.catalog().await.unwrap();
    let ranges: Vec<WalRange> = catalog.coverage.ranges(timeline(1)).collect();
    let range = |start: u64, end: u64| WalRange { timeline: timeline(1), start: Lsn::new(start), end: Lsn::new(end) };
    assert_eq!(ranges, [range(5 * SIZE, 7 * SIZE), range(8 * SIZE, tail.end().as_u64())]);
    assert_eq!(catalog.tails, [TailEnd { timeline: timeline(1), start: Lsn::new(9 * SIZE), end: tail.end() }]);
    assert_eq!(catalog.histories.keys().copied().collect::<Vec<_>>(), [timeline(2)]);
    let backups: Vec<_> = catalog.backups.iter().map(|b| (b.id.clone(), b.status, b.keep, b.damaged)).collect();
    let expected = [(id(1), BackupStatus::Ok, true, false), (id(2), BackupStatus::WaitingForWal, false, false)];
    assert_eq!(backups, expected);
    put_segment(&lineage, 7).await;
    let catalog = lineage.catalog().await.unwrap();
    assert!(catalog.backups.iter().all(|backup| backup.status == BackupStatus::Ok));
}

#[tokio::test]
async fn marks_are_events_and_the_last_of_each_group_decides() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    commit(&lineage, &manifest(&lineage, 1, 5 * SIZE, 6 * SIZE)).await;
    let state = async || {
        let catalog = lineage.catalog().await.unwrap();
        (catalog.backups[0].keep, catalog.backups[0].damaged)
    };
    for (number, (what, expected)) in [
        (MarkKind::Keep, (true, false)),
        (MarkKind::Damaged, (true, true)),
        (MarkKind::Release, (false, true)),
        (MarkKind::Verified, (false, false)),
        (MarkKind::Keep, (true, false)),
    ]
    .into_iter()
    .enumerate()
    {
        let put = lineage.put_mark(&id(1), &mark(what)).await.unwrap();
        assert_eq!((put.number, put.what), (number as u32 + 1, what));
        assert_eq!(state().await, expected);
    }
    let marks = lineage.marks(&id(1)).await.unwrap();
    assert_eq!(marks.len(), 5);
    assert_eq!(lineage.mark_document(&marks[1]).await.unwrap(), mark(MarkKind::Damaged));
}

#[tokio::test]
async fn two_writers_that_mark_at_once_lose_nothing() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage(Arc::<Faulty>::clone(&faulty)).await;
    let other = MarkDocument { by: "another".to_owned(), ..mark(MarkKind::Keep) };
    lineage.put_mark(&id(1), &mark(MarkKind::Keep)).await.unwrap();
    // The other one listed before the first was there.
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::List));
    assert!(lineage.put_mark(&id(1), &other).await.is_err());
    faulty.heal();
    lineage.put_mark(&id(1), &other).await.unwrap();
    let numbers: Vec<u32> = lineage.marks(&id(1)).await.unwrap().iter().map(|mark| mark.number).collect();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_named_and_keeps_nobody_from_the_others() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage(Arc::<Faulty>::clone(&faulty)).await;
    put_segment(&lineage, 5).await;
    let other = commit(&lineage, &manifest(&lineage, 2, 5 * SIZE, 6 * SIZE)).await;
    let key = commit(&lineage, &manifest(&lineage, 1, 5 * SIZE, 6 * SIZE)).await;
    lineage.put_mark(&id(1), &mark(MarkKind::Keep)).await.unwrap();
    let good = faulty.get(&key).await.unwrap().to_vec();
    let mut flipped = good.clone();
    flipped[50] ^= 1;
    let swapped = faulty.get(&other).await.unwrap().to_vec();
    for bytes in [flipped, good[..100].to_vec(), Vec::new(), swapped] {
        replace(faulty.as_ref(), &key, bytes).await;
        let catalog = lineage.catalog().await.unwrap();
        assert_eq!(catalog.backups.iter().map(|backup| &backup.id).collect::<Vec<_>>(), [&id(2)]);
        let [unreadable] = &catalog.unreadable[..] else { panic!("{:?}", catalog.unreadable) };
        assert_eq!((&unreadable.id, unreadable.keep), (&id(1), true));
        assert!(unreadable.reason.contains(key.as_str()), "{unreadable:?}");
        // Which packs nobody needs is not known: nothing says that it is.
        let usage = lineage.repository().cluster(lineage.cluster()).usage().await.unwrap_err();
        assert!(matches!(&usage, RepositoryError::Damaged { key: named, .. } if *named == key), "{usage}");
    }
    // What the store does not give is no damage: then nothing is known.
    for fault in [StorageErrorKind::Transient, StorageErrorKind::Denied, StorageErrorKind::NoKey] {
        faulty.add(Rule::new(Fault::Fail(fault)).on(Operation::Get).key(key.as_str()));
        assert!(lineage.catalog().await.is_err(), "{fault:?}");
        faulty.heal();
    }
    replace(faulty.as_ref(), &key, good).await;
    let catalog = lineage.catalog().await.unwrap();
    assert_eq!((catalog.backups.len(), catalog.unreadable.len()), (2, 0));
}

#[tokio::test]
async fn what_else_cannot_be_read_is_an_error_and_never_skipped() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    put_segment(&lineage, 5).await;
    // A segment that this cluster cannot have, and one that is encrypted.
    let impossible = format!("{}wal/00000001/00000000/000000010000000000001000.zst", lineage.keys().prefix());
    let encrypted = format!("{}.enc", lineage.keys().key(&LineageObject::Segment(name(1, 6))));
    for odd in [impossible, encrypted] {
        let key = ObjectKey::new(odd).unwrap();
        storage.put_new(&key, Body::Bytes(Bytes::from_static(b"x")), sha256(b"x")).await.unwrap();
        assert!(lineage.catalog().await.is_err(), "{key}");
        storage.delete(&[key]).await.unwrap();
    }
    assert!(lineage.catalog().await.is_ok());
}

#[tokio::test]
async fn the_inventory_lists_every_object_by_what_it_is() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    put_segment(&lineage, 5).await;
    let plain = segment(1, 5, 10, 100).slice(..1000);
    let from = Lsn::new(5 * SIZE);
    lineage.put_tail(&meta(1, 5), from, plain, &XactIndex::start(None)).await.unwrap();
    let other = PlainSource::Bytes(segment(1, 5, 11, 100));
    assert!(lineage.put_segment(&meta(1, 5), &XactIndex::start(None), other).await.is_err());
    commit(&lineage, &manifest(&lineage, 1, 5 * SIZE, 6 * SIZE)).await;
    lineage.put_mark(&id(1), &mark(MarkKind::Keep)).await.unwrap();
    let inventory = lineage.inventory().await.unwrap();
    assert_eq!(inventory.segments.keys().copied().collect::<Vec<_>>(), [name(1, 5)]);
    let tail = TailName { segment: name(1, 5), from, to: from.saturating_add(1000) };
    assert_eq!(inventory.tails.keys().copied().collect::<Vec<_>>(), [tail]);
    assert_eq!(inventory.conflicts.len(), 1);
    let backup = &inventory.backups[&id(1)];
    assert!(backup.committed);
    assert_eq!((backup.marks.len(), backup.objects.len()), (1, 2));
}

#[tokio::test]
async fn everything_can_be_awaited_from_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let cluster = lineage.repository().cluster(lineage.cluster());
    let server = crate::repository::test_wal::identity(crate::repository::test_wal::root());
    let (meta, index) = (meta(1, 5), XactIndex::start(None));
    let mut sink = Vec::new();
    is_send(&cluster.lineages());
    is_send(&cluster.lineage_for(&server, false, PgTime::from_micros(0)));
    is_send(&lineage.catalog());
    is_send(&lineage.histories());
    is_send(&lineage.put_history(timeline(2), b""));
    is_send(&lineage.put_segment(&meta, &index, PlainSource::Bytes(Bytes::new())));
    is_send(&lineage.put_tail(&meta, Lsn::new(0), Bytes::new(), &index));
    is_send(&lineage.fetch_segment(meta.name, &mut sink));
    is_send(&lineage.fetch_tail(meta.name, &mut Vec::new()));
    is_send(&lineage.put_mark(&id(1), &mark(MarkKind::Keep)));
}
