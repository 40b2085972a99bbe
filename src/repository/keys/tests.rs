//! An encrypted repository, from its first key to the loss of the last.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use secrecy::ExposeSecret;
use wal::PgTime;

use super::{EncryptionOptions, Identity, IdentitySource, KeyError, list, new_identity, rotate};
use crate::codec::digest::sha256;
use crate::codec::encryption::{Generation, PLAIN_BLOCK, STORED_BLOCK, claimed_generation, is_encrypted};
use crate::error::{Error, ErrorCode};
use crate::repository::layout::{LineageKeys, LineageObject, ObjectName};
use crate::repository::{
    ClusterName, Objects, PutNew, Repository, RepositoryError, RepositoryId, RepositoryOptions, RepositoryResult,
};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Body, ObjectKey, Storage};

fn now() -> PgTime {
    PgTime::from_micros(1_000_000)
}

fn options(recipients: &[&Identity], identity: Option<&Identity>) -> RepositoryOptions {
    let source = |identity: &Identity| IdentitySource {
        named_by: "the test".to_owned(),
        text: format!("# a comment\n{}\n", identity.secret().expose_secret()).into(),
    };
    let encryption = EncryptionOptions {
        recipients: recipients.iter().map(|identity| identity.recipient()).collect(),
        identity: identity.map(source),
    };
    RepositoryOptions { encryption, ..RepositoryOptions::default() }
}

async fn create(store: &Arc<dyn Storage>, options: RepositoryOptions) -> RepositoryResult<Repository> {
    Repository::create_or_open(Arc::clone(store), options, now(), RepositoryId::new([3; 16])).await
}

async fn open(store: &Arc<dyn Storage>, options: RepositoryOptions) -> RepositoryResult<Repository> {
    Repository::open(Arc::clone(store), options).await
}

fn memory() -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn content(len: u64) -> Bytes {
    (0..len).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

async fn put(repository: &Repository, key: &ObjectKey, bytes: &Bytes) {
    let created = repository.objects().put_new(key, Body::Bytes(bytes.clone()), sha256(bytes)).await.unwrap();
    assert_eq!(created, PutNew::Created);
}

/// Puts stored bytes in the place of others, as somebody with rights on the store could.
async fn replace(store: &Arc<dyn Storage>, key: &ObjectKey, stored: Vec<u8>) {
    store.delete(std::slice::from_ref(key)).await.unwrap();
    let digest = sha256(&stored);
    store.put_new(key, Body::Bytes(stored.into()), digest).await.unwrap();
}

fn key_error(result: RepositoryResult<Repository>) -> KeyError {
    match result.unwrap_err() {
        RepositoryError::Key(error) => error,
        other => panic!("{other}"),
    }
}

const A: &str = "main/7-1/wal/00000001/00000000/000000010000000000000001.zst";
const B: &str = "main/7-1/wal/00000001/00000000/000000010000000000000002.zst";

#[tokio::test]
async fn one_identity_reads_everything_and_without_it_nothing_is_absent() {
    let (store, own, other) = (memory(), new_identity(), new_identity());
    let repository = create(&store, options(&[&own], Some(&own))).await.unwrap();
    put(&repository, &key(A), &content(1000)).await;
    assert!(is_encrypted(&store.get(&key(A)).await.unwrap()));
    let again = open(&store, options(&[], Some(&own))).await.unwrap();
    assert_eq!(again.objects().get(&key(A)).await.unwrap(), content(1000));

    assert!(matches!(key_error(open(&store, options(&[], None)).await), KeyError::NoIdentity { .. }));
    let wrong = key_error(open(&store, options(&[], Some(&other))).await);
    assert!(
        matches!(&wrong, KeyError::WrongIdentity { recipients, .. } if *recipients == [own.recipient().to_string()])
    );
    let told = Error::from(RepositoryError::from(wrong));
    assert_eq!(told.code(), ErrorCode::NoKey);
    let secret = own.secret();
    assert!(!format!("{told} {told:?} {repository:?}").contains(secret.expose_secret()));
    // Whoever does not even know that it is encrypted.
    let unaware = Objects::new(Arc::clone(&store));
    for result in [unaware.get(&key(A)).await, unaware.get_range(&key(A), 0, 10).await] {
        let error = result.unwrap_err();
        assert!(error.is_no_key() && !error.is_not_found(), "{error}");
    }
}

#[tokio::test]
async fn a_lost_or_damaged_key_ring_is_fatal_and_said() {
    let (store, own) = (memory(), new_identity());
    create(&store, options(&[&own], Some(&own))).await.unwrap();
    let ring = key("keys/1.json");
    let stored = store.get(&ring).await.unwrap();
    for bit in [5, stored.len() * 4, stored.len() * 8 - 900] {
        let mut bad = stored.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        replace(&store, &ring, bad).await;
        let error = open(&store, options(&[], Some(&own))).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Damaged { .. }), "bit {bit}: {error}");
    }
    store.delete(std::slice::from_ref(&ring)).await.unwrap();
    assert_eq!(key_error(open(&store, options(&[], Some(&own))).await), KeyError::KeyRingGone);
    assert_eq!(key_error(create(&store, options(&[&own], Some(&own))).await), KeyError::KeyRingGone);
}

