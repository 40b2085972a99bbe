//! Real files, and a listener in the server's place.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;
use wal::{SegmentSize, SystemIdentifier, TimelineId};

use super::*;
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
    told: AtomicUsize,
}

impl Tell for Listener {
    fn try_tell(&self) -> bool {
        let (received, durable) = self.positions.get();
        let (_, held) = self.spool.durable().unwrap();
        assert!(durable <= held, "told {durable}, the spool holds {held}");
        assert!(durable <= received);
        self.told.fetch_add(1, Ordering::Relaxed);
        !self.deaf.load(Ordering::Relaxed)
    }
}

async fn begin(dir: &TempDir, synchronous: bool) -> (Intake, Arc<Listener>) {
    let spool = spool(dir);
    let intake =
        Intake::open(spool.clone(), TimelineId::FIRST, Lsn::new(SIZE), Known::default(), synchronous).await.unwrap();
    let positions = intake.positions();
    let listener = Listener { spool, positions, deaf: AtomicBool::new(false), told: AtomicUsize::new(0) };
    let listener = Arc::new(listener);
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
