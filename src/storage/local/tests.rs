use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};

use super::{LocalStorage, directory_of};
use crate::codec::digest::sha256;
use crate::storage::{Body, ObjectKey, PutOutcome, Storage, StorageErrorKind};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

async fn open(root: &Path) -> LocalStorage {
    LocalStorage::open(root, now()).await.unwrap()
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

async fn put(store: &LocalStorage, name: &str, bytes: &'static [u8]) -> PutOutcome {
    store.put_new(&key(name), Body::Bytes(Bytes::from_static(bytes)), sha256(bytes)).await.unwrap()
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, crate::storage::StorageError>) -> StorageErrorKind {
    outcome.unwrap_err().kind
}

#[tokio::test]
async fn files_and_folders_are_private_and_the_root_appears_with_the_first_put() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/repo");
    let store = open(&root).await;
    assert_eq!(store.head(&key("a")).await.unwrap(), None);
    assert_eq!(kind(store.get(&key("a")).await), StorageErrorKind::NotFound);
    assert!(store.list("", None, None).await.unwrap().is_empty());
    assert!(!root.exists());
    put(&store, "a/b", b"1").await;
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("a"), mode("a/b")), (0o700, 0o700, 0o600));
    assert_eq!(fs::read_dir(root.join(".tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_root_that_was_unmounted_or_moved_is_not_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    let store = open(&root).await;
    put(&store, "a/b", b"1").await;
    fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    for _ in 0..2 {
        assert_eq!(kind(store.get(&key("a/b")).await), StorageErrorKind::Transient);
        assert_eq!(kind(store.head(&key("a/b")).await), StorageErrorKind::Transient);
        assert_eq!(kind(store.list("", None, None).await), StorageErrorKind::Transient);
        assert_eq!(kind(store.list_folders("").await), StorageErrorKind::Transient);
        assert_eq!(kind(store.delete(&[key("a/b")]).await), StorageErrorKind::Transient);
        let body = Body::Bytes(Bytes::from_static(b"2"));
        assert_eq!(kind(store.put_new(&key("c"), body, sha256(b"2")).await), StorageErrorKind::Transient);
        // The second time an empty directory lies there: the mount point.
        fs::create_dir_all(&root).unwrap();
    }
    fs::remove_dir(&root).unwrap();
    fs::rename(dir.path().join("elsewhere"), &root).unwrap();
    assert_eq!(store.get(&key("a/b")).await.unwrap(), "1");
}

#[tokio::test]
async fn deleting_removes_empty_folders_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, "a/b/c/1", b"1").await;
    put(&store, "a/b/2", b"2").await;
    store.delete(&[key("a/b/c/1"), key("a/b/nothing"), key("x/y")]).await.unwrap();
    assert!(!dir.path().join("a/b/c").exists());
    assert!(dir.path().join("a/b/2").exists());
    // A folder is no object.
    store.delete(&[key("a/b")]).await.unwrap();
    store.delete(&[key("a/b/2")]).await.unwrap();
    assert!(!dir.path().join("a").exists());
    assert!(dir.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn puts_and_deletes_in_one_folder_do_not_lose_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).await);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..50 {
                    let name = key(&format!("a/b/{writer}-{round}"));
                    let body = Body::Bytes(Bytes::from_static(b"1"));
                    assert_eq!(store.put_new(&name, body, sha256(b"1")).await.unwrap(), PutOutcome::Created);
                    assert_eq!(store.get(&name).await.unwrap(), "1");
                    store.delete(&[name]).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(!dir.path().join("a").exists());
}

#[tokio::test]
async fn leftovers_of_a_crash_go_when_they_are_old_and_nobody_holds_them() {
    let dir = tempfile::tempdir().unwrap();
    let temp = dir.path().join(".tmp");
    fs::create_dir(&temp).unwrap();
    let age = |name: &str, hours: i64| {
        let path = temp.join(name);
        fs::write(&path, b"x").unwrap();
        let changed = SystemTime::from(now() - TimeDelta::hours(hours));
        fs::File::options().append(true).open(&path).unwrap().set_modified(changed).unwrap();
        path
    };
    let (old, young, held, foreign) =
        (age(".tmp-01", 25), age(".tmp-02", 23), age(".tmp-03", 25), age("notes.txt", 1000));
    let holder = fs::File::open(&held).unwrap();
    holder.lock().unwrap();
    open(dir.path()).await;
    assert!(!old.exists());
    assert!(young.exists() && held.exists() && foreign.exists());
}

