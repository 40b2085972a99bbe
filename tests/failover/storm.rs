//! Failover after failover: nothing is lost, and how long each one takes to be followed. Long: `make chaos`.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use wal::{Lsn, TimelineId};

use crate::support::follow_timer::FollowTimer;
use crate::support::members::{Members, assert_whole, flushed, wait};
use crate::support::pg::{PgNode, test_dir};
use crate::support::vault::Vault;

fn load(node: &PgNode) -> Child {
    let mut pgbench = node.tool("pgbench");
    pgbench.args(["-c", "2", "-T", "3600", "-n"]).stdout(Stdio::null()).stderr(Stdio::null());
    pgbench.spawn().unwrap()
}

fn end(mut load: Child) {
    // It ends by itself when its server does.
    drop(load.kill());
    load.wait().unwrap();
}

/// The standby that has received more, as an HA manager promotes it: the other one could not follow it otherwise.
fn further(members: &Members, [one, other]: [usize; 2]) -> (usize, usize) {
    let received =
        |standby: usize| -> Lsn { members.nodes[standby].sql("SELECT pg_last_wal_receive_lsn()").parse().unwrap() };
    if received(one) >= received(other) { (one, other) } else { (other, one) }
}

/// So many times: the primary is killed under load, one of two standbys is promoted, the other follows it, and a new standby
/// takes the place of the dead one, which in every third round comes back and writes for a while.
fn storm(rounds: u32, major: u32) -> Vec<Duration> {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 3, major, &[]);
    let ports: Vec<u16> = members.nodes.iter().map(|node| node.port).collect();
    let init = members.nodes[0].tool("pgbench").args(["-i", "-q", "-s", "1"]).output().unwrap();
    assert!(init.status.success());
    let vault = Vault::new(dir.path());
    let running = vault.start(&members.conninfo());
    running.wait_streaming();
    let mut took = Vec::new();
    let mut primary = 0;
    for round in 1..=rounds {
        let standbys = [(primary + 1) % 3, (primary + 2) % 3];
        let timeline = TimelineId::new(round + 1).unwrap();
        let load = load(&members.nodes[primary]);
        let before = running.now().counters.received_bytes;
        running.wait("WAL flows", |status| status.counters.received_bytes > before + (256 << 10));
        let timer = FollowTimer::start(standbys.map(|standby| &members.nodes[standby]));
        members.nodes[primary].kill();
        end(load);
        let (next, other) = further(&members, standbys);
        members.nodes[next].promote();
        running.wait("the new primary is streamed from", |status| {
            status.streaming()
                && status.timeline == Some(timeline)
                && status.primary.as_ref().is_some_and(|p| p.1 == ports[next])
        });
        took.push(timer.stop());
        println!("round {round}: {:.2} s", took.last().unwrap().as_secs_f64());
        members.follow(other, next);
        if round % 3 == 0 {
            members.nodes[primary].start();
            members.nodes[primary]
                .sql("CREATE TABLE IF NOT EXISTS stale AS SELECT repeat('stale', 1000) FROM generate_series(1, 5000)");
            running.wait("it is told", |status| status.conflict.is_some());
            members.nodes[primary].kill();
        }
        // A new standby in its place, under its port.
        let name = format!("node-{primary}");
        fs::remove_dir_all(&members.nodes[primary].data).unwrap();
        let mut fresh = members.nodes[next].make_standby(dir.path(), &name);
        fresh.port = ports[primary];
        fresh.configure(&[]);
        fresh.start();
        members.nodes[primary] = fresh;
        for standby in [primary, other] {
            members.wait_replayed(standby, flushed(&members.nodes[next]));
        }
        primary = next;
    }
    wait("no conflict is left", || running.now().conflict.is_none());
    let end = flushed(&members.nodes[primary]);
    running.wait_shipped(end);
    let status = running.now();
    assert_eq!((status.gaps, status.failovers.len()), (vec![], rounds as usize));
    running.stop();
    assert_whole(&vault, &members.nodes[primary], rounds + 1, end);
    took
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn a_storm_of_failovers_is_followed_beyond_timeline_sixteen() {
    let mut took = storm(18, 15);
    took.sort_unstable();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("from accepting writes to streaming: median {median:.2?}, worst {worst:.2?} of {}", took.len());
    assert!(worst < Duration::from_secs(60), "{took:?}");
}

#[test]
#[ignore = "takes more than a minute: make chaos"]
fn a_minute_without_a_primary_is_one_of_streaming_from_a_standby() {
    let dir = test_dir();
    let mut members = Members::start(dir.path(), 3, 17, &[]);
    members.nodes[0].sql("CREATE TABLE t (n int)");
    let vault = Vault::new(dir.path());
    let running = vault.start(&members.conninfo());
    running.wait_streaming();
    let seen = flushed(&members.nodes[0]);
    members.wait_replayed(1, seen);
    members.wait_replayed(2, seen);
    members.nodes[0].kill();
    running.wait("streaming from a standby", |status| status.streaming() && status.primary.is_none());
    let (begin, reconnects) = (Instant::now(), running.now().counters.reconnects);
    while begin.elapsed() < Duration::from_secs(60) {
        assert!(running.now().streaming(), "{:#?}", running.now());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(running.now().counters.reconnects, reconnects, "the stream was not kept");
    members.nodes[1].promote();
    members.nodes[1].sql("INSERT INTO t VALUES (1)");
    let port = members.nodes[1].port;
    running
        .wait("the new primary", |status| status.streaming() && status.primary.as_ref().is_some_and(|p| p.1 == port));
    let end = flushed(&members.nodes[1]);
    running.wait_shipped(end);
    assert_eq!(running.now().gaps, vec![]);
    running.stop();
    assert_whole(&vault, &members.nodes[1], 2, end);
}
