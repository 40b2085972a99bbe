//! Is a backup that reads the data directory itself as good as one that the server sends, and does it read little when
//! little changed?

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use pgvault::backup::{BackupPhase, BackupProgress, BackupRequest, FilesAccess, ProgressSender, ReadKind};
use pgvault::error::{Error, ErrorCode};
use pgvault::primary::{CheckpointMode, MaxRate};
use recovery::{Backup, BackupKind, FileSource, RecoveryTarget};
use serde_json::Value;

use crate::support::LIMIT;
use crate::support::ledger::Ledger;
use crate::support::oracle::compare;
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::restored::{Scene, lsn, wait_promoted};
use crate::support::vault::Running;

/// Files count as settled after this time here: more than any tick of a clock, and than these tests let a write hang.
const SETTLE: Duration = Duration::from_secs(2);

/// A server, its scene, and what is noted of its files.
struct Bench {
    scene: Scene,
    noted: PathBuf,
    settle: Duration,
}

impl Bench {
    fn new(dir: &Path) -> Self {
        Self { scene: Scene::new(dir), noted: dir.join("noted"), settle: SETTLE }
    }

    fn access(&self, data: &Path) -> FilesAccess {
        FilesAccess { settle: [self.settle; 2], ..FilesAccess::new(data.to_owned(), Some(self.noted.clone())) }
    }

    fn take(
        &self,
        node: &PgNode,
        data: &Path,
        change: impl FnOnce(&mut BackupRequest),
    ) -> Result<(Backup, BackupProgress), Error> {
        let mut request = BackupRequest { checkpoint: CheckpointMode::Fast, ..BackupRequest::default() };
        change(&mut request);
        let progress = ProgressSender::new(BackupProgress::default());
        let backup = self.scene.backup_from(node, Some(self.access(data)), &request, &progress)?;
        let told = progress.borrow().clone();
        Ok((backup, told))
    }

    /// A backup that was read from the node's data directory.
    fn backup(&self, node: &PgNode, kind: ReadKind) -> (Backup, BackupProgress) {
        let taken = self.take(node, &node.data, |request| request.kind = kind);
        let (backup, told) = taken.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((backup.source, &told.not_files), (FileSource::Files, &None));
        (backup, told)
    }

    /// Restores without settings and has PostgreSQL's own tool look at it; the files by name.
    fn files_of(&self, node: &PgNode, backup: &Backup, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let to = self.scene.dir.join(name);
        let mut request = self.scene.request(&to, RecoveryTarget::Latest);
        request.recovery.backup = Some(backup.id.clone());
        request.config = None;
        let plan = self.scene.plan(&request).unwrap_or_else(|error| panic!("{error}"));
        self.scene.apply(&plan).unwrap_or_else(|error| panic!("{error}"));
        let verified = node.tool("pg_verifybackup").arg("-n").arg(&to).output().unwrap();
        assert!(verified.status.success(), "{name}: {}", String::from_utf8_lossy(&verified.stderr));
        let files = files_below(&to);
        fs::remove_dir_all(to).unwrap();
        files
    }
}

/// Every file below `dir`, with its content.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

fn quiet(dir: &Path, name: &str, major: u32) -> PgNode {
    let settings = [("autovacuum", "off"), ("bgwriter_lru_maxpages", "0"), ("checkpoint_timeout", "1h")];
    let mut node = PgNode::init(dir, name, major, &["--data-checksums"], &settings);
    node.start();
    node
}

fn ship(pipeline: &Running<'_>, node: &PgNode) {
    pipeline.wait_shipped(lsn(node, "SELECT pg_current_wal_flush_lsn()"));
}

fn relation_file(node: &PgNode, name: &str) -> PathBuf {
    node.data.join(node.sql(&format!("SELECT pg_relation_filepath('{name}')")))
}

/// Everything is written and lies still for long enough to be noted.
fn settle(node: &PgNode) {
    node.sql("CHECKPOINT");
    sleep(SETTLE + Duration::from_millis(500));
}

/// Stops who works beside a test, however that ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tables that come, grow, shrink and go until told to stop.
fn churn(node: &PgNode, stop: &AtomicBool) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let name = format!("churn_{}", round % 5);
        node.sql(&format!(
            "DROP TABLE IF EXISTS {name}; CREATE TABLE {name} AS SELECT i, repeat('x', 200) FROM generate_series(1, 3000) i;
             CREATE INDEX ON {name} (i); DELETE FROM {name} WHERE i > 500"
        ));
        node.sql(&format!("VACUUM {name}"));
    }
}

