//! Are all branches of a cluster's history kept, when a recovered server takes over and goes on?

use std::fs;
use std::path::Path;

use serde_json::Value;
use wal::TimelineId;

use crate::support::ledger::Ledger;
use crate::support::oracle::Oracle;
use crate::support::pg::{PgNode, major};
use crate::support::receivewal::ReceiveWal;
use crate::support::restored::wait_promoted;
use crate::support::scene::{LIMIT, Scene, Setting, now_and_here, wait_stored};
use crate::support::truth::Target;

#[test]
fn both_branches_are_recovered_after_a_recovery_was_promoted() {
    let mut scene = Scene::new(Setting::of(major(15)));
    scene.backup();
    scene.more(40);
    let one = scene.note("fork");
    scene.more(60);
    let old = scene.settle();
    let old_end = scene.latest();
    scene.daemon.take().unwrap().stop();
    let fork = Target::Name(one.barrier.name);

    // The recovered server takes over, and goes on.
    let mut new = scene.recover(&["--target-name", "fork", "--action", "promote"]);
    assert!(scene.node.stop("fast", LIMIT));
    new.start();
    wait_promoted(&new);
    let reference = scene.path().join("reference-2");
    let receiving = ReceiveWal::start(&new, &reference);
    let second = ledger_until(&scene, &old, &fork);
    scene.installed.config_for(&new, "");
    let daemon = scene.installed.serve();
    scene.installed.wait_streaming();
    let load = second.load(&new, 3);
    load.wait_for_more(30);
    let (code, backup) = scene.installed.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert_eq!((code, &backup["timeline"]), (0, &Value::from(2)), "{backup}");
    load.wait_for_more(30);
    let (noted, _) = now_and_here(&new);
    load.wait_for_more(30);
    load.stop();
    let end = wait_stored(&scene.installed, &new);
    receiving.wait_for(&new, end);
    receiving.stop();
    copy_missing(&scene.path().join("reference"), &reference, &new);
    let both = scene.oracle(&second, &reference, TimelineId::new(2).unwrap());

    let window = scene.window();
    let timelines: Vec<&Value> = window["timelines"].as_array().unwrap().iter().map(|t| &t["timeline"]).collect();
    assert_eq!(timelines, [1, 2]);
    let target = Target::Time { time: noted, inclusive: true };
    scene.paused_is_exact(&both, &["--target-time", &noted.to_string()], &target);
    let last = scene.promoted_is_exact(&both, &["--latest"], &Target::EndOfWal(end));
    assert_eq!(last.found, both.attempts().len());
    // What was left behind the fork is still there, and only there.
    let left = scene.promoted_is_exact(&old, &["--latest", "--timeline", "1"], &old_end);
    assert_eq!(left.found, old.attempts().len());
    scene.paused_is_exact(&old, &["--target-name", "fork"], &fork);
    daemon.stop();
}

/// A ledger for the new branch: of the old one's notes, those whose commits lie before the fork.
fn ledger_until(scene: &Scene, old: &Oracle, fork: &Target) -> Ledger {
    let before = old.expected(fork);
    let dir = scene.path().join("ledger-2");
    fs::create_dir(&dir).unwrap();
    for worker in 1..=3 {
        let attempts = old.attempts().iter().filter(|attempt| attempt.worker == worker);
        let lines = attempts.filter(|attempt| before.contains(&(worker, attempt.seq))).map(|attempt| {
            let acknowledged = attempt.acknowledged.map_or(String::new(), |lsn| format!("ack {lsn}\n"));
            format!("try {} {}\n{acknowledged}", attempt.seq, attempt.xid)
        });
        fs::write(dir.join(format!("worker-{worker}")), lines.collect::<String>()).unwrap();
    }
    Ledger::of(&dir)
}

/// Completes the new branch's reference with the old one's segments and the history.
fn copy_missing(from: &Path, to: &Path, new: &PgNode) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if !copy.exists() {
            fs::copy(path, copy).unwrap();
        }
    }
    let history = "00000002.history";
    fs::copy(new.data.join("pg_wal").join(history), to.join(history)).unwrap();
}
