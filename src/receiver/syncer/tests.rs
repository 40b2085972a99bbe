//! Real files, and a listener in the server's place.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use tempfile::TempDir;
use wal::{SegmentName, SegmentSize, SystemIdentifier, TimelineId};

use super::*;
use crate::receiver::errands::drive;
use crate::receiver::intake::{Intake, Known};
use crate::spool::{Spool, SpoolOptions};

const SIZE: u64 = 1 << 20;

fn spool(dir: &TempDir) -> Spool {
    let segment_size = SegmentSize::new(SIZE).unwrap();
    let dir = dir.path().join("spool");
    Spool::open(SpoolOptions { dir, segment_size, system_identifier: SystemIdentifier::new(7), max_size: None })
        .unwrap()
}

/// Compares what it is told with what the spool holds, and can be deaf.
#[derive(Debug)]
struct Listener {
    spool: Spool,
    positions: Positions,
    deaf: AtomicBool,
    begun: AtomicUsize,
    told: AtomicUsize,
    /// Who told.
    by: Mutex<Vec<ThreadId>>,
    /// Waits for this before it has told.
    until: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Tell for Listener {
    fn try_tell(&self) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let (received, durable) = self.positions.get();
        let (_, held) = self.spool.durable().unwrap();
        assert!(durable <= held, "told {durable}, the spool holds {held}");
        assert!(durable <= received);
        if let Some(until) = self.until.lock().unwrap().as_ref() {
            until.recv().unwrap_or_default();
        }
        self.by.lock().unwrap().push(thread::current().id());
        self.told.fetch_add(1, Ordering::Relaxed);
        !self.deaf.load(Ordering::Relaxed)
    }
}

impl Listener {
    async fn has_told(&self, times: usize) {
        while self.told.load(Ordering::Relaxed) < times {
            tokio::task::yield_now().await;
        }
    }

    fn told_by(&self, thread: ThreadId) -> usize {
        self.by.lock().unwrap().iter().filter(|&&by| by == thread).count()
    }
}

async fn begin(dir: &TempDir, synchronous: bool) -> (Intake, Arc<Listener>) {
    let spool = spool(dir);
    let intake =
        Intake::open(spool.clone(), TimelineId::FIRST, Lsn::new(SIZE), Known::default(), synchronous).await.unwrap();
    let positions = intake.positions();
    let (deaf, begun, told, by, until) = Default::default();
    let listener = Arc::new(Listener { spool, positions, deaf, begun, told, by, until });
    intake.tell_through(Arc::clone(&listener) as Arc<dyn Tell>);
    (intake, listener)
}

#[tokio::test]
async fn what_is_told_is_what_the_spool_holds_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, listener) = begin(&dir, true).await;
    let mut end = Lsn::new(SIZE);
    for piece in (0..400).map(|n| vec![1; 100 + n * 40]) {
        intake.write(&piece).await.unwrap();
        intake.want_durable();
        end = end.saturating_add(piece.len() as u64);
        assert_eq!(intake.position(), end);
    }
    intake.flush().await.unwrap();
    assert_eq!((intake.positions().get().1, intake.is_clean()), (end, true));
    assert_eq!(listener.spool.durable().unwrap().1, end);
    assert!(end > Lsn::new(4 * SIZE), "some segments were completed");
    assert!(listener.told.load(Ordering::Relaxed) > 0);
    intake.close().await.unwrap();
    assert_eq!(Arc::strong_count(&listener), 1, "whoever tells keeps the connection open");
}

#[tokio::test]
async fn without_being_asked_only_whole_segments_become_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, listener) = begin(&dir, false).await;
    intake.write(&vec![1; 700_000]).await.unwrap();
    assert_eq!((intake.positions().get().1, intake.is_clean()), (Lsn::new(SIZE), false));
    assert_eq!(listener.told.load(Ordering::Relaxed), 0);
    intake.write(&vec![1; 700_000]).await.unwrap();
    while intake.positions().get().1 < Lsn::new(2 * SIZE) {
        tokio::task::yield_now().await;
    }
    assert_eq!((intake.positions().get().1, intake.is_clean()), (Lsn::new(2 * SIZE), false));
    intake.flush().await.unwrap();
    assert_eq!(intake.positions().get().1, Lsn::new(SIZE + 1_400_000));
    intake.close().await.unwrap();
}

