//! The search against a scan of everything that was written.

use std::sync::Arc;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::Config;
use proptest::{prop_assert_eq, proptest};
use recovery::{Answer, Catalog, CommitsAround, Question};
use wal::{Lsn, PgTime, XactEnd, XactMark};

use super::{WalSearch, answer};
use crate::repository::layout::LineageObject;
use crate::repository::test_wal::{SIZE, WalWriter, Written, lineage, lineage_with_cache, name, timeline};
use crate::repository::{LineageRepository, RepositoryError};
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;

fn time(micros: i64) -> PgTime {
    PgTime::from_micros(micros)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What the WAL says, by reading all of it.
#[derive(Debug)]
struct BruteForce<'a> {
    xacts: &'a [Written],
}

impl BruteForce<'_> {
    fn within(&self, from: Lsn, to: Lsn) -> impl DoubleEndedIterator<Item = &Written> {
        self.xacts.iter().filter(move |written| written.xact.lsn >= from && written.xact.lsn < to)
    }

    fn first_later(&self, from: Lsn, to: Lsn, than: PgTime, or_equal: bool) -> Option<XactEnd> {
        let later = |time: PgTime| time > than || or_equal && time == than;
        self.within(from, to).map(|written| written.xact).find(|xact| later(xact.time))
    }

    fn max_time(&self, lsn: Lsn) -> Option<PgTime> {
        self.xacts.iter().filter(|written| written.xact.end <= lsn).map(|written| written.xact.time).max()
    }

    fn commits_around(&self, from: Lsn, to: Lsn, lsn: Lsn) -> CommitsAround {
        let mark = |written: &Written| XactMark::from(&written.xact);
        let commits: Vec<&Written> = self.within(from, to).filter(|written| written.commit).collect();
        CommitsAround {
            before: commits.iter().rev().find(|written| written.xact.lsn < lsn).map(|w| mark(w)),
            after: commits.iter().find(|written| written.xact.lsn >= lsn).map(|w| mark(w)),
        }
    }
}

/// What one step of a workload writes.
#[derive(Clone, Debug)]
enum Step {
    Commit(u32, i64),
    Abort(u32, i64),
    LongCommit(u32, i64, u32),
    Noop(usize),
    Fill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Clocks that jump back and forth, few xids so that they come again, records that span pages and segments.
    let step = prop_oneof![
        4 => (1..20u32, 0..60i64).prop_map(|(xid, t)| Step::Commit(xid, t)),
        2 => (1..20u32, 0..60i64).prop_map(|(xid, t)| Step::Abort(xid, t)),
        1 => (1..20u32, 0..60i64, 1..600_000u32).prop_map(|(xid, t, subs)| Step::LongCommit(xid, t, subs)),
        2 => (1..200_000usize).prop_map(Step::Noop),
        1 => proptest::prelude::Just(Step::Fill),
    ];
    proptest::collection::vec(step, 1..25)
}

fn write(wal: &mut WalWriter, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Commit(xid, t) => wal.commit(xid, t),
            Step::Abort(xid, t) => wal.abort(xid, t),
            Step::LongCommit(xid, t, subs) => wal.long_commit(xid, t, subs),
            Step::Noop(length) => wal.noop(length),
            Step::Fill => wal.fill_segment(),
        }
    }
}

async fn catalog_with(wal: &WalWriter, piece: u64) -> (LineageRepository, Catalog) {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    wal.store(&lineage, piece).await;
    let catalog = lineage.catalog().await.unwrap();
    (lineage, catalog)
}

