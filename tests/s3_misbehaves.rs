//! Does what is stored stay true when S3 lies, loses answers, or keeps no condition?

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgvault::codec::digest::sha256;
use pgvault::storage::{
    Body, ObjectKey, Probe, PutIfAbsent, PutOutcome, RequestResult, RetryPolicy, Storage, StorageContext, StorageError,
    StorageErrorKind, StorageMeter, StorageOptions, open,
};

use crate::support::LIMIT;
use crate::support::fake_s3::{Conditions, FakeS3, SECRET, Wrong};
use crate::support::s3;

const ALL_CONDITIONS: [Conditions; 4] =
    [Conditions::Atomic, Conditions::Ignored, Conditions::Raced, Conditions::Unknown];

fn quick() -> StorageContext {
    let retry = RetryPolicy {
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    StorageContext { retry, ..StorageContext::default() }
}

async fn opened(fake: &FakeS3) -> Arc<dyn Storage> {
    let store = open(&fake.options(), quick()).await.unwrap();
    // What the probe asked is of no interest.
    fake.forget();
    store
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

async fn put(store: &dyn Storage, name: &str, bytes: &'static str) -> Result<PutOutcome, StorageError> {
    let body = Body::Bytes(Bytes::from_static(bytes.as_bytes()));
    store.put_new(&key(name), body, sha256(bytes.as_bytes())).await
}

/// A file that goes in parts.
fn large_file(dir: &tempfile::TempDir) -> (Body, Bytes) {
    let bytes: Vec<u8> = (0..65 * 1024 * 1024u32).map(|i| (i >> 12) as u8).collect();
    let path = dir.path().join("large");
    std::fs::write(&path, &bytes).unwrap();
    (Body::File { path, len: bytes.len() as u64 }, Bytes::from(bytes))
}

#[tokio::test]
async fn the_probe_tells_which_store_keeps_its_promise() {
    for conditions in ALL_CONDITIONS {
        let fake = FakeS3::start(conditions).await;
        let store = opened(&fake).await;
        let expected = if conditions == Conditions::Atomic { PutIfAbsent::Atomic } else { PutIfAbsent::Unreliable };
        assert_eq!(store.capabilities().put_if_absent, expected, "{conditions:?}");
        assert!(fake.object("pgvault.probe").is_none());
    }
}

#[tokio::test]
async fn a_taken_key_keeps_its_object_whatever_the_store_does_with_conditions() {
    for conditions in ALL_CONDITIONS {
        let fake = FakeS3::start(conditions).await;
        let store = opened(&fake).await;
        assert_eq!(put(store.as_ref(), "a", "first").await.unwrap(), PutOutcome::Created, "{conditions:?}");
        assert_eq!(put(store.as_ref(), "a", "second").await.unwrap(), PutOutcome::AlreadyExists, "{conditions:?}");
        assert_eq!(store.get(&key("a")).await.unwrap(), "first", "{conditions:?}");
        // A store that refuses the header does not get it again.
        let sent = fake.seen().iter().any(|seen| seen.headers.contains_key("if-none-match"));
        assert_eq!(sent, conditions != Conditions::Unknown, "{conditions:?}");
    }
}

#[tokio::test]
async fn whoever_was_replaced_by_another_writer_learns_it() {
    for conditions in [Conditions::Ignored, Conditions::Raced, Conditions::Unknown] {
        for theirs in ["other", "longer than ours"] {
            let fake = FakeS3::start(conditions).await;
            let store = opened(&fake).await;
            fake.wrong("put", "a", 1..=1, Wrong::ReplacedBy(theirs));
            assert_eq!(put(store.as_ref(), "a", "mines").await.unwrap(), PutOutcome::AlreadyExists);
        }
    }
}

#[tokio::test]
async fn a_store_that_takes_no_checksum_header_is_not_sent_one() {
    let fake = FakeS3::start_with(Conditions::Atomic, false, 1000).await;
    let store = opened(&fake).await;
    assert_eq!(store.capabilities().put_if_absent, PutIfAbsent::Atomic);
    assert_eq!(put(store.as_ref(), "a", "x").await.unwrap(), PutOutcome::Created);
    assert!(!fake.seen()[0].headers.contains_key("x-amz-checksum-sha256"));
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    put(store.as_ref(), "a", "x").await.unwrap();
    assert!(fake.seen()[0].headers.contains_key("x-amz-checksum-sha256"));
}

#[tokio::test]
async fn no_checksum_trailer_is_ever_sent() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    put(store.as_ref(), "a", "x").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (body, bytes) = large_file(&dir);
    store.put_new(&key("large"), body, sha256(&bytes)).await.unwrap();
    assert!(fake.operations().contains(&"put_part"));
    for seen in fake.seen() {
        assert!(!seen.headers.contains_key("x-amz-trailer"), "{seen:?}");
        assert!(!seen.headers.contains_key("x-amz-checksum-crc32"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_writer_without_delete_rights_can_work() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    fake.wrong("delete", "", 1..=99, Wrong::Status(403, "AccessDenied"));
    let store = opened(&fake).await;
    assert_eq!(store.capabilities().put_if_absent, PutIfAbsent::Atomic);
    put(store.as_ref(), "a", "x").await.unwrap();
    // Scratch objects stay, and nobody sees them.
    assert_eq!(store.list("", None, None).await.unwrap().len(), 1);
    assert!(store.list_folders("").await.unwrap().is_empty());
    assert_eq!(store.delete(&[key("a")]).await.unwrap_err().kind, StorageErrorKind::Denied);
}

#[tokio::test]
async fn a_reader_without_write_rights_can_read() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    put(opened(&fake).await.as_ref(), "a", "x").await.unwrap();
    fake.wrong("put", "", 1..=99, Wrong::Status(403, "AccessDenied"));
    let context = StorageContext { probe: Probe::AtFirstPut, ..quick() };
    let store = open(&fake.options(), context).await.unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap(), "x");
    assert_eq!(store.capabilities().put_if_absent, PutIfAbsent::Unreliable);
    assert_eq!(put(store.as_ref(), "b", "x").await.unwrap_err().kind, StorageErrorKind::Denied);
    assert_eq!(open(&fake.options(), quick()).await.unwrap_err().kind, StorageErrorKind::Denied);
    // With the rights back, the same store finds out what it can do.
    fake.heal();
    assert_eq!(put(store.as_ref(), "b", "x").await.unwrap(), PutOutcome::Created);
    assert_eq!(store.capabilities().put_if_absent, PutIfAbsent::Atomic);
}

#[tokio::test]
async fn trouble_that_passes_is_not_noticed() {
    for (status, code) in [(503, "SlowDown"), (500, "InternalError"), (429, ""), (408, "RequestTimeout")] {
        let fake = FakeS3::start(Conditions::Atomic).await;
        for operation in ["put", "get", "head", "list", "delete"] {
            fake.wrong(operation, "", 1..=2, Wrong::Status(status, code));
        }
        // The probe has its share of it: heal only its own requests.
        let store = opened(&fake).await;
        for operation in ["put", "get", "head", "list", "delete"] {
            fake.wrong(operation, "", 1..=2, Wrong::Status(status, code));
        }
        assert_eq!(put(store.as_ref(), "a/b", "x").await.unwrap(), PutOutcome::Created);
        assert_eq!(store.get(&key("a/b")).await.unwrap(), "x");
        assert_eq!(store.get_range(&key("a/b"), 0..5).await.unwrap(), "x");
        assert_eq!(store.head(&key("a/b")).await.unwrap(), Some(1));
        assert_eq!(store.list("", None, None).await.unwrap().len(), 1);
        assert_eq!(store.list_folders("").await.unwrap(), ["a"]);
        store.delete(&[key("a/b")]).await.unwrap();
        assert_eq!(fake.object("a/b"), None);
    }
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_our_own() {
    for lost in [Wrong::DoneButError, Wrong::DoneButNoAnswer, Wrong::CutAnswer] {
        for conditions in ALL_CONDITIONS {
            let fake = FakeS3::start(conditions).await;
            let store = opened(&fake).await;
            fake.wrong("put", "a", 1..=2, lost.clone());
            let outcome = put(store.as_ref(), "a", "content").await.unwrap();
            assert_eq!(outcome, PutOutcome::Created, "{lost:?} {conditions:?}");
            assert_eq!(fake.object("a").unwrap(), "content");
        }
    }
}

#[tokio::test]
async fn an_answer_without_etag_is_looked_into() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    fake.wrong("put", "a", 1..=1, Wrong::NoEtag);
    assert_eq!(put(store.as_ref(), "a", "content").await.unwrap(), PutOutcome::Created);
    assert_eq!(fake.operations(), ["put", "head"]);
    // An error page with status 200: nothing was stored, and the next attempt stores it.
    fake.wrong("put", "b", 1..=1, Wrong::ErrorWith200("InternalError"));
    assert_eq!(put(store.as_ref(), "b", "content").await.unwrap(), PutOutcome::Created);
    assert_eq!(fake.object("b").unwrap(), "content");
}

#[tokio::test]
async fn a_download_cut_short_is_repeated_and_never_given() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    put(store.as_ref(), "a", "0123456789").await.unwrap();
    fake.wrong("get", "a", 1..=2, Wrong::CutAnswer);
    assert_eq!(store.get(&key("a")).await.unwrap(), "0123456789");
    fake.wrong("get", "a", 1..=99, Wrong::CutAnswer);
    assert_eq!(store.get(&key("a")).await.unwrap_err().kind, StorageErrorKind::Transient);
    assert_eq!(store.get_range(&key("a"), 2..5).await.unwrap_err().kind, StorageErrorKind::Transient);
    fake.heal();
    fake.wrong("get", "a", 1..=99, Wrong::WholeObject);
    assert_eq!(store.get_range(&key("a"), 2..5).await.unwrap(), "234");
}

#[tokio::test]
async fn absence_is_said_only_when_the_store_says_exactly_that() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    assert_eq!(store.head(&key("a")).await.unwrap(), None);
    assert_eq!(store.get(&key("a")).await.unwrap_err().kind, StorageErrorKind::NotFound);
    for (wrong, kind) in [
        (Wrong::Status(404, "NoSuchBucket"), StorageErrorKind::Denied),
        (Wrong::Status(403, "AccessDenied"), StorageErrorKind::Denied),
        (Wrong::Page404, StorageErrorKind::Other),
        (Wrong::Status(503, "SlowDown"), StorageErrorKind::Transient),
    ] {
        fake.wrong("get", "a", 1..=99, wrong.clone());
        assert_eq!(store.get(&key("a")).await.unwrap_err().kind, kind, "{wrong:?}");
        // HEAD itself answers 404 without a body.
        assert_eq!(store.head(&key("a")).await.unwrap_err().kind, kind, "{wrong:?}");
        fake.heal();
    }
}