#[tokio::test]
async fn the_read_loop_is_asked_to_tell_what_could_not_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, listener) = begin(&dir, true).await;
    listener.deaf.store(true, Ordering::Relaxed);
    intake.write(b"WAL").await.unwrap();
    intake.want_durable();
    intake.untold().await.unwrap();
    assert_eq!(intake.positions().get().1, Lsn::new(SIZE + 3));
    drop(intake);
    while Arc::strong_count(&listener) > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn after_an_error_nothing_is_durable_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, listener) = begin(&dir, true).await;
    intake.write(&vec![1; 1000]).await.unwrap();
    intake.flush().await.unwrap();
    // A segment cannot be published into a folder that is gone. The spare may just be coming into it.
    while std::fs::remove_dir_all(dir.path().join("spool")).is_err() {}
    let rest = usize::try_from(SIZE - 1000).unwrap();
    intake.write(&vec![1; rest]).await.unwrap();
    assert!(intake.untold().await.is_err());
    // There is nothing left to wait for.
    intake.flush().await.unwrap();
    assert!(intake.positions().get().1 < Lsn::new(2 * SIZE));
    assert!(listener.spool.durable().unwrap().1 < Lsn::new(2 * SIZE));
}

/// Lets `task` run where errands are run.
fn with_errands<F: Future<Output: Send> + Send>(task: impl FnOnce(Errands) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let errands = Errands::default();
    drive(&runtime, &errands, "second", task(errands.clone())).unwrap()
}

async fn wait_durable(intake: &Intake) {
    while intake.positions().get().1 < intake.position() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn short_syncs_are_made_and_told_by_the_thread_that_reads_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let here = thread::current().id();
    with_errands(async |errands| {
        let (mut intake, listener) = begin(&dir, true).await;
        intake.run_errands_of(errands);
        for n in 1..=50 {
            intake.write(&[1; 100]).await.unwrap();
            intake.want_durable();
            wait_durable(&intake).await;
            listener.has_told(n).await;
        }
        assert_eq!(listener.told_by(here), 50);
        intake.write(&vec![1; 700_000]).await.unwrap();
        intake.want_durable();
        wait_durable(&intake).await;
        listener.has_told(51).await;
        assert_eq!(listener.told_by(here), 50);
        // Into the next segment: the thread publishes the one before, and then there are errands again.
        intake.write(&vec![1; 400_000]).await.unwrap();
        intake.flush().await.unwrap();
        let before = listener.told_by(here);
        intake.write(&[1; 100]).await.unwrap();
        intake.want_durable();
        while listener.told_by(here) == before {
            tokio::task::yield_now().await;
        }
        assert_eq!(listener.spool.durable().unwrap().1, intake.position());
        intake.close().await.unwrap();
        assert_eq!(Arc::strong_count(&listener), 1, "whoever tells keeps the connection open");
    });
}

#[test]
fn while_an_errand_takes_long_more_is_taken_in_and_becomes_durable_after_it() {
    let dir = tempfile::tempdir().unwrap();
    with_errands(async |errands| {
        let (mut intake, listener) = begin(&dir, true).await;
        intake.run_errands_of(errands);
        let (go, until) = mpsc::channel();
        *listener.until.lock().unwrap() = Some(until);
        for round in 0..3 {
            intake.write(b"WAL").await.unwrap();
            intake.want_durable();
            // From then on the first thread is away.
            while listener.begun.load(Ordering::Relaxed) <= 2 * round {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            intake.write(b"and more").await.unwrap();
            intake.want_durable();
            assert_eq!(listener.told.load(Ordering::Relaxed), 2 * round);
            go.send(()).unwrap();
            go.send(()).unwrap();
            wait_durable(&intake).await;
            listener.has_told(2 * (round + 1)).await;
        }
        drop(go);
        intake.close().await.unwrap();
    });
}

#[test]
fn an_errand_that_fails_is_an_error_like_any_other_and_nothing_is_synced_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    with_errands(async |errands| {
        let start = Lsn::new(SIZE);
        let name = SegmentName::containing(TimelineId::FIRST, start, spool.segment_size());
        let mut segment = spool.create(name).unwrap();
        let mut syncer = Syncer::start(start, start);
        syncer.run_errands_of(errands);
        segment.write(b"WAL").unwrap();
        syncer.written(segment.position(), segment.sync_handle());
        syncer.flush().await.unwrap();
        let durable = segment.position();
        segment.write(b"WAL").unwrap();
        syncer.written(segment.position(), segment.sync_handle().that_fails());
        syncer.want();
        assert!(syncer.untold().await.is_err());
        // It was told once; there is nothing left to wait for.
        syncer.written(segment.position(), segment.sync_handle());
        syncer.flush().await.unwrap();
        assert_eq!(syncer.positions().get().1, durable);
        syncer.close().await.unwrap();
    });
}
