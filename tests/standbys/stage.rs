//! A primary that pgvault backs up, and a place for standbys of it.

use serde_json::Value;
use tempfile::TempDir;
use wal::Lsn;

use crate::support::members::{flushed, wait};
use crate::support::pg::{PgNode, major, test_dir};
use crate::support::pgvault::{Daemon, Pgvault};
use crate::support::scene::{configure, wait_stored};

pub(super) struct Stage {
    pub primary: PgNode,
    pub installed: Pgvault,
    pub daemon: Daemon,
    // Last, so that it outlives everything.
    pub dir: TempDir,
}

impl Stage {
    /// A server of this major, unless `make matrix` asks for another, with segments of 1 MB, a table with a row, and a daemon that streams.
    pub(super) fn start(usual: u32, settings: &[(&str, &str)]) -> Self {
        let dir = test_dir();
        let mut primary = PgNode::init(dir.path(), "primary", major(usual), &["--wal-segsize=1"], settings);
        primary.start();
        primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
        let installed = Pgvault::new(dir.path());
        installed.config_for(&primary, "");
        let daemon = installed.serve();
        installed.wait_streaming();
        Self { primary, installed, daemon, dir }
    }

    /// The same, with a backup.
    pub(super) fn backed_up(usual: u32, settings: &[(&str, &str)]) -> Self {
        let stage = Self::start(usual, settings);
        stage.backup();
        stage
    }

    pub(super) fn backup(&self) {
        self.installed.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    }

    pub(super) fn insert(&self, n: u32) {
        self.primary.sql(&format!("INSERT INTO t VALUES ({n})"));
    }

    /// Waits until everything that the primary has written is stored.
    pub(super) fn stored(&self) -> Lsn {
        wait_stored(&self.installed, &self.primary)
    }

    /// A directory of this name for a standby.
    pub(super) fn place(&self, name: &str) -> PgNode {
        PgNode::at(self.dir.path(), name, self.primary.major)
    }

    /// `standby create` into the node's directory with these arguments besides; its exit code and result.
    pub(super) fn create(&self, node: &PgNode, more: &[&str]) -> (i32, Value) {
        self.standby("create", node, more)
    }

    /// `standby create` or `refresh`, with the primary's conninfo unless another one or none is wanted.
    pub(super) fn standby(&self, what: &str, node: &PgNode, more: &[&str]) -> (i32, Value) {
        let conninfo = self.primary.conninfo();
        let mut args = vec!["standby", what, "main", "--to", node.data.to_str().unwrap()];
        if !more.contains(&"--primary-conninfo") && !more.contains(&"--no-config") {
            args.extend(["--primary-conninfo", &conninfo]);
        }
        args.extend(more);
        self.installed.json(&args)
    }

    /// A standby that was created with these arguments, started.
    pub(super) fn created(&self, name: &str, more: &[&str]) -> PgNode {
        let mut node = self.place(name);
        let (code, result) = self.create(&node, more);
        assert_eq!((code, &result["type"]), (0, &Value::from("result")), "{result}");
        configure(&node);
        node.start();
        node
    }
}

/// Waits until the standby streams from the primary through this slot, and has everything.
pub(super) fn wait_follows(standby: &PgNode, primary: &PgNode, slot: &str) {
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    wait("its slot is active", || primary.sql(&active) == "t");
    wait_streams(standby);
    wait_replayed(standby, flushed(primary));
}

/// Waits until the standby streams.
pub(super) fn wait_streams(standby: &PgNode) {
    wait("the standby streams", || standby.sql("SELECT status FROM pg_stat_wal_receiver") == "streaming");
}

pub(super) fn wait_replayed(standby: &PgNode, lsn: Lsn) {
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
    wait("the standby has replayed everything", || standby.sql(&sql) == "t");
}

pub(super) fn rows(node: &PgNode) -> String {
    node.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
}

/// The server's slots, without pgvault's own.
pub(super) fn slots(node: &PgNode) -> String {
    node.sql("SELECT coalesce(string_agg(slot_name, ',' ORDER BY slot_name), '') FROM pg_replication_slots WHERE slot_name <> 'pgvault'")
}