#[tokio::test]
async fn a_listing_never_ends_early_in_silence() {
    let fake = FakeS3::start_with(Conditions::Atomic, true, 3).await;
    let store = opened(&fake).await;
    for name in ["a/1", "a/2", "b/1", "b/2", "c", "d", "e"] {
        put(store.as_ref(), name, "x").await.unwrap();
    }
    assert_eq!(store.list("", None, None).await.unwrap().len(), 7);
    assert_eq!(store.list_folders("").await.unwrap(), ["a", "b"]);
    for (wrong, kind) in [
        (Wrong::NoToken, StorageErrorKind::Corrupt),
        (Wrong::Circle, StorageErrorKind::Corrupt),
        (Wrong::ErrorWith200("InternalError"), StorageErrorKind::Transient),
        (Wrong::CutAnswer, StorageErrorKind::Transient),
        (Wrong::Page404, StorageErrorKind::Other),
        (Wrong::Status(404, "NoSuchBucket"), StorageErrorKind::Denied),
    ] {
        fake.wrong("list", "", 2..=99, wrong.clone());
        assert_eq!(store.list("", None, None).await.unwrap_err().kind, kind, "{wrong:?}");
        assert_eq!(store.list_folders("").await.unwrap_err().kind, kind, "{wrong:?}");
        fake.heal();
    }
}

