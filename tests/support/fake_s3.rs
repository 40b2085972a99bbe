//! An S3 service in this process that misbehaves on purpose: for what a real one cannot be made to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures_util::stream;
use pgvault::storage::StorageOptions;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub const SECRET: &str = "very-secret-access-key";

/// What the service does with `If-None-Match`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditions {
    Atomic,
    /// As Garage: the object is replaced.
    Ignored,
    /// As Ceph with versions: it looks, and some time later writes.
    Raced,
    /// 501.
    Unknown,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// Nothing is done; this status and error code.
    Status(u16, &'static str),
    /// Nothing is done; status 404 and a page that is no answer of S3.
    Page404,
    /// Nothing is done; status 200 with an error in the body.
    ErrorWith200(&'static str),
    /// It is done, and the answer is a 500.
    DoneButError,
    /// It is done, and the connection ends before the answer.
    DoneButNoAnswer,
    /// It is done, and the connection ends in the middle of the answer's body.
    CutAnswer,
    /// It is done, and a moment later another writer's bytes lie there.
    ReplacedBy(&'static str),
    /// It is done, and the answer has no ETag.
    NoEtag,
    /// It is done, and the answer to a listing says that it goes on and not where.
    NoToken,
    /// A listing always names the same next page.
    Circle,
    /// The whole object in place of a range.
    WholeObject,
    /// Nothing is done and no answer ever comes.
    Hang,
}

#[derive(Debug)]
struct Rule {
    operation: &'static str,
    key: &'static str,
    calls: RangeInclusive<u64>,
    /// Of these calls so many in a hundred.
    percent: u64,
    matched: u64,
    wrong: Wrong,
}

/// A request as the service saw it: operation, key, headers.
#[derive(Clone, Debug)]
pub struct Seen {
    pub operation: &'static str,
    pub key: String,
    pub headers: HeaderMap,
}

#[derive(Debug)]
struct Service {
    conditions: Conditions,
    takes_sha256: bool,
    page: usize,
    state: Mutex<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    next_upload: u64,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Keys whose object was replaced by other bytes.
    rewritten: Vec<String>,
}

/// A running service; ends when dropped.
#[derive(Debug)]
pub struct FakeS3 {
    pub endpoint: String,
    service: Arc<Service>,
    task: JoinHandle<()>,
    keys: tempfile::TempDir,
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeS3 {
    pub async fn start(conditions: Conditions) -> Self {
        Self::start_with(conditions, true, 1000).await
    }

    pub async fn start_with(conditions: Conditions, takes_sha256: bool, page: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = Service { conditions, takes_sha256, page, state: Mutex::default() };
        Self::serve(service, endpoint, |router| {
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
        })
    }

    /// With TLS, for `localhost`, by this certificate and key (PEM).
    pub async fn start_tls(certificate: &Path, key: &Path) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", tcp.local_addr().unwrap().port());
        let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let listener = TlsListener { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) };
        let service =
            Service { conditions: Conditions::Atomic, takes_sha256: true, page: 1000, state: Mutex::default() };
        Self::serve(service, endpoint, |router| {
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
        })
    }

    fn serve(service: Service, endpoint: String, spawn: impl FnOnce(Router) -> JoinHandle<()>) -> Self {
        let service = Arc::new(service);
        let task = spawn(Router::new().fallback(answer).with_state(Arc::clone(&service)));
        let keys = tempfile::tempdir().unwrap();
        std::fs::write(keys.path().join("access"), "AKIAFAKEFAKEFAKE").unwrap();
        std::fs::write(keys.path().join("secret"), SECRET).unwrap();
        Self { endpoint, service, task, keys }
    }

    /// Options for a prefix in the one bucket.
    pub fn options(&self) -> StorageOptions {
        StorageOptions {
            endpoint: Some(self.endpoint.clone()),
            access_key_file: Some(self.keys.path().join("access")),
            secret_key_file: Some(self.keys.path().join("secret")),
            ..StorageOptions::new("s3://bucket/p")
        }
    }

    /// From now on, requests of this operation whose key contains `key` go wrong at these calls, the first being 1.
    pub fn wrong(&self, operation: &'static str, key: &'static str, calls: RangeInclusive<u64>, wrong: Wrong) {
        self.state().rules.push(Rule { operation, key, calls, percent: 100, matched: 0, wrong });
    }

    /// From now on, so many in a hundred requests of this operation (of all, if it is empty) go wrong.
    pub fn sometimes(&self, operation: &'static str, percent: u64, wrong: Wrong) {
        self.state().rules.push(Rule { operation, key: "", calls: 1..=u64::MAX, percent, matched: 0, wrong });
    }

    /// Keys whose object was replaced by other bytes. The probe's own do not count: that is how it finds out.
    pub fn rewritten(&self) -> Vec<String> {
        self.state().rewritten.iter().filter(|key| !key.contains("pgvault.probe")).cloned().collect()
    }

    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        self.state().seen.clear();
    }

    pub fn operations(&self) -> Vec<&'static str> {
        self.seen().iter().map(|seen| seen.operation).collect()
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.state().objects.get(&format!("p/{key}")).cloned()
    }

    /// Uploads that were neither completed nor taken back.
    pub fn uploads(&self) -> usize {
        self.state().uploads.len()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.service.state.lock().unwrap()
    }
}