fn is_restored_exactly_under_load(major: u32) {
    let dir = test_dir();
    let bench = Bench::new(dir.path());
    let mut node = PgNode::init(dir.path(), "primary", major, &["--data-checksums"], &[]);
    node.start();
    let place = dir.path().join("a tablespace");
    fs::create_dir(&place).unwrap();
    give_to_server_user(&place);
    let ledger = Ledger::create(&node, &dir.path().join("ledger"), Some(&place));
    node.sql("CREATE UNLOGGED TABLE gone AS SELECT generate_series(1, 10000) i; CREATE TABLE stays AS SELECT generate_series(1, 100000) i");
    let unlogged = relation_file(&node, "gone");
    let pipeline = bench.scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();

    let load = ledger.load(&node, 2);
    let stop = AtomicBool::new(false);
    let (backup, second) = thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| churn(&node, &stop));
        load.wait_for_more(50);
        let (first, _) = bench.backup(&node, ReadKind::Auto);
        load.wait_for_more(50);
        let (second, told) = bench.backup(&node, ReadKind::Auto);
        assert_eq!(second.kind, BackupKind::Incremental, "{:?}", told.reason);
        load.wait_for_more(50);
        (first, second)
    });
    load.stop();
    ship(&pipeline, &node);
    pipeline.stop();

    for (name, backup) in [("first", backup), ("second", second)] {
        let moved = dir.path().join(format!("{name} tablespace"));
        let mut restored = bench.scene.recover(name, major, |request| {
            request.recovery.backup = Some(backup.id.clone());
            request.tablespaces = vec![(place.clone(), moved.clone())];
        });
        wait_promoted(&restored);
        compare(&restored, &node).assert_exact();
        assert_eq!(restored.sql("SELECT count(*) FROM gone"), "0", "unlogged tables are empty after a recovery");
        assert_eq!(restored.sql("SELECT count(*), sum(i) FROM stays"), "100000|5000050000");
        assert!(restored.stop("fast", LIMIT));
    }
    assert!(unlogged.exists());
    assert!(node.stop("fast", LIMIT));
}

#[test]
fn a_backup_of_files_is_restored_exactly_under_load() {
    is_restored_exactly_under_load(major(16));
}

#[test]
fn a_backup_of_files_of_postgresql_14_is_restored_exactly_under_load() {
    is_restored_exactly_under_load(14);
}

#[test]
fn a_backup_of_files_of_postgresql_18_is_restored_exactly_under_load() {
    is_restored_exactly_under_load(18);
}

/// What the server itself sends of an idle cluster.
fn sent_by_the_server(node: &PgNode, to: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut command = node.tool("pg_basebackup");
    let output = command.args(["-c", "fast", "-X", "none", "-D"]).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    files_below(to)
}

/// Files that tell of the backup itself, or that each start and checkpoint changes.
fn tells_of_the_backup(name: &Path) -> bool {
    ["backup_label", "backup_manifest", "tablespace_map", "global/pg_control"].iter().any(|own| name == Path::new(own))
}

