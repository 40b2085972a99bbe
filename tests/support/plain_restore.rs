//! Restores with PostgreSQL's own tools: pg_basebackup, and `cp` from a pg_receivewal directory. What the oracle is tested
//! with, and what pgvault's restores can be compared to.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use wal::Lsn;

use super::LIMIT;
use super::pg::{PgNode, give_to_server_user};
use super::truth::Target;

/// A base backup that pg_basebackup took.
pub struct PlainBackup {
    dir: PathBuf,
    major: u32,
    /// Where a restored server becomes consistent.
    pub stop: Lsn,
}

impl PlainBackup {
    pub fn take(node: &PgNode, dir: &Path) -> Self {
        let mut command = node.tool("pg_basebackup");
        let output = command.args(["-X", "none", "-c", "fast", "--no-sync", "-D"]).arg(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let manifest = std::fs::read(dir.join("backup_manifest")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let stop = manifest["WAL-Ranges"][0]["End-LSN"].as_str().unwrap().parse().unwrap();
        Self { dir: dir.to_owned(), major: node.major, stop }
    }

    /// Restores into a new node, replays WAL from `reference` up to the target, and waits until the server accepts writes.
    pub fn restore(&self, base: &Path, name: &str, reference: &Path, target: &Target) -> PgNode {
        let mut node = PgNode::at(base, name, self.major);
        let copied = Command::new("cp").arg("-a").arg(&self.dir).arg(&node.data).status().unwrap();
        assert!(copied.success());
        let from = reference.display();
        let restore_command = format!("cp {from}/%f \"%p\" 2>/dev/null || cp {from}/%f.partial \"%p\" 2>/dev/null");
        let mut settings = vec![("restore_command", restore_command)];
        settings.extend(target.settings());
        if settings.len() > 1 {
            settings.push(("recovery_target_action", "promote".to_owned()));
        }
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        node.configure(&settings);
        std::fs::write(node.data.join("recovery.signal"), "").unwrap();
        give_to_server_user(&node.data);
        node.start();
        wait_until_writable(&node);
        node
    }
}

/// Waits until recovery has ended; panics with the server's log when it says nothing new for long: gigabytes of WAL may be
/// replayed meanwhile.
pub fn wait_until_writable(node: &PgNode) {
    let mut told = 0;
    let mut deadline = Instant::now() + LIMIT;
    while node.try_sql("SELECT pg_is_in_recovery()").as_deref() != Ok("f") {
        let log = node.log();
        // Each attempt to connect is a FATAL of its own: only what recovery itself says counts.
        let said = log.lines().filter(|line| line.contains(" LOG: ")).count();
        if said != told {
            told = said;
            deadline = Instant::now() + LIMIT;
        }
        assert!(Instant::now() < deadline, "recovery does not end:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