proptest! {
    #![proptest_config(Config { cases: 24, ..Config::default() })]

    #[test]
    fn every_answer_is_that_of_reading_everything(
        steps in steps(),
        piece in 1..300_000u64,
        from in any::<proptest::sample::Index>(),
        than in -1..61i64,
        or_equal in any::<bool>(),
        xid in 1..20u32,
    ) {
        let mut wal = WalWriter::new(1, 3);
        write(&mut wal, &steps);
        let brute = BruteForce { xacts: &wal.xacts };
        let ends: Vec<Lsn> = [wal.start].into_iter().chain(wal.xacts.iter().map(|w| w.xact.end)).collect();
        let (from, to) = (*from.get(&ends), wal.end());
        block_on(async {
            let (lineage, catalog) = catalog_with(&wal, piece).await;
            let search = WalSearch::new(&lineage, &catalog, timeline(1));
            let than = time(than);
            let found = search.first_later(from, to, Some(than), or_equal).await.unwrap();
            prop_assert_eq!(found, brute.first_later(from, to, than, or_equal), "first later than {}", than);
            let first = brute.within(from, to).map(|w| w.xact).next();
            prop_assert_eq!(search.first_later(from, to, None, false).await.unwrap(), first);
            let last = brute.within(from, to).next_back().map(|w| XactMark::from(&w.xact));
            prop_assert_eq!(search.last_xact(from, to).await.unwrap(), last);
            let xids: Vec<XactEnd> = brute.within(from, to).map(|w| w.xact).filter(|x| x.xid == xid).collect();
            prop_assert_eq!(search.xid(from, to, xid).await.unwrap(), xids);
            for &lsn in &ends {
                prop_assert_eq!(search.max_time(lsn).await.unwrap(), brute.max_time(lsn), "maximum at {}", lsn);
                for lsn in [lsn, lsn.saturating_sub(8)] {
                    let around = search.commits_around(from, to, lsn).await.unwrap();
                    prop_assert_eq!(around, brute.commits_around(from, to, lsn), "commits around {}", lsn);
                }
            }
            Ok(())
        })?;
    }
}

/// Three segments and a tail; the clock of the second one was ahead.
fn three_segments() -> WalWriter {
    let mut wal = WalWriter::new(1, 5);
    for (xid, micros) in [(10, 100), (11, 110)] {
        wal.commit(xid, micros);
    }
    wal.fill_segment();
    wal.commit(12, 500);
    wal.abort(13, 120);
    wal.restore_point("before", 125);
    wal.fill_segment();
    wal.commit(14, 130);
    wal.fill_segment();
    wal.commit(15, 600);
    wal.restore_point("before", 610);
    wal.noop(100);
    wal
}

#[tokio::test]
async fn questions_are_answered_by_kind() {
    let wal = three_segments();
    let (lineage, catalog) = catalog_with(&wal, 50).await;
    let (branch, from, to) = (timeline(1), wal.start, wal.end());
    let xact = |index: usize| wal.xacts[index].xact;
    let ask = async |question| answer(&lineage, &catalog, &question).await.unwrap();
    let than = Some(time(115));
    // The commit at 500 is the first later one, although 120 and 130 come after it.
    assert_eq!(
        ask(Question::FirstLater { branch, from, to, than, or_equal: false }).await,
        Answer::Xact(Some(xact(2)))
    );
    assert_eq!(ask(Question::MaxTime { branch, lsn: xact(4).end }).await, Answer::Time(Some(time(500))));
    assert_eq!(ask(Question::Xid { branch, from, to, xid: 13 }).await, Answer::Xacts(vec![xact(3)]));
    assert_eq!(ask(Question::LastXact { branch, from, to }).await, Answer::Mark(Some(XactMark::from(&xact(5)))));
    let Answer::RestorePoints(points) =
        ask(Question::RestorePoint { branch, from, to, name: "before".to_owned() }).await
    else {
        panic!("another kind of answer")
    };
    assert_eq!(points.iter().map(|point| point.time).collect::<Vec<_>>(), [time(125), time(610)]);
    let Answer::End(end) = ask(Question::End { branch, from, to }).await else { panic!("another kind of answer") };
    assert_eq!(end.end, to);
    assert!(end.last_record.is_some_and(|lsn| lsn > points[1].lsn));
    let Answer::Record(Some(first)) = ask(Question::FirstRecord { branch, from: xact(4).end, to }).await else {
        panic!("another kind of answer")
    };
    assert!(first.lsn >= xact(4).end && first.lsn < xact(5).lsn);
}

