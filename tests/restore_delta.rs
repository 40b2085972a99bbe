//! Is a restore over an old directory the same as one into an empty directory, and is nothing of the old one left?

mod interrupted;
mod places;
mod refused;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pgvault::restore::{RestoreOutcome, RestoreRequest};
use recovery::{RecoveryTarget, TargetTimeline};

use crate::support::LIMIT;
use crate::support::generations::{begin, contents, step};
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};
use crate::support::restored::{Scene, lsn, wait_promoted};
use crate::support::tree::{assert_same, tree};

/// Starts a server on what was restored: it ends its recovery, and has these rows.
fn opens_with(node: &mut PgNode, expected: &str) {
    node.configure(&[]);
    give_to_server_user(&node.data.join("postgresql.conf"));
    node.start();
    wait_promoted(node);
    assert_eq!(contents(node), expected);
}

/// A node with one backup and changes behind it, stopped: what its rows were at the end, and its scene.
fn changed_since(dir: &Path, major: u32, prepare: impl FnOnce(&PgNode)) -> (Scene, PgNode, String) {
    let scene = Scene::new(dir);
    let mut node = PgNode::start_new(dir, "primary", major);
    begin(&node);
    prepare(&node);
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    scene.backup(&node);
    for generation in 1..=2 {
        step(&node, generation);
    }
    let expected = contents(&node);
    pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
    give_to_server_user(&scene.installed.repository);
    (scene, node, expected)
}

fn delta(scene: &Scene, directory: &Path, change: impl FnOnce(&mut RestoreRequest)) -> RestoreOutcome {
    let mut request = scene.request(directory, RecoveryTarget::Latest);
    request.delta = true;
    change(&mut request);
    let plan = scene.plan(&request).unwrap_or_else(|error| panic!("{error}"));
    scene.apply(&plan).unwrap_or_else(|error| panic!("{error}"))
}

/// Makes of a data directory what years and hands make of it.
fn worn(data: &Path) {
    let relations: Vec<PathBuf> = fs::read_dir(data.join("base/5"))
        .or_else(|_| fs::read_dir(data.join("base/1")))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().as_bytes().iter().all(u8::is_ascii_digit))
        .collect();
    assert!(relations.len() > 20);
    // Longer, shorter, gone, damaged in one byte, another mode, another kind.
    let append = |path: &Path, bytes: &[u8]| {
        fs::write(path, [&fs::read(path).unwrap()[..], bytes].concat()).unwrap();
    };
    append(&relations[0], &[7; 20_000]);
    let half = fs::metadata(&relations[1]).unwrap().len() / 2;
    fs::File::options().write(true).open(&relations[1]).unwrap().set_len(half).unwrap();
    fs::remove_file(&relations[2]).unwrap();
    let damaged = fs::File::options().write(true).open(&relations[3]).unwrap();
    damaged.write_all_at(&[0xA5], 100).unwrap();
    fs::set_permissions(&relations[4], fs::Permissions::from_mode(0o444)).unwrap();
    fs::remove_file(&relations[5]).unwrap();
    fs::create_dir_all(relations[5].join("a/b")).unwrap();
    fs::remove_file(&relations[6]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &relations[6]).unwrap();
    fs::remove_dir_all(data.join("pg_multixact")).unwrap();
    fs::write(data.join("pg_multixact"), "a file").unwrap();
    // What no backup has.
    for name in ["base/99/1", "base/5/t7_16400", "pg_replslot/old/state", "pg_stat_tmp/x", "odd \\ name\n'*", "log/a"] {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "old").unwrap();
    }
    fs::write(data.join(std::ffi::OsStr::from_bytes(b"not \xFF UTF-8")), "old").unwrap();
    for name in ["recovery.signal", "standby.signal", "backup_label", "tablespace_map", "promote", "recovery.done"] {
        fs::write(data.join(name), "old\n").unwrap();
    }
    fs::write(data.join("postgresql.auto.conf"), "recovery_target_name = 'old'\nport = 1\n").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        data.join("a pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    fs::set_permissions(data, fs::Permissions::from_mode(0o755)).unwrap();
    give_to_server_user(data);
}

