//! Is a recovery that is fetched ahead exact, whatever dies or fails meanwhile, and is nothing left of it?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgvault::fault::FETCH_FAULT_POINTS;

use crate::support::oracle::Oracle;
use crate::support::pg::{PgNode, as_server_user, bin_dir, give_to_server_user, major};
use crate::support::proxy::Proxy;
use crate::support::restored::{wait, wait_paused, wait_promoted};
use crate::support::s3;
use crate::support::scene::{LIMIT, Scene, Setting};
use crate::support::truth::Target;

/// A backup and so many segments after it, in a settled scene.
fn scene_of(s3: bool, segments: usize) -> (Scene, Oracle) {
    let mut scene = Scene::new(Setting { s3, ..Setting::of(major(15)) });
    scene.backup();
    for _ in 0..segments {
        scene.more(2);
        scene.node.sql("SELECT pg_switch_wal()");
    }
    let oracle = scene.settle();
    (scene, oracle)
}

/// Changes the restore_command of a restored server.
fn change_command(node: &PgNode, change: impl Fn(&str) -> String) {
    let path = node.data.join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    let lines =
        text.lines().map(|line| if line.starts_with("restore_command") { change(line) } else { line.to_owned() });
    let changed = lines.collect::<Vec<_>>().join("\n") + "\n";
    assert_ne!(changed, text);
    fs::write(path, changed).unwrap();
}

/// The folder of the prefetchers of a server.
fn folder(node: &PgNode) -> PathBuf {
    node.data.join("pg_wal/.pgvault-prefetch")
}

/// Processes with these words in their command line.
fn processes(words: &[&str]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let here = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if words.iter().all(|word| line.contains(word) || here.to_string_lossy().contains(word)) {
            found.push(pid);
        }
    }
    found
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn restored_files(node: &PgNode) -> usize {
    node.log().matches("restored log file").count()
}

#[track_caller]
fn exact(node: &PgNode, oracle: &Oracle, target: &Target) {
    let verdict = oracle.check(node, target);
    assert!(verdict.is_exact(), "{verdict}\n{}", node.log());
}

