//! Does every member keep the WAL that pgvault does not hold yet, and no more?

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use wal::Lsn;

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Pgvault;

struct Setup {
    primary: PgNode,
    standbys: Vec<PgNode>,
    pgvault: Pgvault,
    // Last, so that it outlives the servers.
    _dir: TempDir,
}

/// A primary with two standbys, and a pgvault that knows all three.
fn setup(more: &str) -> Setup {
    let dir = test_dir();
    let mut primary = PgNode::init(dir.path(), "pg1", 17, &["--wal-segsize=1"], &[("max_slot_wal_keep_size", "512MB")]);
    primary.start();
    let standbys = ["pg2", "pg3"].map(|name| {
        let mut standby = primary.make_standby(dir.path(), name);
        standby.start();
        standby
    });
    let pgvault = Pgvault::new(dir.path());
    let ports: Vec<String> = std::iter::once(&primary).chain(&standbys).map(|node| node.port.to_string()).collect();
    let conninfo = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port={} user=postgres target_session_attrs=primary",
        ports.join(",")
    );
    pgvault.config(&format!("[cluster.main]\nconninfo = \"{conninfo}\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n{more}"));
    Setup { primary, standbys: standbys.into(), pgvault, _dir: dir }
}

impl Setup {
    fn nodes(&self) -> impl Iterator<Item = &PgNode> {
        std::iter::once(&self.primary).chain(&self.standbys)
    }

    /// Three segments of WAL, and something after them.
    fn write(&self) -> Lsn {
        for _ in 0..3 {
            self.primary.sql("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 100000)), pg_switch_wal()");
        }
        self.primary.sql("CHECKPOINT");
        lsn(&self.primary.sql("SELECT pg_current_wal_flush_lsn()"))
    }

    fn flushed(&self) -> Lsn {
        lsn(self.pgvault.json(&["status"]).1["clusters"][0]["wal"]["flushed_lsn"].as_str().unwrap())
    }
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no position"))
}

