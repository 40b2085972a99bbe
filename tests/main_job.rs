//! Is the main job done, from the first commit to the restored server: exact at every kind of target, on every version?

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use wal::{Lsn, PgTime};

use crate::support::oracle::Oracle;
use crate::support::pg::{as_server_user, bin_dir, major};
use crate::support::restored::{wait_paused, wait_promoted};
use crate::support::scene::{LIMIT, Noted, Scene, Setting, now_and_here};
use crate::support::truth::{End, Target};

/// The writers' commits that ended after `lsn`, in the order of the log.
fn commits_after(oracle: &Oracle, lsn: Lsn) -> Vec<End> {
    let ours: BTreeSet<u32> = oracle.attempts().iter().map(|attempt| attempt.xid).collect();
    let ends = oracle.truth().ends.iter().copied();
    ends.filter(|end| end.committed && end.lsn >= lsn && ours.contains(&end.xid)).collect()
}

fn lsn_of(value: &Value) -> Lsn {
    value.as_str().unwrap_or_else(|| panic!("{value}")).parse().unwrap()
}

fn time_of(value: &Value) -> PgTime {
    value.as_str().unwrap_or_else(|| panic!("{value}")).parse().unwrap()
}

fn time(time: PgTime, inclusive: bool) -> Target {
    Target::Time { time, inclusive }
}

#[test]
fn every_kind_of_target_is_exact() {
    let mut scene = Scene::new(Setting::of(major(15)));
    let first = scene.backup();
    scene.more(60);
    let one = scene.note("first point");
    scene.more(60);
    let second = scene.backup();
    scene.more(60);
    let two = scene.note("second point");
    scene.more(60);
    let oracle = scene.settle();
    every_time(&mut scene, &oracle, &one, &two);
    every_position(&mut scene, &oracle, &two);
    the_ends_of_the_window(&mut scene, &oracle);
    backups_are_chosen(&mut scene, &oracle, &first, &second, &one);
    every_action(&mut scene, &oracle, &one, &two);
}

fn every_time(scene: &mut Scene, oracle: &Oracle, one: &Noted, two: &Noted) {
    let noted = one.time.to_string();
    scene.paused_is_exact(oracle, &["--target-time", &noted], &time(one.time, true));
    scene.promoted_is_exact(
        oracle,
        &["--target-time", &two.time.to_string(), "--action", "promote"],
        &time(two.time, true),
    );
    // The very microsecond of a commit: with it, and without it.
    let commit = commits_after(oracle, two.lsn)[5];
    let text = commit.time.to_string();
    let with = scene.paused_is_exact(oracle, &["--target-time", &text], &time(commit.time, true));
    let without = scene.paused_is_exact(oracle, &["--target-time", &text, "--exclusive"], &time(commit.time, false));
    assert!(without.found < with.found, "{without} / {with}");
}

fn every_position(scene: &mut Scene, oracle: &Oracle, two: &Noted) {
    let commit = commits_after(oracle, two.lsn)[8];
    let (xid, lsn) = (commit.xid.to_string(), commit.lsn.to_string());
    let at = |inclusive| Target::Lsn { lsn: commit.lsn, inclusive };
    let with = scene.paused_is_exact(oracle, &["--target-lsn", &lsn], &at(true));
    let without = scene.paused_is_exact(oracle, &["--target-lsn", &lsn, "--exclusive"], &at(false));
    assert_eq!(with.found, without.found + 1);
    let end = |inclusive| Target::Xid { xid: commit.xid, inclusive };
    let with = scene.paused_is_exact(oracle, &["--target-xid", &xid], &end(true));
    let without =
        scene.promoted_is_exact(oracle, &["--target-xid", &xid, "--exclusive", "--action", "promote"], &end(false));
    assert_eq!(with.found, without.found + 1);
    let text = two.lsn.to_string();
    scene.paused_is_exact(oracle, &["--target-lsn", &text], &Target::Lsn { lsn: two.lsn, inclusive: true });
}