#[tokio::test]
async fn rotating_keeps_everything_readable_also_for_who_has_it_open() {
    let (store, first, second) = (memory(), new_identity(), new_identity());
    let old = create(&store, options(&[&first, &second], Some(&first))).await.unwrap();
    put(&old, &key(A), &content(70_000)).await;
    // The first identity is given up.
    let plain = Objects::new(Arc::clone(&store));
    let now_for = options(&[&second], Some(&second)).encryption;
    assert_eq!(rotate(&plain, &now_for, now()).await.unwrap().get(), 2);
    let new = open(&store, options(&[&second], Some(&second))).await.unwrap();
    put(&new, &key(B), &content(80_000)).await;
    assert_eq!(claimed_generation(&store.get(&key(B)).await.unwrap()), Generation::new(2));
    assert_eq!(new.objects().get(&key(A)).await.unwrap(), content(70_000));
    assert_eq!(new.objects().get(&key(B)).await.unwrap(), content(80_000));
    // Whoever was open with the first identity still reads what is old and cannot read what is new.
    assert_eq!(old.objects().get(&key(A)).await.unwrap(), content(70_000));
    assert!(old.objects().get(&key(B)).await.unwrap_err().is_no_key());
    assert!(matches!(key_error(open(&store, options(&[], Some(&first))).await), KeyError::WrongIdentity { .. }));
    // Whoever was open with the second one finds the new key when it meets it, and uses it from then on.
    rotate(&plain, &now_for, now()).await.unwrap();
    let newest = open(&store, options(&[], Some(&second))).await.unwrap();
    put(&newest, &key("main/7-1/begun"), &content(3)).await;
    assert_eq!(new.objects().get(&key("main/7-1/begun")).await.unwrap(), content(3));
    put(&new, &key("main/7-1/other"), &content(3)).await;
    assert_eq!(claimed_generation(&store.get(&key("main/7-1/other")).await.unwrap()), Generation::new(3));
    let listed = list(&plain, &options(&[], Some(&first)).encryption).await.unwrap();
    assert_eq!(listed.iter().map(|info| info.opens).collect::<Vec<_>>(), [true, false, false]);
}

/// Anybody can wrap keys of his own for a recipient: what he cannot know is the keys before.
#[tokio::test]
async fn a_forged_generation_is_refused() {
    let (store, own) = (memory(), new_identity());
    let repository = create(&store, options(&[&own], Some(&own))).await.unwrap();
    let elsewhere = memory();
    create(&elsewhere, options(&[&own], Some(&own))).await.unwrap();
    rotate(&Objects::new(Arc::clone(&elsewhere)), &options(&[&own], Some(&own)).encryption, now()).await.unwrap();
    let forged = elsewhere.get(&key("keys/2.json")).await.unwrap();
    replace(&store, &key("keys/2.json"), forged.to_vec()).await;
    let error = open(&store, options(&[&own], Some(&own))).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
    assert!(repository.objects().refresh_keys().await.is_err());
    put(&repository, &key(A), &content(5)).await;
    assert_eq!(claimed_generation(&store.get(&key(A)).await.unwrap()), Some(Generation::FIRST));
}

#[tokio::test]
async fn nothing_is_stored_in_the_clear_where_encryption_was_asked_for() {
    let (store, own) = (memory(), new_identity());
    create(&store, options(&[], None)).await.unwrap();
    // A reader that is configured so: there is no key ring yet.
    let reader = open(&store, options(&[&own], Some(&own))).await.unwrap();
    let error = reader.objects().put_new(&key(A), Body::Bytes(content(5)), sha256(&content(5))).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Key(KeyError::NoKeyRing)), "{error}");
    assert!(store.head(&key(A)).await.unwrap().is_none());
    // Nobody here could read what is encrypted for others alone.
    let other = new_identity();
    assert!(matches!(key_error(create(&store, options(&[&other], Some(&own))).await), KeyError::WrongIdentity { .. }));
    assert!(matches!(key_error(create(&store, options(&[&own], None)).await), KeyError::NoIdentity { .. }));
    assert!(store.list("keys/", None, None).await.unwrap().is_empty());
}

