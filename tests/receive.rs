//! Is everything that a server wrote received, kept and stored, whatever happens on the way?

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgvault::clock::SystemClock;
use pgvault::storage::StorageErrorKind;
use pgvault::storage::faulty::{Fault, Operation, Rule};
use pgvault::wal_pipeline::{NewLineage, WalParts, WalState, new_lineage};
use wal::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::vault::Vault;

const SIZE: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

/// A server with small segments.
fn server(base: &std::path::Path, name: &str, settings: &[(&str, &str)]) -> PgNode {
    let mut node = PgNode::init(base, name, 15, &["--wal-segsize=1"], settings);
    node.start();
    node
}

fn flush_lsn(node: &PgNode) -> Lsn {
    node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

fn segment(timeline: u32, lsn: Lsn) -> SegmentName {
    SegmentName::containing(TimelineId::new(timeline).unwrap(), lsn, size())
}

/// Writers that go on until they are ended.
struct Load {
    child: Child,
}

impl Load {
    fn start(node: &PgNode) -> Self {
        let init = node.tool("pgbench").args(["-i", "-q", "-s", "1"]).output().unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let child = node
            .tool("pgbench")
            .args(["-c", "2", "-T", "3600", "-n"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Every stored segment is byte for byte the server's.
fn assert_same_as_pg_wal(vault: &Vault, node: &PgNode) -> usize {
    let segments = vault.segments();
    let mut compared = 0;
    for name in &segments {
        if let Ok(theirs) = fs::read(node.data.join("pg_wal").join(name.to_string())) {
            assert!(vault.segment(*name) == theirs, "segment {name} differs from the server's");
            compared += 1;
        }
    }
    compared
}

#[test]
fn segments_under_load_are_those_of_pg_receivewal_and_of_the_server() {
    let dir = test_dir();
    let mut node = server(dir.path(), "node", &[("wal_keep_size", "512MB")]);
    let vault = Vault::new(dir.path());
    let received = dir.path().join("received");
    fs::create_dir(&received).unwrap();
    crate::support::pg::give_to_server_user(&received);
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    let mut reference = node
        .tool("pg_receivewal")
        .args(["--synchronous", "--no-loop", "-D"])
        .arg(&received)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let load = Load::start(&node);
    running.wait("segments archived under load", |status| status.counters.segments_archived >= 12);
    drop(load);
    node.sql("SELECT pg_switch_wal()");
    let end = flush_lsn(&node);
    running.wait_shipped(end);
    let deadline = Instant::now() + LIMIT;
    let last = segment(1, end.saturating_sub(1));
    while !received.join(last.to_string()).exists() {
        assert!(Instant::now() < deadline, "pg_receivewal never got {last}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(reference.try_wait().unwrap().is_none());
    assert!(node.stop("fast", LIMIT));
    reference.wait().unwrap();
    running.stop();
    assert!(assert_same_as_pg_wal(&vault, &node) >= 12);
    let mut compared = 0;
    for name in vault.segments() {
        if let Ok(theirs) = fs::read(received.join(name.to_string())) {
            assert!(vault.segment(name) == theirs, "segment {name} differs from pg_receivewal's");
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn the_tail_chain_restores_the_open_segment() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    for n in 0..4 {
        node.sql(&format!("INSERT INTO t VALUES ({n})"));
        running.wait_shipped(flush_lsn(&node));
    }
    let end = flush_lsn(&node);
    let name = segment(1, end);
    let (bytes, tail_end) = vault.tail(name).unwrap();
    assert!(tail_end >= end);
    let theirs = fs::read(node.data.join("pg_wal").join(name.to_string())).unwrap();
    let len = usize::try_from(tail_end.bytes_since(name.number(size()).unwrap().start(size()))).unwrap();
    assert!(bytes[..len] == theirs[..len]);
    assert!(bytes[len..].iter().all(|&byte| byte == 0));
    let status = running.wait("every commit is stored", |status| status.rpo_seconds == 0.0);
    assert!(status.last_commit.is_some());
    assert_eq!(status.last_archived_commit.map(|fact| fact.lsn), status.last_commit.map(|fact| fact.lsn));
    running.stop();
}

#[test]
fn an_idle_server_costs_no_puts() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[("autovacuum", "off")]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    node.sql("CHECKPOINT");
    running.wait_shipped(flush_lsn(&node));
    // The server may still write a record or two of its own.
    let idle = (0..10).any(|_| {
        let end = flush_lsn(&node);
        running.wait_shipped(end);
        let keys = vault.keys();
        vault.store.forget_calls();
        std::thread::sleep(Duration::from_secs(1));
        if flush_lsn(&node) != end {
            return false;
        }
        assert_eq!(vault.keys(), keys);
        let asked: Vec<_> =
            vault.store.calls().into_iter().filter(|(operation, _)| *operation != Operation::List).collect();
        assert_eq!(asked, [], "requests while nothing happens");
        true
    });
    assert!(idle);
    running.stop();
}

#[test]
fn a_fast_stop_of_the_primary_waits_for_nothing_while_the_store_is_down() {
    let dir = test_dir();
    // It must not lose its patience: a stop that waits for the store then never ends.
    let mut node = server(dir.path(), "node", &[("wal_sender_timeout", "0")]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    let load = Load::start(&node);
    running.wait("some WAL", |status| status.counters.received_bytes > 3 * SIZE);
    vault.store.add(Rule::new(Fault::Hang));
    let asked = Instant::now();
    assert!(node.stop("fast", LIMIT), "the primary's fast stop hangs");
    println!("the fast stop took {:?}", asked.elapsed());
    drop(load);
    let status = running.wait("the end is noticed", |status| !status.streaming());
    // The shutdown checkpoint, the last record there is, is durable here.
    let control = node.tool("pg_controldata").arg("-D").arg(&node.data).output().unwrap();
    let control = String::from_utf8_lossy(&control.stdout).into_owned();
    let line = control.lines().find(|line| line.starts_with("Latest checkpoint location:")).unwrap();
    let checkpoint: Lsn = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(status.flushed.unwrap() > checkpoint, "{:?} {checkpoint}", status.flushed);
    running.kill();
}

#[test]
fn a_crash_in_mid_segment_loses_nothing_and_repeats_nothing_wrongly() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[("wal_keep_size", "512MB")]);
    let vault = Vault::new(dir.path());
    let load = Load::start(&node);
    for _ in 0..4 {
        let running = vault.start(&node.conninfo());
        let received = running.now().counters.received_bytes;
        running.wait("it goes on", |status| status.counters.received_bytes > received + 2 * SIZE + SIZE / 3);
        running.kill();
    }
    drop(load);
    let running = vault.start(&node.conninfo());
    let end = flush_lsn(&node);
    running.wait_shipped(end);
    let status = running.now();
    assert_eq!(status.gaps, []);
    running.stop();
    assert!(assert_same_as_pg_wal(&vault, &node) >= 6);
    let numbers: Vec<u64> = vault.segments().iter().map(|name| name.number(size()).unwrap().get()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

#[test]
fn as_the_only_synchronous_standby_commits_proceed() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let vault = Vault::new(dir.path());
    let mut settings = vault.settings(&node.conninfo());
    settings.synchronous = true;
    let running = vault.start_with(settings);
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    node.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgvault'");
    node.sql("SELECT pg_reload_conf()");
    let deadline = Instant::now() + LIMIT;
    while node.sql("SELECT sync_state FROM pg_stat_replication WHERE application_name = 'pgvault'") != "sync" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    for n in 0..50 {
        node.sql(&format!("INSERT INTO t VALUES ({n})"));
        // Acknowledged, so it is durable here.
        assert!(running.now().flushed.is_some());
    }
    let row = node.sql(
        "SELECT flush_lsn <= pg_current_wal_flush_lsn(), coalesce(replay_lsn::text, 'none') FROM pg_stat_replication",
    );
    assert_eq!(row, "t|none");
    running.stop();
}

#[test]
fn a_foreign_server_is_refused_with_both_facts() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let other = server(dir.path(), "other", &[]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&node));
    running.stop();
    let before = vault.keys();
    let running = vault.start(&other.conninfo());
    let status = running.wait("refused", |status| status.state == WalState::Refused);
    let error = status.error.unwrap();
    assert_eq!(error.code().as_str(), "E0205");
    let text = error.to_string();
    for node in [&node, &other] {
        let identifier = node.sql("SELECT system_identifier FROM pg_control_system()");
        assert!(text.contains(&identifier), "{text}");
    }
    assert_eq!(other.sql("SELECT count(*) FROM pg_replication_slots"), "0", "nothing was made on the foreign server");
    running.stop();
    assert_eq!(vault.keys(), before);
}

#[test]
fn a_new_lineage_begins_only_when_asked_for_and_only_once() {
    let dir = test_dir();
    let (node, other) = (server(dir.path(), "node", &[]), server(dir.path(), "other", &[]));
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&node));
    running.stop();
    let first = vault.lineage().id();
    let ask = |node: &PgNode| {
        let repository = vault.repository.cluster(&Vault::cluster());
        let settings = vault.settings(&node.conninfo());
        let parts = WalParts::with_repository(settings, repository.clone(), Arc::new(SystemClock));
        vault.runtime.block_on(new_lineage(&parts, &repository)).unwrap()
    };
    assert_eq!(ask(&node), NewLineage::Continues(first));
    let NewLineage::Begun(second) = ask(&other) else { panic!("the other server is another cluster") };
    assert_eq!(ask(&other), NewLineage::Continues(second));
    assert_eq!(vault.lineage().document().parent, Some(first));
    let running = vault.start(&other.conninfo());
    running.wait_streaming();
    other.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&other));
    running.stop();
    // And back again is a third one: what lies between must not be joined over.
    let NewLineage::Begun(third) = ask(&node) else { panic!("its lineage is over") };
    assert_eq!((third.system_identifier, third.number), (first.system_identifier, 2));
}

#[test]
fn a_lost_slot_is_a_recorded_gap_and_streaming_goes_on() {
    let dir = test_dir();
    let node = server(
        dir.path(),
        "node",
        &[("min_wal_size", "2MB"), ("max_wal_size", "2MB"), ("max_slot_wal_keep_size", "1MB")],
    );
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int, pad text)");
    let held = flush_lsn(&node);
    running.wait_shipped(held);
    running.stop();
    for _ in 0..6 {
        node.sql("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 2000) n");
        node.sql("CHECKPOINT");
    }
    assert_eq!(node.sql("SELECT wal_status FROM pg_replication_slots"), "lost");
    let running = vault.start(&node.conninfo());
    let status = running.wait("gap recorded and streaming", |status| status.streaming() && !status.gaps.is_empty());
    assert_eq!(status.gaps.len(), 1);
    let gap = &status.gaps[0];
    assert!(gap.from >= held && gap.to > gap.from, "{gap:?}");
    assert_eq!(gap.to.as_u64() % SIZE, 0);
    node.sql("INSERT INTO t VALUES (1, 'after')");
    running.wait_shipped(flush_lsn(&node));
    running.stop();
    // The gap is known after a restart, exactly as it was, and not recorded again.
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    assert_eq!(running.now().gaps, status.gaps);
    running.stop();
}

#[test]
fn a_slot_that_is_someone_elses_is_not_made_by_us() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let vault = Vault::new(dir.path());
    let mut settings = vault.settings(&node.conninfo());
    settings.create_slot = false;
    let running = vault.start_with(settings);
    // WAL is received without it meanwhile, and the alarm stays.
    let status = running.wait("streaming without it", |status| status.streaming() && status.slot_lost.is_some());
    assert!(status.slot_lost.unwrap().contains("does not exist"));
    node.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&node));
    assert!(running.now().slot_lost.is_some());
    assert_eq!(node.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    // Its owner makes it: it is used.
    node.sql("SELECT pg_create_physical_replication_slot('pgvault', true)");
    running.wait("streaming through it", |status| status.streaming() && status.slot_lost.is_none());
    assert_eq!(node.sql("SELECT active FROM pg_replication_slots"), "t");
    running.stop();
}