fn the_ends_of_the_window(scene: &mut Scene, oracle: &Oracle) {
    let range = scene.window()["ranges"][0].clone();
    let (from, to) = (time_of(&range["from"]["time"]), time_of(&range["to"]["time"]));
    let first = range["first_backup"].as_str().unwrap().to_owned();
    let end = scene.latest();
    scene.paused_is_exact(oracle, &["--target-time", &from.to_string()], &time(from, true));
    let at_end = scene.paused_is_exact(oracle, &["--target-time", &to.to_string()], &end);
    let at_end_from_first = ["--target-time", &to.to_string(), "--backup", &first, "--action", "promote"];
    assert_eq!(scene.promoted_is_exact(oracle, &at_end_from_first, &end).found, at_end.found);
    let last = scene.promoted_is_exact(oracle, &["--latest"], &end);
    assert_eq!(last.found, oracle.attempts().len(), "nothing that was acknowledged is missing at the end");
}

fn backups_are_chosen(scene: &mut Scene, oracle: &Oracle, first: &Value, second: &Value, one: &Noted) {
    let plan = |scene: &mut Scene, args: &[&str]| {
        let to = scene.place().data.clone();
        let args: Vec<&str> = ["recover", "main", "--dry-run", "--to", to.to_str().unwrap()]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let (code, plan) = scene.installed.json(&args);
        assert_eq!(code, 0, "{plan}");
        assert!(!to.exists(), "a dry run changes nothing");
        plan
    };
    assert_eq!(plan(scene, &["--target-time", &one.time.to_string()])["backup"], first["id"]);
    assert_eq!(plan(scene, &["--latest"])["backup"], second["id"]);
    let stop = lsn_of(&second["stop_lsn"]);
    assert_eq!(plan(scene, &["--target-lsn", &stop.to_string()])["backup"], second["id"], "consistent there");
    // One record earlier the second backup is not yet consistent.
    let before = oracle.truth().records.iter().rev().find(|&&record| record < stop).unwrap().to_string();
    assert_eq!(plan(scene, &["--target-lsn", &before, "--exclusive"])["backup"], first["id"]);
    let stops = [first, second].map(|backup| lsn_of(&backup["stop_lsn"]));
    let id = first["id"].as_str().unwrap();
    scene.paused_is_exact(oracle, &["--immediate"], &Target::Immediate { backup_stop: stops[1] });
    scene.paused_is_exact(oracle, &["--immediate", "--backup", id], &Target::Immediate { backup_stop: stops[0] });
}

fn every_action(scene: &mut Scene, oracle: &Oracle, one: &Noted, two: &Noted) {
    let target = Target::Name(two.barrier.name.clone());
    scene.paused_is_exact(oracle, &["--target-name", "second point", "--timeline", "1"], &target);
    let named = ["--target-name", "second point", "--action", "promote", "--timeline", "latest"];
    scene.promoted_is_exact(oracle, &named, &target);
    scene.paused_is_exact(oracle, &["--latest", "--action", "pause"], &scene.latest());

    // Shut down at the target: the server ends by itself; made to promote, it shows that it stood there.
    let mut node = scene.recover(&["--target-name", "first point", "--action", "shutdown"]);
    node.try_start();
    assert!(node.wait_end(LIMIT), "it does not shut down:\n{}", node.log());
    let control = as_server_user(bin_dir(major(15)).join("pg_controldata")).arg(&node.data).output().unwrap();
    assert!(String::from_utf8_lossy(&control.stdout).contains("shut down in recovery"));
    let auto = node.data.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap() + "\nrecovery_target_action = 'promote'\n";
    fs::write(&auto, text).unwrap();
    node.start();
    wait_promoted(&node);
    oracle.check(&node, &Target::Name(one.barrier.name.clone())).assert_exact();
    scene.forget(node);
}

