use std::sync::Arc;

use recovery::LineageId;
use wal::{Lsn, SegmentName};

use super::*;
use crate::repository::GapDocument;
use crate::repository::layout::LineageObject;
use crate::repository::test_wal::{SIZE, WalWriter, lineage, name, replace, timeline};
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;

const REQUEST: VerifyRequest =
    VerifyRequest { from: None, to: None, timeline: None, quick: false, jobs: 2, known_end: None };

struct Fixture {
    storage: Arc<MemoryStorage>,
    lineage: LineageRepository,
}

impl Fixture {
    /// Five whole segments from number 3 on, with records across all borders, and a tail.
    async fn new() -> Self {
        let storage = Arc::new(MemoryStorage::new());
        let lineage = lineage(storage.clone()).await;
        let writer = log(3);
        writer.store(&lineage, 3000).await;
        Self { storage, lineage }
    }

    async fn verify(&self, request: VerifyRequest) -> VerifyReport {
        let (progress, _) = watch::channel(VerifyProgress::default());
        run(&self.lineage, &request, &progress).await.unwrap()
    }

    fn key(&self, name: SegmentName) -> crate::storage::ObjectKey {
        self.lineage.keys().key(&LineageObject::Segment(name))
    }

    async fn delete(&self, name: SegmentName) {
        self.storage.delete(&[self.key(name)]).await.unwrap();
    }
}

fn log(first: u64) -> WalWriter {
    let mut writer = WalWriter::new(1, first);
    for xid in 1..60 {
        writer.commit(xid, i64::from(xid));
        writer.noop(90_000);
    }
    writer
}

#[tokio::test]
async fn what_is_whole_is_proven_and_counted() {
    let fixture = Fixture::new().await;
    let report = fixture.verify(REQUEST).await;
    assert_eq!(report.problems, []);
    assert_eq!((report.segments, report.tails, report.gaps.len()), (5, 1, 0));
    assert!(report.checked_bytes > 5 * SIZE);
    let quick = fixture.verify(VerifyRequest { quick: true, ..REQUEST }).await;
    assert!(quick.is_ok() && quick.checked_bytes == 0 && quick.segments == 5);
    let part = VerifyRequest { from: Some(Lsn::new(4 * SIZE + 1)), to: Some(Lsn::new(6 * SIZE)), ..REQUEST };
    assert_eq!(fixture.verify(part).await.segments, 2);
    assert_eq!(fixture.verify(VerifyRequest { timeline: Some(timeline(2)), ..REQUEST }).await.segments, 0);
}

#[tokio::test]
async fn a_segment_that_is_gone_is_named_unless_its_loss_was_recorded() {
    let fixture = Fixture::new().await;
    fixture.delete(name(1, 5)).await;
    for quick in [true, false] {
        let report = fixture.verify(VerifyRequest { quick, ..REQUEST }).await;
        let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
        assert_eq!(problem.object, fixture.key(name(1, 5)).to_string());
        assert_eq!((problem.from_lsn, problem.to_lsn), (Some(Lsn::new(5 * SIZE)), Some(Lsn::new(6 * SIZE))));
    }
    let recorded = GapDocument {
        timeline: timeline(1),
        from_lsn: Lsn::new(5 * SIZE),
        to_lsn: Lsn::new(6 * SIZE),
        reason: "the slot was lost".to_owned(),
        found_at: wal::PgTime::from_micros(1),
    };
    fixture.lineage.put_gap(&recorded).await.unwrap();
    let report = fixture.verify(REQUEST).await;
    assert!(report.is_ok(), "{report:?}");
    assert_eq!(report.gaps[0].reason, "the slot was lost");
    // What is missing beside the recorded loss is a problem all the same.
    fixture.delete(name(1, 4)).await;
    let report = fixture.verify(REQUEST).await;
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].object, fixture.key(name(1, 4)).to_string());
}

#[tokio::test]
async fn a_piece_of_a_tail_that_is_gone_is_a_hole() {
    let fixture = Fixture::new().await;
    let pieces: Vec<_> = fixture.lineage.inventory().await.unwrap().tails.into_keys().collect();
    assert!(pieces.len() > 3, "{pieces:?}");
    let victim = pieces[1];
    let key = fixture.lineage.keys().key(&LineageObject::Tail(victim));
    fixture.storage.delete(&[key]).await.unwrap();
    let report = fixture.verify(REQUEST).await;
    let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
    assert_eq!((problem.from_lsn, problem.to_lsn), (Some(victim.from), Some(victim.to)));
    assert!(problem.what.contains("tail"), "{problem:?}");
}

#[tokio::test]
async fn what_was_removed_at_the_very_end_is_missed_by_who_stored_it() {
    let fixture = Fixture::new().await;
    let end = fixture.lineage.catalog().await.unwrap().coverage.ranges(timeline(1)).next().unwrap().end;
    let known = VerifyRequest {
        known_end: Some(KnownEnd { timeline: timeline(1), lsn: end, because: "the daemon has stored WAL" }),
        ..REQUEST
    };
    assert!(fixture.verify(known).await.is_ok());
    let last = *fixture.lineage.inventory().await.unwrap().tails.keys().last().unwrap();
    let key = fixture.lineage.keys().key(&LineageObject::Tail(last));
    fixture.storage.delete(&[key]).await.unwrap();
    let report = fixture.verify(known).await;
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(report.problems[0].what.contains("the daemon has stored WAL up to"), "{report:?}");
}

