use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use recovery::{Answer, Question};
use wal::{Lsn, PgTime};

use super::group;
use crate::repository::LineageRepository;
use crate::repository::layout::LineageObject;
use crate::repository::test_wal::{SIZE, WalWriter, lineage_with_cache, name, timeline};
use crate::repository::xact_search::answer;
use crate::storage::Storage;
use crate::storage::faulty::{Faulty, Operation};
use crate::storage::memory::MemoryStorage;

fn wal() -> WalWriter {
    let mut wal = WalWriter::new(1, 5);
    for number in 0..6i64 {
        wal.commit(10 + number as u32, 100 + number);
        wal.fill_segment();
    }
    wal
}

async fn ask(lineage: &LineageRepository, wal: &WalWriter) -> Answer {
    let catalog = lineage.catalog().await.unwrap();
    let question = Question::LastXact { branch: timeline(1), from: wal.start, to: wal.end() };
    let last = answer(lineage, &catalog, &question).await.unwrap();
    let than = Some(PgTime::from_micros(102));
    let question = Question::FirstLater { branch: timeline(1), from: wal.start, to: wal.end(), than, or_equal: false };
    assert_eq!(answer(lineage, &catalog, &question).await.unwrap(), Answer::Xact(Some(wal.xacts[3].xact)));
    last
}

fn header_reads(faulty: &Faulty) -> usize {
    faulty.calls().iter().filter(|(operation, _)| *operation == Operation::GetRange).count()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn headers_are_read_once_and_remembered_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let wal = wal();
    wal.store(&lineage_with_cache(Arc::<Faulty>::clone(&faulty), None).await, 100).await;
    let reads = async |lineage: &LineageRepository| {
        faulty.forget_calls();
        ask(lineage, &wal).await;
        header_reads(&faulty)
    };
    let first = lineage_with_cache(Arc::<Faulty>::clone(&faulty), Some(dir.path())).await;
    let cold = reads(&first).await;
    assert!(cold > 2, "{cold} reads");
    // What is left is the one segment in which the stop is found.
    assert_eq!(reads(&first).await, 1);
    let again = lineage_with_cache(Arc::<Faulty>::clone(&faulty), Some(dir.path())).await;
    assert_eq!(reads(&again).await, 1);
    fs::remove_dir_all(dir.path()).unwrap();
    let rebuilt = lineage_with_cache(Arc::<Faulty>::clone(&faulty), Some(dir.path())).await;
    assert_eq!(reads(&rebuilt).await, cold);
    assert_eq!(reads(&rebuilt).await, 1);
}

#[tokio::test]
async fn what_this_process_stored_is_not_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage_with_cache(Arc::<Faulty>::clone(&faulty), Some(dir.path())).await;
    let wal = wal();
    wal.store(&lineage, 100).await;
    faulty.forget_calls();
    ask(&lineage, &wal).await;
    assert_eq!(header_reads(&faulty), 1);
}

#[tokio::test]
async fn a_line_cut_by_a_crash_costs_one_read_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let wal = wal();
    let lineage = lineage_with_cache(Arc::<MemoryStorage>::clone(&storage), Some(dir.path())).await;
    wal.store(&lineage, 100).await;
    let expected = ask(&lineage, &wal).await;
    let [file] = files(dir.path()).try_into().unwrap();
    let bytes = fs::read(&file).unwrap();
    for cut in [bytes.len() - 1, bytes.len() - 100, bytes.len() / 2, 3] {
        fs::write(&file, &bytes[..cut]).unwrap();
        let lineage = lineage_with_cache(Arc::<MemoryStorage>::clone(&storage), Some(dir.path())).await;
        assert_eq!(ask(&lineage, &wal).await, expected);
    }
}

#[tokio::test]
async fn a_cache_that_lies_is_found_out_and_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage_with_cache(Arc::<MemoryStorage>::clone(&storage), Some(dir.path())).await;
    let wal = wal();
    wal.store(&lineage, 100).await;
    let [file] = files(dir.path()).try_into().unwrap();
    // All commit times of the cache are an hour late, so the search looks into the wrong segment first.
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("T00:00:00", "T01:00:00")).unwrap();
    let lineage = lineage_with_cache(Arc::<MemoryStorage>::clone(&storage), Some(dir.path())).await;
    ask(&lineage, &wal).await;
}

#[tokio::test]
async fn a_cache_of_another_repository_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage_with_cache(Arc::<MemoryStorage>::clone(&storage), Some(dir.path())).await;
    wal().store(&lineage, 100).await;
    let [file] = files(dir.path()).try_into().unwrap();
    let id = lineage.repository().marker().id.as_str().to_owned();
    assert!(file.starts_with(dir.path().join(id).join("main").join(lineage.id().to_string())), "{}", file.display());
    let key = lineage.keys().key(&LineageObject::Segment(name(1, 5)));
    assert!(storage.head(&key).await.unwrap().is_some());
    assert_eq!(lineage.segment_header(name(1, 5)).await.unwrap().map(|h| h.start_lsn), Some(Lsn::new(5 * SIZE)));
}

#[tokio::test]
async fn headers_of_tails_are_remembered_until_their_segment_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let lineage = lineage_with_cache(Arc::new(MemoryStorage::new()), Some(dir.path())).await;
    let mut wal = WalWriter::new(1, 5);
    wal.commit(10, 100);
    wal.noop(20_000);
    wal.store(&lineage, 5_000).await;
    let chain = lineage.tail_chain(name(1, 5)).await.unwrap().unwrap();
    let keys: Vec<_> = chain.pieces.iter().map(|piece| lineage.keys().key(&LineageObject::Tail(*piece))).collect();
    let remembered = || keys.iter().filter(|key| lineage.inner.headers.get(key, &group(name(1, 5))).is_some()).count();
    assert_eq!(remembered(), keys.len());
    assert!(!dir.path().join(lineage.repository().marker().id.as_str()).exists(), "tails were written down");
    wal.fill_segment();
    wal.store(&lineage, 5_000).await;
    assert_eq!(remembered(), 0);
}