#[test]
fn a_dropped_table_can_be_looked_at_while_recovery_is_paused() {
    let mut scene = Scene::new(Setting::of(major(15)));
    scene.node.sql("CREATE TABLE precious(i int PRIMARY KEY); INSERT INTO precious SELECT generate_series(1, 1000)");
    scene.backup();
    scene.node.sql("INSERT INTO precious SELECT generate_series(1001, 2000)");
    scene.more(20);
    let (before, _) = now_and_here(&scene.node);
    // The lock of the drop is in the log well before its commit, and other commits lie between.
    scene.node.sql("DROP TABLE precious");
    scene.more(20);
    let oracle = scene.settle();
    let look = "SET statement_timeout = '120s'; SELECT count(*), max(i) FROM precious";
    for action in ["pause", "promote"] {
        let mut node = scene.recover(&["--target-time", &before.to_string(), "--action", action]);
        node.start();
        if action == "pause" {
            wait_paused(&node)
        } else {
            wait_promoted(&node)
        }
        assert_eq!(node.sql(look), "2000|2000", "{action}");
        oracle.check(&node, &time(before, true)).assert_exact();
        scene.forget(node);
    }
}

#[test]
fn the_main_job_is_done_from_s3() {
    let mut scene = Scene::new(Setting { s3: true, ..Setting::of(major(15)) });
    scene.backup();
    scene.more(40);
    let one = scene.note("in s3");
    scene.backup();
    scene.more(40);
    let oracle = scene.settle();
    scene.paused_is_exact(&oracle, &["--target-time", &one.time.to_string()], &time(one.time, true));
    scene.paused_is_exact(&oracle, &["--target-name", "in s3"], &Target::Name(one.barrier.name));
    let last = scene.latest();
    let last = scene.promoted_is_exact(&oracle, &["--latest"], &last);
    assert_eq!(last.found, oracle.attempts().len());
    assert!(fs::read_dir(&scene.installed.repository).unwrap().next().is_none(), "nothing went to the directory");
}

/// The short main job of one version; `recover` gets `more`.
fn short(setting: Setting, more: impl Fn(&Scene) -> Vec<String>) {
    let mut scene = Scene::new(setting);
    scene.backup();
    scene.more(60);
    let one = scene.note("half way");
    scene.more(60);
    let oracle = scene.settle();
    let last = scene.latest();
    let more = more(&scene);
    let noted = one.time.to_string();
    let with = |args: &[&'static str], tail: &str| -> Vec<String> {
        let tail = (!tail.is_empty()).then(|| tail.to_owned());
        args.iter().map(|&arg| arg.to_owned()).chain(tail).collect()
    };
    for (args, target, paused) in
        [(with(&["--target-time"], &noted), time(one.time, true), true), (with(&["--latest"], ""), last, false)]
    {
        let place = format!("{}", scene.path().join(if paused { "space-a" } else { "space-b" }).display());
        let args: Vec<String> = args.into_iter().chain(more.iter().map(|arg| arg.replace("@", &place))).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if paused {
            scene.paused_is_exact(&oracle, &args, &target);
        } else {
            let verdict = scene.promoted_is_exact(&oracle, &args, &target);
            assert_eq!(verdict.found, oracle.attempts().len());
        }
    }
}

#[test]
fn the_main_job_is_done_with_segments_of_16_mb() {
    short(Setting::of(major(14)).segments_of(&[], 16), |_| Vec::new());
}

#[test]
fn the_main_job_is_done_with_a_tablespace_moved_elsewhere() {
    short(Setting { tablespace: true, ..Setting::of(major(16)) }, |scene| {
        vec!["--tablespace".to_owned(), format!("{}=@", scene.path().join("space").display())]
    });
}

#[test]
fn the_main_job_is_done_with_segments_of_64_mb_and_checksums() {
    short(Setting::of(major(17)).segments_of(&["--wal-segsize=64", "--data-checksums"], 64), |_| Vec::new());
}

#[test]
fn the_main_job_is_done_on_18() {
    short(Setting::of(18), |_| Vec::new());
}