/// Where the slot of this name keeps WAL from.
fn restart(node: &PgNode, slot: &str) -> Option<Lsn> {
    let text = node.sql(&format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"));
    (!text.is_empty()).then(|| lsn(&text))
}

#[test]
fn every_member_keeps_what_is_not_held_yet_and_lets_go_of_the_rest() {
    let setup = setup("");
    let daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    let all_have = || setup.nodes().all(|node| restart(node, "pgvault").is_some());
    setup.pgvault.wait("a slot on every member", LIMIT, all_have);

    let target = setup.write();
    let follows = |node: &PgNode| {
        let before = restart(node, "pgvault").unwrap();
        let held = setup.flushed();
        assert!(before <= held, "{before} is beyond {held}, up to which WAL is durable here");
        target.bytes_since(before) <= 1 << 20
    };
    setup.pgvault.wait("the slots of idle members move on", LIMIT, || setup.nodes().all(follows));

    // One that vanished on a standby is made again; one that somebody else uses is left alone.
    // It may be moved on in this very moment.
    setup.pgvault.wait("it is dropped", LIMIT, || {
        setup.standbys[0].try_sql("SELECT pg_drop_replication_slot('pgvault')").is_ok()
    });
    setup.pgvault.wait("a slot on every member again", LIMIT, all_have);

    // What pgvault does not hold stays on every member while it is away.
    daemon.stop();
    setup.nodes().for_each(|node| node.wait_idle("pgvault"));
    let held: Vec<Lsn> = setup.nodes().map(|node| restart(node, "pgvault").unwrap()).collect();
    setup.write();
    std::thread::sleep(Duration::from_secs(1));
    let after: Vec<Lsn> = setup.nodes().map(|node| restart(node, "pgvault").unwrap()).collect();
    assert_eq!(held, after);

    let (_, shown) = setup.pgvault.json(&["slot", "show"]);
    let slots = shown["slots"].as_array().unwrap();
    assert_eq!(slots.len(), 3, "{shown}");
    assert!(slots.iter().all(|slot| slot["exists"] == true && slot["wal_status"] == "reserved"), "{shown}");
}

#[test]
fn the_slots_of_an_ha_manager_are_never_touched() {
    let setup = setup("create_slot = false\n");
    setup.primary.sql("SELECT pg_create_physical_replication_slot('pgvault', true)");
    setup.standbys[0].sql("SELECT pg_create_physical_replication_slot('pgvault', true)");
    let kept = restart(&setup.standbys[0], "pgvault");
    let _daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    let target = setup.write();
    setup.pgvault.wait("the stream has it", LIMIT, || setup.flushed() >= target);
    // Longer than a round of looking.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(restart(&setup.standbys[0], "pgvault"), kept);
    assert_eq!(restart(&setup.standbys[1], "pgvault"), None);
}

/// Answers `/cluster` and `/config` as Patroni does; the contents can be changed. Its address.
fn fake_patroni(cluster: &Arc<Mutex<String>>, config: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let cluster = Arc::clone(cluster);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // A client that goes away is its own business.
            let Ok(count) = stream.read(&mut request) else { continue };
            let asked = String::from_utf8_lossy(&request[..count]).into_owned();
            let body = if asked.starts_with("GET /cluster ") {
                cluster.lock().unwrap().clone()
            } else {
                assert!(asked.starts_with("GET /config "), "{asked}");
                config.to_owned()
            };
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    format!("http://{address}")
}

#[test]
fn members_that_only_patroni_names_are_kept_too_and_a_disagreement_is_told() {
    let setup = setup("");
    let members = |leader: usize| {
        let member = |(index, node): (usize, &PgNode)| {
            let role = if index == leader { "leader" } else { "replica" };
            format!(
                "{{\"name\":\"pg{}\",\"role\":\"{role}\",\"state\":\"running\",\"host\":\"127.0.0.1\",\"port\":{},\"timeline\":1}}",
                index + 1,
                node.port
            )
        };
        format!("{{\"members\":[{}]}}", setup.nodes().enumerate().map(member).collect::<Vec<_>>().join(","))
    };
    let told = Arc::new(Mutex::new(members(0)));
    let url = fake_patroni(&told, "{\"ignore_slots\":[{\"name\":\"pgvault\",\"type\":\"physical\"}]}");
    // A member that does not answer is passed over.
    setup.pgvault.config_for(&setup.primary, &format!("patroni_urls = [\"http://127.0.0.1:1\", \"{url}\"]\n"));
    let patroni = |expected: &str| {
        let (_, checks) = setup.pgvault.json(&["check"]);
        let checks = checks["clusters"][0]["checks"].as_array().unwrap().clone();
        checks.into_iter().any(|check| check["name"] == "patroni" && check["status"] == expected)
    };
    let daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    let all_have = || setup.nodes().all(|node| restart(node, "pgvault").is_some());
    setup.pgvault.wait("a slot on every member", LIMIT, all_have);
    setup.pgvault.wait("all agree", LIMIT, || patroni("ok"));
    setup.pgvault.wait("status shows them", LIMIT, || {
        setup.pgvault.json(&["status"]).1["clusters"][0]["slots"].as_array().is_some_and(|slots| slots.len() == 3)
    });

    // Patroni's word alone moves nothing: the one that it calls the leader is a standby.
    *told.lock().unwrap() = members(1);
    setup.pgvault.wait("the disagreement is told", LIMIT, || patroni("warn"));
    let status = setup.pgvault.json(&["status"]).1;
    assert_eq!(status["clusters"][0]["primary"]["port"], setup.primary.port, "{status}");
    daemon.stop();
    setup.nodes().for_each(|node| node.wait_idle("pgvault"));

    // The commands know all members as well.
    let (code, dropped) = setup.pgvault.json(&["slot", "drop", "--yes"]);
    assert_eq!((code, dropped["members"].as_array().map(Vec::len)), (0, Some(3)), "{dropped}");
    assert!(setup.nodes().all(|node| restart(node, "pgvault").is_none()));
    assert_eq!(setup.pgvault.json(&["slot", "drop", "--yes"]).0, 6);
    let (code, created) = setup.pgvault.json(&["slot", "create"]);
    assert_eq!((code, &created["done"]), (0, &"created".into()), "{created}");
    assert!(all_have());
    assert_eq!(setup.pgvault.json(&["slot", "create"]).0, 7);
}
