//! `standby refresh`.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::stage::{Stage, rows, wait_follows, wait_replayed};
use crate::support::LIMIT;
use crate::support::members::{flushed, wait};
use crate::support::oracle::compare;
use crate::support::pg::{PgNode, as_server_user, bin_dir};
use crate::support::restored::{listing, wait_promoted};
use crate::support::scene::{Scene, Setting, configure, wait_stored};

const FAST: Duration = LIMIT;
/// A primary that keeps no WAL for anybody but pgvault.
const FORGETFUL: &[(&str, &str)] = &[("wal_keep_size", "0"), ("max_wal_size", "2MB"), ("min_wal_size", "2MB")];

/// Writes a few segments, and lets the primary remove what no slot keeps.
fn recycle(node: &PgNode) {
    for _ in 0..4 {
        node.sql("CREATE TABLE x AS SELECT generate_series(1, 20000) n; DROP TABLE x; SELECT pg_switch_wal()");
        node.sql("CHECKPOINT");
    }
}

fn refreshed(stage: &Stage, node: &PgNode, more: &[&str]) -> Value {
    let (code, result) = stage.standby("refresh", node, more);
    assert_eq!((code, &result["type"]), (0, &json!("result")), "{result}");
    result
}

#[test]
fn a_standby_whose_wal_is_gone_on_the_primary_comes_back_without_a_copy() {
    let stage = Stage::backed_up(17, FORGETFUL);
    let mut standby = stage.created("standby", &["--slot", ""]);
    stage.insert(2);
    wait_replayed(&standby, flushed(&stage.primary));
    // Without the archive it would be lost.
    standby.sql("ALTER SYSTEM SET restore_command = ''");
    standby.configure(&[("work_mem", "7MB")]);
    assert!(standby.stop("fast", FAST));
    let needed = fs::read_dir(standby.data.join("pg_wal")).unwrap().count();
    assert!(needed > 0);
    recycle(&stage.primary);
    stage.insert(3);
    stage.stored();
    let before = listing(&standby.data.join("base"));
    let result = refreshed(&stage, &standby, &["--slot", "back"]);
    assert_eq!((&result["action"], &result["slot"]["action"]), (&json!("replay"), &json!("create")), "{result}");
    assert_eq!(listing(&standby.data.join("base")), before, "nothing was copied");
    standby.start();
    wait_follows(&standby, &stage.primary, "back");
    assert_eq!(rows(&standby), "1,2,3");
    assert_eq!(standby.sql("SHOW work_mem"), "7MB", "its own configuration stays");
}

#[test]
fn a_standby_whose_wal_is_nowhere_gets_the_files_of_a_later_backup() {
    let mut stage = Stage::backed_up(16, FORGETFUL);
    let mut standby = stage.created("standby", &["--slot", ""]);
    wait_replayed(&standby, flushed(&stage.primary));
    assert!(standby.stop("fast", FAST));
    // pgvault is away, its slot is lost, and what comes next is behind a gap.
    stage.daemon.signal("KILL");
    stage.installed.wait("the daemon is gone", FAST, || stage.daemon.has_ended());
    stage.primary.drop_slot("pgvault");
    recycle(&stage.primary);
    stage.insert(2);
    stage.daemon = stage.installed.serve();
    // Behind a gap one is taken by itself.
    stage.installed.wait("a backup behind the gap", LIMIT, || {
        let (_, backups) = stage.installed.json(&["backup", "list", "main"]);
        backups.as_array().is_some_and(|all| all.len() == 2 && all[1]["status"] == "ok")
    });
    stage.insert(3);
    let result = refreshed(&stage, &standby, &["--slot", "back"]);
    assert!(result["backup"].is_string(), "{result}");
    configure(&standby);
    standby.start();
    wait_follows(&standby, &stage.primary, "back");
    assert_eq!(rows(&standby), "1,2,3");
}

/// A failover under load: the old primary stops as `stop` says, the standby is promoted and followed, and writers go on there.
struct Failover {
    scene: Scene,
    next: PgNode,
}

impl Failover {
    fn new(major: u32, stop: impl FnOnce(&mut Scene, &PgNode)) -> Self {
        let mut scene = Scene::new(Setting::of(major));
        scene.backup();
        let mut next = scene.node.make_standby(scene.path(), "next");
        next.start();
        scene.more(50);
        scene.load.take().unwrap().stop();
        wait_replayed(&next, flushed(&scene.node));
        stop(&mut scene, &next);
        next.promote();
        wait_promoted(&next);
        scene.installed.config_for(&next, "");
        scene.daemon.as_ref().unwrap().signal("HUP");
        let load = scene.ledger.load(&next, 2);
        load.wait_for_more(50);
        load.stop();
        scene.installed.wait("timeline 2 is stored", FAST, || {
            let (_, status) = scene.installed.json(&["status", "main"]);
            status["clusters"][0]["timeline"] == 2
        });
        wait_stored(&scene.installed, &next);
        Self { scene, next }
    }

    fn refresh(&self, more: &[&str]) -> (i32, Value) {
        let (to, conninfo) = (self.scene.node.data.to_str().unwrap(), self.next.conninfo());
        let args = ["standby", "refresh", "main", "--to", to, "--primary-conninfo", &conninfo, "--slot", "former"];
        self.scene.installed.json(&[&args, more].concat())
    }

    /// The old primary, started again, follows the next one and is what that is.
    fn follows(mut self) {
        self.scene.node.start();
        wait_follows(&self.scene.node, &self.next, "former");
        compare(&self.scene.node, &self.next).assert_exact();
        assert_eq!(self.scene.node.sql("SELECT received_tli FROM pg_stat_wal_receiver"), "2");
    }
}

