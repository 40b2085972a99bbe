use recovery::LineageId;
use wal::SystemIdentifier;

use super::*;
use crate::codec::digest::sha256;
use crate::repository::file_table::ChunkHash;
use crate::repository::layout::LineageKeys;
use crate::repository::manifest::PackRef;
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Body, Storage, StorageErrorKind};

const LEN: u32 = 10_000;
const COUNT: u32 = 300;

/// A pack of chunks that lie side by side, in a store that misbehaves as told.
async fn stored(rules: Vec<Rule>) -> (ReadBack, Arc<Faulty>, Vec<PlacedChunk>, Bytes) {
    let bytes: Bytes = (0..LEN * COUNT).map(|at| (at % 251) as u8).collect();
    let pack = PackRef { sha256: sha256(&bytes), size: bytes.len() as u64 };
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let objects = Objects::new(Arc::clone(&faulty) as Arc<dyn Storage>);
    let cluster = ClusterName::new("main").unwrap();
    let id = LineageId { system_identifier: SystemIdentifier::new(7), number: 1 };
    let keys = LineageKeys::new(cluster, id);
    let key = pack_key(keys.cluster(), &pack.sha256);
    objects.put_new(&key, Body::Bytes(bytes.clone()), pack.sha256).await.unwrap();
    rules.into_iter().for_each(|rule| faulty.add(rule));
    let chunk = |at| PlacedChunk { pack, offset: at * LEN, stored: LEN, plain: LEN, hash: ChunkHash([0; 32]) };
    let read_back = ReadBack::new(objects, keys.cluster().clone(), 4);
    (read_back, faulty, (0..COUNT).map(chunk).collect(), bytes)
}

fn frame_of(bytes: &Bytes, chunk: &PlacedChunk) -> Bytes {
    bytes.slice(chunk.offset as usize..(chunk.offset + chunk.stored) as usize)
}

#[tokio::test]
async fn chunks_side_by_side_take_few_requests() {
    let (read_back, store, chunks, bytes) = stored(vec![]).await;
    store.forget_calls();
    for chunk in &chunks {
        assert_eq!(read_back.base(chunk).await.unwrap().base.unwrap(), frame_of(&bytes, chunk));
    }
    let requests = store.calls().len();
    assert!(requests <= 5, "{requests} requests for {} bytes", bytes.len());
}

#[tokio::test]
async fn what_cannot_be_read_ahead_is_read_alone() {
    // Every other request fails: the first chunk's works, the windows' do not.
    let rules = [2, 4, 6, 8]
        .map(|call| Rule::new(Fault::Fail(StorageErrorKind::Corrupt)).on(Operation::GetRange).calls(call..=call));
    let short = Rule::new(Fault::Truncate(15_000)).on(Operation::GetRange).calls(10..=10);
    let (read_back, _, chunks, bytes) = stored(rules.into_iter().chain([short]).collect()).await;
    for chunk in &chunks {
        assert_eq!(read_back.base(chunk).await.unwrap().base.unwrap(), frame_of(&bytes, chunk));
    }
    assert_eq!(read_back.failures.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_request_that_hangs_is_not_waited_for_by_what_comes_later() {
    let hangs = Rule::new(Fault::Hang).on(Operation::GetRange).calls(2..=2);
    let (mut read_back, _, chunks, bytes) = stored(vec![hangs]).await;
    assert!(read_back.base(&chunks[0]).await.is_some());
    read_back.patience = Duration::from_millis(50);
    assert!(read_back.base(&chunks[1]).await.is_none(), "the window that hangs");
    // As long as it takes: it would hang for ever.
    read_back.patience = Duration::MAX;
    let frame = read_back.base(&chunks[2]).await.unwrap().base.unwrap();
    assert_eq!(frame, frame_of(&bytes, &chunks[2]));
    assert_eq!(read_back.failures.load(Ordering::Relaxed), 1);
    assert!(read_back.pays());
}