#[tokio::test]
async fn a_cut_record_at_the_end_does_not_count() {
    let mut wal = WalWriter::new(1, 5);
    wal.commit(10, 100);
    let whole = wal.end();
    wal.long_commit(11, 200, 1000);
    wal.bytes.truncate(wal.bytes.len() - 100);
    let xacts = wal.xacts.clone();
    let (lineage, catalog) = catalog_with(&wal, 3000).await;
    let search = WalSearch::new(&lineage, &catalog, timeline(1));
    let end = search.end(wal.start, wal.end()).await.unwrap();
    assert_eq!((end.last_record, end.end), (Some(xacts[0].xact.lsn), whole));
    assert_eq!(search.max_time(wal.end()).await.unwrap(), Some(time(100)));
    assert_eq!(search.first_later(wal.start, wal.end(), Some(time(150)), false).await.unwrap(), None);
}

#[tokio::test]
async fn a_branch_sees_its_parents_wal_only_up_to_the_switch_point() {
    let mut parent = WalWriter::new(1, 5);
    parent.commit(10, 100);
    parent.fill_segment();
    parent.commit(11, 200);
    let switch = parent.end();
    let mut child = parent.fork(2);
    parent.commit(12, 300);
    child.noop(10);
    child.commit(13, 250);
    child.commit(14, 260);

    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    parent.store(&lineage, 10_000).await;
    let history = format!("1\t{switch}\tno recovery target specified\n");
    lineage.put_history(timeline(2), history.as_bytes()).await.unwrap();
    // Right after the failover nothing of the new timeline is stored: its parent's tail stands in, cut at the switch.
    let catalog = lineage.catalog().await.unwrap();
    let search = WalSearch::new(&lineage, &catalog, timeline(2));
    assert_eq!(search.max_time(switch).await.unwrap(), Some(time(200)));
    assert_eq!(search.first_later(parent.start, switch, Some(time(200)), false).await.unwrap(), None);
    assert_eq!(search.last_xact(parent.start, switch).await.unwrap().map(|mark| mark.xid), Some(11));

    child.store_from(&lineage, Lsn::new(6 * SIZE), Some(time(100)), 10_000).await;
    let catalog = lineage.catalog().await.unwrap();
    let search = WalSearch::new(&lineage, &catalog, timeline(2));
    let stop = search.first_later(child.start, child.end(), Some(time(255)), false).await.unwrap();
    assert_eq!(stop.map(|xact| xact.xid), Some(14));
    let old = WalSearch::new(&lineage, &catalog, timeline(1));
    let stop = old.first_later(parent.start, parent.end(), Some(time(255)), false).await.unwrap();
    assert_eq!(stop.map(|xact| xact.xid), Some(12));
}

#[tokio::test]
async fn wal_that_is_not_stored_is_an_error_and_never_an_answer() {
    let wal = three_segments();
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    wal.store(&lineage, 100).await;
    let key = lineage.keys().key(&LineageObject::Segment(name(1, 6)));
    let before = lineage.catalog().await.unwrap();
    storage.delete(&[key]).await.unwrap();
    // Deleted after the catalog was read.
    let search = WalSearch::new(&lineage, &before, timeline(1));
    let forgotten = lineage_with_cache(Arc::<MemoryStorage>::clone(&storage), None).await;
    let fresh = WalSearch::new(&forgotten, &before, timeline(1));
    assert!(matches!(search.xid(wal.start, wal.end(), 12).await, Err(RepositoryError::Mismatch { .. })));
    assert!(matches!(fresh.last_xact(wal.start, Lsn::new(7 * SIZE)).await, Err(RepositoryError::Mismatch { .. })));
    // And as the catalog tells it now: a hole.
    let after = lineage.catalog().await.unwrap();
    let search = WalSearch::new(&lineage, &after, timeline(1));
    assert!(matches!(search.xid(wal.start, wal.end(), 12).await, Err(RepositoryError::NotFound(_))));
}

#[test]
fn answers_can_be_awaited_from_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    block_on(async {
        let lineage = lineage(Arc::new(MemoryStorage::new())).await;
        let catalog = lineage.catalog().await.unwrap();
        let question = Question::MaxTime { branch: timeline(1), lsn: Lsn::new(SIZE) };
        is_send(&answer(&lineage, &catalog, &question));
    });
}