#[tokio::test]
async fn what_could_not_be_deleted_is_reported() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    for name in ["a", "locked"] {
        put(store.as_ref(), name, "x").await.unwrap();
    }
    let error = store.delete(&[key("a"), key("locked")]).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Denied);
    assert!(error.message.contains("locked"), "{error}");
    assert!(fake.object("locked").is_some());
    // A service that cannot delete several at a time.
    put(store.as_ref(), "b", "x").await.unwrap();
    fake.wrong("delete", "", 1..=99, Wrong::Status(501, "NotImplemented"));
    store.delete(&[key("b"), key("nothing")]).await.unwrap();
    assert_eq!(fake.object("b"), None);
}

#[tokio::test]
async fn a_large_upload_that_the_store_only_seems_to_complete_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (body, bytes) = large_file(&dir);
    let digest = sha256(&bytes);
    for wrong in [
        Wrong::ErrorWith200("InternalError"),
        Wrong::Status(503, "SlowDown"),
        Wrong::DoneButNoAnswer,
        Wrong::DoneButError,
        Wrong::NoEtag,
    ] {
        let fake = FakeS3::start(Conditions::Atomic).await;
        let store = opened(&fake).await;
        fake.wrong("complete", "a", 1..=1, wrong.clone());
        let outcome = store.put_new(&key("a"), body.clone(), digest).await.unwrap();
        assert_eq!(outcome, PutOutcome::Created, "{wrong:?}");
        assert!(fake.object("a").unwrap() == bytes, "{wrong:?}");
        await_no_uploads(&fake).await;
    }
}

