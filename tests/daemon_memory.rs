//! Does the daemon's memory stay small, however large the cluster?

use crate::support::attacked::install;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Daemon;

/// What the daemon may need at most, in MiB.
const LIMIT_MIB: u64 = 200;

/// The most that the process ever had in memory, in MiB (proc_pid_status(5)).
fn peak_mib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn wal_and_a_backup_of_more_than_that_fit_into_it() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &[], &[("max_wal_size", "4GB"), ("wal_level", "replica")]);
    node.start();
    let pgvault = install(dir.path());
    pgvault.config_for(&node, "");
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    // Rows that do not compress: everything that waits to be stored is as large as it was.
    node.sql(
        "CREATE TABLE big AS SELECT n, string_agg(sha256((n * 100 + k)::text::bytea), '') AS pad
         FROM generate_series(1, 60000) n, generate_series(1, 60) k GROUP BY n;
         CREATE TABLE more AS SELECT n, sha256(n::text::bytea) || pad AS pad FROM big;
         CHECKPOINT",
    );
    let size: u64 = node.sql("SELECT pg_database_size('postgres') / 1024 / 1024").parse().unwrap();
    assert!(size > LIMIT_MIB, "{size} MiB");
    crate::support::attacked::wait_shipped(&pgvault, node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap());
    let for_wal = peak_mib(&daemon);
    daemon.stop();
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let for_backup = peak_mib(&daemon);
    println!("{size} MiB: peak {for_wal} MiB when their WAL came, {for_backup} MiB for a backup");
    assert!(for_wal < LIMIT_MIB, "peak {for_wal} MiB for the WAL of {size} MiB");
    assert!(for_backup < LIMIT_MIB, "peak {for_backup} MiB for a backup of {size} MiB");
    daemon.stop();
}