#[test]
fn another_history_on_the_same_timeline_is_divergence_and_both_are_kept() {
    let dir = test_dir();
    let mut node = server(dir.path(), "node", &[]);
    node.sql("CREATE TABLE t (n int)");
    node.sql("SELECT pg_switch_wal()");
    node.sql("CHECKPOINT");
    assert!(node.stop("fast", LIMIT));
    // The storage as it was, for later.
    let copy = PgNode::at(dir.path(), "copy", 15);
    let copied = std::process::Command::new("cp").args(["-a"]).arg(&node.data).arg(&copy.data).status().unwrap();
    assert!(copied.success());
    copy.configure(&[]);
    let mut copy = copy;
    node.start();
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("INSERT INTO t SELECT generate_series(1, 100)");
    let ours = flush_lsn(&node);
    running.wait_shipped(ours);
    running.stop();
    let partial = vault.spool().join(segment(1, ours).partial());
    let held = fs::read(&partial).unwrap();
    assert!(node.stop("fast", LIMIT));
    copy.start();
    copy.sql("INSERT INTO t SELECT generate_series(1000, 1300)");
    let running = vault.start(&copy.conninfo());
    let status = running.wait("divergence", |status| status.state == WalState::Diverged);
    assert_eq!(status.error.unwrap().code().as_str(), "E0501");
    running.stop();
    assert!(fs::read(&partial).unwrap() == held, "ours is kept as it was");
    assert_eq!(fs::read_dir(vault.spool().join("divergent")).unwrap().count(), 1, "theirs is kept aside");
}

