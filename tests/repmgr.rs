//! Does pgvault follow a cluster under repmgr: a promotion by hand, a rejoin, a failover by repmgrd? Run by `make integration`.

use std::time::Instant;

use wal::Lsn;

use crate::support::follow_timer::FollowTimer;
use crate::support::ledger::Ledger;
use crate::support::page::snippet;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::repmgr::RepmgrCluster;
use crate::support::scene::LIMIT;
use crate::support::survivor::nothing_is_lost;

/// Both members have our slot, near the end of the primary's WAL.
fn slots_follow(pgvault: &Pgvault, cluster: &RepmgrCluster, primary: usize) {
    cluster.nodes[primary].sql("SELECT pg_switch_wal()");
    let end: Lsn = cluster.nodes[primary].sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let near = |node: &PgNode| {
        let sql = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pgvault'";
        let kept: Option<Lsn> = node.try_sql(sql).ok().and_then(|text| text.parse().ok());
        kept.is_some_and(|kept| end.bytes_since(kept) <= 2 << 20)
    };
    pgvault.wait("slots on both members, near the end", LIMIT, || cluster.nodes.iter().all(near));
}

#[test]
#[ignore = "needs repmgr: make integration"]
fn a_promotion_by_hand_a_rejoin_and_a_failover_by_repmgrd_are_followed() {
    let began = Instant::now();
    let dir = test_dir();
    let mut cluster = RepmgrCluster::start(dir.path());
    let ledger = Ledger::create(&cluster.nodes[0], &dir.path().join("ledger"), None);
    let pgvault = Pgvault::new(dir.path());
    let toml =
        snippet("docs/INTEGRATIONS.md", "repmgr", "toml").replace("host=pg1,pg2 user=pgvault", &cluster.conninfo());
    assert!(!toml.contains("pg1"), "{toml}");
    pgvault.config(&format!("{toml}schedule = \"\"\nmax_rpo = \"500ms\"\n"));
    let load = ledger.load(&cluster.nodes[0], 3);
    load.wait_for_more(20);
    let _daemon = pgvault.serve();
    pgvault.wait_streaming();
    let (code, backup) = pgvault.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert_eq!(code, 0, "{backup}");
    slots_follow(&pgvault, &cluster, 0);

    let timer = FollowTimer::start([&cluster.nodes[1]]);
    cluster.kill(0);
    cluster.repmgr(1, &["standby", "promote"]);
    load.redirect(&cluster.nodes[1]);
    let waited = timer.stop();
    println!("kill -9 and standby promote: streaming {} ms after the new primary accepts", waited.as_millis());
    pgvault.wait_streaming();
    load.wait_for_more(50);
    // Before PostgreSQL 16 pg_rewind finds the fork only after a checkpoint on the new timeline, and rewinds nothing until then.
    cluster.nodes[1].sql("CHECKPOINT");
    cluster.rejoin(0);
    slots_follow(&pgvault, &cluster, 1);

    cluster.watch();
    let timer = FollowTimer::start([&cluster.nodes[0]]);
    // It takes repmgrd a moment to know both members.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let start = Instant::now();
    cluster.kill(1);
    cluster.wait_primary(0);
    let took = start.elapsed();
    load.redirect(&cluster.nodes[0]);
    let waited = timer.stop();
    println!(
        "kill -9 and repmgrd: a new primary after {:.1} s; streaming {} ms after it accepts",
        took.as_secs_f64(),
        waited.as_millis()
    );
    pgvault.wait_streaming();
    load.wait_for_more(50);
    load.stop();
    nothing_is_lost(&pgvault, &ledger, &cluster.nodes[0], dir.path(), false);
    println!("{:.0} s in all", began.elapsed().as_secs_f64());
}
