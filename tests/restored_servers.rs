//! Does a restored server start, and hold all there was, however its original was set up?

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use recovery::{Backup, RecoveryTarget};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, as_server_user, bin_dir, give_to_server_user, test_dir};
use crate::support::restored::{Scene, lsn, wait_paused, wait_promoted};
use crate::support::tree::tree;

/// A server of a node that was started in a way of its own.
struct Started<'a>(&'a PgNode, Child);

impl<'a> Started<'a> {
    fn on(node: &'a PgNode, directory: &Path, args: &[&str]) -> Self {
        let mut server = as_server_user(bin_dir(node.major).join("postgres"));
        let child = server.arg("-D").arg(directory).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut started = Self(node, child.unwrap());
        let deadline = Instant::now() + LIMIT;
        while node.try_sql("SELECT 1").is_err() {
            assert!(started.1.try_wait().unwrap().is_none() && Instant::now() < deadline, "does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        started
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let pid = self.0.postmaster_pid().unwrap_or_else(|| self.1.id());
        assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
        self.1.wait().unwrap();
    }
}

/// Backs up a server that runs; a row before, one after.
fn back_up(scene: &Scene, node: &PgNode) -> Backup {
    node.sql("CREATE TABLE t (n int)");
    let pipeline = scene.vault.start(&node.conninfo());
    pipeline.wait_streaming();
    node.sql("INSERT INTO t VALUES (1)");
    let backup = scene.backup(node);
    node.sql("INSERT INTO t VALUES (2)");
    pipeline.wait_shipped(lsn(node, "SELECT pg_current_wal_flush_lsn()"));
    pipeline.stop();
    backup
}

#[test]
fn a_configuration_outside_of_the_data_directory_is_told_and_its_limits_come_along() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let node =
        PgNode::init(dir.path(), "primary", 17, &[], &[("max_connections", "250"), ("max_worker_processes", "20")]);
    let etc = dir.path().join("etc");
    fs::create_dir(&etc).unwrap();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(node.data.join(name), etc.join(name)).unwrap();
    }
    let conf = fs::read_to_string(etc.join("postgresql.conf")).unwrap();
    fs::write(etc.join("postgresql.conf"), format!("{conf}data_directory = '{}'\n", node.data.display())).unwrap();
    give_to_server_user(&etc);
    let server = Started::on(&node, &etc, &[]);
    back_up(&scene, &node);
    drop(server);

    let mut restored = PgNode::at(dir.path(), "restored", 17);
    give_to_server_user(&scene.installed.repository);
    let mut request = scene.request(&restored.data, RecoveryTarget::Immediate);
    request.recovery.action = None;
    let outcome = scene.apply(&scene.plan(&request).unwrap()).unwrap();
    assert!(outcome.warnings.iter().any(|w| w.contains("there is no postgresql.conf")), "{:?}", outcome.warnings);
    // Whoever starts it brings a configuration along: one that asks for less.
    restored.configure(&[("max_connections", "10")]);
    fs::copy(etc.join("pg_hba.conf"), restored.data.join("pg_hba.conf")).unwrap();
    give_to_server_user(&restored.data);
    restored.start();
    wait_paused(&restored);
    assert_eq!(restored.sql("SHOW max_connections"), "250");
    assert_eq!(restored.sql("SELECT string_agg(n::text, ',') FROM t"), "1");
}

#[test]
fn what_a_hot_standby_needs_is_set_also_when_it_was_given_on_the_command_line() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let node = PgNode::init(dir.path(), "primary", 16, &[], &[]);
    let args =
        ["-c", "max_connections=180", "-c", "max_locks_per_transaction=100", "-c", "max_prepared_transactions=7"];
    let server = Started::on(&node, &node.data, &args);
    back_up(&scene, &node);
    drop(server);
    let restored = scene.recover("restored", 16, |request| request.recovery.target = RecoveryTarget::Immediate);
    wait_paused(&restored);
    assert_eq!(restored.sql("SHOW max_connections"), "180");
    assert_eq!(restored.sql("SHOW max_prepared_transactions"), "7");
}

