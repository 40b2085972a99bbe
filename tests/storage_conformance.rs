//! Does every store do what the seam promises? One suite, run over each: memory, a directory, S3.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use pgvault::codec::digest::sha256;
use pgvault::storage::{
    Body, Level, ObjectKey, PutIfAbsent, PutOutcome, Storage, StorageContext, StorageErrorKind, StorageOptions, open,
};
use tempfile::TempDir;

use crate::support::s3;

/// A store, and the directory that it or a test needs.
struct Place {
    store: Arc<dyn Storage>,
    dir: TempDir,
}

#[derive(Clone, Copy)]
enum Kind {
    Memory,
    Local,
    S3,
}

impl Place {
    async fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = match kind {
            Kind::Memory => StorageOptions::new("memory://"),
            Kind::Local => StorageOptions::new(format!("file://{}", dir.path().join("repository").display())),
            Kind::S3 => tokio::task::spawn_blocking(|| s3::server().fresh()).await.unwrap(),
        };
        Self { store: open(&options, StorageContext::default()).await.unwrap(), dir }
    }

    async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> PutOutcome {
        put(self.store.as_ref(), name, bytes).await
    }

    async fn get(&self, name: &str) -> Bytes {
        self.store.get(&key(name)).await.unwrap()
    }

    async fn range(&self, name: &str, start: u64, end: u64) -> Bytes {
        self.store.get_range(&key(name), start..end).await.unwrap()
    }

    async fn keys(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> Vec<String> {
        let found = self.store.list(prefix, after, limit).await.unwrap();
        found.into_iter().map(|info| info.key.to_string()).collect()
    }

    async fn folders(&self, prefix: &str) -> Vec<String> {
        self.store.list_folders(prefix).await.unwrap()
    }

    async fn delete(&self, names: &[&str]) {
        let keys: Vec<ObjectKey> = names.iter().map(|name| key(name)).collect();
        self.store.delete(&keys).await.unwrap();
    }

    /// A file of its own, with these bytes.
    fn file(&self, bytes: &[u8]) -> Body {
        let path = self.dir.path().join("body");
        fs::write(&path, bytes).unwrap();
        Body::File { path, len: bytes.len() as u64 }
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

async fn put(store: &dyn Storage, name: &str, bytes: impl Into<Bytes>) -> PutOutcome {
    let bytes = bytes.into();
    let digest = sha256(&bytes);
    store.put_new(&key(name), Body::Bytes(bytes), digest).await.unwrap()
}

/// Bytes without pattern, the same at every run.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

async fn what_is_put_is_got_whole(place: Place) {
    assert_eq!(place.put("a/b", "content").await, PutOutcome::Created);
    assert_eq!(place.get("a/b").await, "content");
    assert_eq!(place.store.head(&key("a/b")).await.unwrap(), Some(7));
}

async fn every_store_here_has_atomic_put_if_absent(place: Place) {
    assert_eq!(place.store.capabilities().put_if_absent, PutIfAbsent::Atomic);
}

async fn a_taken_key_keeps_its_object(place: Place) {
    place.put("a", "first").await;
    assert_eq!(place.put("a", "second").await, PutOutcome::AlreadyExists);
    assert_eq!(place.put("a", "first").await, PutOutcome::AlreadyExists);
    assert_eq!(place.get("a").await, "first");
}

async fn of_sixteen_writers_exactly_one_creates_the_object(place: Place) {
    for round in 0..3 {
        let name = format!("race/{round}");
        let writers: Vec<_> = (0..16u8)
            .map(|writer| {
                let (store, name) = (Arc::clone(&place.store), name.clone());
                tokio::spawn(async move { put(store.as_ref(), &name, vec![writer; 1000]).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (writer, task) in (0..16u8).zip(writers) {
            if task.await.unwrap() == PutOutcome::Created {
                winners.push(writer);
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(place.get(&name).await, vec![winners[0]; 1000]);
    }
}

async fn what_is_not_there_is_not_found(place: Place) {
    let store = &place.store;
    place.put("a/b", "x").await;
    for name in ["b", "a/c", "a", "a/b.c", "a/b-"] {
        assert_eq!(store.get(&key(name)).await.unwrap_err().kind, StorageErrorKind::NotFound, "{name}");
        assert_eq!(store.get_range(&key(name), 0..1).await.unwrap_err().kind, StorageErrorKind::NotFound, "{name}");
        assert_eq!(store.get_range(&key(name), 1..1).await.unwrap_err().kind, StorageErrorKind::NotFound, "{name}");
        assert_eq!(store.head(&key(name)).await.unwrap(), None, "{name}");
    }
}

async fn ranges_end_where_the_object_ends(place: Place) {
    place.put("a", "0123456789").await;
    assert_eq!(place.range("a", 0, 10).await, "0123456789");
    assert_eq!(place.range("a", 0, 1).await, "0");
    assert_eq!(place.range("a", 3, 7).await, "3456");
    assert_eq!(place.range("a", 9, 10).await, "9");
    assert_eq!(place.range("a", 8, 100).await, "89");
    assert_eq!(place.range("a", 8, u64::MAX).await, "89");
    assert_eq!(place.range("a", 4, 4).await, "");
    assert_eq!(place.range("a", 10, 11).await, "");
    assert_eq!(place.range("a", 5000, 6000).await, "");
}

async fn an_empty_object_is_an_object(place: Place) {
    assert_eq!(place.put("empty", "").await, PutOutcome::Created);
    assert_eq!(place.put("empty", "x").await, PutOutcome::AlreadyExists);
    assert_eq!(place.get("empty").await, "");
    assert_eq!(place.range("empty", 0, 10).await, "");
    assert_eq!(place.store.head(&key("empty")).await.unwrap(), Some(0));
    let listed = place.store.list("", None, None).await.unwrap();
    assert_eq!(listed.iter().map(|info| (info.key.as_str(), info.size)).collect::<Vec<_>>(), [("empty", 0)]);
}

async fn listings_are_in_the_order_of_the_keys(place: Place) {
    // In the order of bytes: '-' and '.' before '/', digits before upper case before '_' before lower case.
    let sorted = ["a-b/1", "a.b/1", "a/0", "a/A", "a/_", "a/b-c", "a/b.c", "a/b/c", "a/b/d/e", "a/b0", "a0", "b/1"];
    for name in sorted.iter().rev() {
        place.put(name, *name).await;
    }
    assert_eq!(place.keys("", None, None).await, sorted);
    assert_eq!(place.keys("a/", None, None).await, sorted[2..10]);
    assert_eq!(place.keys("a/b/", None, None).await, ["a/b/c", "a/b/d/e"]);
    assert!(place.keys("a/b/c/", None, None).await.is_empty());
    assert!(place.keys("nothing/", None, None).await.is_empty());
    let sizes = place.store.list("a/b/", None, None).await.unwrap();
    assert_eq!(sizes.iter().map(|info| info.size).collect::<Vec<_>>(), [5, 7]);
    for (i, name) in sorted.iter().enumerate() {
        assert_eq!(place.keys("", Some(name), None).await, sorted[i + 1..], "after {name}");
        assert_eq!(place.keys("", None, Some(i + 1)).await, sorted[..=i], "limit {}", i + 1);
    }
    assert_eq!(place.keys("a/", Some("a/b-c"), Some(2)).await, ["a/b.c", "a/b/c"]);
    // Between keys, before all and behind all.
    assert_eq!(place.keys("", Some("a/b/c0"), Some(1)).await, ["a/b/d/e"]);
    assert_eq!(place.keys("a/", Some("A"), Some(1)).await, ["a/0"]);
    assert!(place.keys("a/", Some("b"), None).await.is_empty());
}

async fn folders_are_what_has_objects_below(place: Place) {
    for name in ["a/b/c", "a/b-c/d/e", "a/file", "a/b.d/f", "top"] {
        place.put(name, "x").await;
    }
    assert_eq!(place.folders("").await, ["a"]);
    assert_eq!(place.folders("a/").await, ["b", "b-c", "b.d"]);
    assert_eq!(place.folders("a/b-c/").await, ["d"]);
    assert!(place.folders("a/b/").await.is_empty());
    assert!(place.folders("nothing/").await.is_empty());
    place.delete(&["a/b-c/d/e"]).await;
    assert_eq!(place.folders("a/").await, ["b", "b.d"]);
}

async fn a_listing_goes_beyond_a_thousand_keys(place: Place) {
    let names: Vec<String> = (0..2345).map(|i| format!("many/{:03}/{i:05}", i / 10)).collect();
    for chunk in names.chunks(64) {
        let puts = chunk.iter().map(|name| put(place.store.as_ref(), name, "x"));
        futures_util::future::join_all(puts).await;
    }
    assert_eq!(place.keys("", None, None).await, names);
    assert_eq!(place.keys("many/", Some(&names[1499]), None).await, names[1500..]);
    assert_eq!(place.keys("many/", None, Some(1234)).await, names[..1234]);
    assert_eq!(place.folders("many/").await.len(), 235);
    let keys: Vec<ObjectKey> = names[..2300].iter().map(|name| key(name)).collect();
    place.store.delete(&keys).await.unwrap();
    assert_eq!(place.keys("", None, None).await, names[2300..]);
    assert_eq!(place.folders("many/").await, ["230", "231", "232", "233", "234"]);
}

async fn deleting_is_deleting_whatever_was_there(place: Place) {
    place.put("a/1", "x").await;
    place.put("a/2", "x").await;
    place.delete(&["a/1", "a/3", "b/c/d"]).await;
    place.delete(&["a/1"]).await;
    place.delete(&[]).await;
    assert_eq!(place.keys("", None, None).await, ["a/2"]);
    assert_eq!(place.put("a/1", "y").await, PutOutcome::Created);
    assert_eq!(place.get("a/1").await, "y");
    // What is only a folder, or a part of a name, is no object.
    place.delete(&["a"]).await;
    assert_eq!(place.keys("", None, None).await, ["a/1", "a/2"]);
}

async fn a_large_body_comes_back_byte_for_byte(place: Place) {
    let bytes = Bytes::from(noise(20_000_000));
    assert_eq!(place.put("large", bytes.clone()).await, PutOutcome::Created);
    assert!(place.get("large").await == bytes);
    assert!(place.range("large", 19_999_000, 30_000_000).await == bytes[19_999_000..]);
}

async fn a_file_is_stored_like_its_bytes(place: Place) {
    for len in [0, 1, 3_000_000] {
        let (bytes, name) = (noise(len), format!("file/{len}"));
        let body = place.file(&bytes);
        let digest = sha256(&bytes);
        assert_eq!(place.store.put_new(&key(&name), body.clone(), digest).await.unwrap(), PutOutcome::Created);
        assert_eq!(place.store.put_new(&key(&name), body, digest).await.unwrap(), PutOutcome::AlreadyExists);
        assert!(place.get(&name).await == bytes);
    }
}

async fn a_file_that_is_not_what_was_announced_is_not_stored(place: Place) {
    let body = place.file(b"changed");
    let put = place.store.put_new(&key("a"), body, sha256(b"before!")).await;
    assert_eq!(put.unwrap_err().kind, StorageErrorKind::Corrupt);
    assert_eq!(place.store.head(&key("a")).await.unwrap(), None);
}

async fn a_very_large_file_is_stored_once(place: Place) {
    // Above the size from which S3 gets it in parts.
    let bytes = noise(70 * 1024 * 1024 + 12345);
    let digest = sha256(&bytes);
    let body = place.file(&bytes);
    let huge = key("huge");
    let puts = (0..2).map(|_| place.store.put_new(&huge, body.clone(), digest));
    let mut outcomes: Vec<PutOutcome> =
        futures_util::future::join_all(puts).await.into_iter().map(Result::unwrap).collect();
    outcomes.sort_by_key(|outcome| *outcome == PutOutcome::AlreadyExists);
    assert_eq!(outcomes, [PutOutcome::Created, PutOutcome::AlreadyExists]);
    assert_eq!(place.store.head(&key("huge")).await.unwrap(), Some(bytes.len() as u64));
    assert!(place.range("huge", 0, u64::MAX).await == bytes);
    assert!(place.range("huge", 16_777_000, 16_778_000).await == bytes[16_777_000..16_778_000]);
    // A smaller object does not replace it, nor a changed file.
    assert_eq!(place.put("huge", "small").await, PutOutcome::AlreadyExists);
    let put = place.store.put_new(&key("other"), body, sha256(b"another")).await;
    assert_eq!(put.unwrap_err().kind, StorageErrorKind::Corrupt);
    assert_eq!(place.store.head(&key("other")).await.unwrap(), None);
}

async fn odd_keys_are_kept_as_they_are(place: Place) {
    let long = format!("{}/{}", "d".repeat(199), "k".repeat(200));
    let odd = ["A", "a", "a_b-c.d", "z.tail/0000000000000000-00000000000000FF.zst", &long];
    for name in odd {
        assert_eq!(place.put(name, name.to_owned()).await, PutOutcome::Created, "{name}");
    }
    for name in odd {
        assert_eq!(place.get(name).await, name.to_owned());
    }
    let mut sorted: Vec<String> = odd.iter().map(|name| (*name).to_owned()).collect();
    sorted.sort();
    assert_eq!(place.keys("", None, None).await, sorted);
    // A key that is the beginning of another is another object.
    place.put("pre/fix", "1").await;
    place.put("pre/fix.more", "2").await;
    assert_eq!(place.get("pre/fix").await, "1");
    assert_eq!(place.keys("pre/", None, None).await, ["pre/fix", "pre/fix.more"]);
}

async fn a_level_is_what_lies_right_below(place: Place) {
    for name in
        ["w/1.history", "w/log/a.zst", "w/log/a.tail/1-2.zst", "w/log/a.tail/2-3.zst", "w/log/b.zst", "w/log-2/c.zst"]
    {
        place.put(name, "x").await;
    }
    let level = place.store.list_level("w/").await.unwrap();
    let keys = |level: &Level| -> Vec<String> { level.objects.iter().map(|info| info.key.to_string()).collect() };
    assert_eq!(keys(&level), ["w/1.history"]);
    let mut folders = level.folders.clone();
    folders.sort();
    assert_eq!(folders, ["log", "log-2"]);
    let level = place.store.list_level("w/log/").await.unwrap();
    assert_eq!((keys(&level), level.objects[0].size), (vec!["w/log/a.zst".to_owned(), "w/log/b.zst".to_owned()], 1));
    assert_eq!(level.folders, ["a.tail"]);
    assert_eq!(place.store.list_level("nothing/").await.unwrap(), Level::default());
}

async fn a_prefix_that_cannot_be_one_is_refused(place: Place) {
    for prefix in ["a", "/", "../", "a//", "a/../b/"] {
        assert_eq!(place.store.list(prefix, None, None).await.unwrap_err().kind, StorageErrorKind::Other, "{prefix}");
        assert_eq!(place.store.list_folders(prefix).await.unwrap_err().kind, StorageErrorKind::Other, "{prefix}");
    }
}

macro_rules! conformance {
    ($($question:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $question() {
                super::$question(super::Place::new(super::Kind::Memory).await).await;
            })*
        }
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $question() {
                super::$question(super::Place::new(super::Kind::Local).await).await;
            })*
        }
        mod s3_server {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $question() {
                super::$question(super::Place::new(super::Kind::S3).await).await;
            })*
        }
    };
}

conformance!(
    what_is_put_is_got_whole,
    every_store_here_has_atomic_put_if_absent,
    a_taken_key_keeps_its_object,
    of_sixteen_writers_exactly_one_creates_the_object,
    what_is_not_there_is_not_found,
    ranges_end_where_the_object_ends,
    an_empty_object_is_an_object,
    listings_are_in_the_order_of_the_keys,
    folders_are_what_has_objects_below,
    a_listing_goes_beyond_a_thousand_keys,
    deleting_is_deleting_whatever_was_there,
    a_large_body_comes_back_byte_for_byte,
    a_file_is_stored_like_its_bytes,
    a_file_that_is_not_what_was_announced_is_not_stored,
    a_very_large_file_is_stored_once,
    odd_keys_are_kept_as_they_are,
    a_level_is_what_lies_right_below,
    a_prefix_that_cannot_be_one_is_refused,
);