#[test]
fn another_history_is_found_where_a_segment_ends_too() {
    let dir = test_dir();
    let mut node = server(dir.path(), "node", &[]);
    node.sql("CREATE TABLE t (n int)");
    assert!(node.stop("fast", LIMIT));
    let mut copy = PgNode::at(dir.path(), "copy", 15);
    let copied = std::process::Command::new("cp").args(["-a"]).arg(&node.data).arg(&copy.data).status().unwrap();
    assert!(copied.success());
    copy.configure(&[]);
    node.start();
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("INSERT INTO t SELECT generate_series(1, 100)");
    node.sql("SELECT pg_switch_wal()");
    let ours = flush_lsn(&node);
    running.wait_shipped(ours);
    running.stop();
    // Where the same server is met again nothing is amiss.
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    running.stop();
    assert!(node.stop("immediate", LIMIT));
    let stored = vault.keys();
    copy.start();
    copy.sql("INSERT INTO t SELECT generate_series(1000, 1300)");
    while flush_lsn(&copy) < ours.saturating_add(SIZE) {
        copy.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    }
    let running = vault.start(&copy.conninfo());
    running.wait("divergence", |status| status.state == WalState::Diverged);
    running.stop();
    assert_eq!(vault.keys(), stored, "nothing of it is stored");
}

