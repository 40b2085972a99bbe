//! Is what is restored the cluster as it was at the target, and is nothing written when it cannot be?

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use pgvault::error::ErrorCode;
use pgvault::restore::RestoreRequest;
use pgvault::storage::StorageErrorKind;
use pgvault::storage::faulty::{Fault, Operation, Rule};
use recovery::settings::StandbySettings;
use recovery::{RecoveryTarget, StopAt, TargetAction};
use wal::PgTime;

use crate::support::LIMIT;
use crate::support::pg::{PgNode, am_root, as_server_user, bin_dir, give_to_server_user, major, test_dir};
use crate::support::restored::{Scene, listing, lsn, wait_paused, wait_promoted};

/// Commit times of transactions, as the server tells them.
fn commit_time(node: &PgNode, n: u32) -> PgTime {
    let sql = format!("SELECT to_json(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC') FROM t WHERE n = {n}");
    format!("{}Z", node.sql(&sql).trim_matches('"')).parse().unwrap()
}

fn insert(node: &PgNode, n: u32) {
    node.sql(&format!("INSERT INTO t VALUES ({n})"));
}

fn rows(node: &PgNode) -> String {
    node.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
}

#[test]
fn every_kind_of_target_recovers_what_was_committed_until_then() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut primary = PgNode::start_new(dir.path(), "primary", major(17));
    primary.sql("CREATE TABLE t (n int)");
    let pipeline = scene.vault.start(&primary.conninfo());
    pipeline.wait_streaming();
    insert(&primary, 1);
    let backup = scene.backup(&primary);
    insert(&primary, 2);
    primary.sql("SELECT pg_create_restore_point('before 3''s \\ end')");
    insert(&primary, 3);
    let position = lsn(&primary, "SELECT pg_current_wal_insert_lsn()");
    primary.sql("SELECT pg_switch_wal()");
    insert(&primary, 4);
    let xid: u32 = primary.sql("SELECT xmin FROM t WHERE n = 4").parse().unwrap();
    insert(&primary, 5);
    let (third, fifth) = (commit_time(&primary, 3), commit_time(&primary, 5));
    let end = lsn(&primary, "SELECT pg_current_wal_flush_lsn()");
    pipeline.wait_shipped(end);
    pipeline.stop();

    let table: [(&str, RecoveryTarget, bool, &str); 7] = [
        ("time", RecoveryTarget::Time(third), true, "1,2,3"),
        ("lsn_exclusive", RecoveryTarget::Lsn(position), false, "1,2,3"),
        ("time_of_last_commit", RecoveryTarget::Time(fifth), true, "1,2,3,4,5"),
        ("lsn_at_the_end", RecoveryTarget::Lsn(end), true, "1,2,3,4,5"),
        ("xid_exclusive", RecoveryTarget::Xid(xid), false, "1,2,3"),
        ("name", RecoveryTarget::Name("before 3's \\ end".to_owned()), true, "1,2"),
        ("immediate", RecoveryTarget::Immediate, true, "1"),
    ];
    for (name, target, inclusive, expected) in table {
        let mut restored = scene.recover(name, major(17), |request| {
            request.recovery.target = target;
            request.recovery.inclusive = inclusive;
        });
        wait_paused(&restored);
        assert_eq!(rows(&restored), expected, "{name}");
        assert!(restored.stop("fast", LIMIT));
    }
    // Without a target it ends at the end of the WAL, and is a server of its own.
    let restored = scene.recover("latest", major(17), |_| ());
    wait_promoted(&restored);
    assert_eq!(rows(&restored), "1,2,3,4,5");
    restored.sql("INSERT INTO t VALUES (6)");
    assert_eq!(restored.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");

    // A target later than the last commit is refused, with the last commit.
    let late = PgTime::from_micros(fifth.as_micros() + 1);
    let error = scene.plan(&scene.request(&dir.path().join("late"), RecoveryTarget::Time(late))).unwrap_err();
    assert_eq!((error.code(), error.code().exit_code()), (ErrorCode::TargetTooLate, 8));
    assert!(error.to_string().contains(&fifth.to_string()), "{error}");
    let early = PgTime::from_micros(backup.started_at.as_micros() - 60_000_000);
    let error = scene.plan(&scene.request(&dir.path().join("early"), RecoveryTarget::Time(early))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetTooEarly);
    let error =
        scene.plan(&scene.request(&dir.path().join("x"), RecoveryTarget::Name("other".to_owned()))).unwrap_err();
    assert_eq!((error.code(), error.code().exit_code()), (ErrorCode::TargetUnknown, 8));
    assert!(primary.stop("fast", LIMIT));
}

