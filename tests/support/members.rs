//! A cluster of several servers: one primary, streaming standbys, and what happens to them in a failover.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use wal::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, TimelinePath};

use super::LIMIT;
use super::pg::PgNode;
use super::vault::Vault;

/// Servers of one cluster, by the order of the conninfo.
pub struct Members {
    pub nodes: Vec<PgNode>,
}

impl Members {
    /// So many servers with segments of 1 MB: the first is the primary, the others follow it by streaming.
    pub fn start(base: &Path, count: usize, major: u32, settings: &[(&str, &str)]) -> Self {
        let settings: Vec<(&str, &str)> = [("wal_keep_size", "512MB")].iter().chain(settings).copied().collect();
        let mut primary = PgNode::init(base, "node-0", major, &["--wal-segsize=1"], &settings);
        primary.start();
        let mut nodes = vec![primary];
        for number in 1..count {
            let mut standby = nodes[0].make_standby(base, &format!("node-{number}"));
            standby.start();
            nodes.push(standby);
        }
        Self { nodes }
    }

    /// Names all of them.
    pub fn conninfo(&self) -> String {
        let hosts = vec!["127.0.0.1"; self.nodes.len()].join(",");
        let ports: Vec<String> = self.nodes.iter().map(|node| node.port.to_string()).collect();
        format!("host={hosts} port={} user=postgres", ports.join(","))
    }

    /// Points a server that runs as a standby at another primary.
    pub fn follow(&self, standby: usize, primary: usize) {
        follow(&self.nodes[standby], &self.nodes[primary]);
    }

    /// Makes a server that was stopped cleanly a standby of another one, and starts it.
    pub fn rejoin(&mut self, former: usize, primary: usize) {
        let conninfo = self.nodes[primary].conninfo();
        let node = &mut self.nodes[former];
        fs::write(node.data.join("standby.signal"), "").unwrap();
        node.configure(&[("primary_conninfo", &conninfo)]);
        // What ALTER SYSTEM and pg_basebackup wrote would win.
        let auto = node.data.join("postgresql.auto.conf");
        let text = fs::read_to_string(&auto).unwrap();
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("primary_conninfo")).collect();
        fs::write(&auto, kept.join("\n") + "\n").unwrap();
        node.start();
    }

    /// Waits until a standby has replayed everything before a position.
    pub fn wait_replayed(&self, standby: usize, lsn: Lsn) {
        wait(&format!("node {standby} replays {lsn}"), || {
            self.nodes[standby].sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")) == "t"
        });
    }

    /// Cuts a standby off from its primary: what is written from now on it never gets.
    pub fn cut_off(&self, standby: usize) {
        let node = &self.nodes[standby];
        node.sql("ALTER SYSTEM SET primary_conninfo = ''");
        node.sql("SELECT pg_reload_conf()");
        wait("the standby is cut off", || node.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    }
}

/// Points a standby at another primary.
pub fn follow(standby: &PgNode, primary: &PgNode) {
    standby.sql(&format!("ALTER SYSTEM SET primary_conninfo = '{}'", primary.conninfo()));
    standby.sql("SELECT pg_reload_conf()");
}

/// The end of what a primary has flushed, everything that was committed included.
pub fn flushed(node: &PgNode) -> Lsn {
    node.sql("SELECT pg_logical_emit_message(true, 'here', '')");
    node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

/// Polls until something holds.
#[track_caller]
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The timeline that a server writes, and its history.
pub fn history_of(node: &PgNode, timeline: u32) -> TimelineHistory {
    let timeline = TimelineId::new(timeline).unwrap();
    match fs::read(node.data.join("pg_wal").join(timeline.history_file_name())) {
        Ok(bytes) => TimelineHistory::parse(timeline, &bytes).unwrap(),
        Err(_) => TimelineHistory::root(timeline),
    }
}

/// Everything on the way from the first stored byte to `end`, along the history of the timeline that this server writes, is
/// stored without a gap, and is byte for byte what the server has of it.
#[track_caller]
pub fn assert_whole(vault: &Vault, node: &PgNode, timeline: u32, end: Lsn) {
    let size = SegmentSize::new(1 << 20).unwrap();
    let lineage = vault.lineage();
    let history = history_of(node, timeline);
    for (ancestor, _) in history.reigns().chain([(history.timeline(), end)]).filter(|(id, _)| id.get() > 1) {
        let stored = vault.runtime.block_on(lineage.history_bytes(ancestor)).unwrap();
        let theirs = fs::read(node.data.join("pg_wal").join(ancestor.history_file_name())).ok();
        assert!(
            stored.is_some() && (theirs.is_none() || stored.as_deref() == theirs.as_deref()),
            "history of {ancestor}"
        );
    }
    let coverage = vault.runtime.block_on(lineage.catalog()).unwrap().coverage;
    let first =
        coverage.timelines().flat_map(|timeline| coverage.ranges(timeline)).map(|range| range.start).min().unwrap();
    let path = TimelinePath::new(&history, size);
    assert_eq!(coverage.first_gap(&path, first, end), None, "{coverage:?}");
    let mut compared = 0;
    let mut position = first;
    while position < end {
        let name = SegmentName::containing(path.timeline_at(position), position, size);
        let stop = position.saturating_add(size.bytes());
        if let Ok(theirs) = fs::read(node.data.join("pg_wal").join(name.to_string())) {
            let (ours, until) =
                if vault.segments().contains(&name) { (vault.segment(name), stop) } else { vault.tail(name).unwrap() };
            let len = usize::try_from(until.min(end).bytes_since(position)).unwrap();
            assert!(ours[..len] == theirs[..len], "segment {name} differs from the server's");
            compared += 1;
        }
        position = stop;
    }
    assert!(compared > 0, "nothing could be compared");
}
