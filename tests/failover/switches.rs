//! The primary changes, and streaming goes on from the next one.

use std::fs;
use std::time::Duration;

use pgvault::storage::StorageErrorKind;
use pgvault::storage::faulty::{Fault, Operation, Rule};
use pgvault::wal_pipeline::WalStatus;
use wal::{SegmentName, TimelineId};

use crate::support::LIMIT;
use crate::support::members::{Members, assert_whole, flushed, history_of, wait};
use crate::support::pg::test_dir;
use crate::support::vault::{Running, Vault};

const FAST: Duration = LIMIT;

/// Some WAL that no other branch has.
fn fill(members: &Members, node: usize, word: &str) {
    members.nodes[node].sql(&format!("INSERT INTO t SELECT n, repeat('{word}', 100) FROM generate_series(1, 2000) n"));
}

/// A cluster of so many members, a table, and a vault that streams from the first one.
fn begin<'a>(members: &Members, vault: &'a Vault) -> Running<'a> {
    members.nodes[0].sql("CREATE TABLE t (n int, pad text)");
    let running = vault.start(&members.conninfo());
    let first = Some(members.nodes[0].port);
    running.wait("streaming from the first", |status| {
        status.streaming() && status.primary.as_ref().map(|(_, port)| *port) == first
    });
    running
}

fn wait_on(running: &Running<'_>, members: &Members, node: usize, timeline: u32) -> WalStatus {
    let port = members.nodes[node].port;
    running.wait(&format!("streaming timeline {timeline} from node {node}"), |status| {
        status.streaming()
            && status.timeline == TimelineId::new(timeline)
            && status.primary.as_ref().is_some_and(|primary| primary.1 == port)
    })
}

#[test]
fn a_switchover_there_and_back_leaves_no_gap() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    for (round, (from, to)) in [(0, 1), (1, 0), (0, 1)].into_iter().enumerate() {
        fill(&members, from, "before");
        let timeline = u32::try_from(round).unwrap() + 2;
        assert!(members.nodes[from].stop("fast", FAST), "the primary's stop waits for us");
        members.nodes[to].promote();
        fill(&members, to, "after");
        let status = wait_on(&running, &members, to, timeline);
        let (failover, before) = (status.failovers.last().unwrap(), members.nodes[from].port);
        assert_eq!((failover.timeline.get(), failover.gap), (timeline, false));
        // On a busy machine the next primary is streamed from while it is still a standby.
        assert!([before, members.nodes[to].port].contains(&failover.from.as_ref().unwrap().1), "{failover:?}");
        assert_eq!(failover.to.1, members.nodes[to].port);
        let fork = history_of(&members.nodes[to], timeline).parent().unwrap().switch_point;
        assert_eq!(failover.lsn, Some(fork));
        members.rejoin(from, to);
        members.wait_replayed(from, flushed(&members.nodes[to]));
    }
    let end = flushed(&members.nodes[1]);
    running.wait_shipped(end);
    let status = running.now();
    assert_eq!((status.failovers.len(), status.counters.timeline_switches), (3, 3));
    assert_eq!((status.gaps, status.beyond_fork), (vec![], vec![]));
    assert!(status.conflict.is_none());
    running.stop();
    assert_whole(&vault, &members.nodes[1], 4, end);
}

#[test]
fn two_failovers_in_a_row_are_followed_to_the_last() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 3, 17, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    fill(&members, 0, "one");
    let end = flushed(&members.nodes[0]);
    members.wait_replayed(1, end);
    members.wait_replayed(2, end);
    // So that it is never further than the one that is promoted: it could not follow that one.
    members.cut_off(2);
    members.nodes[0].kill();
    members.nodes[1].promote();
    members.follow(2, 1);
    fill(&members, 1, "two");
    members.wait_replayed(2, flushed(&members.nodes[1]));
    members.nodes[1].kill();
    members.nodes[2].promote();
    fill(&members, 2, "three");
    wait_on(&running, &members, 2, 3);
    let end = flushed(&members.nodes[2]);
    running.wait_shipped(end);
    assert_eq!(running.now().gaps, vec![]);
    running.stop();
    assert_whole(&vault, &members.nodes[2], 3, end);
}