#[test]
fn a_prefetcher_lives_as_long_as_the_recovery_and_leaves_nothing() {
    let (mut scene, oracle) = scene_of(false, 20);
    let end = scene.latest();
    // Two servers of the same cluster on one machine do not mix.
    let mut first = scene.recover(&["--latest", "--action", "pause"]);
    let mut second = scene.recover(&["--latest"]);
    first.start();
    second.start();
    wait_paused(&first);
    wait_promoted(&second);
    exact(&first, &oracle, &end);
    exact(&second, &oracle, &end);
    let places: Vec<PathBuf> = fs::read_dir(folder(&first)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(places.len() == 1 && places[0].join("socket").exists(), "{places:?}");
    let name = first.data.file_name().unwrap().to_str().unwrap();
    let ours = ["wal prefetch", scene.path().to_str().unwrap(), name];
    assert_eq!(processes(&ours).len(), 1);
    wait_until("the promoted one's folder is gone", || !folder(&second).exists());
    first.sql("SELECT pg_wal_replay_resume()");
    wait_promoted(&first);
    wait_until("the folder is gone", || !folder(&first).exists());
    wait_until("the prefetcher has ended", || processes(&ours).is_empty());
    scene.forget(first);
    scene.forget(second);
}

#[test]
fn whoever_dies_at_whatever_point_the_recovery_is_exact() {
    let (mut scene, oracle) = scene_of(false, 10);
    let end = scene.latest();
    for (index, point) in FETCH_FAULT_POINTS.iter().enumerate() {
        let mut node = scene.recover(&["--latest"]);
        let fault = format!("env PGVAULT_FAULT_POINT={point}:{} ", 1 + index % 3);
        change_command(&node, |line| line.replacen("= '", &format!("= '{fault}"), 1));
        let runs = node.try_start();
        let ended = || node.try_sql("SELECT 1").is_err() && node.postmaster_pid().is_none();
        if runs {
            wait_until("it is promoted or has ended", || {
                ended() || node.try_sql("SELECT NOT pg_is_in_recovery()").as_deref() == Ok("t")
            });
        }
        if !runs || ended() {
            // The command itself died: PostgreSQL stops, and goes on where it stood.
            assert!(node.wait_end(LIMIT));
            assert!(!node.log().contains("selected new timeline"), "{point}:\n{}", node.log());
            assert!(node.log().contains("could not restore file"), "{point}:\n{}", node.log());
            change_command(&node, |line| line.replace(&fault, ""));
            node.start();
        }
        wait_promoted(&node);
        exact(&node, &oracle, &end);
        wait_until("no prefetcher is left", || processes(&["wal prefetch", node.data.to_str().unwrap()]).is_empty());
        scene.forget(node);
    }
}

#[test]
fn prefetchers_that_are_killed_all_the_time_or_cannot_work_change_nothing() {
    let (mut scene, oracle) = scene_of(false, 25);
    let end = scene.latest();
    let mut node = scene.recover(&["--latest"]);
    let (over, killed) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for pid in processes(&["wal prefetch", node_words(scene.path()).as_str()]) {
                    let kill = Command::new("kill").args(["-9", &pid.to_string()]).output().unwrap();
                    killed.fetch_or(kill.status.success(), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        node.start();
        wait_promoted(&node);
        over.store(true, Ordering::Relaxed);
    });
    assert!(killed.load(Ordering::Relaxed), "none was killed");
    exact(&node, &oracle, &end);
    scene.forget(node);
    // Where a folder is wanted lies a file.
    let mut node = scene.recover(&["--latest"]);
    fs::write(folder(&node), "in the way").unwrap();
    give_to_server_user(&folder(&node));
    node.start();
    wait_promoted(&node);
    exact(&node, &oracle, &end);
    assert_eq!(fs::read(folder(&node)).unwrap(), b"in the way");
    scene.forget(node);
}

fn node_words(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A scene in S3, with a proxy that restored servers reach it by, and keys that may read and nothing else.
struct Outage {
    scene: Scene,
    oracle: Oracle,
    proxy: Proxy,
    config: PathBuf,
}

impl Outage {
    fn new(segments: usize) -> Self {
        let (scene, oracle) = scene_of(true, segments);
        let server = s3::server();
        let proxy = Proxy::start(server.endpoint.rsplit(':').next().unwrap().parse().unwrap());
        let text = fs::read_to_string(&scene.installed.config).unwrap();
        let mut text = text.replace(&server.endpoint, &format!("http://127.0.0.1:{}", proxy.port()));
        for (line, key) in [("access_key_file", s3::READER[0]), ("secret_key_file", s3::READER[1])] {
            let file = scene.installed.dir.join(format!("reader-{line}"));
            fs::write(&file, key).unwrap();
            give_to_server_user(&file);
            let lines = text.lines().map(|found| match found.starts_with(line) {
                true => format!("{line} = \"{}\"", file.display()),
                false => found.to_owned(),
            });
            text = lines.collect::<Vec<_>>().join("\n");
        }
        let config = scene.installed.dir.join("reader.toml");
        fs::write(&config, text).unwrap();
        give_to_server_user(&config);
        Self { scene, oracle, proxy, config }
    }

    /// A restored server that reaches the store by the proxy.
    fn recover(&mut self, args: &[&str]) -> PgNode {
        let node = self.scene.recover(args);
        let (ours, theirs) = (self.scene.installed.config.display().to_string(), self.config.display().to_string());
        change_command(&node, |line| line.replace(&ours, &theirs));
        node
    }

    fn begin(&self) {
        self.proxy.refuse(true);
        self.proxy.cut();
    }

    fn end(&self) {
        self.proxy.refuse(false);
    }
}

#[test]
fn an_outage_at_a_history_probe_in_the_middle_or_at_promotion_only_takes_time() {
    let mut it = Outage::new(20);
    let end = it.scene.latest();
    let mut node = it.recover(&["--latest", "--action", "pause"]);
    // The first question of all is for a history.
    it.begin();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(3));
            it.end();
        });
        node.start();
    });
    // In the middle: it is slow enough to be met there.
    it.proxy.limit_rate(crate::support::proxy::Direction::ToClient, Some(40_000));
    wait_until("some segments were restored", || restored_files(&node) >= 3);
    it.begin();
    let stood = restored_files(&node);
    std::thread::sleep(Duration::from_secs(4));
    assert!(restored_files(&node) <= stood + 18, "it goes on with what it has and no further");
    assert_eq!(node.sql("SELECT pg_is_in_recovery()"), "t");
    it.proxy.limit_rate(crate::support::proxy::Direction::ToClient, None);
    it.end();
    wait_paused(&node);
    exact(&node, &it.oracle, &end);
    // At promotion: which timelines are taken is not known, so it waits.
    it.begin();
    let promote =
        as_server_user(bin_dir(major(15)).join("pg_ctl")).arg("-D").arg(&node.data).args(["promote", "-W"]).output();
    assert!(promote.unwrap().status.success());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(node.sql("SELECT pg_is_in_recovery()"), "t");
    it.end();
    wait_promoted(&node);
    exact(&node, &it.oracle, &end);
    wait_until("the folder is gone", || !folder(&node).exists());
    it.scene.forget(node);
}