fn a_delta_is_a_plain_restore(major: u32) {
    let dir = test_dir();
    let (scene, node, expected) = changed_since(dir.path(), major, |_| ());
    worn(&node.data);
    // A copy by hard links, as people make one to be careful.
    let copy = dir.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-al").arg(&node.data).arg(&copy).status().unwrap();
    assert!(copied.success());
    let linked = fs::read_dir(copy.join("global")).unwrap().count();
    assert!(linked > 10);
    let before = tree(&copy.join("global"), &[]);

    let plain = dir.path().join("plain");
    let whole = scene.apply(&scene.plan(&scene.request(&plain, RecoveryTarget::Latest)).unwrap()).unwrap();
    assert_eq!((whole.kept_bytes, whole.removed.files), (0, 0));
    let outcome = delta(&scene, &node.data, |_| ());
    assert_eq!(outcome.restored_bytes, whole.restored_bytes);
    assert!(outcome.removed.files > 10, "{outcome:?}");
    assert_eq!(outcome.kept_bytes, 0, "a file with another name was written in place");
    assert_same(&tree(&node.data, &[]), &tree(&plain, &[]), "over linked files");
    assert_eq!(tree(&copy.join("global"), &[]), before, "the copy keeps what it had");
    fs::remove_dir_all(&copy).unwrap();

    // The same again, now in place: everything is right, but for what the restore itself has changed.
    let again = delta(&scene, &node.data, |_| ());
    assert!(again.kept_bytes > whole.restored_bytes / 2, "{again:?}");
    assert_same(&tree(&node.data, &[]), &tree(&plain, &[]), "over itself");

    let mut node = node;
    opens_with(&mut node, &expected);
    assert!(node.stop("fast", LIMIT));

    // Over what a server has written since, another branch, with WAL of its own.
    worn(&node.data);
    let over_branch = delta(&scene, &node.data, |_| ());
    assert!(over_branch.kept_bytes > 0 && over_branch.kept_bytes < whole.restored_bytes, "{over_branch:?}");
    assert_same(&tree(&node.data, &[]), &tree(&plain, &[]), "over a branch");
}

#[test]
fn over_an_old_directory_it_is_a_plain_restore() {
    a_delta_is_a_plain_restore(major(15));
}

#[test]
fn over_an_old_directory_of_18_it_is_a_plain_restore() {
    a_delta_is_a_plain_restore(18);
}

#[test]
fn a_former_primary_that_went_its_own_way_comes_back_without_what_it_wrote() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = PgNode::start_new(dir.path(), "primary", major(17));
    node.sql("CREATE TABLE t (n int)");
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    node.sql("INSERT INTO t SELECT generate_series(1, 10000)");
    scene.backup(&node);
    node.sql("INSERT INTO t VALUES (20000)");
    pipeline.wait_shipped(lsn(&node, "SELECT pg_current_wal_flush_lsn()"));
    // A clone takes over and writes; the old primary, whom nobody hears, writes too.
    let mut clone = scene.recover("clone", major(17), |_| ());
    wait_promoted(&clone);
    pipeline.stop();
    clone.sql("INSERT INTO t VALUES (30000)");
    let pipeline = scene.vault.start(&clone.conninfo());
    pipeline.wait_streaming();
    node.sql("INSERT INTO t VALUES (-1); CREATE TABLE of_nobody AS SELECT 1");
    for _ in 0..3 {
        node.sql("INSERT INTO t VALUES (-2)");
        node.sql("SELECT pg_switch_wal()");
    }
    clone.sql("INSERT INTO t VALUES (40000)");
    pipeline.wait_shipped(lsn(&clone, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    assert!(node.stop("immediate", LIMIT));
    give_to_server_user(&scene.installed.repository);
    let outcome = delta(&scene, &node.data, |request| request.recovery.timeline = Some(TargetTimeline::Latest));
    assert!(outcome.kept_bytes > 0);
    let wal: Vec<_> = fs::read_dir(node.data.join("pg_wal")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(wal.iter().all(|name| name == "archive_status" || name == "summaries"), "{wal:?}");
    node.configure(&[]);
    give_to_server_user(&node.data.join("postgresql.conf"));
    node.start();
    wait_promoted(&node);
    let rows = "SELECT count(*), min(n), max(n), to_regclass('of_nobody') IS NULL FROM t";
    assert_eq!(node.sql(rows), "10003|1|40000|t");
    assert!(clone.stop("fast", LIMIT));
}

#[test]
fn what_is_planned_is_counted_and_nothing_is_changed_by_a_plan() {
    let dir = test_dir();
    let (scene, node, _) = changed_since(dir.path(), major(16), |_| ());
    worn(&node.data);
    let before = tree(&node.data, &[]);
    let mut request = scene.request(&node.data, RecoveryTarget::Latest);
    request.delta = true;
    let plan = scene.plan(&request).unwrap();
    assert_eq!(tree(&node.data, &[]), before);
    let existing = plan.existing.clone().unwrap();
    let of_backup = existing.compared.files + existing.missing.files;
    assert_eq!(
        of_backup,
        scene.vault.runtime.block_on(scene.vault.lineage().manifest(&plan.recovery.backup.id)).unwrap().files
    );
    assert!(
        existing.missing.files > 2 && existing.removed.files > 10 && existing.removed_directories >= 4,
        "{existing:?}"
    );
    let document = serde_json::to_value(plan.document()).unwrap();
    assert_eq!(document["existing"]["removed"]["files"], existing.removed.files);
    let outcome = scene.apply(&plan).unwrap();
    assert_eq!(outcome.removed, existing.removed);
    // As its users see it.
    let to = node.data.to_str().unwrap();
    let shown = scene.installed.ok(["recover", "main", "--latest", "--delta", "--to", to, "--dry-run"]);
    for line in ["Compares    ", "Adds        ", "Removes     ", "nothing was changed"] {
        assert!(shown.contains(line), "{shown}");
    }
}