#[test]
fn a_timeline_may_skip_numbers_and_pass_nine_and_sixteen() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    fill(&members, 0, "one");
    members.wait_replayed(1, flushed(&members.nodes[0]));
    // Other recoveries took these numbers: a promotion takes the first that is free.
    for number in 2..=9 {
        let name = TimelineId::new(number).unwrap().history_file_name();
        let path = members.nodes[1].data.join("pg_wal").join(name);
        fs::write(&path, "1\t0/100028\tanother recovery\n").unwrap();
        crate::support::pg::give_to_server_user(&path);
    }
    members.nodes[0].kill();
    members.nodes[1].promote();
    fill(&members, 1, "ten");
    wait_on(&running, &members, 1, 10);
    let mut third = members.nodes[1].make_standby(dir.path(), "third");
    third.start();
    let end = flushed(&members.nodes[1]);
    running.wait_shipped(end);
    running.stop();
    assert_whole(&vault, &members.nodes[1], 10, end);
    // pgvault is down while the next failover happens, past sixteen; and the servers are others by then.
    for number in 11..=16 {
        let name = TimelineId::new(number).unwrap().history_file_name();
        let path = third.data.join("pg_wal").join(name);
        fs::write(&path, "1\t0/100028\tanother recovery\n").unwrap();
        crate::support::pg::give_to_server_user(&path);
    }
    fill(&members, 1, "unseen");
    let seen = flushed(&members.nodes[1]);
    members.nodes.push(third);
    members.wait_replayed(2, seen);
    members.nodes[1].kill();
    members.nodes[2].promote();
    fill(&members, 2, "seventeen");
    let running = vault.start(&members.conninfo());
    let status = wait_on(&running, &members, 2, 17);
    assert_eq!(status.failovers.last().map(|failover| failover.timeline.get()), Some(17));
    let end = flushed(&members.nodes[2]);
    running.wait_shipped(end);
    assert_eq!(running.now().gaps, vec![]);
    running.stop();
    assert_whole(&vault, &members.nodes[2], 17, end);
}

#[test]
fn without_a_primary_a_standby_is_streamed_from_until_there_is_one() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 3, 18, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    running.wait_shipped(flushed(&members.nodes[0]));
    running.stop();
    // Written and replicated while pgvault is away; then the only primary is gone.
    fill(&members, 0, "unseen");
    let unseen = flushed(&members.nodes[0]);
    members.wait_replayed(1, unseen);
    members.wait_replayed(2, unseen);
    members.nodes[0].kill();
    let running = vault.start(&members.conninfo());
    running.wait_shipped(unseen);
    let status = running.wait("streaming from a standby", WalStatus::streaming);
    assert_eq!((status.primary, status.error.is_none()), (None, true));
    assert!(status.source.is_some_and(|(_, port)| port != members.nodes[0].port));
    members.nodes[2].promote();
    members.follow(1, 2);
    fill(&members, 2, "after");
    wait_on(&running, &members, 2, 2);
    let end = flushed(&members.nodes[2]);
    running.wait_shipped(end);
    assert_eq!(running.now().gaps, vec![]);
    running.stop();
    assert_whole(&vault, &members.nodes[2], 2, end);
}

#[test]
fn a_standby_that_is_behind_what_we_hold_is_waited_for_without_an_alarm() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 15, &[]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    members.wait_replayed(1, flushed(&members.nodes[0]));
    members.cut_off(1);
    for _ in 0..3 {
        fill(&members, 0, "ahead");
    }
    running.wait_flushed(flushed(&members.nodes[0]));
    assert!(members.nodes[0].stop("fast", FAST));
    let status = running.wait("the standby is waited for", |status| {
        !status.streaming()
            && status.error.as_ref().is_some_and(|error| error.to_string().contains("nothing is missing here"))
    });
    assert!(!status.state.needs_a_person(), "{status:#?}");
    // The primary is back; the standby catches up from it.
    members.nodes[0].start();
    wait_on(&running, &members, 0, 1);
    let end = flushed(&members.nodes[0]);
    running.wait_shipped(end);
    let status = running.now();
    assert_eq!((status.failovers.len(), status.gaps.len(), status.beyond_fork.len()), (0, 0, 0));
    running.stop();
    assert_whole(&vault, &members.nodes[0], 1, end);
}

#[test]
fn a_slot_that_the_new_primary_does_not_have_costs_nothing_while_its_wal_is_there_and_is_a_gap_when_not() {
    let dir = test_dir();
    let settings = [("wal_keep_size", "0"), ("min_wal_size", "2MB"), ("max_wal_size", "2MB")];
    let mut members = Members::start(dir.path(), 2, 15, &settings);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    let before = flushed(&members.nodes[0]);
    members.wait_replayed(1, before);
    running.wait_shipped(before);
    running.stop();
    members.nodes[0].kill();
    let new = &members.nodes[1];
    new.promote();
    let drop_slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    new.sql(drop_slots);
    for _ in 0..6 {
        fill(&members, 1, "lost");
        new.sql("CHECKPOINT");
    }
    let running = vault.start(&members.conninfo());
    let status = wait_on(&running, &members, 1, 2);
    assert_eq!(status.gaps.len(), 1, "{status:#?}");
    let failover = status.failovers.last().unwrap();
    assert_eq!((failover.timeline.get(), failover.gap), (2, true));
    assert!(status.gaps[0].from >= before && status.gaps[0].to > status.gaps[0].from, "{:?}", status.gaps);
    fill(&members, 1, "after");
    running.wait_shipped(flushed(&members.nodes[1]));
    assert_eq!(running.now().gaps, status.gaps);
    running.stop();
}

