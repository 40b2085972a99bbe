use std::sync::Arc;

use bytes::Bytes;
use recovery::LineageId;
use wal::{Lsn, PgTime, SegmentSize, SystemIdentifier, TimelineHistory, XactIndex};

use super::ClusterIdentity;
use crate::error::{Error, ErrorCode};
use crate::repository::error::MismatchFact;
use crate::repository::layout::LineageObject;
use crate::repository::test_wal::{SYSTEM, identity, lineage, meta, replace, repository, root, segment, timeline};
use crate::repository::{
    ClusterName, ClusterRepository, LineageRepository, PlainSource, Repository, RepositoryError, RepositoryId,
    RepositoryOptions,
};
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Storage, StorageErrorKind};

fn now(seconds: i64) -> PgTime {
    PgTime::from_micros(seconds * 1_000_000)
}

fn history(number: u32, text: &str) -> TimelineHistory {
    TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap()
}

fn id(system: SystemIdentifier, number: u32) -> LineageId {
    LineageId { system_identifier: system, number }
}

async fn cluster(storage: &Arc<MemoryStorage>) -> ClusterRepository {
    repository(Arc::<MemoryStorage>::clone(storage), None).await.cluster(&ClusterName::new("main").unwrap())
}

async fn continued(
    cluster: &ClusterRepository,
    server: &ClusterIdentity,
) -> Result<LineageRepository, RepositoryError> {
    cluster.lineage_for(server, false, now(50)).await
}

fn fact(result: Result<LineageRepository, RepositoryError>) -> MismatchFact {
    match result {
        Err(RepositoryError::Lineage(mismatch)) => mismatch.fact,
        other => panic!("expected a mismatch, got {other:?}"),
    }
}

#[tokio::test]
async fn the_first_server_begins_a_lineage_and_the_same_one_continues_it() {
    let storage = Arc::new(MemoryStorage::new());
    let cluster = cluster(&storage).await;
    assert!(cluster.newest_lineage().await.unwrap().is_none());
    let first = continued(&cluster, &identity(root())).await.unwrap();
    assert_eq!(first.id(), id(SYSTEM, 1));
    assert_eq!((first.document().created_at, first.document().parent), (super::made_at(SYSTEM), None));
    let again = cluster.lineage_for(&identity(root()), false, now(60)).await.unwrap();
    assert_eq!(again.document(), first.document());
    assert_eq!(cluster.lineages().await.unwrap().len(), 1);
    assert_eq!(cluster.repository().clusters().await.unwrap(), [cluster.name().clone()]);
}

#[tokio::test]
async fn a_promotion_continues_the_lineage_and_a_second_story_about_it_is_refused() {
    let storage = Arc::new(MemoryStorage::new());
    let cluster = cluster(&storage).await;
    let lineage = continued(&cluster, &identity(root())).await.unwrap();
    let plain = segment(1, 5, 10, 100);
    lineage.put_segment(&meta(1, 5), &XactIndex::start(None), PlainSource::Bytes(plain)).await.unwrap();
    let promoted = history(2, "1\t0/600000\tno recovery target specified\n");
    assert_eq!(continued(&cluster, &identity(promoted.clone())).await.unwrap().id(), lineage.id());
    lineage.put_history(timeline(2), promoted.to_text().as_bytes()).await.unwrap();
    // The same, its descendants, siblings and ancestors continue it.
    for told in [
        promoted.clone(),
        root(),
        history(3, "1\t0/600000\tx\n2\t0/700000\ty\n"),
        history(3, "1\t0/500000\tbefore that\n"),
    ] {
        assert_eq!(continued(&cluster, &identity(told)).await.unwrap().id(), lineage.id());
    }
    // Two restores of one backup that both chose timeline 2 (OBS-14).
    for told in [history(2, "1\t0/610000\tx\n"), history(3, "1\t0/610000\tx\n2\t0/700000\ty\n"), history(2, "")] {
        let refused = fact(continued(&cluster, &identity(told)).await);
        assert!(matches!(refused, MismatchFact::OtherHistory { timeline: t, .. } if t == timeline(2)), "{refused}");
    }
    // A story about an ancestor, told by the stored history of a descendant.
    lineage.put_history(timeline(5), b"1\t0/600000\tx\n2\t0/700000\ty\n4\t0/800000\tz\n").await.unwrap();
    let told = history(4, "1\t0/600000\tx\n2\t0/710000\ty\n");
    let refused = fact(continued(&cluster, &identity(told)).await);
    assert!(matches!(refused, MismatchFact::OtherHistory { timeline: t, .. } if t == timeline(4)), "{refused}");
    let unrelated = fact(continued(&cluster, &identity(history(9, ""))).await);
    assert!(matches!(unrelated, MismatchFact::NoCommonTimeline { .. }), "{unrelated}");
}