#[test]
fn a_promotion_of_the_server_we_stream_from_is_followed() {
    let dir = test_dir();
    let mut node = server(dir.path(), "node", &[("wal_keep_size", "256MB")]);
    node.sql("CREATE TABLE t (n int, pad text)");
    let mut standby = node.make_standby(dir.path(), "standby");
    standby.start();
    let vault = Vault::new(dir.path());
    let running = vault.start(&standby.conninfo());
    running.wait_streaming();
    node.sql("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n");
    running.wait_flushed(flush_lsn(&node));
    assert!(node.stop("fast", LIMIT));
    standby.promote();
    standby.sql("INSERT INTO t SELECT n, repeat('y', 500) FROM generate_series(1, 3000) n");
    let end = flush_lsn(&standby);
    let two = TimelineId::new(2).unwrap();
    running.wait("the new timeline", |status| status.timeline == Some(two) && status.shipped >= Some(end));
    let status = running.now();
    assert_eq!((status.gaps.len(), status.counters.timeline_switches), (0, 1));
    running.stop();
    let history = vault.runtime.block_on(vault.lineage().history_bytes(two)).unwrap().unwrap();
    let history = wal::TimelineHistory::parse(two, &history).unwrap();
    let switch = history.parent().unwrap().switch_point;
    // The old timeline's last segment never gets its bare name; what there was of it is stored as a tail.
    let left = segment(1, switch);
    assert!(!vault.segments().contains(&left));
    let (tail, tail_end) = vault.tail(left).unwrap();
    assert_eq!(tail_end, switch);
    let new = segment(2, switch);
    let shared = usize::try_from(switch.bytes_since(new.number(size()).unwrap().start(size()))).unwrap();
    let (new_bytes, _) =
        if vault.segments().contains(&new) { (vault.segment(new), switch) } else { vault.tail(new).unwrap() };
    assert!(new_bytes[..shared] == tail[..shared]);
    assert!(assert_same_as_pg_wal(&vault, &standby) >= 2);
}

