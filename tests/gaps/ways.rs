//! Each way in which a slot can fail to keep WAL.

use std::time::Duration;

use pgvault::wal_pipeline::{GapRecord, WalSettings};
use tempfile::TempDir;
use wal::{Gap, Lsn};

use super::{FORGETFUL, SIZE, flush_lsn, make_forget, segment};
use crate::support::pg::{PgNode, test_dir};
use crate::support::vault::{Running, Vault};

const CREATE: &str = "SELECT pg_create_physical_replication_slot('pgvault', true)";

struct Scene {
    node: PgNode,
    vault: Vault,
    _dir: TempDir,
}

impl Scene {
    fn new(major: u32, settings: &[(&str, &str)]) -> Self {
        let dir = test_dir();
        let settings: Vec<(&str, &str)> = FORGETFUL.iter().chain(settings).copied().collect();
        let mut node = PgNode::init(dir.path(), "node", major, &["--wal-segsize=1"], &settings);
        node.start();
        let vault = Vault::new(dir.path());
        Self { node, vault, _dir: dir }
    }

    fn start(&self) -> Running<'_> {
        self.start_with(|_| {})
    }

    fn start_with(&self, change: impl FnOnce(&mut WalSettings)) -> Running<'_> {
        let mut settings = self.vault.settings(&self.node.conninfo());
        change(&mut settings);
        self.vault.start_with(settings)
    }

    /// Streams for a while and stops; where what is stored ends.
    fn stream(&self, change: impl FnOnce(&mut WalSettings)) -> Lsn {
        let running = self.start_with(change);
        running.wait_streaming();
        self.node.sql("CREATE TABLE t (n int, pad text)");
        running.wait_shipped(flush_lsn(&self.node));
        let status = running.status.clone();
        running.stop();
        status.borrow().flushed.unwrap()
    }

    /// Waits for the one gap, and for WAL beyond it; proves that gap and stored WAL meet exactly, and that it is no larger than
    /// it has to be.
    fn gap_from(&self, running: Running<'_>, held: Lsn, reason: &str) -> GapRecord {
        let status = running.wait("gap recorded and streaming", |status| status.streaming() && !status.gaps.is_empty());
        let [gap] = status.gaps.as_slice() else { panic!("{:?}", status.gaps) };
        assert!(gap.reason.contains(reason), "{:?} does not say {reason:?}", gap.reason);
        assert_eq!(gap.from, held, "{gap:?}");
        let before = self.node.data.join("pg_wal").join(segment(Lsn::new(gap.to.as_u64() - 1)).to_string());
        assert!(!before.exists(), "the server still has {}", before.display());
        assert!(gap.to > gap.from && gap.to.as_u64().is_multiple_of(SIZE), "{gap:?}");
        self.node.sql("INSERT INTO t VALUES (1, 'after')");
        running.wait_shipped(flush_lsn(&self.node));
        running.stop();
        let catalog = self.vault.runtime.block_on(self.vault.lineage().catalog()).unwrap();
        let ranges: Vec<_> = catalog.coverage.ranges(gap.timeline).collect();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert_eq!((ranges[0].end, ranges[1].start), (gap.from, gap.to), "what is stored ends and begins at the gap");
        // Why is in the repository, for whoever has nothing but it.
        let hole = Gap { timeline: gap.timeline, start: gap.from, end: gap.to };
        assert_eq!(catalog.reason_of(&hole), gap.reason);
        assert_eq!(catalog.unexplained(&hole), []);
        gap.clone()
    }
}

#[test]
fn more_than_max_slot_wal_keep_size_while_away() {
    let scene = Scene::new(15, &[("max_slot_wal_keep_size", "1MB")]);
    let held = scene.stream(|_| {});
    make_forget(&scene.node, held);
    assert_eq!(scene.node.sql("SELECT wal_status FROM pg_replication_slots"), "lost");
    let gap = scene.gap_from(scene.start(), held, "invalidated (max_slot_wal_keep_size)");
    assert_eq!(scene.node.sql("SELECT wal_status FROM pg_replication_slots"), "reserved", "it was made anew");
    // Another machine with nothing but the configuration hears of it from the repository.
    std::fs::remove_dir_all(scene.vault.dir.join("state")).unwrap();
    let running = scene.start();
    running.wait_streaming();
    let told: Vec<_> = running.now().gaps.into_iter().map(|gap| (gap.from, gap.to, gap.reason)).collect();
    assert_eq!(told, [(gap.from, gap.to, gap.reason)]);
    running.stop();
}