#[tokio::test]
async fn a_part_that_fails_is_sent_again_and_not_the_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let (body, bytes) = large_file(&dir);
    let fake = FakeS3::start(Conditions::Ignored).await;
    let store = opened(&fake).await;
    fake.wrong("put_part", "a", 2..=2, Wrong::Status(500, "InternalError"));
    assert_eq!(store.put_new(&key("a"), body, sha256(&bytes)).await.unwrap(), PutOutcome::Created);
    assert!(fake.object("a").unwrap() == bytes);
    let count = |operation| fake.operations().iter().filter(|seen| **seen == operation).count();
    assert_eq!((count("create_upload"), count("put_part"), count("complete")), (1, 6, 1));
}

#[tokio::test]
async fn an_upload_that_fails_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (body, bytes) = large_file(&dir);
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    fake.wrong("put_part", "a", 3..=99, Wrong::Status(403, "AccessDenied"));
    let error = store.put_new(&key("a"), body.clone(), sha256(&bytes)).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Denied);
    await_no_uploads(&fake).await;
    // Likewise when the file changed meanwhile.
    fake.heal();
    let error = store.put_new(&key("a"), body, sha256(b"other")).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Corrupt);
    await_no_uploads(&fake).await;
    assert_eq!(fake.object("a"), None);
}

