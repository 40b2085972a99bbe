//! Is a backup of which only the changes were read the same as one that was read whole, and is everything read on any doubt?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pgvault::backup::ReadKind;
use pgvault::repository::layout::ObjectName;
use pgvault::repository::manifest::{Manifest, PackRef};
use pgvault::storage::Storage;
use recovery::{Backup, BackupKind};

use crate::support::LIMIT;
use crate::support::exact::{files_below, is_exact, oracle};
use crate::support::generations::{STEPS, begin, contents, step};
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir, without_checksums};
use crate::support::restored::{Scene, lsn, wait_promoted};
use crate::support::vault::Running;

fn summarizing(dir: &Path, major: u32, initdb: &[&str]) -> PgNode {
    let settings = [("autovacuum", "off"), ("summarize_wal", "on"), ("bgwriter_lru_maxpages", "0")];
    let mut node = PgNode::init(dir, "primary", major, initdb, &settings);
    node.start();
    node
}

fn manifest(scene: &Scene, backup: &Backup) -> Manifest {
    scene.vault.runtime.block_on(scene.vault.lineage().manifest(&backup.id)).unwrap()
}

fn wait_shipped(pipeline: &Running<'_>, node: &PgNode) {
    pipeline.wait_shipped(lsn(node, "SELECT pg_current_wal_flush_lsn()"));
}

/// Deletes a backup and every pack that no other names, as expiry would.
fn expire(scene: &Scene, gone: &Backup, others: &[Backup]) {
    let needed: Vec<_> = others.iter().flat_map(|backup| manifest(scene, backup).packs).collect();
    let exclusive = manifest(scene, gone).packs.into_iter().filter(|pack| !needed.contains(pack));
    let lineage = scene.vault.lineage();
    let mut keys: Vec<_> =
        exclusive.map(|pack| ObjectName::Pack(lineage.cluster().clone(), pack.sha256).key()).collect();
    let prefix = lineage.keys().backup_prefix(&gone.id);
    scene.vault.runtime.block_on(async {
        keys.extend(scene.vault.store.list(&prefix, None, None).await.unwrap().into_iter().map(|found| found.key));
        scene.vault.store.delete(&keys).await.unwrap();
    });
}

fn every_generation_is_that_of_a_whole_backup(major: u32) {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = summarizing(dir.path(), major, &["--data-checksums"]);
    begin(&node);
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    let (first, reason) = scene.backup_as(&node, ReadKind::Auto).unwrap();
    assert_eq!((first.kind, reason.as_deref()), (BackupKind::Full, Some("there is no backup yet")));
    let mut backups = vec![first];
    for generation in 1..=STEPS {
        step(&node, generation);
        wait_shipped(&pipeline, &node);
        let (backup, reason) = scene.backup_as(&node, ReadKind::Auto).unwrap();
        assert_eq!((backup.kind, reason), (BackupKind::Incremental, None), "generation {generation}");
        assert!(backup.size_bytes > backups[0].size_bytes / 2, "sizes are those of the whole");
        let patched = manifest(&scene, &backup).patched_chunks;
        println!("generation {generation}: {patched} patches, {} new bytes", backup.new_bytes);
        assert!(patched > 0);
        let peer = dir.path().join(format!("peer {generation}"));
        is_exact(&scene, &node, &backup, &oracle(&node, &peer), &format!("generation {generation}"));
        backups.push(backup);
    }
    let last = backups.pop().unwrap();
    assert!(last.new_bytes * 10 < backups[0].new_bytes, "{} after {}", last.new_bytes, backups[0].new_bytes);

    // A full one on demand is not built on the others, and is the same.
    let (full, reason) = scene.backup_as(&node, ReadKind::Full).unwrap();
    assert_eq!((full.kind, reason), (BackupKind::Full, None));
    let peer = files_below(&dir.path().join(format!("peer {STEPS}")));
    is_exact(&scene, &node, &full, &peer, "full");
    node.sql("INSERT INTO came VALUES (1, 'after the last backup')");
    let expected = contents(&node);
    wait_shipped(&pipeline, &node);
    pipeline.stop();

    let stats = |what: &str| {
        give_to_server_user(&scene.installed.repository);
        let (code, document) = scene.installed.json(&["repo", "stats"]);
        assert_eq!(code, 0, "{what}: {document}");
        let cluster = document["clusters"][0].clone();
        let sum = ["pack_bytes", "backup_meta_bytes", "wal_bytes", "tail_bytes", "conflict_bytes"];
        let sum: u64 = sum.iter().map(|name| cluster[name].as_u64().unwrap()).sum();
        assert_eq!(
            (document["total_bytes"].as_u64(), cluster["total_bytes"].as_u64()),
            (Some(sum), Some(sum)),
            "{what}"
        );
        cluster
    };
    let all = stats("all");
    let of_all = all["backups"].as_array().unwrap();
    assert_eq!(of_all.len(), STEPS + 2);
    let of_last = of_all.iter().find(|backup| backup["id"] == last.id.as_str()).unwrap();
    assert_eq!((&of_last["kind"], of_last["new_bytes"].as_u64()), (&"incremental".into(), Some(last.new_bytes)));
    assert!(of_last["shared_bytes"].as_u64() > of_last["own_bytes"].as_u64(), "{of_last}");

    // All that came before is gone, as far as the last one does not refer to it: it is a whole backup.
    backups.push(full);
    for index in (0..backups.len()).rev() {
        let gone = backups.remove(index);
        expire(&scene, &gone, &[&backups[..], std::slice::from_ref(&last)].concat());
    }
    is_exact(&scene, &node, &last, &peer, "alone");
    let alone = stats("alone");
    let of_last = &alone["backups"][0];
    assert_eq!((alone["backups"].as_array().unwrap().len(), of_last["shared_bytes"].as_u64()), (1, Some(0)));
    let taken = alone["pack_bytes"].as_u64().unwrap() + alone["backup_meta_bytes"].as_u64().unwrap();
    assert_eq!(of_last["own_bytes"].as_u64(), Some(taken), "all that is left is its own");
    assert!(node.stop("fast", LIMIT));
    let restored = scene.recover("recovered", major, |_| ());
    wait_promoted(&restored);
    assert_eq!(contents(&restored), expected);
    let checked = restored.tool("pg_amcheck").args(["-d", "postgres", "--install-missing"]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));

    // And without pgvault.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/read_repository.py");
    let verified =
        Command::new("python3").arg("-B").arg(script).arg(&scene.installed.repository).arg("verify").output();
    let verified = verified.unwrap();
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success() && said.trim_end().ends_with(" 0 damaged"), "{said}");
}

