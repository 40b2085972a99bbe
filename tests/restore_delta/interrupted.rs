//! Is a restore that ends at any moment never started, and finished by the same command?

use std::fs;
use std::path::Path;
use std::process::Output;

use pgvault::error::ErrorCode;
use pgvault::fault::RESTORE_FAULT_POINTS;
use recovery::RecoveryTarget;

use super::{changed_since, opens_with};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, major, test_dir};
use crate::support::restored::Scene;
use crate::support::small_disk::SmallDisk;
use crate::support::tree::{Tree, assert_same, tree};

/// `recover` to a directory, killed at `point`.
fn killed_at(scene: &Scene, point: &str, to: &Path, more: &[&str]) -> Output {
    let args = ["recover", "main", "--latest", "--to", to.to_str().unwrap()];
    let mut command = scene.installed.command(args.iter().chain(more));
    command.env("PGVAULT_FAULT_POINT", point).output().unwrap()
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn plain_tree(scene: &Scene, dir: &Path) -> Tree {
    let plain = dir.join("plain");
    scene.installed.ok(["recover", "main", "--latest", "--to", plain.to_str().unwrap()]);
    tree(&plain, &[])
}

/// From this point on the restored cluster may be started.
fn is_published(point: &str) -> bool {
    ["restore.published", "restore.unmark", "restore.done"].contains(&point)
}

#[test]
fn a_delta_that_is_killed_at_any_point_is_never_started_and_finished_by_the_same_command() {
    let dir = test_dir();
    let (scene, node, expected) = changed_since(dir.path(), major(17), |_| ());
    let plain = plain_tree(&scene, dir.path());
    let mut target = PgNode::at(dir.path(), "target", major(17));
    for point in RESTORE_FAULT_POINTS {
        copy(&node.data, &target.data);
        let old = tree(&target.data, &[]);
        let output = killed_at(&scene, point, &target.data, &["--delta"]);
        assert!(output.status.code().is_none(), "{point} was not passed: {output:?}");
        let control = target.data.join("global/pg_control").exists();
        match *point {
            // Nothing of the old directory was touched.
            "restore.mark" | "restore.marked" => {
                let mut now = tree(&target.data, &[]);
                now.remove(&b".pgvault-restore"[..]);
                assert_same(&now, &old, point);
            }
            point if is_published(point) => assert!(control, "{point}"),
            _ => {
                assert!(!control, "{point}");
                assert!(!target.try_start(), "{point}: half of a restore was started");
                // Without --delta it is not gone on with: files of the old directory may lie in it.
                let error = scene.plan(&scene.request(&target.data, RecoveryTarget::Latest)).unwrap_err();
                assert_eq!(error.code(), ErrorCode::TargetDirectory, "{point}");
                assert!(error.help_lines().iter().any(|line| line.contains("--delta")), "{point}: {error:?}");
            }
        }
        scene.installed.ok(["recover", "main", "--latest", "--delta", "--to", target.data.to_str().unwrap()]);
        assert_same(&tree(&target.data, &[]), &plain, point);
    }
    opens_with(&mut target, &expected);
    assert!(target.stop("fast", LIMIT));
}

#[test]
fn a_plain_restore_that_is_killed_at_any_point_is_finished_by_the_same_command() {
    let dir = test_dir();
    let (scene, _, expected) = changed_since(dir.path(), major(16), |_| ());
    let plain = plain_tree(&scene, dir.path());
    let mut target = PgNode::at(dir.path(), "target", major(16));
    let to = target.data.to_str().unwrap().to_owned();
    let again = ["recover", "main", "--latest", "--to", &to];
    for point in RESTORE_FAULT_POINTS {
        let output = killed_at(&scene, point, &target.data, &[]);
        assert!(output.status.code().is_none(), "{point} was not passed: {output:?}");
        assert_eq!(target.data.join("global/pg_control").exists(), is_published(point), "{point}");
        if *point == "restore.done" {
            // It is finished, and a cluster like any other.
            assert_eq!(scene.installed.run(again).status.code(), Some(7));
        } else {
            scene.installed.ok(again);
        }
        assert_same(&tree(&target.data, &[]), &plain, point);
        if *point != "restore.done" {
            fs::remove_dir_all(&target.data).unwrap();
        }
    }
    // Once a server was started on it, a marker that was left says nothing any more.
    fs::remove_dir_all(&target.data).unwrap();
    assert!(killed_at(&scene, "restore.published", &target.data, &[]).status.code().is_none());
    opens_with(&mut target, &expected);
    assert!(target.stop("fast", LIMIT));
    let output = scene.installed.run(again);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn a_full_disk_is_told_and_the_same_command_goes_on_when_there_is_room() {
    let dir = test_dir();
    let (scene, node, _) = changed_since(dir.path(), major(15), |_| ());
    let plain = plain_tree(&scene, dir.path());
    for over_old in [false, true] {
        let mount = dir.path().join("small");
        fs::create_dir_all(&mount).unwrap();
        let Some(disk) = SmallDisk::over(&mount, 1400) else { return };
        let target = mount.join("data");
        if over_old {
            copy(&node.data, &target);
            // So that there is much to write, and little to remove that would make room for it.
            for database in ["1", "4", "5"] {
                fs::remove_dir_all(target.join("base").join(database)).ok();
            }
            for segment in fs::read_dir(target.join("pg_wal")).unwrap() {
                fs::remove_file(segment.unwrap().path()).ok();
            }
        }
        let mut request = scene.request(&target, RecoveryTarget::Latest);
        request.delta = over_old;
        let plan = scene.plan(&request).unwrap();
        disk.fill();
        disk.leave(4 << 20);
        let error = scene.apply(&plan).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NoSpace, "{error}");
        assert!(target.join(".pgvault-restore").exists() && !target.join("global/pg_control").exists());
        assert!(error.help_lines().iter().any(|line| line.contains("run the same command again")), "{error:?}");
        let refused = scene.plan(&request).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NoSpace, "refused before anything is touched: {refused}");
        disk.relieve();
        scene.apply(&scene.plan(&request).unwrap()).unwrap();
        assert_same(&tree(&target, &[]), &plain, "with room again");
    }
}