/// A node with one backup and some WAL behind it, no longer running.
fn backed_up(dir: &Path, major: u32, prepare: impl FnOnce(&PgNode)) -> Scene {
    let scene = Scene::new(dir);
    let mut primary = PgNode::start_new(dir, "primary", major);
    primary.sql("CREATE TABLE t (n int)");
    prepare(&primary);
    let pipeline = scene.vault.start(&primary.conninfo());
    pipeline.wait_streaming();
    insert(&primary, 1);
    scene.backup(&primary);
    insert(&primary, 2);
    pipeline.wait_shipped(lsn(&primary, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    assert!(primary.stop("fast", LIMIT));
    scene
}

#[test]
fn postgresql_finds_every_restored_file_to_be_what_it_backed_up() {
    for major in [14, 18] {
        let dir = test_dir();
        let scene = backed_up(dir.path(), major, |primary| {
            primary.sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n");
            primary.sql("CREATE UNLOGGED TABLE u AS SELECT 1");
        });
        // Not `restore`: what the tests add to postgresql.conf is not what was backed up.
        give_to_server_user(&scene.installed.repository);
        let node = PgNode::at(dir.path(), "restored", major);
        let plan = scene.plan(&scene.request(&node.data, RecoveryTarget::Latest)).unwrap();
        let outcome = scene.apply(&plan).unwrap();
        assert_eq!(outcome.restored_bytes, plan.recovery.backup.size_bytes);
        let verified =
            as_server_user(bin_dir(major).join("pg_verifybackup")).arg("-n").arg(&node.data).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
        let mode = fs::metadata(&node.data).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        for path in ["pg_wal/archive_status", "pg_replslot", "pg_dynshmem", "pg_stat_tmp"] {
            assert!(node.data.join(path).is_dir(), "{path}");
        }
        let owner = fs::metadata(&scene.installed.state).unwrap().uid();
        assert!(owned_by(&node.data, owner), "everything belongs to the servers' user");
        assert!(!node.data.join(".pgvault-restore").exists());
    }
}

fn owned_by(path: &Path, uid: u32) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    let below = || fs::read_dir(path).unwrap().all(|entry| owned_by(&entry.unwrap().path(), uid));
    meta.uid() == uid && (!meta.is_dir() || below())
}

#[test]
fn tablespaces_and_wal_go_where_they_are_told() {
    let dir = test_dir();
    let old = dir.path().join("old_ts");
    let scene = backed_up(dir.path(), major(16), |primary| {
        fs::create_dir(&old).unwrap();
        give_to_server_user(&old);
        primary.sql(&format!("CREATE TABLESPACE ts LOCATION '{}'", old.display()));
        primary.sql("CREATE TABLE in_ts TABLESPACE ts AS SELECT generate_series(1, 1000) n");
    });
    let old_files = listing(&old);
    // The old place is still taken.
    let refused = scene.plan(&scene.request(&dir.path().join("refused"), RecoveryTarget::Latest)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TargetDirectory);
    assert!(refused.to_string().contains("--tablespace"), "{refused}");
    let (new, wal) = (dir.path().join("new_ts"), dir.path().join("new_wal"));
    let restored = scene.recover("restored", major(16), |request| {
        request.tablespaces = vec![(old.clone(), new.clone())];
        request.wal_dir = Some(wal.clone());
    });
    wait_promoted(&restored);
    assert_eq!(restored.sql("SELECT count(*) FROM in_ts"), "1000");
    assert_eq!(
        restored.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts'"),
        new.to_str().unwrap()
    );
    assert_eq!(fs::read_link(restored.data.join("pg_wal")).unwrap(), wal);
    restored.sql("CREATE TABLE more TABLESPACE ts AS SELECT 1");
    restored.sql("CHECKPOINT");
    assert_eq!(listing(&old), old_files, "the original's tablespace is left alone");
    assert_eq!(rows(&restored), "1,2");
}

#[test]
fn a_restore_that_was_interrupted_cannot_be_started_and_can_be_run_again() {
    let dir = test_dir();
    let scene = backed_up(dir.path(), major(15), |primary| {
        primary.sql("CREATE TABLE big AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n");
    });
    let mut node = PgNode::at(dir.path(), "restored", major(15));
    let request = scene.request(&node.data, RecoveryTarget::Latest);
    let plan = scene.plan(&request).unwrap();
    scene
        .vault
        .store
        .add(Rule::new(Fault::Fail(StorageErrorKind::Denied)).on(Operation::GetRange).key("packs/").calls(2..));
    assert_eq!(scene.apply(&plan).unwrap_err().code(), ErrorCode::RepositoryDenied);
    scene.vault.store.heal();
    assert!(node.data.join("base").exists() && !node.data.join("global/pg_control").exists());
    // Which files are there depends on which reads were faster; this one alone must not be enough.
    fs::write(node.data.join("PG_VERSION"), "15\n").unwrap();
    assert!(!node.try_start(), "PostgreSQL must not start on half a restore");
    // Another target of the same backup goes on from there.
    let again = RestoreRequest { recovery: recovery::RecoveryRequest::new(RecoveryTarget::Immediate), ..request };
    let plan = scene.plan(&again).unwrap();
    scene.apply(&plan).unwrap();
    node.configure(&[]);
    give_to_server_user(&node.data);
    give_to_server_user(&scene.installed.repository);
    node.start();
    wait_paused(&node);
    assert_eq!(node.sql("SELECT count(*) FROM big"), "300000");
    // Now it is a cluster like any other: nothing is restored over it.
    let refused = scene.plan(&again).unwrap_err();
    assert!(refused.message().contains("a server runs in it"), "{refused}");
    assert!(node.stop("fast", LIMIT));
    assert_eq!(scene.plan(&again).unwrap_err().code(), ErrorCode::TargetDirectory);
}

#[test]
fn damage_in_the_repository_is_found_before_a_server_can_start() {
    let dir = test_dir();
    let scene = backed_up(dir.path(), major(15), |_| ());
    let target = dir.path().join("restored");
    let plan = scene.plan(&scene.request(&target, RecoveryTarget::Latest)).unwrap();
    for fault in [Fault::FlipBit(20_000), Fault::Truncate(1000)] {
        scene.vault.store.add(Rule::new(fault).on(Operation::GetRange).key("packs/"));
        let error = scene.apply(&plan).unwrap_err();
        assert_eq!((error.code(), error.code().exit_code()), (ErrorCode::Damaged, 9), "{error}");
        assert!(!target.join("global/pg_control").exists());
        scene.vault.store.heal();
    }
}

#[test]
fn what_is_refused_leaves_everything_as_it_was() {
    let dir = test_dir();
    let scene = backed_up(dir.path(), major(15), |_| ());
    let target = dir.path().join("target");
    let full = dir.path().join("full");
    fs::create_dir_all(full.join("something")).unwrap();
    fs::create_dir_all(dir.path().join("empty")).unwrap();
    let refuse = |what: &str, code: ErrorCode, change: &dyn Fn(&mut RestoreRequest)| {
        let before: BTreeSet<String> = listing(dir.path());
        let mut request = scene.request(&target, RecoveryTarget::Latest);
        change(&mut request);
        let error = scene.plan(&request).unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(!error.help_lines().is_empty(), "{what}: {error}");
        let changed: Vec<String> = listing(dir.path()).symmetric_difference(&before).cloned().collect();
        assert!(changed.is_empty(), "{what}: {changed:?}");
    };
    refuse("a directory that is not empty", ErrorCode::TargetDirectory, &|r| r.directory = full.clone());
    refuse("a directory in a missing one", ErrorCode::TargetDirectory, &|r| r.directory = dir.path().join("a/b"));
    refuse("a file", ErrorCode::TargetDirectory, &|r| r.directory = scene.installed.config.clone());
    refuse("a taken WAL directory", ErrorCode::TargetDirectory, &|r| r.wal_dir = Some(full.clone()));
    refuse("a WAL directory in the data directory", ErrorCode::TargetDirectory, &|r| {
        r.directory = dir.path().join("empty");
        r.wal_dir = Some(dir.path().join("empty/wal"));
    });
    refuse("an unknown tablespace", ErrorCode::Usage, &|r| r.tablespaces = vec![("/no".into(), target.clone())]);
    refuse("a delta over something else", ErrorCode::TargetDirectory, &|r| {
        r.directory = full.clone();
        r.delta = true;
    });
    refuse("an unknown transaction", ErrorCode::TargetUnknown, &|r| r.recovery.target = RecoveryTarget::Xid(4_000_000));
    refuse("an unknown backup", ErrorCode::NotFound, &|r| {
        r.recovery.backup = Some("20200101T000000-0000".parse().unwrap());
    });
    refuse("an unknown user", ErrorCode::Usage, &|r| r.owner = Some("nobody of this name".to_owned()));
    refuse("a password in the settings", ErrorCode::Usage, &|r| {
        let standby = StandbySettings { primary_conninfo: "host=x password=secret".to_owned(), slot: None };
        r.config.as_mut().unwrap().standby = Some(standby);
    });
    if am_root() {
        refuse("files for root", ErrorCode::Refused, &|r| {
            r.owner = None;
            r.directory = Path::new("/root/pgvault-test-restore").to_owned();
        });
    }
    // A mount point brings its lost+found along.
    fs::create_dir_all(target.join("lost+found")).unwrap();
    assert!(scene.plan(&scene.request(&target, RecoveryTarget::Latest)).is_ok());
}

#[test]
fn a_standby_gets_its_settings_and_streams() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let primary = PgNode::start_new(dir.path(), "primary", major(16));
    primary.sql("CREATE TABLE t (n int)");
    let pipeline = scene.vault.start(&primary.conninfo());
    pipeline.wait_streaming();
    primary.sql("ALTER SYSTEM SET recovery_target_name = 'stale'");
    insert(&primary, 1);
    scene.backup(&primary);
    primary.sql("SELECT pg_create_physical_replication_slot('s1')");
    let standby = scene.recover("standby", major(16), |request| {
        let settings = StandbySettings { primary_conninfo: primary.conninfo(), slot: Some("s1".to_owned()) };
        request.config.as_mut().unwrap().standby = Some(settings);
    });
    insert(&primary, 2);
    crate::support::restored::wait(&standby, "SELECT count(*) = 2 FROM t");
    crate::support::restored::wait(&primary, "SELECT active FROM pg_replication_slots WHERE slot_name = 's1'");
    assert_eq!(standby.sql("SHOW recovery_target_timeline"), "latest");
    assert_eq!(standby.sql("SHOW recovery_target_name"), "");
    pipeline.stop();
}

#[test]
fn without_configuration_only_files_are_written() {
    let dir = test_dir();
    let scene = backed_up(dir.path(), major(15), |_| ());
    let node = PgNode::at(dir.path(), "restored", major(15));
    let mut request = scene.request(&node.data, RecoveryTarget::Latest);
    request.config = None;
    let plan = scene.plan(&request).unwrap();
    assert_eq!((&plan.recovery.stop, plan.recovery.action), (&StopAt::EndOfWal, TargetAction::Promote));
    scene.apply(&plan).unwrap();
    assert!(!node.data.join("recovery.signal").exists() && !node.data.join("standby.signal").exists());
    let auto_conf = fs::read_to_string(node.data.join("postgresql.auto.conf")).unwrap();
    assert!(!auto_conf.contains("restore_command"), "{auto_conf}");
}
