//! Is WAL that somebody took out of the repository missed, and named, before anything is written?

use std::fs;
use std::path::{Path, PathBuf};

use recovery::{RecoveryTarget, TargetAction};
use serde_json::Value;
use wal::TimelineId;

use super::flush_lsn;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, give_to_server_user, test_dir};
use crate::support::restored::{Scene, lsn, wait_promoted};
use crate::support::tree::files_below;

/// Takes an object away for the length of a look.
fn without<T>(path: &Path, look: impl FnOnce() -> T) -> T {
    let bytes = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    let seen = look();
    fs::write(path, bytes).unwrap();
    give_to_server_user(path);
    seen
}

fn key(scene: &Scene, path: &Path) -> String {
    path.strip_prefix(&scene.installed.repository).unwrap().to_str().unwrap().to_owned()
}

#[track_caller]
fn verify(scene: &Scene, args: &[&str]) -> (i32, Value) {
    let args: Vec<&str> = ["wal", "verify", "main"].into_iter().chain(args.iter().copied()).collect();
    scene.installed.json(&args)
}

/// The plan of a recovery with these arguments; nothing may be written for it.
fn dry_run(scene: &Scene, args: &[&str]) -> (i32, Value) {
    let to = scene.dir.join("never-made");
    let args = ["recover", "main", "--to", to.to_str().unwrap(), "--dry-run"].into_iter().chain(args.iter().copied());
    let answer = scene.installed.json(&args.collect::<Vec<_>>());
    assert!(!to.exists());
    answer
}

