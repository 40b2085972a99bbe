use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wal::{Lsn, SegmentName};

use super::Archiver;
use crate::clock::SystemClock;
use crate::error::{Error, ErrorCode};
use crate::repository::LineageRepository;
use crate::repository::test_wal::{SIZE, SYSTEM, WalWriter, lineage, name, segment_size};
use crate::spool::{Held, Spool, SpoolOptions};
use crate::storage::StorageErrorKind;
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::wal_pipeline::{GapStore, StatusBoard};

struct Bench {
    dir: tempfile::TempDir,
    spool: Spool,
    storage: Arc<Faulty>,
    repository: LineageRepository,
    board: StatusBoard,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(SpoolOptions {
            dir: dir.path().join("spool"),
            segment_size: segment_size(),
            system_identifier: SYSTEM,
            max_size: None,
        })
        .unwrap();
        let storage = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
        let repository = lineage(Arc::<Faulty>::clone(&storage)).await;
        Self { dir, spool, storage, repository, board: StatusBoard::new() }
    }

    fn archive(&self) -> CancellationToken {
        self.archive_every(Duration::from_millis(20))
    }

    fn archive_every(&self, max_rpo: Duration) -> CancellationToken {
        let stop = CancellationToken::new();
        let archiver = Archiver {
            spool: self.spool.clone(),
            repository: self.repository.clone(),
            gaps: GapStore::open(self.dir.path().join("state"), self.board.clone()).unwrap(),
            clock: Arc::new(SystemClock),
            board: self.board.clone(),
            max_rpo,
            uploads: 2,
            drain: Duration::from_secs(5),
            refetch: Box::new(|_| Box::pin(std::future::pending())),
        };
        tokio::spawn(archiver.run(stop.clone()));
        stop
    }

    /// Takes in `wal` from the segment's start up to `to`, as the receiver does.
    fn receive(&self, wal: &WalWriter, segment: SegmentName, from: Lsn, to: Lsn) {
        let mut file = match self.spool.get(segment) {
            Some(Held::Open { durable } | Held::Left { end: durable }) => self.spool.resume(segment, durable).unwrap(),
            Some(Held::Complete) | None => self.spool.create(segment).unwrap(),
        };
        file.activate(None);
        let bytes = wal.slice(from, to);
        assert_eq!(file.write(&bytes).unwrap(), bytes.len());
        match file.complete() {
            Ok(complete) => complete.publish().unwrap(),
            Err(open) => open.sync_handle().sync().unwrap(),
        }
    }

    fn receive_whole(&self, wal: &WalWriter, segment: SegmentName) {
        let start = self.spool.start_of(segment);
        self.receive(wal, segment, start, start.saturating_add(SIZE));
    }

    async fn stored_end(&self, segment: SegmentName) -> Option<Lsn> {
        self.repository.tail_chain(segment).await.unwrap().map(|chain| chain.end)
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Duration::from_secs(300);
    let poll = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(deadline, poll).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"));
}

fn old_and_new() -> (WalWriter, WalWriter) {
    let mut old = WalWriter::new(1, 5);
    old.commit(10, 100);
    let mut new = old.fork(2);
    // Committed and acknowledged on the old timeline alone.
    old.commit(11, 200);
    for _ in 5..8 {
        new.fill_segment();
    }
    (old, new)
}

#[tokio::test]
async fn what_was_left_stays_in_the_spool_until_its_last_piece_is_stored() {
    let bench = Bench::new().await;
    let (old, new) = old_and_new();
    let abandoned = name(1, 5);
    bench.storage.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::Put).key(".tail/"));
    let stop = bench.archive();

    bench.receive(&old, abandoned, old.start, old.end());
    let tried = async || bench.storage.calls().iter().any(|(op, key)| *op == Operation::Put && key.contains(".tail/"));
    until("a tail is cut and on its way", tried).await;
    bench.spool.leave(abandoned).unwrap();
    bench.spool.keep_history(name(2, 5).timeline(), format!("1\t{}\tpromoted\n", old.end()).as_bytes()).unwrap();
    for number in 5..8 {
        bench.receive_whole(&new, name(2, number));
    }
    let all_stored = Lsn::new(8 * SIZE);
    until("the new timeline is stored", async || bench.board.read(|status| status.archived) == Some(all_stored)).await;
    // Long enough for every sweep that was due: each scan and each answer sweeps.
    assert_eq!(bench.spool.get(abandoned), Some(Held::Left { end: old.end() }), "it is nowhere else");
    assert_eq!(bench.stored_end(abandoned).await, None);

    bench.storage.heal();
    until("its tail is stored", async || bench.stored_end(abandoned).await == Some(old.end())).await;
    until("then it goes", async || bench.spool.get(abandoned).is_none()).await;
    stop.cancel();
}