#[test]
fn a_second_backup_reads_what_changed_and_is_what_the_server_would_have_sent() {
    let dir = test_dir();
    let bench = Bench::new(dir.path());
    let mut node = quiet(dir.path(), "primary", major(16));
    node.sql("CREATE TABLE large AS SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 100000) i; CREATE TABLE small AS SELECT 1 i; CREATE UNLOGGED TABLE u AS SELECT 1 i");
    fs::write(node.data.join("postgresql.auto.conf.tmp"), "x").unwrap();
    fs::create_dir_all(node.data.join("base/pgsql_tmp")).unwrap();
    fs::write(node.data.join("base/pgsql_tmp/pgsql_tmp1.0"), "x").unwrap();
    for left in ["postgresql.auto.conf.tmp", "base/pgsql_tmp"] {
        give_to_server_user(&node.data.join(left));
    }
    let pipeline = bench.scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    settle(&node);
    let (first, told) = bench.backup(&node, ReadKind::Auto);
    assert_eq!(
        (first.kind, told.reason.as_deref()),
        (BackupKind::Full, Some("nothing was noted of files at the backup before"))
    );
    assert!(told.read_bytes > 40_000_000, "{told:?}");

    node.sql("UPDATE small SET i = 2");
    let (second, told) = bench.backup(&node, ReadKind::Auto);
    assert_eq!((second.kind, told.reason), (BackupKind::Incremental, None));
    assert!(told.read_bytes < 4_000_000, "{} bytes were read", told.read_bytes);
    assert!(second.size_bytes > 40_000_000 && second.new_bytes < 1_000_000, "{second:?}");

    let sent = sent_by_the_server(&node, &dir.path().join("peer"));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
        files.keys().filter(|name| !tells_of_the_backup(name)).cloned().collect()
    };
    let read = bench.files_of(&node, &second, "second");
    assert_eq!(names(&read), names(&sent));
    for (name, content) in sent.iter().filter(|(name, _)| !tells_of_the_backup(name)) {
        assert!(read[name] == *content, "{}", name.display());
    }

    // Two bytes in a large table: its file is read, and the difference stored. Then everything, on demand.
    node.sql("UPDATE large SET repeat = 'y' WHERE i = 77777");
    let (third, told) = bench.backup(&node, ReadKind::Auto);
    assert!(told.read_bytes > 30_000_000 && third.new_bytes < 1_000_000, "{told:?} {third:?}");
    let (full, told) = bench.backup(&node, ReadKind::Full);
    assert_eq!((full.kind, told.reason), (BackupKind::Full, None));
    assert!(told.read_bytes > 40_000_000);

    // What was noted counts for a running server, and for the very backup.
    assert!(node.stop("fast", LIMIT));
    node.start();
    pipeline.wait_streaming();
    let (after, told) = bench.backup(&node, ReadKind::Auto);
    assert_eq!(
        (after.kind, told.reason.as_deref()),
        (BackupKind::Full, Some("the server was started since the backup before"))
    );
    fs::write(&bench.noted, b"damaged").unwrap();
    let (again, _) = bench.backup(&node, ReadKind::Auto);
    assert_eq!(again.kind, BackupKind::Full);
    ship(&pipeline, &node);
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
}

#[test]
fn a_file_that_changed_shortly_before_a_backup_is_read_by_the_next() {
    let dir = test_dir();
    let mut bench = Bench::new(dir.path());
    let mut node = quiet(dir.path(), "primary", major(17));
    node.sql("CREATE TABLE settled AS SELECT i, repeat('x', 300) FROM generate_series(1, 20000) i; CREATE TABLE young AS SELECT i, repeat('x', 300) FROM generate_series(1, 20000) i");
    let pipeline = bench.scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    // Long enough that a backup begins within it.
    let begun = Instant::now();
    bench.backup(&node, ReadKind::Auto);
    bench.settle = (begun.elapsed() * 4).max(Duration::from_secs(5));
    node.sql("CHECKPOINT");
    sleep(bench.settle + Duration::from_millis(500));
    // Written a moment before the backup: another write in the same tick of the clock would not show.
    let young = File::options().write(true).read(true).open(relation_file(&node, "young")).unwrap();
    let mut byte = [0];
    young.read_exact_at(&mut byte, 0).unwrap();
    let size = young.metadata().unwrap().len();
    // On a busy machine one may take longer all the same: then once more.
    let in_time = (0..4).any(|_| {
        young.write_all_at(&byte, 0).unwrap();
        let written = Instant::now();
        bench.backup(&node, ReadKind::Auto);
        written.elapsed() < bench.settle
    });
    assert!(in_time, "no backup takes less than {:?}", bench.settle);
    let (second, told) = bench.backup(&node, ReadKind::Auto);
    assert_eq!(second.kind, BackupKind::Incremental);
    assert!((size..size * 3 / 2).contains(&told.read_bytes), "{} of {size} bytes", told.read_bytes);
    let content = bench.files_of(&node, &second, "second");
    for table in ["young", "settled"] {
        let path = relation_file(&node, table);
        let name = path.strip_prefix(&node.data).unwrap();
        assert!(content[name] == fs::read(&path).unwrap(), "{table}");
    }
    ship(&pipeline, &node);
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
}