/// A service for tests that have no runtime of their own.
#[derive(Debug)]
pub struct FakeS3Process {
    pub fake: FakeS3,
    _runtime: tokio::runtime::Runtime,
}

impl FakeS3Process {
    pub fn start(conditions: Conditions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let fake = runtime.block_on(FakeS3::start(conditions));
        Self { fake, _runtime: runtime }
    }
}

struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            // A client that does not trust the certificate goes away here.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

type Words = BTreeMap<String, String>;

async fn answer(State(service): State<Arc<Service>>, Query(words): Query<Words>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path().trim_start_matches('/').to_owned();
    let key = path.split_once('/').map_or("", |(_, key)| key).to_owned();
    let operation = operation(parts.method.as_str(), &words, &key);
    let wrong = {
        let mut state = service.state.lock().unwrap();
        let about = if operation == "list" { words.get("prefix").cloned().unwrap_or_default() } else { key.clone() };
        state.seen.push(Seen { operation, key: about.clone(), headers: parts.headers.clone() });
        state.meet(operation, &about)
    };
    match &wrong {
        Some(Wrong::Status(status, code)) => return error(*status, code, operation),
        Some(Wrong::Page404) => return respond(404, "<html><body>not here</body></html>".into(), &[]),
        Some(Wrong::Hang) => std::future::pending().await,
        Some(Wrong::ErrorWith200(code)) => return respond(200, error_body(code).into(), &[]),
        _ => {}
    }
    let headers = match wrong {
        Some(Wrong::WholeObject) => HeaderMap::new(),
        _ => parts.headers,
    };
    let response = service.perform(operation, &key, &words, &headers, body, wrong.as_ref()).await;
    match wrong {
        Some(Wrong::DoneButError) => error(500, "InternalError", operation),
        // Ends the task that serves this connection, without the noise of a panic.
        Some(Wrong::DoneButNoAnswer) => std::panic::resume_unwind(Box::new("no answer")),
        Some(Wrong::CutAnswer) => cut(response).await,
        _ => response,
    }
}

fn operation(method: &str, words: &Words, key: &str) -> &'static str {
    let has = |word: &str| words.contains_key(word);
    match method {
        "GET" if key.is_empty() => "list",
        "GET" => "get",
        "HEAD" => "head",
        "PUT" if has("partNumber") => "put_part",
        "PUT" => "put",
        "DELETE" if has("uploadId") => "abort",
        "DELETE" => "delete_one",
        "POST" if has("uploads") => "create_upload",
        "POST" if has("uploadId") => "complete",
        "POST" if has("delete") => "delete",
        _ => "unknown",
    }
}

impl Objects {
    fn meet(&mut self, operation: &str, key: &str) -> Option<Wrong> {
        let mut found = None;
        let applies =
            |rule: &&mut Rule| (rule.operation.is_empty() || rule.operation == operation) && key.contains(rule.key);
        for rule in self.rules.iter_mut().filter(applies) {
            rule.matched += 1;
            let drawn = rule.percent >= 100 || rand::random::<u64>() % 100 < rule.percent;
            if found.is_none() && drawn && rule.calls.contains(&rule.matched) {
                found = Some(rule.wrong.clone());
            }
        }
        found
    }
}

