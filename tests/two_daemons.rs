//! Two daemons on one cluster and one repository, with slots of their own or with one slot: does anything get in the way?

use std::time::{Duration, Instant};

use pgvault::storage::StorageOptions;
use serde_json::Value;

use crate::support::attacked::{Attacked, LIMIT, stored_at, wait_shipped};
use crate::support::fake_s3::{Conditions, FakeS3Process};
use crate::support::pgvault::Pgvault;
use crate::support::s3;
use crate::support::scene::store_at;

fn wal(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

#[test]
fn both_make_progress_and_nothing_is_overwritten() {
    let it = Attacked::new(&[("wal_sender_timeout", "4s")], "slot = \"first\"\n");
    let other_dir = it.path("second");
    std::fs::create_dir(&other_dir).unwrap();
    let mut second = Pgvault::new(&other_dir);
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
        pgvault.wait("nothing is wrong", LIMIT, || wal(pgvault)["error"].is_null());
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

/// The same cluster, slot and repository from another host: another installation with a state directory of its own.
fn other_host(it: &Attacked, options: &StorageOptions) -> Pgvault {
    let dir = it.path("second");
    std::fs::create_dir(&dir).unwrap();
    let second = Pgvault::new(&dir);
    second.config_for(&it.node, "");
    store_at(&second, options);
    second
}

/// How long the server waits for a receiver that says nothing.
fn be_patient(it: &Attacked, timeout: &str) {
    it.node.sql(&format!("ALTER SYSTEM SET wal_sender_timeout = '{timeout}'"));
    it.node.sql("SELECT pg_reload_conf()");
}

/// Two with one configuration on two hosts: one of them has the slot, the other says so and waits. The one that works is
/// frozen until the server gives it up, the other takes over, and the first one comes back to a world that went on.
fn frozen_and_thawed(options: &StorageOptions, what: &str) {
    let it = Attacked::new(&[], "");
    store_at(&it.pgvault, options);
    let second = other_host(&it, options);
    let hosts = [&it.pgvault, &second];
    let streams = |pgvault: &Pgvault| wal(pgvault)["streaming"] == true;
    // The repository is made once: where the store ignores conditions, a marker made twice keeps the later one's random id.
    it.pgvault.ok(["repo", "init"]);
    // Two first contacts in one moment begin one lineage, also where the store cannot say who was first.
    let mut daemons = [it.pgvault.spawn_serve(&[]), second.spawn_serve(&[])];
    let working = || hosts.iter().position(|host| streams(host));
    second.wait("one of the two streams", LIMIT, || working().is_some());
    let reference = it.reference();
    let load = it.load();
    let mut at_work = working().unwrap();
    hosts[at_work].ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    for round in 0..2 {
        let waiting = 1 - at_work;
        // Who waits tells who has the slot, in status and check.
        hosts[waiting].wait("the other one says why it waits", LIMIT, || {
            let error = wal(hosts[waiting])["error"].clone();
            error.as_str().is_some_and(|error| error.contains("slot") && error.contains("active"))
        });
        let (_, check) = hosts[waiting].json(&["check", "main"]);
        let finding = |name: &str| {
            let checks = check["clusters"][0]["checks"].as_array().unwrap();
            checks.iter().find(|check| check["name"] == name).unwrap().clone()
        };
        assert_eq!(finding("streaming")["status"], "failed", "{check:#}");
        assert!(finding("streaming")["message"].as_str().unwrap().contains("active"), "{check:#}");
        println!("{what}, round {round}: {}", wal(hosts[waiting])["error"]);
        load.wait_for_more(30);
        daemons[at_work].signal("STOP");
        // Impatient only now: a busy machine would otherwise make the two change places by itself.
        be_patient(&it, "2s");
        hosts[waiting].wait("the other one takes over", LIMIT, || streams(hosts[waiting]));
        be_patient(&it, "60s");
        load.wait_for_more(50);
        it.node.sql("SELECT pg_switch_wal()");
        wait_shipped(hosts[waiting], it.end());
        daemons[at_work].signal("CONT");
        hosts[at_work].wait("the thawed one finds out that it is not alone", LIMIT, || {
            wal(hosts[at_work])["error"].as_str().is_some_and(|error| error.contains("active"))
        });
        load.wait_for_more(30);
        at_work = waiting;
    }
    load.stop();
    let end = it.end();
    wait_shipped(hosts[at_work], end);
    let truth = it.truth(reference, end);
    it.assert_holds_exactly(&stored_at(&it.pgvault, options), what);
    for daemon in &mut daemons {
        assert!(!daemon.has_ended());
    }
    for daemon in daemons {
        daemon.stop();
    }
    // Whoever is asked: what is stored is one history.
    it.assert_latest_is_exact(truth, end);
}

#[test]
fn with_one_slot_one_works_and_the_other_says_why_it_waits() {
    frozen_and_thawed(&s3::server().fresh(), "SeaweedFS");
}

#[test]
fn the_same_where_the_store_ignores_conditions() {
    let store = FakeS3Process::start(Conditions::Ignored);
    frozen_and_thawed(&store.fake.options(), "a store that ignores conditions");
    assert_eq!(store.fake.rewritten(), Vec::<String>::new());
}
