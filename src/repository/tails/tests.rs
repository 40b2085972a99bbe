use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use wal::{Lsn, XactIndex};

use super::TailChain;
use crate::repository::layout::{LineageObject, TailName};
use crate::repository::test_wal::{SIZE, WalWriter, lineage, meta, name, replace, segment};
use crate::repository::{LineageRepository, PlainSource, RepositoryError};
use crate::storage::Storage;
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;

fn start() -> Lsn {
    Lsn::new(5 * SIZE)
}

fn at(offset: u64) -> Lsn {
    start().saturating_add(offset)
}

fn wal() -> WalWriter {
    let mut wal = WalWriter::new(1, 5);
    wal.commit(10, 100);
    wal.noop(50_000);
    wal
}

/// What is stored of the segment, and where it ends.
async fn fetch(lineage: &LineageRepository) -> Result<Option<(Vec<u8>, Lsn)>, RepositoryError> {
    let mut bytes = Vec::new();
    let end = lineage.fetch_tail(name(1, 5), &mut bytes).await?;
    Ok(end.map(|end| (bytes, end)))
}

async fn put(lineage: &LineageRepository, wal: &WalWriter, from: u64, to: u64) -> Result<(), RepositoryError> {
    let plain = wal.slice(at(from), at(to));
    lineage.put_tail(&meta(1, 5), at(from), plain, &XactIndex::start(None)).await.map(|_| ())
}

#[test]
fn the_chain_is_what_reaches_furthest_from_the_start_without_a_hole() {
    let piece = |from: u64, to: u64| TailName { segment: name(1, 5), from: at(from), to: at(to) };
    let chain = |pieces: &[TailName]| TailChain::of(name(1, 5), start(), pieces.to_vec()).map(|chain| chain.end);
    assert_eq!(chain(&[]), None);
    assert_eq!(chain(&[piece(1, 10)]), None);
    assert_eq!(chain(&[piece(10, 20), piece(0, 10)]), Some(at(20)));
    assert_eq!(chain(&[piece(0, 10), piece(11, 20)]), Some(at(10)));
    // Two writers that cut differently.
    assert_eq!(chain(&[piece(0, 10), piece(0, 12), piece(10, 25), piece(12, 20), piece(20, 30)]), Some(at(30)));
    assert_eq!(chain(&[piece(0, 12), piece(10, 25)]), Some(at(25)));
}

#[test]
fn the_cover_of_a_chain_is_small() {
    let piece = |from: u64, to: u64| TailName { segment: name(1, 5), from: at(from), to: at(to) };
    let cover = |pieces: &[TailName]| TailChain::of(name(1, 5), start(), pieces.to_vec()).unwrap().cover();
    assert_eq!(cover(&[piece(0, 10), piece(10, 20)]), [piece(0, 10), piece(10, 20)]);
    assert_eq!(cover(&[piece(0, 10), piece(10, 20), piece(0, 30), piece(30, 40)]), [piece(0, 30), piece(30, 40)]);
    assert_eq!(cover(&[piece(0, 12), piece(5, 8), piece(10, 25), piece(12, 20)]), [piece(0, 12), piece(10, 25)]);
    let many: Vec<_> = (0..5000).map(|n| piece(if n % 32 == 31 { n - 31 } else { n }, n + 1)).collect();
    assert_eq!(cover(&many).len(), 5000 / 32 + 5000 % 32);
}

#[tokio::test]
async fn a_tail_of_many_pieces_is_read_from_few() {
    let storage = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage(Arc::<Faulty>::clone(&storage)).await;
    let wal = wal();
    for n in 0..100 {
        put(&lineage, &wal, n * 100, n * 100 + 100).await.unwrap();
    }
    put(&lineage, &wal, 0, 10_000).await.unwrap();
    storage.forget_calls();
    let (bytes, end) = fetch(&lineage).await.unwrap().unwrap();
    assert!(bytes == wal.bytes[..10_000] && end == at(10_000));
    assert_eq!(storage.calls().iter().filter(|(operation, _)| *operation == Operation::GetRange).count(), 1);
}

#[tokio::test]
async fn a_tail_comes_back_from_its_pieces() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let wal = wal();
    assert_eq!(fetch(&lineage).await.unwrap(), None);
    for (from, to) in [(0, 10), (10, 9000), (9000, 9001), (9001, 30_000)] {
        put(&lineage, &wal, from, to).await.unwrap();
    }
    let (bytes, end) = fetch(&lineage).await.unwrap().unwrap();
    assert!(bytes == wal.bytes[..30_000] && end == at(30_000));
}

#[tokio::test]
async fn pieces_of_two_writers_may_overlap_when_they_agree() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let wal = wal();
    for (from, to) in [(0, 10_000), (0, 12_000), (5_000, 6_000), (10_000, 25_000), (12_000, 20_000)] {
        put(&lineage, &wal, from, to).await.unwrap();
    }
    let (bytes, end) = fetch(&lineage).await.unwrap().unwrap();
    assert!(bytes == wal.bytes[..25_000] && end == at(25_000));
}

#[tokio::test]
async fn a_file_gets_large_pieces_as_they_come_and_they_are_compared() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let mut wal = WalWriter::new(1, 5);
    while wal.bytes.len() < 950_000 {
        wal.noop(50_000);
    }
    for (from, to) in [(0, 1000), (0, 600_000), (100_000, 800_000), (700_000, 700_100), (800_000, 900_000)] {
        put(&lineage, &wal, from, to).await.unwrap();
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 1_000_000]).unwrap();
    let end = lineage.fetch_tail(name(1, 5), &mut file).await.unwrap();
    assert_eq!(end, Some(at(900_000)));
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == wal.bytes[..900_000], "nothing of what the file held before");
    wal.bytes[500_000] ^= 1;
    put(&lineage, &wal, 200_000, 850_000).await.unwrap();
    let error = lineage.fetch_tail(name(1, 5), &mut file).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn pieces_that_disagree_are_refused() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let (one, mut other) = (wal(), wal());
    put(&lineage, &one, 0, 10_000).await.unwrap();
    put(&lineage, &one, 10_000, 20_000).await.unwrap();
    other.bytes[19_000] ^= 1;
    put(&lineage, &other, 10_000, 30_000).await.unwrap();
    let error = fetch(&lineage).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
    // Under the very same name they never get in.
    let error = put(&lineage, &other, 10_000, 20_000).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Conflict { .. }), "{error}");
}

