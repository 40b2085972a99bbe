use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Retry, RetryPolicy};
use crate::codec::digest::sha256;
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Body, ObjectKey, PutOutcome, Storage, StorageErrorKind, StorageResult};

const TRANSIENT: Fault = Fault::Fail(StorageErrorKind::Transient);

fn stores() -> (Arc<Faulty>, Retry) {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let retry = Retry::new(Arc::clone(&faulty) as Arc<dyn Storage>, quick(), 7);
    (faulty, retry)
}

/// The default policy with short waits.
fn quick() -> RetryPolicy {
    RetryPolicy { first_delay: Duration::from_micros(100), ..RetryPolicy::default() }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

async fn put(store: &dyn Storage, bytes: &'static [u8]) -> StorageResult<PutOutcome> {
    store.put_new(&key("a"), Body::Bytes(Bytes::from_static(bytes)), sha256(bytes)).await
}

#[tokio::test]
async fn what_passes_is_repeated_until_it_works() {
    let (faulty, retry) = stores();
    for operation in [
        Operation::Put,
        Operation::Get,
        Operation::GetRange,
        Operation::Head,
        Operation::List,
        Operation::ListFolders,
        Operation::Delete,
    ] {
        faulty.add(Rule::new(TRANSIENT).on(operation).calls(1..=3));
    }
    assert_eq!(put(&retry, b"x").await.unwrap(), PutOutcome::Created);
    assert_eq!(retry.get(&key("a")).await.unwrap(), "x");
    assert_eq!(retry.get_range(&key("a"), 0..9).await.unwrap(), "x");
    assert_eq!(retry.head(&key("a")).await.unwrap(), Some(1));
    assert_eq!(retry.list("", None, None).await.unwrap().len(), 1);
    assert!(retry.list_folders("").await.unwrap().is_empty());
    retry.delete(&[key("a")]).await.unwrap();
    assert_eq!(faulty.calls().len(), 7 * 4);
}

#[tokio::test]
async fn what_does_not_pass_is_reported_after_the_last_attempt() {
    let (faulty, retry) = stores();
    faulty.add(Rule::new(TRANSIENT));
    assert_eq!(retry.get(&key("a")).await.unwrap_err().kind, StorageErrorKind::Transient);
    assert_eq!(faulty.calls().len(), 6);
}

#[tokio::test]
async fn no_attempt_starts_after_the_deadline() {
    let (faulty, _) = stores();
    faulty.add(Rule::new(TRANSIENT));
    let policy = RetryPolicy { deadline: Duration::ZERO, ..quick() };
    let retry = Retry::new(Arc::clone(&faulty) as Arc<dyn Storage>, policy, 7);
    assert_eq!(retry.get(&key("a")).await.unwrap_err().kind, StorageErrorKind::Transient);
    assert_eq!(faulty.calls().len(), 1);
}

#[test]
fn waits_double_up_to_the_longest_and_keep_at_least_half() {
    let retry = Retry::new(Arc::new(MemoryStorage::new()), RetryPolicy::default(), 7);
    for (failed, longest) in [(1, 200), (2, 400), (3, 800), (6, 6400), (7, 10_000), (40, 10_000), (u32::MAX, 10_000)] {
        for _ in 0..100 {
            let delay = retry.delay(failed);
            assert!(
                delay <= Duration::from_millis(longest) && delay * 2 >= Duration::from_millis(longest),
                "{delay:?}"
            );
        }
    }
}

#[tokio::test]
async fn errors_that_stay_are_not_repeated() {
    for kind in [
        StorageErrorKind::NotFound,
        StorageErrorKind::Denied,
        StorageErrorKind::Full,
        StorageErrorKind::Corrupt,
        StorageErrorKind::Other,
    ] {
        let (faulty, retry) = stores();
        faulty.add(Rule::new(Fault::Fail(kind)));
        assert_eq!(retry.get(&key("a")).await.unwrap_err().kind, kind);
        assert_eq!(faulty.calls().len(), 1);
    }
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_recognised_as_our_own() {
    let (faulty, retry) = stores();
    faulty.add(Rule::new(Fault::LoseResponse).on(Operation::Put).calls(1..=2));
    assert_eq!(put(&retry, b"mine").await.unwrap(), PutOutcome::Created);
    // Without a failure before it, the same bytes are what they were for everyone: taken.
    assert_eq!(put(&retry, b"mine").await.unwrap(), PutOutcome::AlreadyExists);
}

#[tokio::test]
async fn another_writers_object_is_never_taken_for_our_own() {
    for theirs in [&b"them"[..], b"longer than mine", b""] {
        let (faulty, retry) = stores();
        put(faulty.as_ref(), theirs).await.unwrap();
        faulty.add(Rule::new(TRANSIENT).on(Operation::Put).calls(1..=1));
        assert_eq!(put(&retry, b"mine").await.unwrap(), PutOutcome::AlreadyExists);
        assert_eq!(retry.get(&key("a")).await.unwrap(), theirs);
    }
}

#[tokio::test]
async fn trouble_while_reading_back_is_trouble_and_not_an_answer() {
    let (faulty, retry) = stores();
    faulty.add(Rule::new(Fault::LoseResponse).on(Operation::Put).calls(1..=1));
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Denied)).on(Operation::GetRange));
    assert_eq!(put(&retry, b"mine").await.unwrap_err().kind, StorageErrorKind::Denied);
    // A flipped bit on the way back makes it look foreign: the caller compares, as for every taken key.
    faulty.heal();
    faulty.add(Rule::new(TRANSIENT).on(Operation::Put).calls(1..=1));
    faulty.add(Rule::new(Fault::FlipBit(0)).on(Operation::GetRange));
    assert_eq!(put(&retry, b"mine").await.unwrap(), PutOutcome::AlreadyExists);
}

#[test]
fn two_clients_do_not_march_in_step() {
    let retry = |seed| Retry::new(Arc::new(MemoryStorage::new()), RetryPolicy::default(), seed);
    let (a, b) = (retry(1), retry(2));
    let delays = |retry: &Retry| (1..6).map(|failed| retry.delay(failed)).collect::<Vec<_>>();
    assert_ne!(delays(&a), delays(&b));
}