impl Service {
    async fn perform(
        &self,
        operation: &str,
        key: &str,
        words: &Words,
        headers: &HeaderMap,
        body: Bytes,
        wrong: Option<&Wrong>,
    ) -> Response {
        let word = |name: &str| words.get(name).cloned().unwrap_or_default();
        match operation {
            "put" => {
                if headers.contains_key("x-amz-checksum-sha256") && !self.takes_sha256 {
                    return error(400, "InvalidRequest", operation);
                }
                self.store(key, headers, body, wrong).await
            }
            "get" | "head" => self.read(key, headers, operation == "head"),
            "list" => self.list(words, wrong),
            "delete" => self.delete(headers, &String::from_utf8_lossy(&body)),
            "create_upload" => {
                let mut state = self.state.lock().unwrap();
                state.next_upload += 1;
                let id = state.next_upload.to_string();
                state.uploads.insert(id.clone(), BTreeMap::new());
                let xml =
                    format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
                respond(200, xml.into(), &[])
            }
            "put_part" => {
                let mut state = self.state.lock().unwrap();
                let Some(parts) = state.uploads.get_mut(&word("uploadId")) else {
                    return error(404, "NoSuchUpload", operation);
                };
                parts.insert(word("partNumber").parse().unwrap(), body);
                respond(200, Bytes::new(), &[("etag", "\"part\"".to_owned())])
            }
            "complete" => {
                let parts = self.state.lock().unwrap().uploads.remove(&word("uploadId"));
                let Some(parts) = parts else { return error(404, "NoSuchUpload", operation) };
                let whole = parts.into_values().collect::<Vec<_>>().concat();
                let stored = self.store(key, headers, whole.into(), wrong).await;
                if stored.status() != StatusCode::OK {
                    return stored;
                }
                let etag = if matches!(wrong, Some(Wrong::NoEtag)) { "" } else { "<ETag>\"x-1\"</ETag>" };
                let xml = format!("<CompleteMultipartUploadResult>{etag}</CompleteMultipartUploadResult>");
                respond(200, xml.into(), &[])
            }
            "abort" => {
                self.state.lock().unwrap().uploads.remove(&word("uploadId"));
                respond(204, Bytes::new(), &[])
            }
            "delete_one" => {
                self.state.lock().unwrap().objects.remove(key);
                respond(204, Bytes::new(), &[])
            }
            _ => error(400, "InvalidRequest", operation),
        }
    }

    fn holds(&self, key: &str) -> bool {
        self.state.lock().unwrap().objects.contains_key(key)
    }