#[tokio::test]
async fn an_upload_whose_caller_goes_away_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (body, bytes) = large_file(&dir);
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    fake.wrong("complete", "a", 1..=1, Wrong::Hang);
    let digest = sha256(&bytes);
    let task = tokio::spawn(async move { store.put_new(&key("a"), body, digest).await });
    let deadline = Instant::now() + LIMIT;
    while !fake.operations().contains(&"complete") {
        assert!(Instant::now() < deadline, "the upload does not come to its end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fake.uploads(), 1);
    task.abort();
    await_no_uploads(&fake).await;
    assert_eq!(fake.object("a"), None);
}

/// A certificate `<name>.pem` with its key `<name>.key`.
fn make_certificate(dir: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let path = dir.join(format!("{name}.pem"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}"), "-keyout"])
        .arg(dir.join(format!("{name}.key")))
        .arg("-out")
        .arg(&path)
        .args(extra)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    path
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_named_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let authority = make_certificate(dir.path(), "ca", &["-addext", "basicConstraints=critical,CA:TRUE"]);
    let (ca, ca_key) = (file("ca.pem").display().to_string(), file("ca.key").display().to_string());
    let signed = ["-CA", &ca, "-CAkey", &ca_key, "-addext", "subjectAltName=DNS:localhost"];
    let certificate =
        make_certificate(dir.path(), "server", &[&signed[..], &["-addext", "basicConstraints=CA:FALSE"]].concat());
    let fake = FakeS3::start_tls(&certificate, &file("server.key")).await;
    let trusting = StorageOptions { ca_file: Some(authority), ..fake.options() };
    let store = open(&trusting, quick()).await.unwrap();
    assert_eq!(put(store.as_ref(), "a", "x").await.unwrap(), PutOutcome::Created);
    assert_eq!(store.get(&key("a")).await.unwrap(), "x");
    let error = open(&fake.options(), quick()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Denied, "{error}");
    assert!(error.message.to_lowercase().contains("certificate"), "{error}");
}

#[tokio::test]
#[ignore = "takes the time limit of a request, half a minute"]
async fn a_store_that_never_answers_is_given_up() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let store = open(&fake.options(), StorageContext { retry, ..StorageContext::default() }).await.unwrap();
    fake.wrong("get", "a", 1..=99, Wrong::Hang);
    assert_eq!(store.get(&key("a")).await.unwrap_err().kind, StorageErrorKind::Transient);
    assert_eq!(fake.operations().iter().filter(|operation| **operation == "get").count(), 3);
}

async fn await_no_uploads(fake: &FakeS3) {
    let deadline = Instant::now() + LIMIT;
    while fake.uploads() > 0 {
        assert!(Instant::now() < deadline, "an upload stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn refusals_tell_the_reason_the_request_and_the_credentials_but_no_secret() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let store = opened(&fake).await;
    for code in ["AccessDenied", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidAccessKeyId"] {
        fake.wrong("get", "a", 1..=1, Wrong::Status(403, code));
        let error = store.get(&key("a")).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Denied);
        let text = format!("{error} {error:?}");
        for part in [code, "HTTP 403", "REQ7", "key files", "AKIA…FAKE", "s3://bucket/p/a"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains(SECRET), "{text}");
        fake.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_refused_by_a_real_server_and_told_without_the_secret() {
    let server = tokio::task::spawn_blocking(s3::server).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (access_key, secret_key) = (dir.path().join("access"), dir.path().join("secret"));
    let secret = "a-secret-that-must-not-be-shown";
    for access in [s3::ACCESS_KEY, "AKIANOBODYKNOWSIT"] {
        std::fs::write(&access_key, access).unwrap();
        std::fs::write(&secret_key, secret).unwrap();
        let options = StorageOptions {
            access_key_file: Some(access_key.clone()),
            secret_key_file: Some(secret_key.clone()),
            ..server.fresh()
        };
        let error = open(&options, quick()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Denied, "{error}");
        let text = format!("{error} {error:?} {options:?}");
        assert!(!text.contains(secret), "{text}");
        assert!(text.contains("request "), "{text}");
        // A store opened to read later says the same.
        let context = StorageContext { probe: Probe::AtFirstPut, ..quick() };
        let store = open(&options, context).await.unwrap();
        assert_eq!(store.get(&key("a")).await.unwrap_err().kind, StorageErrorKind::Denied);
        assert_eq!(store.head(&key("a")).await.unwrap_err().kind, StorageErrorKind::Denied);
        assert_eq!(store.list("", None, None).await.unwrap_err().kind, StorageErrorKind::Denied);
    }
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_refused_at_once() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    fake.wrong("put", "", 1..=99, Wrong::Status(404, "NoSuchBucket"));
    let error = open(&fake.options(), quick()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Denied);
    assert!(error.message.contains("NoSuchBucket"), "{error}");
    assert_eq!(fake.operations().iter().filter(|operation| **operation == "put").count(), 1);
}

#[tokio::test]
async fn a_store_that_is_away_is_transient_trouble() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let options = StorageOptions { endpoint: Some("http://127.0.0.1:1".to_owned()), ..fake.options() };
    assert_eq!(open(&options, quick()).await.unwrap_err().kind, StorageErrorKind::Transient);
    let context = StorageContext { probe: Probe::AtFirstPut, ..quick() };
    let store = open(&options, context).await.unwrap();
    assert_eq!(put(store.as_ref(), "a", "x").await.unwrap_err().kind, StorageErrorKind::Transient);
    assert_eq!(store.head(&key("a")).await.unwrap_err().kind, StorageErrorKind::Transient);
}

#[derive(Debug, Default)]
struct Counts(Mutex<Vec<(&'static str, RequestResult)>>);

impl StorageMeter for Counts {
    fn request(&self, operation: &'static str, result: RequestResult, _duration: Duration) {
        self.0.lock().unwrap().push((operation, result));
    }
}

#[tokio::test]
async fn every_attempt_is_counted() {
    let fake = FakeS3::start(Conditions::Atomic).await;
    let meter = Arc::new(Counts::default());
    let context = StorageContext { meter: Arc::clone(&meter) as Arc<dyn StorageMeter>, ..quick() };
    let store = open(&fake.options(), context).await.unwrap();
    fake.wrong("put", "a", 1..=1, Wrong::Status(503, "SlowDown"));
    put(store.as_ref(), "a", "x").await.unwrap();
    put(store.as_ref(), "a", "x").await.unwrap();
    store.get(&key("b")).await.unwrap_err();
    let transient = RequestResult::Failed(StorageErrorKind::Transient);
    let not_found = RequestResult::Failed(StorageErrorKind::NotFound);
    let counted = meter.0.lock().unwrap().clone();
    let ok = RequestResult::Ok;
    assert_eq!(counted, [("put", transient), ("put", ok), ("put", ok), ("get", not_found)]);
}