#[test]
fn what_was_taken_out_is_named_by_verify_and_by_a_dry_run() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut primary = PgNode::init(dir.path(), "primary", 15, &["--wal-segsize=1"], &[]);
    primary.start();
    primary.sql("CREATE TABLE t (n int, pad text)");
    let write = |node: &PgNode| {
        for n in 0..12 {
            node.sql(&format!("INSERT INTO t SELECT {n}, repeat('x', 300) FROM generate_series(1, 500)"));
        }
    };
    let running = scene.vault.start(&primary.conninfo());
    running.wait_streaming();
    scene.backup(&primary);
    write(&primary);
    let fork = lsn(&primary, "SELECT pg_current_wal_insert_lsn()");
    for n in 0..4 {
        primary.sql(&format!("INSERT INTO t VALUES ({n}, 'tail')"));
        running.wait_shipped(flush_lsn(&primary));
    }
    running.stop();
    assert!(primary.stop("fast", LIMIT));
    give_to_server_user(&scene.installed.repository);

    let (code, whole) = verify(&scene, &[]);
    assert_eq!((code, &whole["ok"]), (0, &Value::Bool(true)), "{whole}");
    assert!(
        whole["segments"].as_u64().unwrap() >= 2
            && whole["tails"] == 1
            && whole["checked_bytes"].as_u64() > Some(2 << 20)
    );
    let (code, whole_plan) = dry_run(&scene, &["--latest"]);
    assert_eq!(code, 0, "{whole_plan}");
    let stored = files_below(&scene.installed.repository);
    let is_segment =
        |path: &&PathBuf| path.to_str().unwrap().ends_with(".zst") && path.to_str().unwrap().contains("/wal/");
    let (tails, segments): (Vec<_>, Vec<_>) =
        stored.iter().filter(is_segment).partition(|path| path.to_str().unwrap().contains(".tail/"));
    let backup_from = scene.vault.runtime.block_on(scene.vault.lineage().catalog()).unwrap().backups[0].stop_lsn;

    // A whole segment behind the backup.
    let victim = segments[segments.len() - 1];
    without(victim, || {
        for flags in [&[][..], &["--quick"]] {
            let (code, report) = verify(&scene, flags);
            assert_eq!((code, report["problems"].as_array().unwrap().len()), (9, 1), "{report}");
            let problem = &report["problems"][0];
            assert_eq!(problem["object"], key(&scene, victim).as_str(), "{report}");
            assert!(problem["from_lsn"].is_string() && problem["to_lsn"].is_string(), "{report}");
        }
        let (code, refusal) = dry_run(&scene, &["--latest"]);
        assert_eq!((code, &refusal["code"]), (8, &Value::from("E0303")), "{refusal}");
        let text = refusal.to_string();
        assert!(text.contains(&key(&scene, victim)) && text.contains("WAL from 0/"), "{refusal}");
        // What lies before it can be recovered all the same.
        assert_eq!(dry_run(&scene, &["--target-lsn", &backup_from.to_string()]).0, 0);
        let (_, gaps) = scene.installed.json(&["wal", "gaps", "main"]);
        assert_eq!(gaps["gaps"][0]["reason"], "not in the repository", "{gaps}");
    });

    // A piece in the middle of the tail: what comes behind it proves that it was there.
    let open = tails.last().and_then(|path| path.parent());
    let tails: Vec<_> = tails.iter().filter(|path| path.parent() == open).copied().collect();
    assert!(tails.len() >= 3, "{tails:?}");
    without(tails[1], || {
        let (code, report) = verify(&scene, &[]);
        assert_eq!(code, 9, "{report}");
        assert!(report["problems"][0]["what"].as_str().unwrap().contains("tail"), "{report}");
        // Restoring uses the chain as far as it reaches, and says how far that is.
        let (code, plan) = dry_run(&scene, &["--latest"]);
        let reaches = |plan: &Value| plan["tail"]["to_lsn"].as_str().unwrap().parse::<wal::Lsn>().unwrap();
        assert!(code == 0 && reaches(&plan) < reaches(&whole_plan), "{plan}");
    });

    // A flipped bit: only reading finds it.
    let bytes = fs::read(victim).unwrap();
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(victim, damaged).unwrap();
    let (code, report) = verify(&scene, &[]);
    assert_eq!((code, report["problems"][0]["object"].as_str()), (9, Some(key(&scene, victim).as_str())), "{report}");
    assert_eq!(verify(&scene, &["--quick"]).0, 0);
    fs::write(victim, bytes).unwrap();

    // A history file.
    let mut promoted = scene.recover("promoted", 15, |request| {
        request.recovery.target = RecoveryTarget::Lsn(fork);
        request.recovery.action = Some(TargetAction::Promote);
    });
    wait_promoted(&promoted);
    let running = scene.vault.start(&promoted.conninfo());
    running.wait("the new timeline", |status| status.streaming() && status.timeline == TimelineId::new(2));
    write(&promoted);
    running.wait_shipped(flush_lsn(&promoted));
    running.stop();
    assert!(promoted.stop("fast", LIMIT));
    give_to_server_user(&scene.installed.repository);
    assert_eq!(verify(&scene, &[]).0, 0);
    assert_eq!(dry_run(&scene, &["--latest"]).0, 0);
    let history = files_below(&scene.installed.repository);
    let history = history.iter().find(|path| path.ends_with("00000002.history")).unwrap();
    without(history, || {
        let (code, report) = verify(&scene, &["--quick"]);
        assert_eq!((code, &report["problems"][0]["object"]), (9, &Value::from(key(&scene, history))), "{report}");
        let (code, refusal) = dry_run(&scene, &["--latest"]);
        assert_eq!((code, &refusal["code"]), (9, &Value::from("E0403")), "{refusal}");
        assert!(refusal.to_string().contains(&key(&scene, history)), "{refusal}");
        assert_eq!(dry_run(&scene, &["--latest", "--timeline", "1"]).0, 0, "the other timeline can be recovered");
        let (_, window) = scene.installed.json(&["window", "main"]);
        let branches: Vec<_> = window["ranges"].as_array().unwrap().iter().map(|range| &range["branch"]).collect();
        assert_eq!(branches, [1], "{window}");
    });
}