#[test]
fn a_server_that_is_told_to_stop_while_it_waits_for_the_store_stops() {
    let mut it = Outage::new(6);
    let end = it.scene.latest();
    let mut node = it.recover(&["--latest"]);
    it.begin();
    let mut start = as_server_user(bin_dir(major(15)).join("pg_ctl"));
    // As `PgNode::start`: a restore_command must not see what the tests' own environment sets for pgvault.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PGVAULT_")) {
        start.env_remove(name);
    }
    let started = start
        .arg("-D")
        .arg(&node.data)
        .args(["start", "-W", "-l", node.data.with_extension("first.log").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(started.status.success());
    let first_log = || fs::read_to_string(node.data.with_extension("first.log")).unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    while processes(&["wal fetch", it.scene.path().to_str().unwrap()]).is_empty() {
        assert!(Instant::now() < deadline, "no command waits:\n{}", first_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = Instant::now();
    assert!(node.stop("fast", LIMIT), "it did not stop");
    println!("stopped after {:?}", told.elapsed());
    wait_until("nothing of it is left", || processes(&[node.data.to_str().unwrap()]).is_empty());
    it.end();
    node.start();
    wait_promoted(&node);
    exact(&node, &it.oracle, &end);
    it.scene.forget(node);
}

#[test]
fn wal_that_only_the_spool_of_this_machine_has_is_replayed() {
    let mut scene = Scene::new(Setting { s3: true, ..Setting::of(major(15)) });
    scene.backup();
    scene.more(20);
    scene.wait_stored();
    // The store goes away for the daemon alone, the load goes on, and then the machine's daemon dies.
    let server = s3::server();
    let text = fs::read_to_string(&scene.installed.config).unwrap();
    let stored = scene.latest();
    scene.daemon.take().unwrap().kill();
    fs::write(&scene.installed.config, text.replace(&server.endpoint, "http://127.0.0.1:1")).unwrap();
    let daemon = scene.installed.serve();
    for _ in 0..5 {
        scene.more(20);
        scene.node.sql("SELECT pg_switch_wal()");
    }
    scene.more(20);
    scene.load.take().unwrap().stop();
    let end = scene.node.sql("SELECT pg_logical_emit_message(true, 'end', '')");
    let end: wal::Lsn = end.parse().unwrap();
    scene.installed.wait("flushed in the spool", LIMIT, || {
        let (_, status) = scene.installed.json(&["status", "main"]);
        let flushed = status["clusters"][0]["wal"]["flushed_lsn"].as_str().and_then(|lsn| lsn.parse::<wal::Lsn>().ok());
        flushed.is_some_and(|flushed| flushed >= end)
    });
    daemon.kill();
    let oracle = scene.oracle_so_far(end);
    assert!(scene.node.stop("immediate", LIMIT));
    fs::write(&scene.installed.config, text).unwrap();
    let mut node = scene.recover(&["--latest", "--timeline", "1"]);
    node.start();
    wait_promoted(&node);
    let Target::EndOfWal(stored) = stored else { panic!("{stored:?}") };
    assert!(stored < end);
    exact(&node, &oracle, &Target::EndOfWal(end));
    scene.forget(node);
}

#[test]
fn a_standby_follows_the_archive_alone_and_sees_what_comes() {
    let mut scene = Scene::new(Setting::of(major(15)));
    scene.backup();
    let mut node = scene.recover(&["--latest"]);
    fs::rename(node.data.join("recovery.signal"), node.data.join("standby.signal")).unwrap();
    node.configure(&[("wal_retrieve_retry_interval", "200ms"), ("hot_standby", "on")]);
    give_to_server_user(&node.data.join("postgresql.conf"));
    node.start();
    for _ in 0..3 {
        scene.more(10);
        let end = scene.wait_stored();
        // What is stored is replayed soon, tails included: no answer is remembered.
        wait(&node, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
    }
    assert_eq!(node.sql("SELECT pg_is_in_recovery()"), "t");
    scene.forget(node);
}
