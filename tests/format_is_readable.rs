//! Can a repository be read without pgvault, from docs/FORMAT.md alone?
//!
//! `docs/read_repository.py` was written from that page and shares no code with us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pgvault::backup::{BackupDeps, BackupProgress, BackupRequest, ProgressSender, WalProgress, take};
use pgvault::clock::SystemClock;
use pgvault::error::Error;
use pgvault::primary::{CheckpointMode, ConnectOptions, Conninfo, Environment};
use pgvault::repository::layout::{LineageObject, MarkKind};
use pgvault::repository::{LineageRepository, MarkDocument};
use tokio_util::sync::CancellationToken;
use wal::{PgTime, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, WalRange};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};
use crate::support::tree::files_below;
use crate::support::{stored_wal, wal_truth};

fn reader(repository: &Path, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/read_repository.py");
    Command::new("python3").arg("-B").arg(script).arg(repository).args(arguments).output().unwrap()
}

fn read(repository: &Path, arguments: &[&str]) -> String {
    let output = reader(repository, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// WAL of a server that was busy for a moment.
struct Wal {
    first: SegmentName,
    size: SegmentSize,
    bytes: Vec<u8>,
    end: wal::Lsn,
}

impl Wal {
    fn of_a_busy_server(dir: &Path) -> Self {
        let settings = [("wal_keep_size", "1GB"), ("wal_recycle", "off")];
        let mut node = PgNode::init(dir, "node", major(16), &["--wal-segsize=1"], &settings);
        node.start();
        node.sql("CREATE TABLE t AS SELECT g, md5(g::text) m FROM generate_series(1, 20000) g");
        node.sql("SELECT pg_create_restore_point('before the end'), pg_switch_wal()");
        node.sql("INSERT INTO t SELECT g, 'last' FROM generate_series(1, 1500) g");
        assert!(node.stop("fast", LIMIT));
        let size = SegmentSize::new(1 << 20).unwrap();
        let (first, bytes) = wal_truth::all_wal(&node.data.join("pg_wal"), size);
        let start = first.number(size).unwrap().start(size);
        let end = stored_wal::read(&bytes, size, start).end;
        Self { first, size, bytes, end }
    }

    fn start(&self) -> wal::Lsn {
        self.first.number(self.size).unwrap().start(self.size)
    }

    fn name(&self, index: u64) -> SegmentName {
        let number = SegmentNumber::new(self.first.number(self.size).unwrap().get() + index);
        SegmentName::new(self.first.timeline(), number, self.size)
    }
}

#[tokio::test]
async fn real_wal_comes_back_byte_for_byte() {
    let dir = test_dir();
    let wal = Wal::of_a_busy_server(dir.path());
    let repository = dir.path().join("repository");
    let lineage = stored_wal::lineage(stored_wal::local(&repository).await, &wal.bytes, 16).await;
    stored_wal::store(&lineage, TimelineId::FIRST, wal.start(), &wal.bytes, wal.end, 3000).await;
    let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), b"1\t0/300000\tno reason\n").unwrap().to_text();
    lineage.put_history(TimelineId::new(2).unwrap(), history.as_bytes()).await.unwrap();

    let segment = usize::try_from(wal.size.bytes()).unwrap();
    let stored = usize::try_from(wal.end.bytes_since(wal.start())).unwrap();
    let whole = stored / segment;
    assert!(whole >= 3 && stored % segment > 3000, "{stored} bytes of WAL");
    let listed = read(&repository, &["list"]);
    assert!(listed.contains(&format!("cluster main lineage {} PostgreSQL 160000", lineage.id())), "{listed}");
    assert!(listed.contains(&format!("{} segments", whole)), "{listed}");
    assert!(listed.contains(&format!("up to {}, not complete", wal.end)), "{listed}");
    let out = dir.path().join("out");
    for index in 0..=whole {
        let name = wal.name(index as u64).to_string();
        read(&repository, &["wal", "main", &name, out.to_str().unwrap()]);
        let mut expected = wal.bytes[index * segment..((index + 1) * segment).min(stored)].to_vec();
        expected.resize(segment, 0);
        assert!(fs::read(&out).unwrap() == expected, "{name} differs");
        // And by the means of any machine.
        if index < whole {
            let path = lineage.keys().key(&LineageObject::Segment(wal.name(index as u64)));
            let plain =
                Command::new("zstd").args(["-dcq"]).arg(repository.join(path.as_str())).output().unwrap().stdout;
            assert!(plain == expected, "{name} differs when read with zstd -d");
        }
    }
    read(&repository, &["wal", "main", "00000002.history", out.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&out).unwrap(), history);
    let missing = reader(&repository, &["wal", "main", "0000000900000000000000FF", out.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    let verified = read(&repository, &["verify"]);
    assert!(verified.trim_end().ends_with("0 damaged"), "{verified}");
}

/// A server with a tablespace, and a backup of it in a repository that the servers' user can read.
struct BackedUp {
    node: PgNode,
    repository: PathBuf,
    lineage: LineageRepository,
    backup: String,
    tablespace: PathBuf,
}

impl BackedUp {
    async fn new(dir: &Path, major: u32) -> Self {
        let tablespace = dir.join("fast");
        fs::create_dir(&tablespace).unwrap();
        give_to_server_user(&tablespace);
        let settings = [("wal_keep_size", "1GB"), ("wal_recycle", "off")];
        let mut node = PgNode::init(dir, "node", major, &["--wal-segsize=1", "--data-checksums"], &settings);
        node.start();
        node.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", tablespace.display()));
        node.sql("CREATE TABLE t AS SELECT g, md5(g::text) m FROM generate_series(1, 30000) g");
        node.sql("CREATE TABLE u TABLESPACE fast AS SELECT * FROM t WHERE g % 3 = 0");
        let repository = dir.join("repository");
        let first = wal_truth::segment_names(&node.data.join("pg_wal"))[0];
        let first = fs::read(node.data.join("pg_wal").join(first.to_string())).unwrap();
        let lineage = stored_wal::lineage(stored_wal::local(&repository).await, &first, major).await;
        let server = ConnectOptions::new(Conninfo::parse(&node.conninfo(), &Environment::default()).unwrap(), "test");
        let deps = BackupDeps {
            server: &server,
            repository: &lineage,
            index_file: None,
            files: None,
            wal: &NoWal,
            clock: &SystemClock,
            random: 0x1234,
            cancel: &CancellationToken::new(),
        };
        let request = BackupRequest { checkpoint: CheckpointMode::Fast, ..BackupRequest::default() };
        let taken = take(&request, &deps, &ProgressSender::new(BackupProgress::default())).await;
        let manifest = taken.unwrap_or_else(|error| panic!("{error}"));
        let document = MarkDocument {
            what: MarkKind::Keep,
            at: PgTime::from_micros(1),
            by: "test".to_owned(),
            note: String::new(),
        };
        lineage.put_mark(&manifest.id, &document).await.unwrap();
        Self { node, repository, lineage, backup: manifest.id.to_string(), tablespace }
    }

    /// Stops the server and stores all of its WAL.
    async fn store_wal(&mut self) {
        assert!(self.node.stop("fast", LIMIT));
        let size = self.lineage.segment_size();
        let (first, bytes) = wal_truth::all_wal(&self.node.data.join("pg_wal"), size);
        let start = first.number(size).unwrap().start(size);
        let end = stored_wal::read(&bytes, size, start).end;
        stored_wal::store(&self.lineage, TimelineId::FIRST, start, &bytes, end, 50_000).await;
    }
}

struct NoWal;

#[async_trait::async_trait]
impl WalProgress for NoWal {
    async fn wait_until_stored(&self, range: WalRange) -> Result<(), Error> {
        panic!("nobody waits for {range:?} here")
    }
}

#[tokio::test]
async fn a_cluster_is_restored_and_recovered_without_pgvault() {
    let dir = test_dir();
    let mut source = BackedUp::new(dir.path(), major(17)).await;
    source.node.sql("INSERT INTO u SELECT g, 'after the backup' FROM generate_series(30001, 31000) g");
    let question = "SELECT count(*), sum(g), md5(string_agg(m, '' ORDER BY g)) FROM (TABLE t UNION ALL TABLE u) x";
    let expected = source.node.sql(question);
    source.store_wal().await;
    // The source and its disk are gone.
    fs::rename(&source.tablespace, dir.path().join("fast.gone")).unwrap();

    let repository = &source.repository;
    let listed = read(repository, &["list"]);
    assert!(listed.contains(&format!("backup {}", source.backup)) && listed.contains(" keep"), "{listed}");
    let verified = read(repository, &["verify"]);
    assert!(verified.trim_end().ends_with(" 0 damaged"), "{verified}");

    let restored = PgNode::at(dir.path(), "restored", major(17));
    read(repository, &["restore", "main", &source.backup, restored.data.to_str().unwrap()]);
    let refused = reader(repository, &["restore", "main", &source.backup, restored.data.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(255), "a directory that is not empty must be refused");
    let script = dir.path().join("read_repository.py");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/read_repository.py"), &script).unwrap();
    let command = format!("python3 -B {} {} wal main %f %p", script.display(), repository.display());
    restored.configure(&[("restore_command", &command), ("recovery_target_timeline", "current")]);
    fs::write(restored.data.join("recovery.signal"), "").unwrap();
    for path in [&restored.data, &source.tablespace, repository, &script] {
        give_to_server_user(path);
    }
    let mut restored = restored;
    restored.start();
    let deadline = Instant::now() + LIMIT;
    while restored.sql("SELECT pg_is_in_recovery()") != "f" {
        assert!(Instant::now() < deadline, "never promoted:\n{}", restored.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(restored.sql(question), expected);
}

#[tokio::test]
async fn damage_of_a_backup_is_found_without_pgvault() {
    let dir = test_dir();
    let source = BackedUp::new(dir.path(), major(16)).await;
    let below = source.repository.join(source.lineage.keys().prefix()).join("backups").join(&source.backup);
    let pick = |folder: &Path, part: &str| {
        files_below(folder).into_iter().find(|file| file.to_str().unwrap().contains(part)).unwrap()
    };
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    let flipped = |bytes: &[u8]| {
        let mut flipped = bytes.to_vec();
        flipped[bytes.len() / 2] ^= 4;
        flipped
    };
    let objects = [
        (pick(&below, "manifest"), cut as fn(&[u8]) -> Vec<u8>),
        (pick(&below, "marks/"), cut),
        (pick(&below, "files/"), flipped),
        (pick(&source.repository.join("main/packs"), "packs/"), flipped),
    ];
    for (object, damage) in objects {
        let good = fs::read(&object).unwrap();
        fs::write(&object, damage(&good)).unwrap();
        let verified = reader(&source.repository, &["verify"]);
        assert_eq!(verified.status.code(), Some(1), "{}", object.display());
        assert!(String::from_utf8_lossy(&verified.stdout).contains("damaged: "));
        fs::write(&object, good).unwrap();
    }
}

#[tokio::test]
async fn damage_of_stored_wal_is_found_by_both_readers() {
    let dir = test_dir();
    let wal = Wal::of_a_busy_server(dir.path());
    let repository = dir.path().join("repository");
    let lineage = stored_wal::lineage(stored_wal::local(&repository).await, &wal.bytes, 16).await;
    stored_wal::store(&lineage, TimelineId::FIRST, wal.start(), &wal.bytes, wal.end, 100_000).await;
    let objects = files_below(&repository.join(lineage.keys().wal_prefix()));
    let [first, second] = [&objects[0], &objects[1]];
    let (good, other) = (fs::read(first).unwrap(), fs::read(second).unwrap());
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    for (what, bytes) in [("flipped", flipped), ("cut", good[..good.len() - 1].to_vec()), ("swapped", other)] {
        fs::remove_file(first).unwrap();
        fs::write(first, bytes).unwrap();
        let verified = reader(&repository, &["verify"]);
        assert_eq!(verified.status.code(), Some(1), "{what}");
        let name = wal.name(0);
        assert!(String::from_utf8_lossy(&verified.stdout).contains(&format!("damaged: {name}")), "{what}");
        assert!(lineage.verify_segment(name).await.is_err(), "{what}");
    }
}
