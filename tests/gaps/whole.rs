//! The whole product through a lost slot: alarm, a backup by itself, windows on both sides, nothing in between.

use std::time::Instant;

use serde_json::Value;
use wal::{Lsn, PgTime};

use super::make_forget;
use crate::support::restored::listing;
use crate::support::scene::{LIMIT, Scene, Setting, now_and_here};
use crate::support::truth::Target;

fn lsn(value: &Value) -> Lsn {
    value.as_str().unwrap_or_else(|| panic!("{value}")).parse().unwrap()
}

fn status(scene: &Scene) -> Value {
    scene.installed.json(&["status", "main"]).1["clusters"][0].clone()
}

fn configure(scene: &Scene, settings: &[&str]) {
    for setting in settings {
        scene.node.sql(&format!("ALTER SYSTEM SET {setting}"));
    }
    scene.node.sql("SELECT pg_reload_conf()");
}

/// Value of a metric of the only cluster.
fn metric(scene: &Scene, name: &str) -> f64 {
    let (_, text) = scene.installed.http("/metrics");
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn is_refused(scene: &mut Scene, args: &[&str], nearest: [&str; 2]) {
    let target = scene.place();
    let before = listing(&scene.path().join("pgvault/repository"));
    let args = ["recover", "main", "--to", target.data.to_str().unwrap()].into_iter().chain(args.iter().copied());
    let (code, document) = scene.installed.json(&args.collect::<Vec<_>>());
    assert_eq!((code, &document["code"]), (8, &Value::from("E0303")), "{document}");
    let text = document.to_string();
    for nearest in nearest {
        assert!(text.contains(nearest), "{nearest} is not named: {text}");
    }
    assert!(text.contains("max_slot_wal_keep_size"), "the reason is not told: {text}");
    assert!(!target.data.exists(), "nothing is touched");
    assert_eq!(listing(&scene.path().join("pgvault/repository")), before);
}

#[test]
fn a_lost_slot_is_an_alarm_and_a_backup_and_two_windows() {
    let mut scene = Scene::new(Setting::of(17));
    configure(&scene, &["min_wal_size = '2MB'", "max_wal_size = '2MB'"]);
    let first = scene.backup();
    let before = scene.note("before_the_gap");
    scene.more(20);
    assert_eq!(metric(&scene, "pgvault_wal_gaps"), 0.0);

    scene.daemon.take().unwrap().stop();
    let held = lsn(&scene.window()["ranges"][0]["to"]["lsn"]);
    // Only while pgvault is away: on a busy machine a segment behind would be enough to lose the slot once more.
    configure(&scene, &["max_slot_wal_keep_size = '1MB'"]);
    make_forget(&scene.node, held);
    configure(&scene, &["max_slot_wal_keep_size = '1GB'"]);
    let lost = now_and_here(&scene.node);
    scene.more(20);

    let returned = Instant::now();
    scene.daemon = Some(scene.installed.serve());
    // Before the backup that pgvault takes by itself is there, all alarms are on.
    scene.installed.wait("the alarm", LIMIT, || metric(&scene, "pgvault_wal_gaps") == 1.0);
    println!("alarm {:.1} s after the start", returned.elapsed().as_secs_f64());
    let is_backed_up = || {
        let (_, list) = scene.installed.json(&["backup", "list"]);
        list.as_array().is_some_and(|list| list.len() == 2 && list[1]["status"] == "ok")
    };
    scene.installed.wait("the reason, or already its remedy", LIMIT, || {
        let seen = status(&scene);
        let told = seen["reasons"].to_string();
        let reason = told.contains("is lost") && told.contains("max_slot_wal_keep_size");
        (seen["state"] == "critical" && reason && seen["window"]["gaps"] == 1) || is_backed_up()
    });
    scene.installed.wait("a backup by itself", LIMIT, is_backed_up);
    println!("backup {:.1} s after the start", returned.elapsed().as_secs_f64());
    let (_, list) = scene.installed.json(&["backup", "list"]);
    let second = list[1].clone();
    assert_eq!(second["annotations"]["started_by"], "gap", "{second}");
    assert!(second["annotations"]["gap"].to_string().contains("max_slot_wal_keep_size"), "{second}");
    scene.installed.wait("no longer critical", LIMIT, || status(&scene)["state"] == "warning");
    scene.installed.wait("the slot is well again", LIMIT, || metric(&scene, "pgvault_slot_lost") == 0.0);
    let (code, checks) = scene.installed.json(&["check", "main"]);
    assert_eq!(code, 0, "{checks}");
    let after = scene.note("after_the_gap");
    scene.more(20);

    let oracle = scene.settle();
    // Only one was taken, though the gap stays.
    let (_, list) = scene.installed.json(&["backup", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    let window = scene.window();
    let (ranges, gaps) = (window["ranges"].as_array().unwrap(), window["gaps"].as_array().unwrap());
    assert_eq!((ranges.len(), gaps.len()), (2, 1), "{window}");
    assert_eq!(ranges[0]["first_backup"], first["id"]);
    assert_eq!(ranges[1]["first_backup"], second["id"]);
    assert!(lsn(&ranges[0]["to"]["lsn"]) <= lsn(&gaps[0]["from_lsn"]));
    assert!(lsn(&gaps[0]["to_lsn"]) <= lsn(&ranges[1]["from"]["lsn"]));
    assert!(gaps[0]["reason"].to_string().contains("max_slot_wal_keep_size"), "{window}");
    assert!(lsn(&gaps[0]["from_lsn"]) < lost.1 && lost.1 < lsn(&ranges[1]["from"]["lsn"]));

    // The reason is in the repository: whoever has nothing else is told the same.
    scene.daemon.take().unwrap().stop();
    std::fs::remove_dir_all(&scene.installed.state).unwrap();
    assert_eq!(scene.window()["gaps"], window["gaps"]);
    let (code, listed) = scene.installed.json(&["wal", "gaps", "main"]);
    assert_eq!((code, &listed["gaps"]), (0, &window["gaps"]));

    // Into the gap there is no way; both borders are named.
    let borders = [ranges[0]["to"]["time"].as_str().unwrap(), ranges[1]["from"]["time"].as_str().unwrap()];
    let lost_time = lost.0.to_string();
    for way in [&["--target-time", &lost_time][..], &["--target-time", &lost_time, "--dry-run"]] {
        is_refused(&mut scene, way, borders);
    }
    let lost_lsn = lost.1.to_string();
    is_refused(&mut scene, &["--target-lsn", &lost_lsn], borders);
    let (code, at) = scene.installed.json(&["window", "main", "--at", &lost_time]);
    assert_eq!((code, &at["at"]["reachable"]), (8, &Value::Bool(false)), "{at}");

    // On both sides every acknowledged commit is there and none too many.
    let time = before.time.to_string();
    let target = |time: PgTime| Target::Time { time, inclusive: true };
    scene.paused_is_exact(&oracle, &["--target-time", &time], &target(before.time));
    let border: PgTime = borders[0].parse().unwrap();
    scene.paused_is_exact(&oracle, &["--target-time", borders[0]], &target(border));
    let border: PgTime = borders[1].parse().unwrap();
    scene.paused_is_exact(&oracle, &["--target-time", borders[1]], &target(border));
    scene.paused_is_exact(&oracle, &["--target-name", &after.barrier.name], &Target::Name(after.barrier.name.clone()));
    let latest = scene.latest_of(1);
    scene.promoted_is_exact(&oracle, &["--latest"], &latest);
}