#[tokio::test]
async fn a_foreign_server_is_refused_with_both_facts_until_a_new_lineage_is_asked_for() {
    let storage = Arc::new(MemoryStorage::new());
    let cluster = cluster(&storage).await;
    continued(&cluster, &identity(root())).await.unwrap();
    let other = SystemIdentifier::new(7_111);
    let foreign = ClusterIdentity { system_identifier: other, ..identity(root()) };
    let error = continued(&cluster, &foreign).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("7111") && text.contains(&id(SYSTEM, 1).to_string()), "{text}");
    let error = Error::from(error);
    assert_eq!(error.code(), ErrorCode::ForeignCluster);
    assert!(error.help_lines().iter().any(|help| help.contains("--new-lineage")));

    let begun = cluster.lineage_for(&foreign, true, now(70)).await.unwrap();
    assert_eq!((begun.id(), begun.document().parent), (id(other, 1), Some(id(SYSTEM, 1))));
    let branched = cluster.lineage_for(&identity(root()), true, now(80)).await.unwrap();
    assert_eq!((branched.id(), branched.document().parent), (id(SYSTEM, 2), Some(id(other, 1))));
    // From here on each server continues the newest lineage of its own.
    assert_eq!(continued(&cluster, &identity(root())).await.unwrap().id(), id(SYSTEM, 2));
    assert_eq!(continued(&cluster, &foreign).await.unwrap().id(), id(other, 1));
    let order: Vec<LineageId> = cluster.lineages().await.unwrap().iter().map(LineageRepository::id).collect();
    assert_eq!(order, [id(SYSTEM, 1), id(other, 1), id(SYSTEM, 2)]);
}

#[tokio::test]
async fn another_segment_size_is_refused() {
    let storage = Arc::new(MemoryStorage::new());
    let cluster = cluster(&storage).await;
    continued(&cluster, &identity(root())).await.unwrap();
    let server = ClusterIdentity { segment_size: SegmentSize::DEFAULT, ..identity(root()) };
    assert!(matches!(fact(continued(&cluster, &server).await), MismatchFact::SegmentSize { .. }));
}

#[tokio::test]
async fn of_two_that_begin_at_once_both_end_with_the_same() {
    let storage = Arc::new(MemoryStorage::new());
    let make = async |bits: u8, seconds: i64| {
        let options = RepositoryOptions::default();
        let id = RepositoryId::new([bits; 16]);
        let storage = Arc::<MemoryStorage>::clone(&storage);
        let repository = Repository::create_or_open(storage, options, now(seconds), id).await.unwrap();
        let cluster = repository.cluster(&ClusterName::new("main").unwrap());
        let lineage = cluster.lineage_for(&identity(root()), false, now(seconds)).await.unwrap();
        (repository.marker().clone(), lineage.document().clone())
    };
    let (one, other) = tokio::join!(make(1, 10), make(2, 20));
    assert_eq!(one, other);
    // A loser that looked before the winner wrote: the answer "not found" is from a moment ago.
    let faulty = Arc::new(Faulty::new(Arc::<MemoryStorage>::clone(&storage)));
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::NotFound)).on(Operation::Get).calls(1..=1));
    let storage = Arc::<Faulty>::clone(&faulty);
    let id = RepositoryId::new([3; 16]);
    let late = Repository::create_or_open(storage, RepositoryOptions::default(), now(30), id).await.unwrap();
    assert_eq!(*late.marker(), one.0);
}