#[tokio::test]
async fn what_is_no_object_is_not_listed_and_links_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, "a/b", b"1").await;
    for odd in ["a/.hidden", "a/with space", "lost+found"] {
        fs::write(dir.path().join(odd), b"x").unwrap();
    }
    fs::create_dir_all(dir.path().join("empty/folder")).unwrap();
    let keys: Vec<String> =
        store.list("", None, None).await.unwrap().into_iter().map(|info| info.key.to_string()).collect();
    assert_eq!(keys, ["a/b"]);
    assert_eq!(store.list_folders("").await.unwrap(), ["a"]);
    symlink("/etc", dir.path().join("etc")).unwrap();
    assert_eq!(kind(store.list("", None, None).await), StorageErrorKind::Other);
    symlink("/etc/passwd", dir.path().join("a/passwd")).unwrap();
    assert_eq!(kind(store.get(&key("a/passwd")).await), StorageErrorKind::Other);
    assert_eq!(kind(store.head(&key("a/passwd")).await), StorageErrorKind::Other);
}

#[tokio::test]
async fn a_prefix_cannot_leave_the_repository() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, "a/b", b"1").await;
    for prefix in ["../", "/", "/etc/", "a/../../", "a", "a//", "./"] {
        assert_eq!(kind(store.list(prefix, None, None).await), StorageErrorKind::Other, "{prefix}");
        assert_eq!(kind(store.list_folders(prefix).await), StorageErrorKind::Other, "{prefix}");
    }
}

#[tokio::test]
async fn an_object_cannot_be_a_folder_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, "a/b", b"1").await;
    for name in ["a", "a/b/c"] {
        let body = Body::Bytes(Bytes::from_static(b"2"));
        assert_eq!(kind(store.put_new(&key(name), body, sha256(b"2")).await), StorageErrorKind::Other, "{name}");
    }
    assert_eq!(store.head(&key("a")).await.unwrap(), None);
    assert_eq!(kind(store.get(&key("a")).await), StorageErrorKind::NotFound);
    assert_eq!(kind(store.get(&key("a/b/c")).await), StorageErrorKind::NotFound);
}

#[tokio::test]
async fn a_file_that_changed_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("repo")).await;
    let path = dir.path().join("body");
    fs::write(&path, b"changed").unwrap();
    for (len, digest) in [(7, sha256(b"before!")), (6, sha256(b"change")), (8, sha256(b"changed"))] {
        let body = Body::File { path: path.clone(), len };
        assert_eq!(kind(store.put_new(&key("a"), body, digest).await), StorageErrorKind::Corrupt);
    }
    assert_eq!(store.head(&key("a")).await.unwrap(), None);
    let missing = Body::File { path: dir.path().join("missing"), len: 1 };
    assert_eq!(kind(store.put_new(&key("a"), missing, sha256(b"x")).await), StorageErrorKind::Other);
}

#[tokio::test]
async fn nobody_may_write_here() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    let store = open(&dir.path().join("file/repo")).await;
    let body = Body::Bytes(Bytes::from_static(b"2"));
    assert!(store.put_new(&key("a"), body, sha256(b"2")).await.is_err());
}

#[test]
fn only_absolute_paths_are_places() {
    assert_eq!(directory_of("file:///srv/x").as_deref(), Some(Path::new("/srv/x")));
    for bad in ["file://srv/x", "file://", "file:/srv", "/srv"] {
        assert_eq!(directory_of(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn a_dropped_put_leaves_nothing_or_the_whole_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let bytes = Bytes::from(vec![7; 4_000_000]);
    let digest = sha256(&bytes);
    for i in 0..20 {
        let name = key(&format!("a/{i}"));
        let put = store.put_new(&name, Body::Bytes(bytes.clone()), digest);
        // Dropped at once, a little later, or after it ended.
        drop(tokio::time::timeout(Duration::from_micros(i * 300), put).await);
        match store.get(&name).await {
            Ok(found) => assert_eq!(found, bytes),
            Err(error) => assert_eq!(error.kind, StorageErrorKind::NotFound),
        }
    }
}