#[test]
fn after_a_sync_that_failed_nothing_is_published_and_nothing_is_kept() {
    let dir = test_dir();
    let (scene, node, _) = changed_since(dir.path(), major(17), |_| ());
    let plain = plain_tree(&scene, dir.path());
    let to = node.data.to_str().unwrap();
    let args = ["recover", "main", "--latest", "--delta", "--to", to, "--json"];
    let command = scene.installed.command(args);
    let mut traced = std::process::Command::new("strace");
    let log = dir.path().join("strace.log");
    traced.args(["-f", "-o"]).arg(&log).args([
        "-e",
        "trace=syncfs,renameat,renameat2",
        "-e",
        "inject=syncfs:error=EIO:when=1",
    ]);
    traced.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            traced.env(name, value)
        } else {
            traced.env_remove(name)
        };
    }
    let output = traced.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let calls = fs::read_to_string(&log).unwrap();
    if !calls.contains("syncfs(") {
        println!("not run: the kernel or file system of this directory is not one whose syncfs is believed");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot make its files durable"), "{said}");
    assert!(!node.data.join("global/pg_control").exists());
    assert!(!calls.contains("\"pg_control\""), "published: {calls}");
    // What is in memory may never reach the disk: all of it is written once more, and only then counts.
    let (code, result) = scene.installed.json(&args[..args.len() - 1]);
    assert_eq!((code, &result["kept_bytes"]), (0, &serde_json::json!(0)), "{result}");
    assert_same(&tree(&node.data, &[]), &plain, "after a failed sync");
}
