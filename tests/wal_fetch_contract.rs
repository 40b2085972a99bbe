//! Does recovery end where the WAL ends, and nowhere before?

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use recovery::settings::StandbySettings;

use crate::support::LIMIT;
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};
use crate::support::restored::{Scene, lsn, wait, wait_promoted};

/// A backup, five whole segments with a row each, and a tail with a sixth row.
fn written(scene: &Scene, dir: &std::path::Path) {
    let mut primary = PgNode::start_new(dir, "primary", major(15));
    primary.sql("CREATE TABLE t (n int)");
    let pipeline = scene.vault.start(&primary.conninfo());
    pipeline.wait_streaming();
    scene.backup(&primary);
    for n in 1..=5 {
        primary.sql(&format!("INSERT INTO t VALUES ({n})"));
        primary.sql("SELECT pg_switch_wal()");
    }
    primary.sql("INSERT INTO t VALUES (6)");
    pipeline.wait_shipped(lsn(&primary, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    assert!(primary.stop("fast", LIMIT));
}

/// A restored data directory whose restore_command gives up after a second.
fn restored(scene: &Scene, name: &str) -> PgNode {
    let node = scene.restore(name, major(15), |_| ());
    be_impatient(&node);
    node
}

fn be_impatient(node: &PgNode) {
    let path = node.data.join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(" wal fetch "), "{text}");
    fs::write(path, text.replace(" wal fetch ", " wal fetch --patience 1s ")).unwrap();
}

/// The stored objects of whole segments, oldest first.
fn stored_segments(scene: &Scene) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![scene.installed.repository.clone()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            match path.is_dir() {
                true => open.push(path),
                false if name.len() == 28 && name.starts_with("00000001") && name.ends_with(".zst") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    assert!(found.len() >= 5, "{found:?}");
    found
}

/// Starts a server whose recovery must end in an error; nothing may be promoted.
fn ends_in_error(node: &mut PgNode, says: &str) {
    node.try_start();
    assert!(node.wait_end(LIMIT), "still running:\n{}", node.log());
    let log = node.log();
    assert!(log.contains("could not restore file") && log.contains("exit code 255"), "{log}");
    assert!(log.contains(says), "{log}");
    assert!(!log.contains("selected new timeline") && !log.contains("archive recovery complete"), "{log}");
}

#[test]
fn recovery_ends_at_the_end_of_the_wal_and_takes_a_timeline_that_is_free() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    written(&scene, dir.path());
    let promoted = scene.recover("promoted", major(15), |_| ());
    wait_promoted(&promoted);
    assert_eq!(promoted.sql("SELECT count(*) FROM t"), "6");
    assert_eq!(promoted.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    // The history of what was promoted is stored: the next one must not take the same number.
    let history = fs::read(promoted.data.join("pg_wal/00000002.history")).unwrap();
    let two = wal::TimelineId::new(2).unwrap();
    scene.vault.runtime.block_on(scene.vault.lineage().put_history(two, &history)).unwrap();
    let next = scene.recover("next", major(15), |request| {
        request.recovery.timeline = Some(recovery::TargetTimeline::Number(wal::TimelineId::FIRST));
    });
    wait_promoted(&next);
    assert_eq!(next.sql("SELECT count(*) FROM t"), "6");
    assert_eq!(next.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
}

#[test]
fn a_hole_or_damage_or_a_store_out_of_reach_stops_recovery_and_never_ends_it() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    written(&scene, dir.path());
    let segments = stored_segments(&scene);
    let third = &segments[segments.len() - 3];
    let whole = fs::read(third).unwrap();

    let mut node = restored(&scene, "hole");
    fs::remove_file(third).unwrap();
    ends_in_error(&mut node, "which comes after it, is");

    // The hole is refused before anything is touched, too.
    let target = dir.path().join("refused");
    let error = scene.plan(&scene.request(&target, recovery::RecoveryTarget::Latest)).unwrap_err();
    assert_eq!(error.code().exit_code(), 8, "{error}");
    assert!(!target.exists());

    let mut damaged = whole.clone();
    let at = damaged.len() * 2 / 3;
    damaged[at] ^= 0x40;
    fs::write(third, &damaged).unwrap();
    give_to_server_user(&scene.installed.repository);
    let mut node = restored(&scene, "damaged");
    ends_in_error(&mut node, "is damaged");

    // Another segment's object under its name.
    fs::copy(&segments[segments.len() - 2], third).unwrap();
    give_to_server_user(&scene.installed.repository);
    let mut node = restored(&scene, "exchanged");
    ends_in_error(&mut node, "error");

    fs::write(third, &whole).unwrap();
    give_to_server_user(&scene.installed.repository);
    let mut node = restored(&scene, "outage");
    let away = dir.path().join("away");
    fs::rename(&scene.installed.repository, &away).unwrap();
    ends_in_error(&mut node, "error");
    // Once it is there again, the same server recovers everything.
    fs::remove_dir_all(&scene.installed.repository).unwrap_or_default();
    fs::rename(&away, &scene.installed.repository).unwrap();
    node.start();
    wait_promoted(&node);
    assert_eq!(node.sql("SELECT count(*) FROM t"), "6");
}

#[test]
fn a_running_standby_survives_a_store_out_of_reach() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let primary = PgNode::start_new(dir.path(), "primary", major(15));
    primary.sql("CREATE TABLE t (n int)");
    let pipeline = scene.vault.start(&primary.conninfo());
    pipeline.wait_streaming();
    scene.backup(&primary);
    pipeline.stop();
    let mut standby = scene.restore("standby", major(15), |request| {
        let settings = StandbySettings { primary_conninfo: primary.conninfo(), slot: None };
        request.config.as_mut().unwrap().standby = Some(settings);
    });
    be_impatient(&standby);
    standby.start();
    let streams = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";
    wait(&standby, streams);
    let away = dir.path().join("away");
    fs::rename(&scene.installed.repository, &away).unwrap();
    // It loses its stream and asks the archive, which does not answer. Is there a new timeline? Nobody can tell: it waits.
    primary.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    primary.sql("INSERT INTO t VALUES (1)");
    let asked = Instant::now() + LIMIT;
    while !standby.log().contains("00000002.history") {
        assert!(Instant::now() < asked, "{}", standby.log());
        assert_eq!(standby.sql("SELECT count(*) FROM t"), "0", "it can be read all the time");
        std::thread::sleep(Duration::from_millis(100));
    }
    fs::remove_dir_all(&scene.installed.repository).unwrap_or_default();
    fs::rename(&away, &scene.installed.repository).unwrap();
    wait(&standby, "SELECT count(*) = 1 FROM t");
    wait(&standby, streams);
    assert!(!standby.log().contains("FATAL:  could not restore file"), "{}", standby.log());
}

#[test]
fn a_fetch_that_waits_ends_at_once_when_it_is_told_to() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let output = scene.installed.run(["wal", "fetch", "--patience", "0", "nobody", "00000002.history", "x"]);
    assert_eq!(output.status.code(), Some(255), "an unknown cluster");
    let output = scene.installed.run(["wal", "fetch", "main", "../../etc/passwd", "x"]);
    assert_eq!(output.status.code(), Some(255), "no name of a WAL file");
    // Nobody answers there: every attempt fails, and it goes on for minutes.
    let config = fs::read_to_string(&scene.installed.config).unwrap();
    let nowhere = "[repository]\nurl = \"s3://nobody/there\"\nendpoint = \"http://127.0.0.1:1\"\nallow_http = true\n";
    let (daemon, rest) = config.split_once("[repository]\n").unwrap();
    let rest = rest.split_once('\n').unwrap().1;
    fs::write(&scene.installed.config, format!("{daemon}{nowhere}{rest}")).unwrap();
    let mut child = scene
        .installed
        .command(["wal", "fetch", "main", "00000002.history", "x"])
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it should still be trying");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let told = Instant::now();
    let status = child.wait().unwrap();
    // Its patience is two minutes.
    assert!(told.elapsed() < Duration::from_secs(60), "it took {:?}", told.elapsed());
    assert!(!status.success() && status.code() != Some(1), "{status}");
}
