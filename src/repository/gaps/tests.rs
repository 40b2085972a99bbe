use std::sync::Arc;

use wal::{Lsn, PgTime};

use super::*;
use crate::repository::test_wal::{lineage, replace, timeline};
use crate::storage::memory::MemoryStorage;

fn document(reason: &str) -> GapDocument {
    GapDocument {
        timeline: timeline(1),
        from_lsn: Lsn::new(0x120_0010),
        to_lsn: Lsn::new(0x300_0000),
        reason: reason.to_owned(),
        found_at: PgTime::from_micros(7),
    }
}

#[tokio::test]
async fn the_first_record_of_a_loss_stays_and_explains_the_hole() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    assert!(lineage.put_gap(&document("the slot was lost")).await.unwrap());
    assert!(!lineage.put_gap(&document("something else")).await.unwrap());
    let catalog = lineage.catalog().await.unwrap();
    let gap = Gap { timeline: timeline(1), start: Lsn::new(0x120_0010), end: Lsn::new(0x300_0000) };
    let found_at = Some(PgTime::from_micros(7));
    assert_eq!(catalog.lost, [LostWal { gap, reason: "the slot was lost".to_owned(), found_at }]);
    assert_eq!(catalog.reason_of(&gap), "the slot was lost");
    assert_eq!(catalog.unexplained(&gap), []);
    let larger = Gap { start: Lsn::new(0x110_0000), ..gap };
    assert_eq!(
        catalog.reason_of(&larger),
        "the slot was lost; from 0/1100000 to 0/1200010 it is not in the repository"
    );
    let other = Gap { timeline: timeline(2), ..gap };
    assert_eq!(catalog.reason_of(&other), "not in the repository");
}

#[tokio::test]
async fn a_damaged_record_of_a_loss_hides_nothing() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(storage.clone()).await;
    lineage.put_gap(&document("the slot was lost")).await.unwrap();
    let name = GapName { timeline: timeline(1), from: Lsn::new(0x120_0010), to: Lsn::new(0x300_0000) };
    let key = lineage.keys().key(&LineageObject::Gap(name));
    replace(storage.as_ref(), &key, b"{}".to_vec()).await;
    let catalog = lineage.catalog().await.unwrap();
    assert_eq!(catalog.lost.len(), 1);
    assert!(catalog.lost[0].reason.contains("cannot be read"), "{:?}", catalog.lost);
}

#[tokio::test]
async fn a_loss_of_nothing_is_refused() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let empty = GapDocument { to_lsn: Lsn::new(0x120_0010), ..document("x") };
    assert!(lineage.put_gap(&empty).await.is_err());
}