#[test]
fn a_full_spool_disconnects_and_goes_on_when_there_is_room() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let vault = Vault::new(dir.path());
    let mut settings = vault.settings(&node.conninfo());
    settings.spool_max_size = Some(8 * SIZE);
    let running = vault.start_with(settings);
    running.wait_streaming();
    vault.store.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::Put));
    let load = Load::start(&node);
    let status = running.wait("stalled", |status| status.state == WalState::Stalled);
    assert!(status.error.is_some() && status.spool_bytes <= 8 * SIZE, "{status:#?}");
    // Disconnected, not merely slow.
    node.wait_idle("pgvault");
    drop(load);
    vault.store.heal();
    running.wait("streaming again", |status| status.streaming());
    running.wait_shipped(flush_lsn(&node));
    assert_eq!(running.now().gaps, []);
    running.stop();
}

#[test]
fn wal_is_received_while_the_repository_cannot_be_opened() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&node));
    running.stop();
    // A restart without the repository: what is known of the lineage lies in the spool.
    let (opened, repository) = tokio::sync::watch::channel(None);
    let settings = vault.settings(&node.conninfo());
    let cluster = vault.repository.cluster(&settings.cluster);
    let mut parts = WalParts::with_repository(settings, cluster.clone(), Arc::new(SystemClock));
    parts.repository = repository;
    let running = vault.start_parts(parts);
    running.wait_streaming();
    node.sql("INSERT INTO t SELECT generate_series(1, 20000)");
    let end = flush_lsn(&node);
    running.wait_flushed(end);
    opened.send(Some(cluster)).unwrap();
    running.wait_shipped(end);
    running.stop();
}

#[test]
fn a_segment_that_the_spools_disk_damaged_is_received_again_and_never_stored_damaged() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[("wal_keep_size", "256MB")]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&node));
    running.stop();
    // Received while the repository is away, so that nothing is scanned before the damage is done.
    let (opened, repository) = tokio::sync::watch::channel(None);
    let settings = vault.settings(&node.conninfo());
    let cluster = vault.repository.cluster(&settings.cluster);
    let mut parts = WalParts::with_repository(settings, cluster.clone(), Arc::new(SystemClock));
    parts.repository = repository;
    let running = vault.start_parts(parts);
    running.wait_streaming();
    node.sql("INSERT INTO t SELECT generate_series(1, 50000)");
    let end = flush_lsn(&node);
    running.wait_flushed(end);
    let victim = segment(1, end.saturating_sub(2 * SIZE));
    let path = vault.spool().join(victim.to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[300_000] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    opened.send(Some(cluster)).unwrap();
    running.wait_shipped(end);
    let status = running.now();
    assert_eq!(status.counters.archive_errors.get("damaged"), Some(&1), "{status:#?}");
    running.stop();
    assert!(vault.segments().contains(&victim));
    assert!(assert_same_as_pg_wal(&vault, &node) >= 3);
    assert!(vault.spool().join(format!("divergent/{victim}.damaged")).exists(), "the damaged bytes are kept");
}

#[test]
fn without_a_slot_wal_is_received_from_where_the_server_is() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[]);
    let vault = Vault::new(dir.path());
    let mut settings = vault.settings(&node.conninfo());
    settings.slot = None;
    let running = vault.start_with(settings);
    running.wait_streaming();
    node.sql("CREATE TABLE t (n int)");
    running.wait_shipped(flush_lsn(&node));
    assert_eq!(node.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(running.now().slot, None);
    running.stop();
}