    async fn store(&self, key: &str, headers: &HeaderMap, body: Bytes, wrong: Option<&Wrong>) -> Response {
        let conditional = headers.contains_key("if-none-match");
        match self.conditions {
            Conditions::Unknown if conditional => return error(501, "NotImplemented", "put"),
            Conditions::Atomic | Conditions::Raced if conditional && self.holds(key) => {
                return error(412, "PreconditionFailed", "put");
            }
            _ => {}
        }
        if self.conditions == Conditions::Raced {
            // Long enough for those who race to have looked too.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let etag = etag_of(&body);
        let mut state = self.state.lock().unwrap();
        if self.conditions == Conditions::Atomic && conditional && state.objects.contains_key(key) {
            return error(412, "PreconditionFailed", "put");
        }
        if state.objects.get(key).is_some_and(|before| *before != body) {
            state.rewritten.push(key.to_owned());
        }
        state.objects.insert(key.to_owned(), body);
        if let Some(Wrong::ReplacedBy(other)) = wrong {
            state.objects.insert(key.to_owned(), Bytes::from_static(other.as_bytes()));
        }
        let etag = if matches!(wrong, Some(Wrong::NoEtag)) { vec![] } else { vec![("etag", etag)] };
        respond(200, Bytes::new(), &etag)
    }

    fn read(&self, key: &str, headers: &HeaderMap, head: bool) -> Response {
        let operation = if head { "head" } else { "get" };
        let Some(bytes) = self.state.lock().unwrap().objects.get(key).cloned() else {
            return error(404, "NoSuchKey", operation);
        };
        let etag = ("etag", etag_of(&bytes));
        if head {
            return respond(200, Bytes::new(), &[etag, ("content-length", bytes.len().to_string())]);
        }
        let Some(range) = headers.get("range").and_then(|range| range.to_str().unwrap().strip_prefix("bytes=")) else {
            return respond(200, bytes, &[etag]);
        };
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
        if start >= bytes.len() {
            return error(416, "InvalidRange", operation);
        }
        let given = format!("bytes {start}-{}/{}", end - 1, bytes.len());
        respond(206, bytes.slice(start..end), &[etag, ("content-range", given)])
    }

    fn list(&self, words: &Words, wrong: Option<&Wrong>) -> Response {
        let prefix = words.get("prefix").cloned().unwrap_or_default();
        let after = words.get("continuation-token").cloned().unwrap_or_default();
        let delimited = words.contains_key("delimiter");
        let state = self.state.lock().unwrap();
        let mut entries: BTreeMap<String, Option<usize>> = BTreeMap::new();
        for (key, bytes) in state.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            match key[prefix.len()..].split_once('/').filter(|_| delimited) {
                Some((folder, _)) => entries.insert(format!("{prefix}{folder}/"), None),
                None => entries.insert(key.clone(), Some(bytes.len())),
            };
        }
        let mut entries = entries.into_iter().filter(|(key, _)| *key > after).peekable();
        let mut xml = "<ListBucketResult>".to_owned();
        let mut last = String::new();
        for (key, size) in entries.by_ref().take(self.page) {
            match size {
                Some(size) => write!(xml, "<Contents><Key>{key}</Key><Size>{size}</Size></Contents>").unwrap(),
                None => write!(xml, "<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>").unwrap(),
            }
            last = key;
        }
        match wrong {
            Some(Wrong::NoToken) => xml += "<IsTruncated>true</IsTruncated>",
            Some(Wrong::Circle) => {
                xml += "<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"
            }
            _ if entries.peek().is_some() => {
                xml += "<IsTruncated>true</IsTruncated>";
                write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>").unwrap();
            }
            _ => xml += "<IsTruncated>false</IsTruncated>",
        }
        respond(200, (xml + "</ListBucketResult>").into(), &[])
    }

    /// As older services: only with the body's MD5. Keys that contain `locked` cannot be deleted.
    fn delete(&self, headers: &HeaderMap, body: &str) -> Response {
        if !headers.contains_key("content-md5") {
            return error(400, "InvalidRequest", "delete");
        }
        let mut xml = "<DeleteResult>".to_owned();
        for key in body.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>")).map(|(key, _)| key) {
            if key.contains("locked") {
                write!(xml, "<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>").unwrap();
            } else {
                self.state.lock().unwrap().objects.remove(key);
            }
        }
        respond(200, (xml + "</DeleteResult>").into(), &[])
    }
}

fn etag_of(bytes: &[u8]) -> String {
    use md5::{Digest, Md5};
    // Unoptimised, it is slow; and the ETag of an upload in parts is no MD5 anyway.
    let digest = if bytes.len() > 1_000_000 { "parts-7".to_owned() } else { hex::encode(Md5::digest(bytes)) };
    format!("\"{digest}\"")
}

fn error_body(code: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>a test wants it so.</Message><RequestId>REQ7</RequestId></Error>")
}

fn error(status: u16, code: &str, operation: &str) -> Response {
    let body = if operation == "head" { Bytes::new() } else { error_body(code).into() };
    respond(status, body, &[])
}

fn respond(status: u16, body: Bytes, headers: &[(&str, String)]) -> Response {
    let mut response = Response::builder().status(status).header("x-amz-request-id", "REQ7");
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(body)).unwrap()
}

/// The same answer, with a body that is announced longer than what comes.
async fn cut(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    parts.headers.insert("content-length", (bytes.len() + 10).into());
    let half = bytes.slice(..bytes.len() / 2);
    let pieces = [Ok(half), Err(std::io::Error::other("a test wants the connection to end here"))];
    Response::from_parts(parts, Body::from_stream(stream::iter(pieces)))
}
