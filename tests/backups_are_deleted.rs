//! Does `backup delete` take away one backup and nothing that anything else needs?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgvault::backup::ReadKind;
use pgvault::fault::DELETE_FAULT_POINTS;
use pgvault::repository::manifest::Manifest;
use recovery::{Backup, BackupKind};
use serde_json::Value;

use crate::support::LIMIT;
use crate::support::exact::{is_exact, oracle};
use crate::support::generations::{begin, step};
use crate::support::pg::{PgNode, give_to_server_user, test_dir};
use crate::support::restored::{Scene, lsn};
use crate::support::tree::files_below;
use crate::support::two_backups::{TwoBackups, flip};

fn ids(scene: &Scene) -> Vec<String> {
    let (code, list) = scene.installed.json(&["backup", "list", "main"]);
    assert_eq!(code, 0, "{list}");
    list.as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

fn delete(scene: &Scene, id: &str, more: &[&str]) -> (i32, Value) {
    let args: Vec<&str> = ["backup", "delete", id].iter().chain(more).copied().collect();
    scene.installed.json(&args)
}

/// What is refused, and that nothing was changed.
#[track_caller]
fn is_refused(scene: &Scene, id: &str, more: &[&str], code: i32, why: &str) {
    let before = scene.vault.keys();
    let (found, error) = delete(scene, id, more);
    assert!(found == code && error.to_string().contains(why), "{found} {error}");
    assert_eq!(scene.vault.keys(), before, "{why}");
}

fn packs(scene: &Scene) -> Vec<String> {
    scene.vault.keys().into_iter().filter(|key| key.starts_with("main/packs/")).collect()
}

fn manifest(scene: &Scene, backup: &Backup) -> Manifest {
    scene.vault.runtime.block_on(scene.vault.lineage().manifest(&backup.id)).unwrap()
}

/// Two backups, one in a hundred rows apart, each restored exactly; the first deleted, the second restored again.
fn the_second_stays_exact(major: u32, settings: &[(&str, &str)], kind: BackupKind) {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let settings = [&[("autovacuum", "off"), ("bgwriter_lru_maxpages", "0")], settings].concat();
    let mut node = PgNode::init(dir.path(), "primary", major, &["--data-checksums"], &settings);
    node.start();
    begin(&node);
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    let first = scene.backup(&node);
    let peer_of_first = oracle(&node, &dir.path().join("peer 1"));
    step(&node, 1);
    pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
    let second = scene.backup_as(&node, ReadKind::Auto).unwrap().0;
    let peer = oracle(&node, &dir.path().join("peer 2"));
    pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
    give_to_server_user(&scene.installed.repository);
    let of_second = manifest(&scene, &second);
    assert_eq!((second.kind, of_second.patched_chunks > 0), (kind, true));
    is_exact(&scene, &node, &first, &peer_of_first, "the first");
    is_exact(&scene, &node, &second, &peer, "the second");

    // Shown, refused, done.
    let id = first.id.as_str();
    let (code, plan) = delete(&scene, id, &["--dry-run"]);
    assert_eq!((code, &plan["type"]), (0, &Value::from("plan")), "{plan}");
    let lost = &plan["lost"][0];
    assert_eq!(
        [&lost["from_lsn"], &lost["to_lsn"]],
        [&Value::from(first.stop_lsn.to_string()), &Value::from(second.stop_lsn.to_string())],
        "{plan}"
    );
    is_refused(&scene, id, &[], 2, "--yes");
    scene.installed.ok(["backup", "keep", id]);
    is_refused(&scene, id, &["--yes"], 7, "kept by hand");
    scene.installed.ok(["backup", "release", id]);
    let stored = packs(&scene);
    let (code, result) = delete(&scene, id, &["--yes"]);
    assert_eq!((code, &result["type"], &result["id"]), (0, &Value::from("result"), &Value::from(id)), "{result}");
    assert_eq!(ids(&scene), [second.id.to_string()]);
    let left: Vec<String> = scene.vault.keys().into_iter().filter(|key| key.contains(id)).collect();
    assert_eq!((left, packs(&scene)), (Vec::new(), stored), "its folder is gone, every pack is there");
    let (code, report) = scene.installed.json(&["repo", "check"]);
    assert_eq!(code, 0, "{report}");
    let counted = [&report["orphan_packs"], &report["orphan_bytes"]];
    assert_eq!(counted, [&result["free_packs"]["count"], &result["free_packs"]["bytes"]], "{report}");
    is_exact(&scene, &node, &second, &peer, "the second alone");

    // As it will be when the packs are gone as well.
    let needed: Vec<String> =
        of_second.packs.iter().map(|pack| format!("main/packs/{}", hex::encode(pack.sha256))).collect();
    for pack in packs(&scene).iter().filter(|pack| !needed.contains(pack)) {
        fs::remove_file(scene.installed.repository.join(pack)).unwrap();
    }
    is_exact(&scene, &node, &second, &peer, "the second and its packs alone");
    is_refused(&scene, second.id.as_str(), &["--yes"], 7, "no backup that can be restored cleanly");
}

#[test]
fn page_patches_read_from_15_are_exact_without_the_backup_they_were_made_over() {
    the_second_stays_exact(15, &[], BackupKind::Full);
}

#[test]
fn changes_read_from_17_are_exact_without_the_backup_they_were_read_since() {
    the_second_stays_exact(17, &[("summarize_wal", "on")], BackupKind::Incremental);
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_deletion_that_is_killed_at_any_point_is_finished_by_the_same_command() {
    let two = TwoBackups::new();
    let (scene, id) = (&two.scene, two.first.id.to_string());
    let aside = scene.dir.join("aside");
    copy(&scene.installed.repository, &aside);
    for (number, point) in DELETE_FAULT_POINTS.iter().enumerate() {
        copy(&aside, &scene.installed.repository);
        let mut command = scene.installed.command(["backup", "delete", &id, "--yes"]);
        let output = command.env("PGVAULT_FAULT_POINT", point).output().unwrap();
        assert!(output.status.code().is_none(), "{point} was not passed: {output:?}");
        // It is a backup until its manifest is gone, and whole for as long.
        let is_listed = number < 2;
        assert_eq!(ids(scene).contains(&id), is_listed, "{point}");
        let (code, report) = scene.installed.json(&["backup", "verify", &id]);
        assert_eq!(code == 0, is_listed, "{point}: {report}");
        let (code, plan) = two.recover(&["--latest"]);
        assert_eq!((code, &plan["backup"]), (0, &Value::from(two.second.id.as_str())), "{point}: {plan}");
        let (code, error) = delete(scene, &id, &["--yes"]);
        assert_eq!(code, if *point == "delete.done" { 6 } else { 0 }, "{point}: {error}");
        assert_eq!(ids(scene), [two.second.id.to_string()], "{point}");
        let files = files_below(&scene.installed.repository);
        let left: Vec<&PathBuf> = files.iter().filter(|path| path.to_str().unwrap().contains(&id)).collect();
        assert_eq!(left, Vec::<&PathBuf>::new(), "{point}");
        let (code, report) = scene.installed.json(&["repo", "check"]);
        assert_eq!(code, 0, "{point}: {report}");
    }
}

#[test]
fn what_may_be_running_stays_and_what_cannot_be_read_may_go() {
    let two = TwoBackups::new();
    let (scene, first, second) = (&two.scene, two.first.id.to_string(), two.second.id.to_string());
    let folder = |id: &str| -> PathBuf { two.path(&format!("main/{}/backups/{id}", scene.vault.lineage().id())) };
    let begin = |id: &str| {
        fs::create_dir(folder(id)).unwrap();
        fs::copy(folder(&first).join("begun"), folder(id).join("begun")).unwrap();
        give_to_server_user(&folder(id));
    };
    // Begun a moment after the second, and long ago.
    let (running, old) = (format!("{}-ffff", &second[..15]), "20200101T000000-0000");
    begin(&running);
    begin(old);
    is_refused(scene, &running, &["--yes"], 7, "it may be running");
    assert_eq!(delete(scene, old, &["--yes"]).0, 0);
    assert!(!folder(old).join("begun").exists() && folder(&running).join("begun").exists());
    is_refused(scene, "20210101T000000-0000", &["--yes"], 6, "there is no backup");
    is_refused(scene, "latest", &["--yes"], 2, "latest");

    // Damage of the second: the first is all that can be restored cleanly, and the second may be given up.
    let key = two.manifest_key(&two.second);
    flip(&two.path(&key), 300);
    is_refused(scene, &first, &["--yes"], 7, "no backup that can be restored cleanly");
    let (code, plan) = delete(scene, &second, &["--dry-run"]);
    assert!(code == 0 && plan["problem"].as_str().unwrap().contains(&key), "{plan}");
    assert_eq!(plan["free_packs"], Value::Null, "who needs its packs is not known: {plan}");
    scene.installed.ok(["backup", "keep", &second]);
    is_refused(scene, &second, &["--yes"], 7, "kept by hand");
    scene.installed.ok(["backup", "release", &second]);
    assert_eq!(delete(scene, &second, &["--yes"]).0, 0);
    assert_eq!(ids(scene), [first]);
    assert_eq!(scene.installed.json(&["repo", "stats"]).0, 0);
}

#[test]
fn a_backup_that_lacks_a_pack_does_not_let_the_last_whole_one_go() {
    let two = TwoBackups::new();
    let own = two.manifest(&two.second).packs;
    let of_first = two.manifest(&two.first).packs;
    let pack = own.iter().find(|pack| !of_first.contains(pack)).unwrap();
    fs::remove_file(two.path(&format!("main/packs/{}", hex::encode(pack.sha256)))).unwrap();
    is_refused(&two.scene, two.first.id.as_str(), &["--yes"], 7, "no backup that can be restored cleanly");
    assert_eq!(delete(&two.scene, two.second.id.as_str(), &["--yes"]).0, 0);
}