#[test]
fn every_major_version_is_received_with_whole_segments_and_tails() {
    for major in [14, 16, 17, 18] {
        let dir = test_dir();
        let mut node = PgNode::init(dir.path(), "node", major, &["--wal-segsize=1"], &[("wal_keep_size", "256MB")]);
        node.start();
        let vault = Vault::new(dir.path());
        let running = vault.start(&node.conninfo());
        running.wait_streaming();
        node.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 40000) n");
        node.sql("SELECT pg_create_restore_point('here')");
        let end = flush_lsn(&node);
        running.wait_shipped(end);
        assert_eq!(running.now().postgres_version.map(|version| version / 10_000), Some(major));
        running.stop();
        assert!(assert_same_as_pg_wal(&vault, &node) >= 2, "{major}");
        assert!(vault.tail(segment(1, end)).is_some(), "{major}");
    }
}

#[test]
fn a_server_with_a_short_timeout_hears_from_us_in_time() {
    let dir = test_dir();
    let node = server(dir.path(), "node", &[("wal_sender_timeout", "1s")]);
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    // Three times the server's patience, without any WAL. On a busy machine an answer may come too late once; whoever does
    // not answer by himself is never heard in time.
    let kept = (0..20).any(|_| {
        running.wait_streaming();
        let pid = node.sql("SELECT pid FROM pg_stat_replication");
        std::thread::sleep(Duration::from_secs(3));
        !pid.is_empty() && node.sql("SELECT pid FROM pg_stat_replication") == pid
    });
    assert!(kept, "no connection was kept:\n{}", node.log());
    running.wait_streaming();
    running.stop();
}

#[test]
fn wal_beyond_a_fork_is_kept_and_other_branches_are_refused() {
    let dir = test_dir();
    let mut node = server(dir.path(), "node", &[("wal_keep_size", "256MB")]);
    node.sql("CREATE TABLE t (n int, pad text)");
    let mut one = node.make_standby(dir.path(), "one");
    let mut other = node.make_standby(dir.path(), "other");
    let vault = Vault::new(dir.path());
    let running = vault.start(&node.conninfo());
    running.wait_streaming();
    one.start();
    other.start();
    node.sql("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 3000) n");
    let shared = flush_lsn(&node);
    for standby in [&one, &other] {
        let deadline = Instant::now() + LIMIT;
        while standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{shared}'")) != "t" {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(50));
        }
        // From here on it hears nothing.
        standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
        standby.sql("SELECT pg_reload_conf()");
    }
    let deadline = Instant::now() + LIMIT;
    while node.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name <> 'pgvault'") != "0" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    node.sql("INSERT INTO t SELECT n, repeat('z', 500) FROM generate_series(1, 4000) n");
    let acknowledged = flush_lsn(&node);
    running.wait_shipped(acknowledged);
    running.stop();
    assert!(node.stop("fast", LIMIT));

    one.promote();
    one.sql("INSERT INTO t VALUES (1, 'on timeline 2')");
    let running = vault.start(&one.conninfo());
    let end = flush_lsn(&one);
    let two = TimelineId::new(2).unwrap();
    let status = running.wait("the new timeline", |status| {
        status.timeline == Some(two) && status.shipped == status.server_end && status.flushed >= Some(end)
    });
    assert_eq!(status.gaps, []);
    let beyond = status.beyond_fork[0];
    assert!(beyond.start >= shared && beyond.start < acknowledged && beyond.end >= acknowledged, "{beyond:?}");
    running.stop();
    // What was acknowledged beyond the fork is stored to its last byte.
    let last = segment(1, acknowledged);
    assert!(vault.tail(last).unwrap().1 >= acknowledged);
    assert!(vault.segments().contains(&segment(1, acknowledged.saturating_sub(SIZE))));

    // The former primary comes back on the timeline that was left.
    node.start();
    let running = vault.start(&node.conninfo());
    let status = running.wait("a lower timeline is refused", |status| status.state == WalState::Refused);
    assert_eq!(status.error.unwrap().code().as_str(), "E0501");
    running.stop();

    // The same number with another history.
    other.sql("CHECKPOINT");
    other.promote();
    other.sql("INSERT INTO t VALUES (2, 'on another timeline 2')");
    let running = vault.start(&other.conninfo());
    let status = running.wait("refused or diverged", |status| status.state.needs_a_person());
    assert!(["E0205", "E0501"].contains(&status.error.unwrap().code().as_str()));
    running.stop();
}