#[tokio::test]
async fn a_piece_must_lie_in_its_segment_and_be_its_wal() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let wal = wal();
    let index = XactIndex::start(None);
    let plain = wal.slice(at(0), at(100));
    for (number, from) in [(6, at(0)), (4, at(0)), (5, Lsn::new(6 * SIZE - 50))] {
        let error = lineage.put_tail(&meta(1, number), from, plain.clone(), &index).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Mismatch { .. }), "{error}");
    }
    let error = lineage.put_tail(&meta(1, 5), at(0), bytes::Bytes::new(), &index).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Mismatch { .. }), "{error}");
    let other = segment(1, 6, 10, 100).slice(..100);
    let error = lineage.put_tail(&meta(1, 5), at(0), other, &index).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_or_misplaced_piece_is_named() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let wal = wal();
    for (from, to) in [(0, 10_000), (10_000, 20_000), (20_000, 30_000)] {
        put(&lineage, &wal, from, to).await.unwrap();
    }
    let key_of = |from: u64, to: u64| {
        lineage.keys().key(&LineageObject::Tail(TailName { segment: name(1, 5), from: at(from), to: at(to) }))
    };
    let (key, next) = (key_of(10_000, 20_000), key_of(20_000, 30_000));
    let good = storage.get(&key).await.unwrap().to_vec();
    let mut flipped = good.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let other = storage.get(&next).await.unwrap().to_vec();
    for bytes in [flipped, good[..good.len() - 5].to_vec(), other] {
        replace(storage.as_ref(), &key, bytes).await;
        let error = fetch(&lineage).await.unwrap_err();
        assert!(matches!(&error, RepositoryError::Damaged { key: named, .. } if *named == key), "{error}");
    }
    // Deleted: the chain ends before it, and that is what there is.
    storage.delete(&[key]).await.unwrap();
    assert_eq!(fetch(&lineage).await.unwrap().map(|(_, end)| end), Some(at(10_000)));
}

#[tokio::test]
async fn a_piece_that_is_listed_and_gone_is_an_error_and_not_absence() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage(Arc::<Faulty>::clone(&faulty)).await;
    put(&lineage, &wal(), 0, 10_000).await.unwrap();
    let gone = Rule::new(Fault::Fail(crate::storage::StorageErrorKind::NotFound)).on(Operation::GetRange);
    faulty.add(gone.clone().calls(1..=1));
    assert!(fetch(&lineage).await.unwrap().is_some());
    faulty.add(gone);
    let error = fetch(&lineage).await.unwrap_err();
    assert!(!error.is_not_found(), "{error}");
}

#[tokio::test]
async fn a_complete_segment_makes_its_tails_meaningless() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let plain = segment(1, 5, 10, 100);
    lineage.put_tail(&meta(1, 5), at(0), plain.slice(..1000), &XactIndex::start(None)).await.unwrap();
    assert_eq!(lineage.catalog().await.unwrap().tails.len(), 1);
    lineage.put_segment(&meta(1, 5), &XactIndex::start(None), PlainSource::Bytes(plain)).await.unwrap();
    let catalog = lineage.catalog().await.unwrap();
    assert_eq!(catalog.tails, []);
    assert_eq!(catalog.coverage.contiguous_end(name(1, 5).timeline(), start()), Some(Lsn::new(6 * SIZE)));
}

#[tokio::test]
async fn a_damaged_piece_is_done_without_where_others_hold_its_bytes_and_not_elsewhere() {
    for (pieces, damaged, around) in [
        (vec![(0, 10_000), (10_000, 12_000), (10_000, 20_000)], (10_000, 12_000), true),
        (vec![(0, 10_000), (0, 12_000), (12_000, 20_000)], (0, 10_000), true),
        (vec![(0, 10_000), (10_000, 20_000)], (10_000, 20_000), false),
        (vec![(0, 10_000), (10_000, 20_000)], (0, 10_000), false),
        (vec![(0, 10_000), (5_000, 20_000), (0, 6_000)], (0, 10_000), true),
    ] {
        let storage = Arc::new(MemoryStorage::new());
        let lineage = lineage(Arc::clone(&storage) as Arc<_>).await;
        let wal = wal();
        for &(from, to) in &pieces {
            put(&lineage, &wal, from, to).await.unwrap();
        }
        let piece = TailName { segment: name(1, 5), from: at(damaged.0), to: at(damaged.1) };
        let key = lineage.keys().key(&LineageObject::Tail(piece));
        let mut bytes = storage.get(&key).await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xFF;
        replace(storage.as_ref(), &key, bytes).await;
        assert!(fetch(&lineage).await.is_err(), "whoever looks after the objects is told");
        let mut sound = Vec::new();
        let end = lineage.fetch_sound_tail(name(1, 5), &mut sound).await;
        match end {
            Ok(end) => assert!(around && end == Some(at(20_000)) && sound == wal.bytes[..20_000], "{pieces:?}"),
            Err(error) => assert!(!around && matches!(error, RepositoryError::Damaged { .. }), "{pieces:?}: {error}"),
        }
    }
}