#[test]
fn another_cluster_s_directory_is_refused_and_what_cannot_be_read_is_sent_by_the_server() {
    let dir = test_dir();
    let bench = Bench::new(dir.path());
    let mut node = quiet(dir.path(), "primary", 15);
    let mut other = quiet(dir.path(), "other", 15);
    let mut standby = node.make_standby(dir.path(), "standby");
    standby.start();
    let pipeline = bench.scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();

    let error = bench.take(&node, &other.data, |_| ()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ForeignCluster);
    let identifiers = [&node, &other].map(|node| node.sql("SELECT system_identifier FROM pg_control_system()"));
    assert!(identifiers.iter().all(|identifier| error.to_string().contains(identifier)), "{error}");

    let sent = |data: &Path| {
        let (backup, told) = bench.take(&node, data, |_| ()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(backup.source, FileSource::Stream);
        told.not_files.unwrap()
    };
    let reason = sent(&standby.data);
    assert!(reason.contains("is not that of the server whose WAL is received"), "{reason}");
    let reason = sent(&dir.path().join("nowhere"));
    assert!(reason.contains("nowhere") && reason.contains("No such file"), "{reason}");
    for node in [&mut standby, &mut other] {
        assert!(node.stop("fast", LIMIT));
    }
    ship(&pipeline, &node);
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
}

#[test]
fn without_the_right_to_start_a_backup_the_server_sends_and_the_grant_is_told() {
    for (major, function) in [(14, "pg_start_backup(text, boolean, boolean)"), (18, "pg_backup_start(text, boolean)")] {
        let dir = test_dir();
        let bench = Bench::new(dir.path());
        let mut node = quiet(dir.path(), "primary", major);
        node.sql("CREATE ROLE vault LOGIN REPLICATION");
        let pipeline = bench.scene.vault.start(&node.conninfo());
        pipeline.wait_streaming();
        let role = |node: &PgNode| node.conninfo().replace("user=postgres", "user=vault");
        let take = || {
            let progress = ProgressSender::new(BackupProgress::default());
            let request = BackupRequest { checkpoint: CheckpointMode::Fast, ..BackupRequest::default() };
            let files = Some(bench.access(&node.data));
            let backup = bench.scene.backup_over(&role(&node), files, &request, &progress).unwrap();
            (backup.source, progress.borrow().not_files.clone())
        };
        let (source, reason) = take();
        assert_eq!(source, FileSource::Stream);
        let reason = reason.unwrap();
        let at = reason.find("GRANT EXECUTE ON FUNCTION ").unwrap_or_else(|| panic!("{reason}"));
        assert!(reason[at..].contains(function), "{reason}");
        node.sql(&reason[at..]);
        assert_eq!(take(), (FileSource::Files, None));
        ship(&pipeline, &node);
        pipeline.stop();
        assert!(node.stop("fast", LIMIT));
    }
}

#[test]
fn a_standby_s_directory_is_backed_up_and_a_promotion_midway_makes_it_void() {
    let dir = test_dir();
    let bench = Bench::new(dir.path());
    let mut node = quiet(dir.path(), "primary", major(17));
    node.sql("CREATE TABLE t AS SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 50000) i; CHECKPOINT");
    let mut standby = node.make_standby(dir.path(), "standby");
    standby.start();
    let pipeline = bench.scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    node.sql("INSERT INTO t SELECT i, 'later' FROM generate_series(50001, 60000) i; CHECKPOINT");
    let position = node.sql("SELECT pg_current_wal_flush_lsn()");
    crate::support::restored::wait(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{position}'"));
    let (backup, _) = bench.backup(&standby, ReadKind::Auto);
    node.sql("INSERT INTO t SELECT i, 'last' FROM generate_series(60001, 60010) i");
    ship(&pipeline, &node);

    let request = BackupRequest {
        kind: ReadKind::Full,
        checkpoint: CheckpointMode::Fast,
        max_rate: Some(MaxRate::from_bytes_per_second(4 << 20)),
        ..BackupRequest::default()
    };
    let progress = ProgressSender::new(BackupProgress::default());
    let error = thread::scope(|scope| {
        let files = Some(bench.access(&standby.data));
        let taken = scope.spawn(|| bench.scene.backup_from(&standby, files, &request, &progress));
        while progress.borrow().read_bytes == 0 && !taken.is_finished() {
            sleep(Duration::from_millis(20));
        }
        standby.promote();
        taken.join().unwrap().unwrap_err()
    });
    assert_eq!(error.code(), ErrorCode::PostgresFailed, "{error}");
    assert!(error.to_string().contains("promoted"), "{error}");
    let catalog = bench.scene.vault.runtime.block_on(bench.scene.vault.lineage().catalog()).unwrap();
    assert_eq!(catalog.backups.len(), 1);
    pipeline.stop();

    let mut restored = bench.scene.recover("restored", major(17), |request| {
        request.recovery.backup = Some(backup.id.clone());
    });
    wait_promoted(&restored);
    let all = "SELECT count(*), sum(i), md5(string_agg(repeat, '' ORDER BY i)) FROM t";
    assert_eq!(restored.sql(all), node.sql(all));
    for node in [&mut restored, &mut standby, &mut node] {
        assert!(node.stop("fast", LIMIT));
    }
}

#[test]
fn a_damaged_page_is_told_and_its_file_is_read_every_time() {
    let dir = test_dir();
    let bench = Bench::new(dir.path());
    let mut node = quiet(dir.path(), "primary", major(18));
    node.sql("CREATE TABLE t AS SELECT i, repeat('x', 300) FROM generate_series(1, 5000) i");
    let pipeline = bench.scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    node.sql("CHECKPOINT");
    let path = relation_file(&node, "t");
    File::options().write(true).open(&path).unwrap().write_all_at(&[0xff; 7], 3 * 8192 + 4000).unwrap();
    settle(&node);
    let manifest =
        |backup: &Backup| bench.scene.vault.runtime.block_on(bench.scene.vault.lineage().manifest(&backup.id)).unwrap();
    for _ in 0..2 {
        let (backup, told) = bench.backup(&node, ReadKind::Auto);
        let damaged = manifest(&backup).damaged_files;
        let name = path.strip_prefix(&node.data).unwrap().to_str().unwrap();
        assert_eq!(damaged.iter().map(|file| (file.path.as_str(), file.pages)).collect::<Vec<_>>(), [(name, 1)]);
        assert!(backup.damaged && told.read_bytes >= fs::metadata(&path).unwrap().len());
    }
    ship(&pipeline, &node);
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
}

#[test]
fn a_backup_of_files_that_is_killed_is_no_backup_and_the_server_leaves_backup_mode() {
    let dir = test_dir();
    let mut node = quiet(dir.path(), "primary", 15);
    node.sql("CREATE TABLE t AS SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 100000) i");
    let pgvault = Pgvault::new(dir.path());
    pgvault.config_for(&node, &format!("data_directory = \"{}\"\n", node.data.display()));
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    pgvault.ok(["backup", "now", "--fast-checkpoint", "--max-rate", "4MB/s"]);
    let copying = |pgvault: &Pgvault| {
        let (_, body) = pgvault.http("/api/v1/backups/run?cluster=main&run=1");
        let run: Value = serde_json::from_str(&body).unwrap_or_default();
        run["progress"]["phase"] == BackupPhase::Copy.as_str()
            && run["progress"]["done_bytes"].as_u64() > Some(10 << 20)
    };
    pgvault.wait("the copy", LIMIT, || copying(&pgvault));
    let held = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgvault%' AND backend_type = 'client backend'";
    assert_ne!(node.sql(held), "0");
    daemon.kill();
    pgvault.wait("the end of the session", LIMIT, || node.sql(held) == "0");

    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    let (_, list) = pgvault.json(&["backup", "list"]);
    assert!(list.as_array().unwrap().iter().all(|backup| backup["status"] != "ok"), "{list}");
    let (code, backup) = pgvault.json(&["backup", "now", "--wait", "--fast-checkpoint"]);
    assert_eq!(
        (code, &backup["source"], &backup["status"]),
        (0, &Value::from("files"), &Value::from("ok")),
        "{backup}"
    );
    let (_, check) = pgvault.json(&["check"]);
    let checks = check["clusters"][0]["checks"].as_array().unwrap();
    let finding = checks.iter().find(|finding| finding["name"] == "data_directory").unwrap();
    assert_eq!(finding["status"], "ok", "{finding}");
    let shown = pgvault.ok(["backup", "list"]);
    assert!(shown.contains("SOURCE") && shown.contains("files"), "{shown}");
    daemon.stop();
    assert!(node.stop("fast", LIMIT));
}
