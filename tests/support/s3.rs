//! A real S3 server for tests: SeaweedFS, one for the whole test process, one prefix for each test.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use pgvault::storage::StorageOptions;

use super::LIMIT;
use super::pg::servers_dir;

/// The bucket that every test uses, each below a prefix of its own.
pub const BUCKET: &str = "test";
/// The identity that may do everything.
pub const ACCESS_KEY: &str = "k";
pub const SECRET_KEY: &str = "s";
/// Another identity, which may read and list: access key and secret key.
pub const READER: [&str; 2] = ["r", "rs"];

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    /// Files with the access key and the secret key.
    pub key_files: [PathBuf; 2],
    prefixes: AtomicU64,
    /// Ends the server and removes its files when this process ends, however it ends: its input closes then.
    _keeper: Child,
}

/// The server, started by the first test that wants it.
pub fn server() -> &'static S3Server {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    SERVER.get_or_init(S3Server::start)
}

impl S3Server {
    /// A prefix that no other test uses.
    pub fn fresh_prefix(&self) -> String {
        format!("t{}", self.prefixes.fetch_add(1, Ordering::Relaxed))
    }

    /// Options for a place of its own in this server.
    pub fn fresh(&self) -> StorageOptions {
        self.options(&self.fresh_prefix())
    }

    /// Options for a prefix in this server.
    pub fn options(&self, prefix: &str) -> StorageOptions {
        let [access_key, secret_key] = self.key_files.clone();
        StorageOptions {
            endpoint: Some(self.endpoint.clone()),
            access_key_file: Some(access_key),
            secret_key_file: Some(secret_key),
            ..StorageOptions::new(format!("s3://{BUCKET}/{prefix}"))
        }
    }

    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("pgvault-s3-").tempdir().unwrap().keep();
        let port = free_ports();
        let config = format!(
            r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","List","Tagging","Write"]}},{{"name":"r","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],"actions":["Read","List"]}}]}}"#,
            READER[0], READER[1]
        );
        fs::write(dir.join("s3.json"), config).unwrap();
        let key_files = [(ACCESS_KEY, "access"), (SECRET_KEY, "secret")].map(|(key, name)| {
            let path = dir.join(name);
            fs::write(&path, key).unwrap();
            path
        });
        let keeper = spawn(&dir, port);
        let server = Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            key_files,
            prefixes: AtomicU64::new(0),
            _keeper: keeper,
        };
        server.wait_until_ready(&dir, port);
        server.make_bucket();
        server
    }

    fn wait_until_ready(&self, dir: &Path, port: u16) {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if answers_403(port) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        panic!("SeaweedFS did not start in {} s:\n{log}", LIMIT.as_secs());
    }

    /// The bucket, made by a client of its own: pgvault never makes one.
    fn make_bucket(&self) {
        let client = raw_client(&self.endpoint, ACCESS_KEY, SECRET_KEY);
        let make = async move {
            let deadline = Instant::now() + LIMIT;
            while let Err(error) = client.create_bucket().bucket(BUCKET).send().await {
                assert!(Instant::now() < deadline, "create bucket: {error:?}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        // A thread of its own, because the test that asks may be inside a runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime.block_on(make)).join().unwrap();
    }
}

/// A plain client, to look at a server past pgvault.
pub fn raw_client(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

/// Starts SeaweedFS below a shell that waits for the end of its input, then ends it and removes its files.
fn spawn(dir: &Path, port: u16) -> Child {
    let weed = servers_dir().join("bin/weed");
    assert!(weed.exists(), "no SeaweedFS at {}: run `make setup` (scripts/fetch-servers.sh)", weed.display());
    let shown = dir.display();
    let script = r#"dir=$1; shift; "$@" >"$dir/log" 2>&1 </dev/null & pid=$!; cat >/dev/null; kill -9 $pid; wait $pid; rm -rf "$dir""#;
    Command::new("sh")
        .args(["-c", script, "keeper"])
        .arg(dir)
        .arg(weed)
        .args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"])
        .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=1024", "-volume.max=200"])
        .arg("-master.telemetry=false")
        .arg(format!("-dir={shown}"))
        .arg(format!("-s3.config={shown}/s3.json"))
        .arg(format!("-s3.port={port}"))
        .arg(format!("-master.port={}", port + 1))
        .arg(format!("-volume.port={}", port + 2))
        .arg(format!("-filer.port={}", port + 3))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The first of four ports that are free, together with those 10000 above, where SeaweedFS has its internal services: all
/// of them below those that the system gives to outgoing connections, and beyond those of [`free_port`](super::pg::free_port).
fn free_ports() -> u16 {
    for _ in 0..500 {
        let port = 22_010 + rand::random::<u16>() % 740;
        let all = (0..4).flat_map(|i| [port + i, port + i + 10_000]);
        let held: Result<Vec<_>, _> = all.map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
        if held.is_ok() {
            return port;
        }
    }
    panic!("no free ports");
}

/// Ready is when an unsigned request is refused.
fn answers_403(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = [0; 12];
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").is_ok()
        && std::io::Read::read_exact(&mut stream, &mut answer).is_ok()
        && answer.ends_with(b"403")
}