#[test]
fn wal_that_the_new_primary_has_removed_is_taken_from_a_member_that_has_it() {
    removed_by_the_new_primary(false);
}

#[test]
fn a_member_that_is_down_and_may_have_what_was_removed_is_waited_for() {
    removed_by_the_new_primary(true);
}

fn removed_by_the_new_primary(is_down: bool) {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 2, 15, &[("min_wal_size", "2MB"), ("max_wal_size", "2MB")]);
    members.nodes[1].sql("ALTER SYSTEM SET wal_keep_size = 0");
    members.nodes[1].sql("SELECT pg_reload_conf()");
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    running.wait_shipped(flushed(&members.nodes[0]));
    running.stop();
    for _ in 0..4 {
        fill(&members, 0, "unseen");
    }
    members.wait_replayed(1, flushed(&members.nodes[0]));
    assert!(members.nodes[0].stop("fast", FAST));
    let new = &members.nodes[1];
    new.promote();
    new.sql("CHECKPOINT");
    // Keeps what was written since the promotion, and nothing before.
    new.sql("SELECT pg_create_physical_replication_slot('since_then', true)");
    new.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name <> 'since_then'");
    for _ in 0..4 {
        fill(&members, 1, "after");
        new.sql("CHECKPOINT");
    }
    let fork = history_of(new, 2).parent().unwrap().switch_point;
    let before = fs::read_dir(new.data.join("pg_wal")).unwrap();
    let of_timeline_1 =
        before.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("00000001"));
    assert!(of_timeline_1.count() <= 1, "the new primary still has the old timeline");
    let mut settings = vault.settings(&members.conninfo());
    settings.wait_for_silent = Duration::from_secs(3600);
    let running = if is_down {
        let running = vault.start_with(settings);
        let status = running.wait("the one that is down is waited for", |status| status.slot_lost.is_some());
        let said = status.error.unwrap().to_string();
        assert!(said.contains(&format!("127.0.0.1:{} may still have it", members.nodes[0].port)), "{said}");
        assert_eq!(status.gaps, vec![]);
        members.nodes[0].start();
        running
    } else {
        members.nodes[0].start();
        vault.start_with(settings)
    };
    // The former primary is there again, and writes: only what the two have in common is taken from it.
    fill(&members, 0, "stale");
    wait_on(&running, &members, 1, 2);
    let end = flushed(&members.nodes[1]);
    running.wait_shipped(end);
    let status = running.wait("the conflict is told", |status| status.conflict.is_some());
    assert_eq!((status.gaps, status.beyond_fork), (vec![], vec![]));
    assert_eq!(status.failovers.last().map(|failover| failover.gap), Some(false));
    running.stop();
    assert_whole(&vault, &members.nodes[1], 2, end);
    assert_whole(&vault, &members.nodes[0], 1, fork);
}

#[test]
fn a_segment_that_the_disk_damaged_is_taken_from_whoever_still_has_it() {
    let dir = test_dir();
    let members = Members::start(dir.path(), 2, 15, &[("min_wal_size", "2MB"), ("max_wal_size", "2MB")]);
    let vault = Vault::new(dir.path());
    let running = begin(&members, &vault);
    vault.store.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::Put));
    for _ in 0..4 {
        fill(&members, 0, "waits");
    }
    let end = flushed(&members.nodes[0]);
    running.wait_flushed(end);
    members.wait_replayed(1, end);
    running.kill();
    // The oldest that waits for the store; the first member has it no more.
    let mut waiting: Vec<SegmentName> = fs::read_dir(vault.spool())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    waiting.sort();
    let (name, path) = (waiting[0], vault.spool().join(waiting[0].to_string()));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    fs::write(&path, bytes).unwrap();
    members.nodes[0].sql("ALTER SYSTEM SET wal_keep_size = 0");
    members.nodes[0].sql("SELECT pg_reload_conf()");
    let on_the_first = members.nodes[0].data.join("pg_wal").join(name.to_string());
    wait("the first member removes it", || {
        fill(&members, 0, "more");
        members.nodes[0].sql("CHECKPOINT");
        !on_the_first.exists()
    });
    vault.store.heal();
    let running = vault.start(&members.conninfo());
    let end = flushed(&members.nodes[0]);
    running.wait_shipped(end);
    members.wait_replayed(1, end);
    assert_eq!(running.now().gaps, vec![]);
    running.stop();
    assert_whole(&vault, &members.nodes[1], 1, end);
}
