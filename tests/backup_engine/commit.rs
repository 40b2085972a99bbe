//! Does a backup exist exactly when everything it names is stored, and count exactly when its WAL is?

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pgvault::backup::{BackupDeps, BackupPhase, BackupRequest, PollRepository, run};
use pgvault::clock::SystemClock;
use pgvault::error::ErrorCode;
use pgvault::primary::MaxRate;
use pgvault::repository::{PlainSource, SegmentMeta};
use pgvault::storage::StorageErrorKind;
use pgvault::storage::faulty::{Fault, Faulty, Operation, Rule};
use pgvault::storage::memory::MemoryStorage;
use pgvault::storage::retry::{Retry, RetryPolicy};
use recovery::BackupStatus;
use tokio_util::sync::CancellationToken;
use wal::{SegmentName, SegmentNumber, XactIndex};

use super::{Bench, fast};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, major, test_dir};

/// Every kind of object that a backup stores, in the order in which it does.
const OBJECTS: [&str; 5] = ["/begun", "/packs/", "/files/", "/backup_manifest-", "/manifest"];

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_objects_cannot_be_stored_does_not_exist() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    for object in OBJECTS {
        let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
        let bench = Bench::new(&node, faulty.clone()).await;
        faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Denied)).on(Operation::Put).key(object));
        let error = bench.take(&fast()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::RepositoryDenied, "{object}: {error}");
        assert_eq!(bench.selectable().await, 0, "{object}");
        faulty.heal();
        bench.backup().await;
        assert_eq!(bench.selectable().await, 1, "{object}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_of_the_store_do_not_make_a_backup_fail() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let quick = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    let bench = Bench::new(&node, Arc::new(Retry::new(faulty.clone(), quick, 1))).await;
    for object in OBJECTS {
        faulty.add(Rule::new(Fault::LoseResponse).on(Operation::Put).key(object).calls(0..1));
    }
    let manifest = bench.backup().await;
    assert_eq!(bench.selectable().await, 1);
    bench.write_out(&manifest, &dir.path().join("restored")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_vanished_meanwhile_keeps_the_backup_from_existing() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let mut bench = Bench::in_memory(&node).await;
    bench.index_file = Some(dir.path().join("chunks.redb"));
    let first = Some(bench.backup().await.id);
    // The packs are deleted after the second backup has looked what is there.
    let packs = bench.packs().await;
    let storage = Arc::clone(bench.storage());
    let mut progress = bench.progress.subscribe();
    let vandal = tokio::spawn(async move {
        progress.wait_for(|progress| progress.phase != BackupPhase::Check && progress.id != first).await.unwrap();
        storage.delete(&packs).await.unwrap();
    });
    // So slow that it is not over before they are.
    let slow = BackupRequest { max_rate: Some(MaxRate::from_bytes_per_second(8 << 20)), ..fast() };
    let error = bench.take(&slow).await.unwrap_err();
    vandal.await.unwrap();
    assert_eq!(error.code(), ErrorCode::Damaged, "{error}");
    assert_eq!(bench.selectable().await, 1, "the first, which is now damaged; a new one does not join it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_waits_for_its_wal_and_is_then_usable() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let bench = Arc::new(Bench::in_memory(&node).await);
    let running = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move {
            let poll =
                PollRepository { interval: Duration::from_millis(50), ..PollRepository::new(bench.lineage.clone()) };
            let cancel = CancellationToken::new();
            let deps = BackupDeps {
                server: &bench.options,
                repository: &bench.lineage,
                index_file: None,
                files: None,
                wal: &poll,
                clock: &SystemClock,
                random: 1,
                cancel: &cancel,
            };
            run(&fast(), &deps, &bench.progress).await
        }
    });
    let mut progress = bench.progress.subscribe();
    let waiting = progress.wait_for(|progress| progress.phase == BackupPhase::WaitForWal);
    tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
    let listed = bench.lineage.catalog().await.unwrap().backups;
    assert_eq!((listed.len(), listed[0].status), (1, BackupStatus::WaitingForWal));
    assert!(!running.is_finished());

    let (size, backup) = (bench.lineage.segment_size(), &listed[0]);
    let first = SegmentNumber::containing(backup.start_lsn, size).get();
    let last = SegmentNumber::containing_end(backup.stop_lsn, size).get();
    for number in first..=last {
        let name = SegmentName::new(backup.timeline, SegmentNumber::new(number), size);
        let plain = Bytes::from(fs::read(node.data.join(format!("pg_wal/{name}"))).unwrap());
        let meta = SegmentMeta { name, postgres_version: backup.postgres_version };
        bench.lineage.put_segment(&meta, &XactIndex::start(None), PlainSource::Bytes(plain)).await.unwrap();
    }
    let usable = tokio::time::timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert_eq!(usable.status, BackupStatus::Ok);
    assert_eq!(bench.lineage.catalog().await.unwrap().backups, [usable]);
    assert_eq!(bench.progress.borrow().phase, BackupPhase::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_does_not_come_is_an_error_after_the_deadline() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let bench = Bench::in_memory(&node).await;
    let poll = PollRepository {
        interval: Duration::from_millis(10),
        deadline: Duration::from_millis(50),
        ..PollRepository::new(bench.lineage.clone())
    };
    let deps = BackupDeps {
        server: &bench.options,
        repository: &bench.lineage,
        index_file: None,
        files: None,
        wal: &poll,
        clock: &SystemClock,
        random: 1,
        cancel: &bench.cancel,
    };
    let error = run(&fast(), &deps, &bench.progress).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::WalLost);
    assert!(error.message().contains("committed"), "{error}");
    assert_eq!(bench.selectable().await, 1);
}