#[tokio::test]
async fn a_history_is_stored_before_the_first_segment_of_its_timeline_is_whole() {
    let bench = Bench::new().await;
    let (old, new) = old_and_new();
    let two = name(2, 5).timeline();
    let history = format!("1\t{}\tpromoted\n", old.end());
    bench.spool.keep_history(two, history.as_bytes()).unwrap();
    bench.receive(&new, name(2, 5), new.start, new.start.saturating_add(8192));
    let stop = bench.archive_every(Duration::ZERO);
    let stored = async || bench.repository.history_bytes(two).await.unwrap().is_some_and(|bytes| bytes == history);
    until("the history is stored", stored).await;
    stop.cancel();
}

#[tokio::test]
async fn what_was_left_and_goes_on_after_all_is_stored_whole() {
    let bench = Bench::new().await;
    let mut wal = WalWriter::new(1, 5);
    wal.commit(10, 100);
    let left_at = wal.end();
    wal.commit(11, 200);
    wal.fill_segment();
    let stop = bench.archive();
    bench.receive(&wal, name(1, 5), wal.start, left_at);
    bench.spool.leave(name(1, 5)).unwrap();
    until("what there is of it is stored", async || bench.stored_end(name(1, 5)).await == Some(left_at)).await;
    bench.receive_whole(&wal, name(1, 5));
    until("it is stored whole", async || bench.repository.segment_header(name(1, 5)).await.unwrap().is_some()).await;
    stop.cancel();
}

#[tokio::test]
async fn bytes_that_a_failed_write_took_away_are_not_shipped_as_zeros() {
    let bench = Bench::new().await;
    let mut wal = WalWriter::new(1, 5);
    wal.commit(10, 100);
    let whole_records = wal.end();
    wal.noop(5_000);
    // Durable and scanned up to the middle of a record.
    let within = whole_records.saturating_add(2_000);
    bench.receive(&wal, name(1, 5), wal.start, within);
    let read = || super::store::read_part(&bench.spool, name(1, 5), wal.start, within);
    assert!(read().unwrap() == wal.slice(wal.start, within));

    bench.spool.verify_again().unwrap();
    assert_eq!(bench.spool.get(name(1, 5)), Some(Held::Open { durable: whole_records }));
    let error = read().unwrap_err();
    assert!(error.to_string().contains("holds less than before"), "{error}");
    bench.receive(&wal, name(1, 5), wal.start, wal.end());
    assert!(read().unwrap() == wal.slice(wal.start, within));
}

#[tokio::test]
async fn a_segment_that_fills_slowly_is_read_from_few_pieces() {
    let bench = Bench::new().await;
    let mut wal = WalWriter::new(1, 5);
    (1..=34).for_each(|xid| wal.commit(xid, i64::from(xid)));
    let stop = bench.archive();
    let mut from = wal.start;
    for written in &wal.xacts {
        bench.receive(&wal, name(1, 5), wal.start, written.xact.end);
        from = written.xact.end;
        until("this piece is stored", async || bench.stored_end(name(1, 5)).await == Some(from)).await;
    }
    stop.cancel();
    let keys = bench.storage.calls().into_iter().filter(|(op, key)| *op == Operation::Put && key.contains(".tail/"));
    let spans: Vec<String> = keys.filter_map(|(_, key)| key.rsplit('/').next().map(str::to_owned)).collect();
    let whole = format!("{}-", wal.start.to_sortable());
    let from_start = spans.iter().filter(|span| span.starts_with(&whole)).count();
    assert_eq!((spans.len(), from_start), (34, 2), "the 1st and the 32nd begin at the start: {spans:?}");
    let catalog = bench.repository.catalog().await.unwrap();
    let search = crate::repository::xact_search::WalSearch::new(&bench.repository, &catalog, name(1, 5).timeline());
    let max = search.max_time(from).await.unwrap();
    assert_eq!(max, Some(wal::PgTime::from_micros(34)));
}

#[tokio::test]
async fn the_alarm_of_a_damaged_segment_outlives_what_is_stored_beside_it() {
    let bench = Bench::new().await;
    let mut wal = WalWriter::new(1, 5);
    wal.fill_segment();
    bench
        .storage
        .add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::Put).key(name(1, 5).to_string()));
    let stop = bench.archive();
    bench.receive_whole(&wal, name(1, 5));
    let mut damaged = bench.spool.create(name(1, 6)).unwrap();
    damaged.activate(None);
    damaged.write(&vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
    damaged.complete().unwrap().publish().unwrap();
    let halted = async || bench.board.read(|status| status.counters.archive_errors.contains_key("damaged"));
    until("it is found damaged", halted).await;

    bench.storage.heal();
    until("the one before it is stored", async || {
        bench.board.read(|status| status.archived) == Some(Lsn::new(6 * SIZE))
    })
    .await;
    let said = bench.board.read(|status| status.archive_error.as_ref().map(Error::code));
    assert_eq!(said, Some(ErrorCode::Damaged), "nothing from it on is stored, and nobody would know");
    // What was committed in it and after it is only here, for longer and longer.
    let exposed = || bench.board.read(|status| status.rpo_seconds);
    let before = exposed();
    assert!(before > 0.0, "{before}");
    until("the exposure grows", async || exposed() > before).await;
    stop.cancel();
}