#[tokio::test]
async fn damage_is_named_with_its_object_and_the_rest_is_read_on() {
    let fixture = Fixture::new().await;
    let key = fixture.key(name(1, 4));
    let mut bytes = fixture.storage.get(&key).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(fixture.storage.as_ref(), &key, bytes).await;
    let other = fixture.key(name(1, 6));
    let text = b"not a segment at all".to_vec();
    replace(fixture.storage.as_ref(), &other, text).await;
    let report = fixture.verify(REQUEST).await;
    let objects: Vec<&str> = report.problems.iter().map(|problem| problem.object.as_str()).collect();
    assert_eq!(objects, [key.as_str(), other.as_str()], "{report:?}");
    assert!(fixture.verify(VerifyRequest { quick: true, ..REQUEST }).await.is_ok(), "listings do not show it");
}

#[tokio::test]
async fn a_segment_of_another_log_does_not_follow() {
    let fixture = Fixture::new().await;
    // Whole, valid WAL under its right name; but another history of the same positions.
    let key = fixture.key(name(1, 5));
    let storage = Arc::new(MemoryStorage::new());
    let stranger = lineage(storage.clone()).await;
    let mut writer = WalWriter::new(1, 5);
    while writer.end() < Lsn::new(6 * SIZE) {
        writer.noop(5000);
    }
    writer.store(&stranger, 3000).await;
    let bytes = storage.get(&key).await.unwrap().to_vec();
    replace(fixture.storage.as_ref(), &key, bytes).await;
    let report = fixture.verify(REQUEST).await;
    assert!(report.problems.iter().any(|problem| problem.object == key.as_str()), "{report:?}");
    assert_eq!(LineageId::to_string(&stranger.id()), fixture.lineage.id().to_string());
}

#[tokio::test]
async fn a_timeline_needs_its_history_file_and_histories_tell_one_story() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(storage.clone()).await;
    let writer = log(3);
    writer.store(&lineage, 3000).await;
    let fork = writer.end();
    let mut forked = writer.fork(2);
    forked.commit(99, 99);
    forked.noop(1_200_000);
    lineage.put_history(timeline(2), format!("1\t{fork}\tx\n").as_bytes()).await.unwrap();
    let start = wal::SegmentNumber::containing(fork, lineage.segment_size()).start(lineage.segment_size());
    forked.store_from(&lineage, start, None, 3000).await;
    let fixture = Fixture { storage, lineage };
    let report = fixture.verify(REQUEST).await;
    assert!(report.is_ok(), "{report:?}");
    assert_eq!(report.tails, 2);

    let other = format!("1\t{}\tx\n2\t0/F00000\tx\n", Lsn::new(fork.as_u64() - 8));
    fixture.lineage.put_history(timeline(3), other.as_bytes()).await.unwrap();
    let report = fixture.verify(VerifyRequest { quick: true, ..REQUEST }).await;
    assert!(report.problems.iter().any(|p| p.what.contains("another history of timeline 2")), "{report:?}");
    let key = |number| fixture.lineage.keys().key(&LineageObject::History(timeline(number)));
    fixture.storage.delete(&[key(2), key(3)]).await.unwrap();
    let reopened = fixture.lineage.repository().cluster(fixture.lineage.cluster()).newest_lineage().await.unwrap();
    let fixture = Fixture { lineage: reopened.unwrap(), ..fixture };
    let report = fixture.verify(VerifyRequest { quick: true, ..REQUEST }).await;
    let [problem] = report.problems.as_slice() else { panic!("{report:?}") };
    assert!(problem.object.ends_with("/wal/00000002/00000002.history"), "{problem:?}");
}

#[tokio::test]
async fn units_are_bounded_and_borders_between_them_are_proven() {
    let fixture = Fixture::new().await;
    let mut problems = Vec::new();
    let survey = Survey::of(&fixture.lineage, &mut problems).await.unwrap();
    let range = Range { from: None, to: None, timeline: None };
    let size = fixture.lineage.segment_size();
    let whole = units(&survey, range, size);
    assert_eq!(whole.len(), 1);
    // Cut by hand: each segment by itself.
    let (progress, _) = watch::channel(VerifyProgress::default());
    let mut chain = Chain::default();
    for index in 0..whole[0].count {
        let unit = Unit { first: whole[0].first + index, count: 1, tail: None, ..whole[0] };
        let mut read = units::read(&fixture.lineage, &survey, unit, &progress).await.unwrap();
        assert_eq!(read.problems, []);
        assert!(read.last.is_some(), "the record that reaches into what follows is proven too");
        assert_eq!(chain.join(&fixture.lineage, &survey, &read), None);
        if index > 0 {
            // A record between the two that is not there.
            let (lsn, previous) = read.first.unwrap();
            read.first = Some((lsn, previous.saturating_sub(8)));
            assert!(chain.join(&fixture.lineage, &survey, &read).is_some());
        }
    }
}