#[test]
fn files_with_odd_names_and_permissions_come_back_as_they_were() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = PgNode::init(dir.path(), "primary", 18, &["--allow-group-access"], &[]);
    let odd: [&[u8]; 6] = [b"a space", b"back\\slash", b"new\nline", b"quote'\"$(x)`;", b"not \xFF UTF-8 \xC3", b"-rf"];
    let folder = node.data.join("odd");
    fs::create_dir(&folder).unwrap();
    for (number, name) in odd.iter().enumerate() {
        let path = folder.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(std::ffi::OsStr::from_bytes(name)), vec![b'x'; number * 700_000]).unwrap();
    }
    fs::write(folder.join("read only"), "x").unwrap();
    fs::set_permissions(folder.join("read only"), fs::Permissions::from_mode(0o440)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o710)).unwrap();
    give_to_server_user(&folder);
    node.start();
    back_up(&scene, &node);
    let expected = tree(&folder, &[]);
    assert_eq!(expected.len(), 13);
    let restored = scene.recover("restored", 18, |_| ());
    wait_promoted(&restored);
    assert_eq!(tree(&restored.data.join("odd"), &[]), expected);
    assert_eq!(fs::metadata(&restored.data).unwrap().permissions().mode() & 0o7777, 0o750);
}

#[test]
fn a_restore_that_is_slowed_down_is_the_same_restore() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = PgNode::start_new(dir.path(), "primary", 17);
    let backup = back_up(&scene, &node);
    assert!(node.stop("fast", LIMIT));
    give_to_server_user(&scene.installed.repository);
    let target = dir.path().join("restored");
    let to = target.to_str().unwrap();
    let rate = backup.stored_bytes / 3;
    let rate_text = format!("{rate}B/s");
    let (code, result) = scene.installed.json(&["recover", "main", "--latest", "--to", to, "--max-rate", &rate_text]);
    assert_eq!(code, 0, "{result}");
    let plain = dir.path().join("plain");
    scene.installed.ok(["recover", "main", "--latest", "--to", plain.to_str().unwrap()]);
    assert_eq!(tree(&target, &[]), tree(&plain, &[]));
}

/// A table `big` of more than a gigabyte, whose rows lie at its beginning and in its second file; that second file.
fn beyond_a_gigabyte(node: &mut PgNode) -> PathBuf {
    node.sql("CREATE TABLE big AS SELECT g, repeat('x', 500) x FROM generate_series(1, 20000) g");
    let path = node.data.join(node.sql("SELECT pg_relation_filepath('big')"));
    assert!(node.stop("fast", LIMIT));
    // Pages of zeros are new pages: a relation of 1 GiB and a second segment.
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let second = path.with_extension("1");
    fs::write(&second, vec![0; 800 << 10]).unwrap();
    give_to_server_user(&second);
    node.start();
    node.sql("INSERT INTO big SELECT g, 'behind' FROM generate_series(20001, 60000) g");
    second
}

#[test]
#[ignore = "a gigabyte: make chaos"]
fn a_relation_of_more_than_a_gigabyte_with_damage_in_its_second_file_is_named() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--data-checksums"], &[("autovacuum", "off")]);
    node.start();
    let second = beyond_a_gigabyte(&mut node);
    assert!(node.stop("fast", LIMIT));
    // The last page has rows.
    let pages = fs::metadata(&second).unwrap().len() / 8192;
    let file = fs::File::options().write(true).open(&second).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", (pages - 1) * 8192 + 4000).unwrap();
    node.start();
    let backup = back_up(&scene, &node);
    let manifest = scene.vault.runtime.block_on(scene.vault.lineage().manifest(&backup.id)).unwrap();
    let damaged: Vec<(&str, u64)> = manifest.damaged_files.iter().map(|file| (&*file.path, file.pages)).collect();
    let path = second.strip_prefix(&node.data).unwrap().to_str().unwrap();
    assert_eq!(damaged, [(path, 1)], "and no page of it but that one");
}

#[test]
#[ignore = "a gigabyte: make chaos"]
fn a_relation_of_more_than_a_gigabyte_comes_back() {
    let dir = test_dir();
    let scene = Scene::new(dir.path());
    let mut node = PgNode::start_new(dir.path(), "primary", 17);
    let second = beyond_a_gigabyte(&mut node);
    let path = second.with_extension("");
    back_up(&scene, &node);
    let rows = "SELECT count(*), md5(string_agg(g::text || x, ',' ORDER BY g)), pg_relation_size('big') FROM big";
    let expected = node.sql(rows);
    let restored = scene.recover("restored", 17, |_| ());
    wait_promoted(&restored);
    assert_eq!(restored.sql(rows), expected);
    let holes = std::os::unix::fs::MetadataExt::blocks(
        &fs::metadata(restored.data.join(path.strip_prefix(&node.data).unwrap())).unwrap(),
    );
    assert!(holes * 512 < 1 << 29, "zeros are holes");
}