#[test]
fn every_generation_read_from_17_is_that_of_a_whole_backup() {
    every_generation_is_that_of_a_whole_backup(17);
}

#[test]
fn every_generation_read_from_18_is_that_of_a_whole_backup() {
    every_generation_is_that_of_a_whole_backup(18);
}

#[test]
fn without_page_checksums_and_with_tablespaces_every_row_is_there() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let major = major(18).max(17);
    let mut node = summarizing(dir.path(), major, without_checksums(major));
    let space = dir.path().join("a space");
    fs::create_dir(&space).unwrap();
    give_to_server_user(&space);
    node.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    begin(&node);
    node.sql("ALTER TABLE accounts SET TABLESPACE fast");
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    scene.backup(&node);
    for generation in 1..=STEPS {
        step(&node, generation);
    }
    wait_shipped(&pipeline, &node);
    let (backup, reason) = scene.backup_as(&node, ReadKind::Incremental).unwrap();
    assert_eq!((backup.kind, reason), (BackupKind::Incremental, None));
    assert_eq!(backup.tablespaces.len(), 1);
    let expected = contents(&node);
    wait_shipped(&pipeline, &node);
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
    let elsewhere = dir.path().join("elsewhere");
    let restored = scene.recover("recovered", major, |request| {
        request.tablespaces.push((space.clone(), elsewhere));
        request.recovery.backup = Some(backup.id);
    });
    wait_promoted(&restored);
    assert_eq!(contents(&restored), expected);
}

#[test]
fn on_any_doubt_everything_is_read_and_the_reason_told() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = summarizing(dir.path(), major(17).max(17), &["--data-checksums"]);
    begin(&node);
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    let first = scene.backup(&node);
    let full_because = |what: &str| {
        wait_shipped(&pipeline, &node);
        let (backup, reason) = scene.backup_as(&node, ReadKind::Incremental).unwrap();
        assert_eq!(backup.kind, BackupKind::Full, "{what}");
        assert!(reason.as_deref().is_some_and(|reason| reason.contains(what)), "{what}: {reason:?}");
        backup
    };

    // Summaries are off.
    let set_summarize = |value: &str| {
        node.sql(&format!("ALTER SYSTEM SET summarize_wal = {value}"));
        node.sql("SELECT pg_reload_conf()");
        let deadline = Instant::now() + LIMIT;
        while node.sql("SHOW summarize_wal") != value {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    set_summarize("off");
    full_because("summarize_wal is off");
    set_summarize("on");

    // A pack of the backup to build on is gone.
    let key = |pack: &PackRef| {
        let name = ObjectName::Pack(scene.vault.lineage().cluster().clone(), pack.sha256).key();
        scene.installed.repository.join(name.as_str())
    };
    let packs: Vec<PathBuf> = manifest(&scene, &first).packs.iter().map(key).collect();
    let aside = dir.path().join("aside");
    fs::rename(&packs[0], &aside).unwrap();
    full_because("is not in the repository");
    fs::rename(&aside, &packs[0]).unwrap();

    // Summaries that are needed are gone: the server refuses.
    node.sql("UPDATE accounts SET balance = 1 WHERE aid % 1000 = 0");
    node.sql("CHECKPOINT");
    node.sql("SELECT pg_switch_wal()");
    let summaries = node.data.join("pg_wal/summaries");
    let deadline = Instant::now() + LIMIT;
    let now = lsn(&node, "SELECT pg_current_wal_flush_lsn()");
    let summarized = "SELECT coalesce(max(end_lsn), '0/0') FROM pg_available_wal_summaries()";
    node.sql("CHECKPOINT");
    while lsn(&node, summarized) < now {
        assert!(Instant::now() < deadline, "{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    for summary in fs::read_dir(&summaries).unwrap() {
        // The summarizer may be about to give one its name.
        drop(fs::remove_file(summary.unwrap().path()));
    }
    full_because("summaries");

    // What is read back is damaged: found in the middle of the copy.
    node.sql("UPDATE accounts SET balance = 2 WHERE aid % 1000 = 0");
    for pack in files_below(&scene.installed.repository.join("main/packs")).values() {
        let mut bytes = fs::read(pack).unwrap();
        bytes.iter_mut().step_by(3000).for_each(|byte| *byte ^= 1);
        fs::write(pack, bytes).unwrap();
    }
    full_because("damaged");
    pipeline.stop();
    assert!(node.stop("fast", LIMIT));
}