#[test]
fn an_old_primary_that_stopped_cleanly_becomes_a_standby_without_a_copy() {
    let failover = Failover::new(15, |scene, _| assert!(scene.node.stop("fast", FAST)));
    let (code, plan) = failover.refresh(&["--dry-run"]);
    assert_eq!((code, &plan["action"]), (0, &json!("replay")), "{plan}");
    assert!(!failover.scene.node.data.join("standby.signal").exists(), "a dry run writes nothing");
    let (code, result) = failover.refresh(&[]);
    assert_eq!((code, &result["action"]), (0, &json!("replay")), "{result}");
    failover.follows();
}

#[test]
fn an_old_primary_that_wrote_on_is_put_right_where_it_differs() {
    let failover = Failover::new(18, |scene, next| {
        // What it writes now its successor never gets.
        next.sql("ALTER SYSTEM SET primary_conninfo = ''");
        next.sql("SELECT pg_reload_conf()");
        wait("the standby is cut off", || next.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
        let load = scene.ledger.load(&scene.node, 1);
        load.wait_for_more(30);
        load.stop();
        wait_stored(&scene.installed, &scene.node);
        assert!(scene.node.stop("fast", FAST));
    });
    let (code, plan) = failover.refresh(&["--dry-run"]);
    assert_eq!((code, &plan["action"]), (0, &json!("delta")), "{plan}");
    assert!(plan["reason"].as_str().unwrap().contains("which was left at"), "{plan}");
    let (code, result) = failover.refresh(&["--yes"]);
    assert_eq!(code, 0, "{result}");
    assert!(result["backup"].is_string(), "{result}");
    configure(&failover.scene.node);
    failover.follows();
}

#[test]
fn what_exists_only_in_the_old_primary_is_given_up_only_when_a_person_says_so() {
    let failover = Failover::new(17, |scene, next| {
        next.sql("ALTER SYSTEM SET primary_conninfo = ''");
        next.sql("SELECT pg_reload_conf()");
        wait("the standby is cut off", || next.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
        // Neither has pgvault what is written now.
        scene.daemon.take().unwrap().stop();
        scene.node.sql("CREATE TABLE only_here AS SELECT generate_series(1, 30000) n");
        scene.node.kill();
        scene.daemon = Some(scene.installed.serve());
    });
    let before = listing(&failover.scene.node.data);
    let (code, error) = failover.refresh(&[]);
    assert_eq!((code, &error["code"]), (2, &json!("E0002")), "{error}");
    assert!(error.to_string().contains("Commits in it may exist nowhere else"), "{error}");
    assert_eq!(listing(&failover.scene.node.data), before, "nothing was touched");
    let (code, result) = failover.refresh(&["--yes"]);
    assert_eq!(code, 0, "{result}");
    configure(&failover.scene.node);
    failover.follows();
}

#[test]
fn a_server_that_runs_a_primary_and_a_stranger_are_never_touched() {
    let mut stage = Stage::backed_up(14, &[]);
    let standby = stage.created("standby", &["--slot", "s"]);
    let (code, error) = stage.standby("refresh", &standby, &[]);
    assert_eq!((code, &error["code"]), (7, &json!("E0304")), "{error}");
    drop(standby);

    let mut stranger = PgNode::start_new(stage.dir.path(), "stranger", 14);
    assert!(stranger.stop("fast", FAST));
    let before = listing(&stranger.data);
    let (code, error) = stage.standby("refresh", &stranger, &["--slot", "x"]);
    assert_eq!((code, &error["code"]), (7, &json!("E0205")), "{error}");
    assert_eq!(listing(&stranger.data), before);

    stage.stored();
    assert!(stage.primary.stop("fast", FAST));
    let before = listing(&stage.primary.data);
    let (code, error) = stage.standby("refresh", &stage.primary, &["--slot", "x"]);
    assert_eq!((code, &error["code"]), (7, &json!("E0005")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("nobody has taken over from it"), "{error}");
    assert_eq!(listing(&stage.primary.data), before);
}

#[test]
fn pg_control_is_read_as_pg_controldata_reads_it() {
    for major in [14, 15, 16, 17, 18] {
        let dir = crate::support::pg::test_dir();
        let mut node = PgNode::start_new(dir.path(), "node", major);
        node.sql("CREATE TABLE t (n int)");
        assert!(node.stop("fast", FAST));
        let output = as_server_user(bin_dir(major).join("pg_controldata")).arg(&node.data).env("LC_ALL", "C").output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let said = |what: &str| {
            let line = text.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {text}"));
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        let control = wal::ControlFile::parse(&fs::read(node.data.join("global/pg_control")).unwrap()).unwrap();
        assert_eq!(control.state, wal::ClusterState::ShutDown, "{}", said("Database cluster state"));
        assert_eq!(control.system_identifier.to_string(), said("Database system identifier"));
        assert_eq!(control.checkpoint.to_string(), said("Latest checkpoint location"));
        assert_eq!(control.redo.to_string(), said("Latest checkpoint's REDO location"));
        assert_eq!(control.checkpoint_timeline.to_string(), said("Latest checkpoint's TimeLineID"));
        assert_eq!((control.min_recovery, said("Minimum recovery ending location").as_str()), (None, "0/0"));
        assert_eq!((control.backup_start, said("Backup start location").as_str()), (None, "0/0"));
    }
}