#[tokio::test]
async fn there_is_no_repository_where_no_marker_is_and_none_is_made_by_opening() {
    let storage = Arc::new(MemoryStorage::new());
    let opened = Repository::open(Arc::<MemoryStorage>::clone(&storage), RepositoryOptions::default()).await;
    let error = opened.unwrap_err();
    assert!(error.is_not_found());
    assert!(Error::from(error).help_lines().iter().any(|help| help.contains("repo init")));
    assert_eq!(storage.list("", None, None).await.unwrap(), []);
    let faulty = Arc::new(Faulty::new(storage));
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::Get));
    let id = RepositoryId::new([3; 16]);
    let made = Repository::create_or_open(faulty, RepositoryOptions::default(), now(1), id).await;
    assert!(made.unwrap_err().is_transient());
}

#[tokio::test]
async fn damaged_and_newer_documents_are_refused_and_never_skipped() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let key = lineage.keys().key(&LineageObject::Document);
    let good = storage.get(&key).await.unwrap().to_vec();
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    let newer = crate::codec::seal_with_features("lineage", &["time-travel"], lineage.document()).unwrap();
    let mut elsewhere = lineage.document().clone();
    elsewhere.lineage.number = 2;
    let elsewhere = crate::codec::seal("lineage", &elsewhere).unwrap();
    let cluster = cluster(&storage).await;
    for (bytes, code) in [
        (flipped, ErrorCode::Damaged),
        (good[..good.len() - 1].to_vec(), ErrorCode::Damaged),
        (elsewhere, ErrorCode::Damaged),
        (newer, ErrorCode::FormatTooNew),
    ] {
        replace(storage.as_ref(), &key, bytes).await;
        let error = continued(&cluster, &identity(root())).await.unwrap_err();
        assert!(error.to_string().contains(key.as_str()), "{error}");
        assert_eq!(Error::from(error).code(), code);
    }
    lineage.put_history(timeline(2), b"1\t0/600000\tx\n").await.unwrap();
    storage.delete(&[key]).await.unwrap();
    assert!(matches!(continued(&cluster, &identity(root())).await, Err(RepositoryError::Damaged { .. })));
}

#[tokio::test]
async fn histories_are_kept_byte_for_byte_and_others_refused() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let text = b"1\t0/600000\tno recovery target specified\n".as_slice();
    assert!(lineage.put_history(timeline(2), text).await.unwrap());
    assert!(!lineage.put_history(timeline(2), text).await.unwrap());
    assert_eq!(lineage.history_bytes(timeline(2)).await.unwrap(), Some(Bytes::from_static(text)));
    assert_eq!(lineage.history_bytes(timeline(3)).await.unwrap(), None);
    assert_eq!(lineage.histories().await.unwrap().keys().copied().collect::<Vec<_>>(), [timeline(2)]);
    let error = lineage.put_history(timeline(2), b"1\t0/700000\tx\n").await.unwrap_err();
    assert!(matches!(error, RepositoryError::Conflict { .. }), "{error}");
    assert!(matches!(lineage.put_history(timeline(3), b"junk\n").await, Err(RepositoryError::Mismatch { .. })));
    let switch = lineage.history(timeline(2)).await.unwrap().switch_point_of(timeline(1));
    assert_eq!(switch, Some(Lsn::new(0x60_0000)));
    // A damaged history is an error, for a handle that has not read it before.
    let key = lineage.keys().key(&LineageObject::History(timeline(2)));
    replace(storage.as_ref(), &key, b"2\tjunk".to_vec()).await;
    let fresh = cluster(&storage).await.lineage(lineage.id()).await.unwrap();
    assert!(matches!(fresh.histories().await, Err(RepositoryError::Damaged { .. })));
    assert!(matches!(fresh.catalog().await, Err(RepositoryError::Damaged { .. })));
}

#[tokio::test]
async fn whoever_begins_a_clusters_first_lineage_writes_the_same() {
    let mut written = Vec::new();
    for moment in [50, 60] {
        let storage = Arc::new(MemoryStorage::new());
        let cluster = cluster(&storage).await;
        let first = cluster.lineage_for(&identity(root()), false, now(moment)).await.unwrap();
        written.push(storage.get(&first.keys().key(&LineageObject::Document)).await.unwrap());
    }
    assert_eq!(written[0], written[1], "of two at once it does not matter whose stays");
}
