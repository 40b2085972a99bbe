//! Is a repository in a directory whole after kill -9, a full disk, a failing disk? And does it ask the kernel for
//! durability in the order that a power loss needs?
//!
//! The victims are processes of their own: this test binary again, with one of the ignored tests below.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "victims tell by printing, and what was not run is told")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use pgvault::codec::digest::sha256;
use pgvault::storage::{
    Body, ObjectKey, PutOutcome, Storage, StorageContext, StorageErrorKind, StorageOptions, StorageResult, open,
};

/// Where a victim works; without it the ignored tests do nothing.
const PLACE: &str = "PGVAULT_TEST_VICTIM";
const OBJECT: usize = 300_000;

async fn store_at(root: &Path) -> std::sync::Arc<dyn Storage> {
    open(&StorageOptions::new(format!("file://{}", root.display())), StorageContext::default()).await.unwrap()
}

fn key(number: usize) -> ObjectKey {
    ObjectKey::new(format!("wal/{:02}/{number:06}", number % 7)).unwrap()
}

fn content(number: usize) -> Bytes {
    Bytes::from(vec![u8::try_from(number % 251).unwrap(); OBJECT])
}

async fn put(store: &dyn Storage, number: usize) -> StorageResult<PutOutcome> {
    let bytes = content(number);
    let digest = sha256(&bytes);
    store.put_new(&key(number), Body::Bytes(bytes), digest).await
}