#[tokio::test]
async fn encryption_that_is_turned_on_later_leaves_what_is_there_readable_and_cannot_be_turned_off() {
    let (store, own) = (memory(), new_identity());
    let plain = create(&store, options(&[], None)).await.unwrap();
    put(&plain, &key(A), &content(200_000)).await;
    let encrypted = create(&store, options(&[&own], Some(&own))).await.unwrap();
    assert!(!encrypted.marker().encrypted);
    for range in [0..10, 70_000..80_000, 199_999..300_000, 500_000..600_000] {
        assert_eq!(read(&encrypted, A, range.clone()).await.unwrap(), part(&content(200_000), &range), "{range:?}");
    }
    put(&encrypted, &key(B), &content(200_000)).await;
    // Without `encryption` in the configuration.
    let forgetful = create(&store, options(&[], Some(&own))).await.unwrap();
    let third = key("main/7-1/lineage.json");
    put(&forgetful, &third, &content(1)).await;
    for key in [key(B), third] {
        assert!(is_encrypted(&store.get(&key).await.unwrap()), "{key}");
    }
    assert_eq!(plain.objects().content_len(&key(A), 200_000).await.unwrap(), 200_000);
    assert_eq!(encrypted.objects().content_len(&key(A), 200_000).await.unwrap(), 200_000);
    let stored = store.head(&key(B)).await.unwrap().unwrap();
    assert_eq!(encrypted.objects().content_len(&key(B), stored).await.unwrap(), 200_000);
    // The whole key ring is lost: no other one is begun in its place, and what it opened is not absent.
    store.delete(&[key("keys/1.json")]).await.unwrap();
    assert_eq!(key_error(create(&store, options(&[&own], Some(&own))).await), KeyError::KeyRingGone);
    let unaware = open(&store, options(&[], None)).await.unwrap();
    assert!(unaware.objects().get(&key(B)).await.unwrap_err().is_no_key());
}

fn part(content: &Bytes, range: &Range<u64>) -> Bytes {
    let clamp = |at: u64| usize::try_from(at).unwrap().min(content.len());
    content.slice(clamp(range.start)..clamp(range.end))
}

async fn read(repository: &Repository, name: &str, range: Range<u64>) -> RepositoryResult<Bytes> {
    repository.objects().get_range(&key(name), range.start, range.end).await
}

#[tokio::test]
async fn ranges_are_those_of_the_plaintext() {
    let (store, own) = (memory(), new_identity());
    let repository = create(&store, options(&[&own], Some(&own))).await.unwrap();
    for (name, len) in [(A, 3 * PLAIN_BLOCK), (B, 2 * PLAIN_BLOCK + 17)] {
        let all = content(len);
        put(&repository, &key(name), &all).await;
        let edges = [0, 1, PLAIN_BLOCK - 1, PLAIN_BLOCK, PLAIN_BLOCK + 1, 2 * PLAIN_BLOCK, len - 1, len, len + 9];
        for start in edges {
            for end in edges.into_iter().chain([20 * PLAIN_BLOCK]).filter(|end| *end >= start) {
                let found = read(&repository, name, start..end).await.unwrap();
                assert_eq!(found, part(&all, &(start..end)), "{start}..{end} of {len}");
            }
        }
        let far = 40 * PLAIN_BLOCK;
        assert!(read(&repository, name, far..far + 10).await.unwrap().is_empty());
    }
    assert!(read(&repository, "main/7-1/nothing", 0..10).await.unwrap_err().is_not_found());
}

