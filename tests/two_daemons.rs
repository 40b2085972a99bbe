//! Two daemons on one cluster and one repository, each with a slot and a state of its own: does anything get in the way?

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::attacked::{Attacked, LIMIT, install, wait_shipped};
use crate::support::pgvault::Pgvault;

fn wal(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

#[test]
fn both_make_progress_and_nothing_is_overwritten() {
    let it = Attacked::new(&[("wal_sender_timeout", "4s")], "slot = \"first\"\n");
    let other_dir = it.path("second");
    std::fs::create_dir(&other_dir).unwrap();
    let mut second = install(&other_dir);
    second.repository.clone_from(&it.pgvault.repository);
    second.config_for(&it.node, "slot = \"second\"\n");
    let first = &it.pgvault;

    let daemons = [first.serve(), second.serve()];
    for pgvault in [first, &second] {
        pgvault.wait_streaming();
    }
    let reference = it.reference();
    first.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let load = it.load();
    for frozen in [0, 1] {
        load.wait_for_more(60);
        // Longer than the server's patience: it loses the connection without knowing.
        daemons[frozen].signal("STOP");
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            load.wait_for_more(10);
        }
        it.node.sql("SELECT pg_switch_wal()");
        // The other one is not held up.
        wait_shipped([&second, first][frozen], it.end());
        daemons[frozen].signal("CONT");
        let thawed = [first, &second][frozen];
        thawed.wait("the thawed one goes on", LIMIT, || wal(thawed)["streaming"] == true);
    }
    // Both are killed and started at the same moment.
    for daemon in daemons {
        daemon.kill();
    }
    let daemons = [first.spawn_serve(&[]), second.spawn_serve(&[])];
    load.wait_for_more(60);
    second.wait("the second can take a backup", LIMIT, || {
        second.run(["backup", "now", "main", "--wait", "--fast-checkpoint"]).status.success()
    });
    load.wait_for_more(30);
    load.stop();
    let end = it.end();
    for pgvault in [first, &second] {
        wait_shipped(pgvault, end);
        let wal = wal(pgvault);
        assert_eq!(wal["error"], Value::Null, "{wal:#}");
    }
    let (code, list) = first.json(&["backup", "list"]);
    assert_eq!((code, list.as_array().unwrap().len()), (0, 2), "{list:#}");
    // The end lies in tails, which both have cut where they liked.
    let truth = it.truth(reference, end);
    it.assert_stored_exactly("two daemons");
    for daemon in daemons {
        daemon.stop();
    }
    it.assert_latest_is_exact(truth, end);
}