/// One of the ignored tests below as a process; its lines that start with `told ` are what it tells.
fn victim(wrapper: &[&str], name: &str, place: &Path) -> Command {
    let binary = std::env::current_exe().unwrap();
    let mut words: Vec<PathBuf> = wrapper.iter().map(PathBuf::from).collect();
    words.push(binary);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.args(["--exact", &format!("local_store_survives::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(PLACE, place).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn place() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(PathBuf::from)
}

fn told(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(output).into_owned();
    text.lines().filter_map(|line| line.split_once("told ")).map(|(_, told)| told.to_owned()).collect()
}

#[tokio::test]
#[ignore = "a process for the tests below"]
async fn victim_that_writes_until_it_is_killed() {
    let Some(place) = place() else { return };
    let store = store_at(&place).await;
    for number in 0.. {
        assert_eq!(put(store.as_ref(), number).await.unwrap(), PutOutcome::Created);
        println!("told {number}");
    }
}

#[tokio::test]
#[ignore = "a process for the tests below"]
async fn victim_that_writes_one_object() {
    let Some(place) = place() else { return };
    let store = store_at(&place.join("repository")).await;
    let outcome = put(store.as_ref(), 1).await;
    println!("told {:?}", outcome.map_err(|error| error.kind));
    // A mark in the trace: from here on the object counts as stored.
    drop(fs::File::open(place.join("acknowledged")));
}

#[tokio::test]
#[ignore = "a process for the tests below"]
async fn victim_whose_disk_is_full() {
    let Some(place) = place() else { return };
    let store = store_at(&place.join("repository")).await;
    let mut stored = 0;
    let error = loop {
        match put(store.as_ref(), stored).await {
            Ok(outcome) => assert_eq!(outcome, PutOutcome::Created),
            Err(error) => break error,
        }
        stored += 1;
    };
    assert_eq!(error.kind, StorageErrorKind::Full, "{error}");
    assert!(stored > 3);
    only_whole_objects(store.as_ref(), stored).await;
    assert_eq!(fs::read_dir(place.join("repository/.tmp")).unwrap().count(), 0);
    // With room again, the same store goes on.
    store.delete(&[key(0)]).await.unwrap();
    assert_eq!(put(store.as_ref(), stored).await.unwrap(), PutOutcome::Created);
    println!("told all is well");
}

/// Everything listed is whole, and at least the first `acknowledged` objects are there.
async fn only_whole_objects(store: &dyn Storage, acknowledged: usize) {
    let listed = store.list("", None, None).await.unwrap();
    for info in &listed {
        let number: usize = info.key.as_str().rsplit('/').next().unwrap().parse().unwrap();
        assert_eq!(info.size, OBJECT as u64, "{}", info.key);
        assert!(store.get(&info.key).await.unwrap() == content(number), "{}", info.key);
    }
    for number in 0..acknowledged {
        assert_eq!(store.head(&key(number)).await.unwrap(), Some(OBJECT as u64), "{number} was acknowledged");
    }
}

#[tokio::test]
async fn after_kill_9_everything_acknowledged_is_there_and_nothing_is_torn() {
    for round in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = victim(&[], "victim_that_writes_until_it_is_killed", dir.path()).spawn().unwrap();
        let acknowledged = kill_after(&mut child, 1 + round * 3);
        assert!(acknowledged > round * 3);
        let store = store_at(dir.path()).await;
        only_whole_objects(store.as_ref(), acknowledged).await;
        // Whoever comes next goes on where it ended: an object that had been stored but not acknowledged is there.
        for number in 0..acknowledged + 2 {
            let outcome = put(store.as_ref(), number).await.unwrap();
            assert!(number >= acknowledged || outcome == PutOutcome::AlreadyExists, "{number}: {outcome:?}");
        }
        only_whole_objects(store.as_ref(), acknowledged + 2).await;
    }
}

/// Kills the process when it has told so many times; how often it told in the end.
fn kill_after(child: &mut Child, times: usize) -> usize {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut heard = 0;
    while heard < times {
        let line = lines.next().expect("the writer goes on until it is killed").unwrap();
        heard += usize::from(line.contains("told "));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    heard + lines.map_while(Result::ok).filter(|line| line.contains("told ")).count()
}

#[test]
fn a_full_disk_is_reported_as_such_and_leaves_whole_objects() {
    let dir = tempfile::tempdir().unwrap();
    // A file system of 4 MiB that only this process sees; no root needed where users may have namespaces.
    let unshare = ["unshare", "--map-root-user", "--mount"];
    let allowed =
        Command::new(unshare[0]).args(&unshare[1..]).args(["mount", "-t", "tmpfs", "none"]).arg(dir.path()).output();
    if !allowed.unwrap().status.success() {
        eprintln!("not run: this machine does not allow mounting a small file system");
        return;
    }
    let mount = format!(r#"mount -t tmpfs -o size=4m none "${PLACE}" && exec "$0" "$@""#);
    let wrapper = [unshare[0], unshare[1], unshare[2], "sh", "-c", &mount];
    let output = victim(&wrapper, "victim_whose_disk_is_full", dir.path()).output().unwrap();
    assert_eq!(told(&output.stdout), ["all is well"], "{output:?}");
}

/// Runs the writer of one object under strace; what it told, and the calls that matter.
fn traced(inject: &[&str]) -> Option<(Vec<String>, Vec<String>, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("trace");
    let log_text = log.display().to_string();
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,openat,unlink,unlinkat";
    let mut wrapper = vec!["strace", "-f", "-y", "-qq", "-e", calls, "-o", &log_text];
    wrapper.extend(inject);
    let output = victim(&wrapper, "victim_that_writes_one_object", dir.path()).output().expect("strace is installed");
    let text = fs::read_to_string(&log).unwrap_or_default();
    if text.is_empty() && String::from_utf8_lossy(&output.stderr).contains("Operation not permitted") {
        eprintln!("not run: this machine does not allow tracing");
        return None;
    }
    let calls = text.lines().filter(|line| line.contains(dir.path().to_str().unwrap())).map(str::to_owned).collect();
    Some((told(&output.stdout), calls, dir))
}

#[test]
fn content_name_and_folders_are_durable_in_this_order_before_the_object_is_acknowledged() {
    let Some((told, calls, dir)) = traced(&[]) else { return };
    assert_eq!(told, ["Ok(Created)"]);
    let root = dir.path().join("repository");
    let at = |what: &str, parts: &[&str]| {
        let fits = |call: &String| call.contains(what) && parts.iter().all(|part| call.contains(part));
        calls.iter().position(fits).unwrap_or_else(|| panic!("no {what} of {parts:?} in {calls:#?}"))
    };
    let folder = |path: &Path| format!("<{}>", path.display());
    let content = at("fsync(", &["/.tmp/.tmp-"]);
    let name = at("renameat2(", &["/.tmp/.tmp-", "wal/01/000001", "RENAME_NOREPLACE"]);
    let in_folder = at("fsync(", &[&folder(&root.join("wal/01"))]);
    let folder_in_wal = at("fsync(", &[&folder(&root.join("wal"))]);
    let wal_in_root = calls.iter().rposition(|call| call.contains("fsync(") && call.contains(&folder(&root))).unwrap();
    let root_in_parent = at("fsync(", &[&folder(dir.path())]);
    let acknowledged = at("openat(", &["acknowledged"]);
    assert!(content < name && name < in_folder, "{calls:#?}");
    assert!(in_folder.max(folder_in_wal).max(wal_in_root).max(root_in_parent) < acknowledged, "{calls:#?}");
    assert!(name < folder_in_wal && name < wal_in_root, "{calls:#?}");
}

#[tokio::test]
async fn what_could_not_be_synced_is_not_acknowledged() {
    // In order: the parent of the root, the root (for .tmp), the content, the folder of the object, those above.
    for call in 1..=6 {
        let inject = format!("inject=fsync:error=EIO:when={call}");
        let Some((told, calls, dir)) = traced(&["-e", &inject]) else { return };
        let store = store_at(&dir.path().join("repository")).await;
        let named = store.list("", None, None).await.unwrap().len();
        assert_eq!(told, ["Err(Other)"], "fsync number {call}: {calls:#?}");
        let renamed = calls.iter().any(|call| call.contains("renameat2("));
        assert_eq!(named, usize::from(renamed), "fsync number {call}");
        // A failed fsync is not repeated and believed.
        let failed = calls.iter().position(|call| call.contains("EIO")).unwrap();
        let path = calls[failed].split_once('<').unwrap().1.split_once('>').unwrap().0;
        let again =
            calls[failed + 1..].iter().any(|call| call.contains("fsync(") && call.contains(&format!("<{path}>")));
        assert!(!again, "fsync number {call}: {calls:#?}");
    }
}

#[test]
fn two_processes_that_write_the_same_objects_store_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..3).map(|_| victim(&[], "victim_that_races", dir.path()).spawn().unwrap()).collect();
    let mut created = Vec::new();
    for mut child in children {
        let mut output = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        assert!(child.wait().unwrap().success());
        created.extend(told(&output));
    }
    created.sort();
    let expected: Vec<String> = (0..40).map(|number| format!("{number:06}")).collect();
    assert_eq!(created, expected);
}

#[tokio::test]
#[ignore = "a process for the tests below"]
async fn victim_that_races() {
    let Some(place) = place() else { return };
    let store = store_at(&place).await;
    for number in 0..40 {
        if put(store.as_ref(), number).await.unwrap() == PutOutcome::Created {
            println!("told {number:06}");
        }
    }
}
