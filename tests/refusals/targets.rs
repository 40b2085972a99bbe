//! Targets that cannot be reached, and directories that cannot be written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use wal::{PgTime, SegmentName, SegmentSize};

use super::{Refusal, refused};
use crate::support::LIMIT;
use crate::support::oracle::Oracle;
use crate::support::pg::{am_root, give_to_server_user, major, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::scene::{Scene, Setting};
use crate::support::truth::{End, Target};

/// `recover` to a new directory, which must be refused and must not make it, nor touch the repository.
#[track_caller]
fn not_recovered(scene: &mut Scene, args: &[&str], code: &str, exit: i32) -> Refusal {
    let to = scene.place().data.clone();
    let repository = scene.installed.repository.clone();
    let all: Vec<&str> =
        ["recover", "main", "--to", to.to_str().unwrap()].into_iter().chain(args.iter().copied()).collect();
    let refusal = refused(&scene.installed, &all, &[&to, &repository], code, exit);
    assert!(!to.exists(), "{args:?}");
    refusal
}

fn shifted(time: PgTime, micros: i64) -> String {
    PgTime::from_micros(time.as_micros() + micros).to_string()
}

#[test]
fn targets_outside_of_what_is_stored() {
    let mut scene = Scene::new(Setting::of(major(15)));
    scene.backup();
    scene.more(40);
    let noted = scene.note("known");
    scene.more(10);
    drop(scene.settle());
    scene.daemon.take().unwrap().stop();
    let range = scene.window()["ranges"][0].clone();
    let end = |which: &str| range[which]["time"].as_str().unwrap().parse::<PgTime>().unwrap();
    let first = range["first_backup"].as_str().unwrap().to_owned();

    let early = shifted(end("from"), -1);
    not_recovered(&mut scene, &["--target-time", &early], "E0301", 8).says(&end("from").to_string()).says(&first);
    not_recovered(&mut scene, &["--target-lsn", "0/100"], "E0301", 8).says(&first);
    let late = shifted(end("to"), 1);
    not_recovered(&mut scene, &["--target-time", &late], "E0302", 8)
        .says(&end("to").to_string())
        .says("recovery ended before configured recovery target was reached")
        .says("--latest");
    not_recovered(&mut scene, &["--target-lsn", "FF/0"], "E0302", 8).says("--latest");
    not_recovered(&mut scene, &["--target-xid", "4000000"], "E0307", 8).says("4000000");
    not_recovered(&mut scene, &["--target-name", "unknown"], "E0307", 8).says("unknown");
    not_recovered(&mut scene, &["--latest", "--timeline", "7"], "E0307", 8).says("stored timelines: 1");
    not_recovered(&mut scene, &["--latest", "--backup", "20010101T000000-0000"], "E0004", 6).says("backup list");
    not_recovered(&mut scene, &["--target-time", "2026-11-20 05:22:36"], "E0306", 2).says("2026-11-20");
    not_recovered(&mut scene, &["--target-time", "the day before"], "E0002", 2);
    not_recovered(&mut scene, &["--target-lsn", "12345"], "E0002", 2);
    let to = scene.place().data.clone();
    let unknown = ["recover", "mian", "--to", to.to_str().unwrap(), "--latest"];
    refused(&scene.installed, &unknown, &[&to], "E0004", 6).says("main");

    // `window --at` says the same.
    for (time, reachable) in [(&early, false), (&noted.time.to_string(), true), (&late, false)] {
        let (code, window) = scene.installed.json(&["window", "main", "--at", time]);
        assert_eq!((code, &window["at"]["reachable"]), (if reachable { 0 } else { 8 }, &reachable.into()), "{window}");
    }
    directories_that_are_in_use(&scene);
    too_little_space(&scene);
}

fn directories_that_are_in_use(scene: &Scene) {
    let recover = |to: &Path, code: &str| {
        let args = ["recover", "main", "--latest", "--to", to.to_str().unwrap()];
        refused(&scene.installed, &args, &[&scene.installed.repository], code, 7)
    };
    let running = scene.node.data.clone();
    recover(&running, "E0304").says("a server runs in it");
    assert_eq!(scene.node.sql("SELECT count(*) > 0 FROM ledger"), "t", "and goes on to run");
    let used = scene.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("thesis.txt"), "precious").unwrap();
    give_to_server_user(&used);
    let args = ["recover", "main", "--latest", "--to", used.to_str().unwrap()];
    refused(&scene.installed, &args, &[&used, &scene.installed.repository], "E0304", 7).says("thesis.txt");
    recover(Path::new("/nowhere/at/all"), "E0304").says("/nowhere/at");
}

fn too_little_space(scene: &Scene) {
    let small = scene.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = am_root()
        && Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs"])
            .arg(&small)
            .status()
            .unwrap()
            .success();
    if !mounted {
        // Not root, or no right to mount: the refusal for want of space cannot be provoked here.
        return;
    }
    let small = Mounted(small);
    let to = small.0.join("restored");
    let args = ["recover", "main", "--latest", "--to", to.to_str().unwrap()];
    refused(&scene.installed, &args, &[&small.0, &scene.installed.repository], "E0305", 7)
        .says("not enough space in")
        .says("--wal-dir");
}

/// A file system that is unmounted at the end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What cannot be unmounted goes with the machine.
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn nothing_can_be_recovered_before_the_first_backup() {
    let dir = test_dir();
    let installed = Pgvault::new(dir.path());
    installed.config("[cluster.main]\nconninfo = \"host=127.0.0.1 port=1\"");
    let to = dir.path().join("restored");
    let args = ["recover", "main", "--latest", "--to", to.to_str().unwrap()];
    // There is no repository at all, and none is made by asking.
    refused(&installed, &args, &[&to, &installed.repository], "E0401", 5);
    installed.ok(["repo", "init"]);
    refused(&installed, &args, &[&to, &installed.repository], "E0004", 6).says("main");
    assert!(!to.exists());
}