/// What somebody did to the store is found by whole reads and by reads in ranges, as every reader does them.
#[tokio::test]
async fn whatever_is_done_to_stored_objects_is_found() {
    let (store, own) = (memory(), new_identity());
    let repository = create(&store, options(&[&own], Some(&own))).await.unwrap();
    let (all, other) = (content(3 * PLAIN_BLOCK), content(3 * PLAIN_BLOCK - 1));
    put(&repository, &key(A), &all).await;
    put(&repository, &key(B), &other).await;
    let (stored, sibling) = (store.get(&key(A)).await.unwrap(), store.get(&key(B)).await.unwrap());
    let block = usize::try_from(STORED_BLOCK).unwrap();
    let cut = |len: usize| stored[..len].to_vec();
    let flip = |at: usize| {
        let mut bad = stored.to_vec();
        bad[at] ^= 16;
        bad
    };
    let deeds = [
        ("emptied", Vec::new()),
        ("cut in its first block", cut(100)),
        ("cut between blocks", cut(2 * block)),
        ("cut in its last block", cut(2 * block + 100)),
        ("a bit of the first header", flip(3)),
        ("a bit of the second header", flip(block + 3)),
        ("a bit of a generation", flip(block + 9)),
        ("a bit of a salt", flip(2 * block + 20)),
        ("a bit of content", flip(block + 5000)),
        ("a bit of the last tag", flip(stored.len() - 1)),
        ("blocks swapped", [&stored[block..2 * block], &stored[..block], &stored[2 * block..]].concat()),
        ("another object", sibling.to_vec()),
        ("a block of another object", [&stored[..block], &sibling[block..2 * block], &stored[2 * block..]].concat()),
        ("something behind it", [&stored[..], &stored[..]].concat()),
        ("in the clear", all.to_vec()),
    ];
    for (what, bad) in deeds {
        replace(&store, &key(A), bad).await;
        let whole = repository.objects().get(&key(A)).await;
        assert!(whole.is_err(), "{what}: read whole");
        let mut ranges = Ok(());
        for start in [0, PLAIN_BLOCK, 2 * PLAIN_BLOCK, 3 * PLAIN_BLOCK] {
            // As long as a range is whole the next one is read.
            match read(&repository, A, start..start + PLAIN_BLOCK).await {
                Ok(found) if found == part(&all, &(start..start + PLAIN_BLOCK)) => {}
                Ok(_) => panic!("{what}: other bytes were given"),
                Err(error) => ranges = Err(error),
            }
        }
        // What lies behind the object's last block is nobody's: ranges need not see it.
        assert!(ranges.is_err() || what == "something behind it", "{what}: read by ranges");
    }
}

#[tokio::test]
async fn an_object_that_is_named_by_its_bytes_is_stored_once_and_proves_its_name() {
    let (store, own) = (memory(), new_identity());
    let repository = create(&store, options(&[&own], Some(&own))).await.unwrap();
    let objects = repository.objects();
    let cluster = ClusterName::new("main").unwrap();
    let pack = content(100_000);
    let named = |sha256| ObjectName::Pack(cluster.clone(), sha256).key();
    let prepared = objects.prepare(&named([0; 32]), Body::Bytes(pack.clone()), sha256(&pack)).await.unwrap();
    let again = objects.prepare(&named([9; 32]), Body::Bytes(pack.clone()), sha256(&pack)).await.unwrap();
    assert_eq!(prepared.sha256(), again.sha256());
    assert_ne!(prepared.sha256(), sha256(&pack), "a name must tell nothing of the content");
    let key = named(prepared.sha256());
    assert_eq!(objects.put_prepared(&key, &prepared).await.unwrap(), PutNew::Created);
    assert_eq!(objects.stored_sha256(&key).await.unwrap().0, prepared.sha256());
    assert_eq!(objects.get_checked(&key, &prepared.sha256()).await.unwrap(), pack);
    assert!(objects.get_checked(&key, &sha256(&pack)).await.is_err());
    // Refused bytes go to one place, however often.
    let keys = LineageKeys::new(cluster, "7-1".parse().unwrap());
    let refused = keys.key(&LineageObject::Document);
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(objects.keep_refused(&keys, &refused, Body::Bytes(pack.clone()), sha256(&pack)).await.unwrap());
    }
    assert_eq!(kept[0], kept[1]);
    assert_eq!(objects.get(&kept[0]).await.unwrap(), pack);
}

#[tokio::test]
async fn a_file_is_encrypted_as_its_bytes_would_be() {
    let (store, own, dir) = (memory(), new_identity(), tempfile::tempdir().unwrap());
    let repository = create(&store, options(&[&own], Some(&own))).await.unwrap();
    let all = content(3 * PLAIN_BLOCK + 5);
    let path = dir.path().join("plain");
    std::fs::write(&path, &all).unwrap();
    let body = || Body::File { path: path.clone(), len: all.len() as u64 };
    let from_file = repository.objects().prepare(&key(A), body(), sha256(&all)).await.unwrap();
    let from_bytes = repository.objects().prepare(&key(A), Body::Bytes(all.clone()), sha256(&all)).await.unwrap();
    assert_eq!((from_file.sha256(), from_file.body().len()), (from_bytes.sha256(), from_bytes.body().len()));
    assert!(repository.objects().prepare(&key(A), body(), [1; 32]).await.is_err(), "it is not what it was said to be");
    drop(from_file);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
}