#[test]
fn dropped_while_away() {
    let scene = Scene::new(16, &[]);
    let held = scene.stream(|_| {});
    scene.node.drop_slot("pgvault");
    make_forget(&scene.node, held);
    scene.gap_from(scene.start(), held, "the replication slot was dropped");
}

#[test]
fn dropped_while_streaming_loses_nothing_while_the_server_has_the_wal() {
    let scene = Scene::new(17, &[("wal_keep_size", "64MB")]);
    let running = scene.start();
    running.wait_streaming();
    scene.node.sql("CREATE TABLE t (n int, pad text)");
    let drop = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots; SELECT pg_drop_replication_slot('pgvault')";
    // It may have come back between the two.
    for _ in 0..50 {
        if scene.node.try_sql(drop).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.node.sql("INSERT INTO t VALUES (1, 'after')");
    running.wait_shipped(flush_lsn(&scene.node));
    assert_eq!(running.now().gaps, []);
    let anew = || scene.node.sql("SELECT active, wal_status FROM pg_replication_slots") == "t|reserved";
    running.wait("it was made anew", |_| anew());
    running.stop();
}

#[test]
fn made_anew_by_somebody_while_away() {
    let scene = Scene::new(15, &[]);
    let held = scene.stream(|_| {});
    scene.node.drop_slot("pgvault");
    make_forget(&scene.node, held);
    scene.node.sql(CREATE);
    scene.gap_from(scene.start(), held, "was made anew and keeps WAL from");
}

#[test]
fn gone_and_somebody_elses_to_make() {
    let scene = Scene::new(15, &[]);
    scene.node.sql(CREATE);
    let held = scene.stream(|settings| settings.create_slot = false);
    scene.node.drop_slot("pgvault");
    make_forget(&scene.node, held);
    let running = scene.start_with(|settings| settings.create_slot = false);
    // What the server still has is received without it.
    let status = running.wait("the slot is missed", |status| status.streaming() && status.slot_lost.is_some());
    assert!(status.slot_lost.unwrap().contains("does not exist"));
    scene.node.sql(CREATE);
    running.wait("it is used", |status| status.streaming() && status.slot_lost.is_none());
    scene.gap_from(running, held, "the replication slot was dropped");
}

#[test]
fn lost_on_a_server_without_read_replication_slot() {
    let scene = Scene::new(14, &[("max_slot_wal_keep_size", "1MB")]);
    let held = scene.stream(|_| {});
    make_forget(&scene.node, held);
    scene.gap_from(scene.start(), held, "invalidated (max_slot_wal_keep_size)");
}

#[test]
fn idle_for_too_long() {
    let scene = Scene::new(18, &[]);
    let held = scene.stream(|_| {});
    scene.node.sql("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'");
    scene.node.sql("SELECT pg_reload_conf()");
    std::thread::sleep(Duration::from_secs(2));
    make_forget(&scene.node, held);
    assert_eq!(scene.node.sql("SELECT invalidation_reason FROM pg_replication_slots"), "idle_timeout");
    scene.gap_from(scene.start(), held, "idle_replication_slot_timeout");
}

#[test]
fn without_a_slot() {
    let scene = Scene::new(15, &[]);
    let held = scene.stream(|settings| settings.slot = None);
    make_forget(&scene.node, held);
    scene.gap_from(scene.start_with(|settings| settings.slot = None), held, "no replication slot kept it");
}

#[test]
fn one_that_never_reserved_wal_is_replaced_and_nothing_is_lost() {
    let scene = Scene::new(15, &[("wal_keep_size", "64MB")]);
    scene.node.sql("SELECT pg_create_physical_replication_slot('pgvault')");
    scene.stream(|_| {});
    assert_eq!(scene.node.sql("SELECT restart_lsn IS NOT NULL FROM pg_replication_slots"), "t");
    let running = scene.start();
    running.wait_streaming();
    assert_eq!(running.now().gaps, []);
    running.stop();
}

#[test]
fn killed_after_the_gap_was_recorded() {
    let scene = Scene::new(15, &[("max_slot_wal_keep_size", "1MB")]);
    let running = scene.start();
    running.wait_streaming();
    scene.node.sql("CREATE TABLE t (n int, pad text)");
    let end = flush_lsn(&scene.node);
    running.wait_flushed(end);
    // The tail of the open segment may not be stored: it is when pgvault is back.
    running.kill();
    let held_at_least = end;
    make_forget(&scene.node, end);
    let running = scene.start();
    running.wait("recorded", |status| !status.gaps.is_empty());
    running.kill();
    let running = scene.start();
    let held = running.wait("still known", |status| !status.gaps.is_empty()).gaps[0].from;
    assert!(held >= held_at_least);
    scene.gap_from(running, held, "the replication slot was invalidated");
}