/// The stored segment of this name: its object and its tails.
pub(super) fn stored(scene: &Scene, segment: SegmentName) -> PathBuf {
    let lineage = fs::read_dir(scene.installed.repository.join("main"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("wal").exists())
        .unwrap();
    lineage.join(format!("wal/{}/{:08X}/{segment}.zst", segment.timeline().hex(), segment.log()))
}

/// Deletes a segment as a careless person would.
pub(super) fn lose(scene: &Scene, segment: SegmentName) {
    fs::remove_file(stored(scene, segment)).unwrap();
    let tails = stored(scene, segment).with_extension("tail");
    if tails.exists() {
        fs::remove_dir_all(tails).unwrap();
    }
}

pub(super) fn segment_of(scene: &Scene, lsn: wal::Lsn) -> SegmentName {
    let size = SegmentSize::new(scene.setting.segment_size).unwrap();
    SegmentName::new(wal::TimelineId::FIRST, wal::SegmentNumber::containing(lsn, size), size)
}

/// A scene with two backups, and three finished segments of commits between them; the daemon has ended.
pub(super) fn two_backups_far_apart() -> (Scene, [serde_json::Value; 2], Oracle) {
    let mut scene = Scene::new(Setting::of(major(15)));
    let first = scene.backup();
    for _ in 0..4 {
        scene.more(30);
        scene.node.sql("SELECT pg_switch_wal()");
    }
    scene.more(30);
    let second = scene.backup();
    scene.more(30);
    let oracle = scene.settle();
    scene.daemon.take().unwrap().stop();
    (scene, [first, second], oracle)
}

/// A commit in the middle between the backups.
pub(super) fn commit_between(oracle: &Oracle, backups: &[serde_json::Value; 2]) -> End {
    let [from, to] = [&backups[0]["stop_lsn"], &backups[1]["start_lsn"]]
        .map(|lsn| lsn.as_str().unwrap().parse::<wal::Lsn>().unwrap());
    let between: Vec<End> =
        oracle.truth().ends.iter().copied().filter(|end| end.committed && from < end.lsn && end.lsn < to).collect();
    between[between.len() / 2]
}

#[test]
fn a_target_in_a_gap_names_both_neighbours_and_they_can_be_recovered() {
    let (mut scene, backups, oracle) = two_backups_far_apart();
    let commit = commit_between(&oracle, &backups);
    let segment = segment_of(&scene, commit.lsn);
    let time = commit.time.to_string();
    scene.paused_is_exact(&oracle, &["--target-time", &time], &Target::Time { time: commit.time, inclusive: true });
    lose(&scene, segment);

    let window = scene.window();
    assert_eq!(window["ranges"].as_array().unwrap().len(), 2, "{window}");
    let size = SegmentSize::new(scene.setting.segment_size).unwrap();
    let start = segment.number(size).unwrap().start(size);
    assert_eq!(window["gaps"][0]["from_lsn"], start.to_string(), "{window}");
    let refusal = not_recovered(&mut scene, &["--target-time", &time], "E0303", 8);
    let moment = |cause: String| {
        let (time, rest) = cause.split_once(" (timeline 1, ").unwrap();
        (time.parse::<PgTime>().unwrap(), rest.trim_end_matches(')').parse::<wal::Lsn>().unwrap())
    };
    let before = moment(refusal.cause("last moment before it: "));
    let after = moment(refusal.cause("first moment after it: "));
    assert!(before.1 <= start && commit.lsn < after.1, "{}", refusal.text);
    let (xid, lsn) = (commit.xid.to_string(), commit.lsn.to_string());
    not_recovered(&mut scene, &["--target-lsn", &lsn], "E0303", 8);
    not_recovered(&mut scene, &["--target-xid", &xid], "E0307", 8);
    let id = backups[0]["id"].as_str().unwrap();
    not_recovered(&mut scene, &["--latest", "--backup", id], "E0303", 8).says(backups[1]["id"].as_str().unwrap());

    scene.paused_is_exact(&oracle, &["--target-time", &before.0.to_string()], &Target::EndOfWal(before.1));
    let after_time = Target::Time { time: after.0, inclusive: true };
    scene.paused_is_exact(&oracle, &["--target-time", &after.0.to_string()], &after_time);
    let latest = window["ranges"][1]["to"]["lsn"].as_str().unwrap().parse().unwrap();
    scene.promoted_is_exact(&oracle, &["--latest"], &Target::EndOfWal(latest));
}

#[test]
fn postgresql_does_not_promote_at_a_hole() {
    let (mut scene, backups, oracle) = two_backups_far_apart();
    let commit = commit_between(&oracle, &backups);
    let id = backups[0]["id"].as_str().unwrap();
    let mut node = scene.recover(&["--latest", "--action", "promote", "--backup", id]);
    // The hole opens between the restore and the start; nobody waits two minutes for it to close.
    lose(&scene, segment_of(&scene, commit.lsn));
    let auto = node.data.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap();
    let impatient = text.replacen("wal fetch ", "wal fetch --patience 1s ", 1);
    assert_ne!(text, impatient, "{text}");
    fs::write(&auto, impatient).unwrap();
    node.try_start();
    assert!(node.wait_end(LIMIT), "it goes on over a hole:\n{}", node.log());
    let log = node.log();
    assert!(log.contains("restore_command") || log.contains("could not restore file"), "{log}");
    assert!(!log.contains("selected new timeline ID") && !log.contains("archive recovery complete"), "{log}");
    assert!(log.contains("which comes after it"), "the log names the hole: {log}");
}
