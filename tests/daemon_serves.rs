//! Does the daemon serve: status, checks, window, metrics, signals, one at a time?

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::{Daemon, Pgvault};

struct Setup {
    node: PgNode,
    pgvault: Pgvault,
    // Last, so that it outlives the server.
    _dir: TempDir,
}

/// A server and a pgvault for it; nothing of pgvault runs yet.
fn setup(more: &str) -> Setup {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", 17);
    let pgvault = Pgvault::new(dir.path());
    pgvault.config_for(&node, more);
    Setup { node, pgvault, _dir: dir }
}

fn serve(setup: &Setup) -> Daemon {
    let daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    daemon
}

/// Metric names of INTERFACE section 7, spelled out.
fn documented_metrics() -> Vec<(String, Vec<String>)> {
    let table = include_str!("documented_metrics.txt");
    table
        .split_whitespace()
        .map(|word| match word.split_once('{') {
            None => (word.to_owned(), Vec::new()),
            Some((name, labels)) => {
                let labels = labels.trim_end_matches('}').split(',');
                (name.to_owned(), labels.map(|label| label.split('=').next().unwrap().to_owned()).collect())
            }
        })
        .collect()
}

#[test]
fn a_daemon_tells_how_its_cluster_fares() {
    let setup = setup("");
    let daemon = serve(&setup);
    let pgvault = &setup.pgvault;
    setup.node.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i");

    let (code, status) = pgvault.json(&["status"]);
    assert_eq!(code, 0);
    let cluster = &status["clusters"][0];
    assert_eq!(cluster["name"], "main");
    assert_eq!(cluster["postgres_version"], "17.11");
    assert_eq!(cluster["timeline"], 1);
    assert_eq!(cluster["primary"]["port"], setup.node.port);
    for key in [
        "received_lsn",
        "flushed_lsn",
        "archived_lsn",
        "shipped_lsn",
        "lag_bytes",
        "rpo_seconds",
        "spool_segments",
        "spool_bytes",
    ] {
        assert!(cluster["wal"].get(key).is_some(), "{key}: {cluster}");
    }
    assert!(
        cluster["window"].get("gaps").is_some() && cluster["failovers"].is_array() && cluster["backups"]["count"] == 0
    );
    pgvault.wait("the slot is seen", LIMIT, || {
        let slot = &pgvault.json(&["status", "main"]).1["clusters"][0]["slots"][0];
        slot["name"] == "pgvault" && slot["active"] == true && slot["retained_bytes"].is_u64()
    });
    let screen = pgvault.ok(["status"]);
    assert!(screen.starts_with("main  ") && screen.contains("WAL          streaming"), "{screen}");

    let (code, check) = pgvault.json(&["check"]);
    assert_eq!(code, 10, "there is no backup yet: {check}");
    let checks = check["clusters"][0]["checks"].as_array().unwrap();
    let of =
        |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {check}"));
    assert_eq!(of("streaming")["status"], "ok", "{check}");
    assert_eq!(of("connection")["status"], "ok", "{check}");
    assert_eq!(of("replication")["status"], "ok", "{check}");
    assert_eq!(of("repository")["status"], "ok", "{check}");
    assert_eq!(of("max_slot_wal_keep_size")["status"], "warn", "{check}");
    assert!(of("max_slot_wal_keep_size")["fix"].as_str().unwrap().contains("ALTER SYSTEM"));
    assert_eq!(of("backups")["status"], "failed", "{check}");
    let nagios = pgvault.run(["check", "--nagios"]);
    assert_eq!(nagios.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nagios.stdout).starts_with("PGVAULT CRITICAL - "));

    assert_eq!(pgvault.http("/livez").0, 200);
    assert_eq!(pgvault.http("/readyz").0, 200);
    assert_eq!(pgvault.http("/healthz").0, 503);
    assert_eq!(pgvault.http("/nowhere").0, 404);
    let (code, body) = pgvault.http("/api/v1/status");
    assert_eq!(code, 200);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["clusters"][0]["name"], "main");
    assert!(pgvault.run(["health"]).status.success());
    assert!(pgvault.run(["health", "--ready"]).status.success());
    assert!(!pgvault.run(["health", "--strict"]).status.success());
    assert_eq!(pgvault.json(&["health"]), (0, serde_json::json!({ "ok": true })));
    assert_eq!(pgvault.json(&["health", "--ready"]).1["ready"], true);
    let (code, refused) = pgvault.json(&["slot", "create"]);
    assert_eq!((code, &refused["code"]), (7, &Value::from("E0005")), "{refused}");
    daemon.stop();
}

#[test]
fn a_second_daemon_is_refused_and_told_who_serves() {
    let setup = setup("");
    let daemon = serve(&setup);
    let (code, error) = setup.pgvault.json(&["serve"]);
    assert_eq!(code, 7, "{error}");
    assert_eq!(error["code"], "E0402");
    assert!(error["causes"][0].as_str().unwrap().contains(&format!("pid {}", daemon.pid())), "{error}");
    daemon.kill();
    // What a killed daemon left behind is in nobody's way.
    serve(&setup).stop();
}

#[test]
fn every_documented_metric_has_a_producer() {
    let setup = setup("");
    let daemon = serve(&setup);
    let pgvault = &setup.pgvault;
    pgvault.wait("slots were asked for", LIMIT, || {
        pgvault
            .http("/metrics")
            .1
            .contains("pgvault_slot_active{cluster=\"main\",host=\"127.0.0.1\",slot=\"pgvault\"} 1")
    });
    let (code, text) = pgvault.http("/metrics");
    assert_eq!(code, 200);
    let present = |name: &str, labels: &[String]| {
        text.lines().any(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            let starts = rest.starts_with(['{', ' ']) || rest.starts_with("_bucket{");
            starts && labels.iter().all(|label| line.contains(&format!("{label}=\"")))
        })
    };
    for (name, labels) in documented_metrics() {
        assert!(present(&name, &labels), "{name}{labels:?} is documented and has no sample:\n{text}");
    }
    for (name, value) in [
        ("pgvault_up{cluster=\"main\"}", "1"),
        ("pgvault_wal_streaming{cluster=\"main\"}", "1"),
        ("pgvault_repository_up", "1"),
        ("pgvault_timeline{cluster=\"main\"}", "1"),
    ] {
        assert!(text.lines().any(|line| line == format!("{name} {value}")), "{name}: {text}");
    }
    let helps: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(helps.contains(name) || helps.contains(family), "{name} has no HELP");
        let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
        assert!(!labels.contains("0/") && !labels.contains("0000000"), "a position or file name as a label: {line}");
    }
    daemon.stop();
}

#[test]
fn metrics_are_there_before_anything_works() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config("[cluster.main]\nconninfo = \"host=127.0.0.1 port=1 user=x\"\n");
    let daemon = pgvault.serve();
    let text = pgvault.http("/metrics").1;
    for (name, _) in documented_metrics() {
        assert!(text.contains(&name), "{name} is missing at the start:\n{text}");
    }
    assert!(text.contains("pgvault_wal_streaming{cluster=\"main\"} 0"));
    // The process lives, whatever PostgreSQL does.
    assert_eq!(pgvault.http("/livez").0, 200);
    assert_eq!(pgvault.http("/healthz").0, 503);
    daemon.stop();
}

#[test]
fn the_first_backup_by_the_schedule_waits_for_no_spread_checkpoint() {
    let setup = setup("");
    let once_a_year =
        fs::read_to_string(&setup.pgvault.config).unwrap().replace("schedule = \"\"", "schedule = \"0 3 1 1 *\"");
    fs::write(&setup.pgvault.config, once_a_year).unwrap();
    setup.node.sql("CREATE TABLE t AS SELECT generate_series(1, 100000) i");
    let daemon = serve(&setup);
    setup.pgvault.wait("a backup", LIMIT, || {
        setup
            .pgvault
            .json(&["backup", "list"])
            .1
            .as_array()
            .is_some_and(|list| list.iter().any(|b| b["status"] == "ok"))
    });
    daemon.stop();
    let log = setup.node.log();
    assert!(log.contains("checkpoint starting: immediate force wait"), "{log}");
    assert!(!log.contains("checkpoint starting: force wait"), "{log}");
}

#[test]
fn a_reload_takes_what_is_right_and_keeps_the_old_when_it_is_wrong() {
    let setup = setup("");
    let daemon = serve(&setup);
    let pgvault = &setup.pgvault;
    let successful =
        |value: &str| pgvault.http("/metrics").1.contains(&format!("pgvault_config_last_reload_successful {value}"));
    assert!(successful("1"));

    let good = fs::read_to_string(&pgvault.config).unwrap();
    fs::write(&pgvault.config, good.replace("max_rpo", "max_rpoo")).unwrap();
    daemon.signal("HUP");
    pgvault.wait("the broken file is refused", LIMIT, || successful("0"));
    assert!(daemon.log().contains("unknown key `max_rpoo`"), "{}", daemon.log());
    // The command line reads the same broken file, so the daemon is asked over HTTP.
    let status: Value = serde_json::from_str(&pgvault.http("/api/v1/status").1).unwrap();
    assert_eq!(status["clusters"][0]["wal"]["streaming"], true);

    let conninfo = setup.node.conninfo();
    let second = format!("{good}\n[cluster.second]\nconninfo = \"{conninfo}\"\nslot = \"second\"\nschedule = \"\"\n");
    fs::write(&pgvault.config, &second).unwrap();
    daemon.signal("HUP");
    pgvault.wait("the second cluster streams", LIMIT, || {
        let status = pgvault.json(&["status", "second"]).1;
        status["clusters"][0]["wal"]["streaming"] == true
    });
    pgvault.wait("the reload is told", LIMIT, || successful("1"));
    pgvault.wait_streaming();

    fs::write(&pgvault.config, good).unwrap();
    daemon.signal("HUP");
    pgvault.wait("the second cluster is gone", LIMIT, || !pgvault.http("/metrics").1.contains("cluster=\"second\""));
    daemon.stop();
}

#[test]
fn a_log_that_was_renamed_is_begun_anew_at_a_reload() {
    let setup = setup("");
    let pgvault = &setup.pgvault;
    let log = pgvault.state.join("log/pgvault.log");
    let text = fs::read_to_string(&pgvault.config).unwrap();
    let with_file = format!("level = \"debug\"\nfile = \"{}\"", log.display());
    fs::write(&pgvault.config, text.replace("level = \"debug\"", &with_file)).unwrap();
    let daemon = serve(&setup);
    let moved = log.with_extension("1.moved");
    fs::rename(&log, &moved).unwrap();
    daemon.signal("HUP");
    pgvault.wait("a new log is begun", LIMIT, || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("configuration was read again"))
    });
    assert!(!fs::read_to_string(&moved).unwrap().contains("configuration was read again"));
    daemon.stop();
}

#[test]
fn an_end_in_good_order_leaves_everything_in_the_repository() {
    let setup = setup("");
    let daemon = serve(&setup);
    setup.node.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    let end = setup.node.sql("SELECT pg_current_wal_flush_lsn()");
    daemon.stop();
    assert!(!setup.pgvault.state.join("control.sock").exists());
    let (code, stored) = setup.pgvault.json(&["wal", "list"]);
    assert_eq!(code, 0, "{stored}");
    let last = stored["ranges"].as_array().unwrap().last().unwrap()["to_lsn"].as_str().unwrap().to_owned();
    let reaches = setup.node.sql(&format!("SELECT '{last}'::pg_lsn >= '{end}'::pg_lsn"));
    assert_eq!(reaches, "t", "stored up to {last}, written up to {end}");
    // A daemon that ended leaves nothing that a client could wait for.
    let (code, status) = setup.pgvault.json(&["status"]);
    assert_eq!(code, 0);
    assert_eq!(status["clusters"][0]["wal"]["streaming"], false);
}

#[test]
fn backups_are_taken_listed_and_make_a_window() {
    let setup = setup("");
    let daemon = serve(&setup);
    let pgvault = &setup.pgvault;
    setup.node.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    let (code, backup) =
        pgvault.json(&["backup", "now", "--wait", "--fast-checkpoint", "--name", "first", "--annotation", "by=test"]);
    assert_eq!(code, 0, "{backup}\n{}", daemon.log());
    assert_eq!(backup["type"], "result");
    assert_eq!(backup["status"], "ok", "{backup}");
    let id = backup["id"].as_str().unwrap();
    setup.node.sql("INSERT INTO t SELECT generate_series(1001, 2000)");

    let (code, list) = pgvault.json(&["backup", "list"]);
    assert_eq!(code, 0);
    let listed = &list[0];
    for key in [
        "id",
        "cluster",
        "lineage",
        "status",
        "kind",
        "started_at",
        "stopped_at",
        "start_lsn",
        "stop_lsn",
        "timeline",
        "postgres_version",
        "size_bytes",
        "stored_bytes",
        "new_bytes",
        "files",
        "keep",
        "annotations",
        "recoverable_to",
    ] {
        assert!(!listed[key].is_null(), "{key}: {listed}");
    }
    assert_eq!(listed["annotations"]["by"], "test");
    let (code, shown) = pgvault.json(&["backup", "show", &id[..12]]);
    assert_eq!((code, &shown["id"]), (0, &Value::from(id)));
    assert_eq!(pgvault.json(&["backup", "show", "latest"]).1["id"], id);
    assert_eq!(pgvault.json(&["backup", "show", "20000101"]).0, 6);

    let (code, window) = pgvault.json(&["window"]);
    assert_eq!(code, 0, "{window}");
    let range = &window["ranges"][0];
    assert_eq!(range["first_backup"], id);
    assert_eq!(window["gaps"], Value::Array(Vec::new()));
    let to = range["to"]["time"].as_str().unwrap();
    let (code, at) = pgvault.json(&["window", "--at", to]);
    assert_eq!(code, 0, "{at}");
    assert_eq!(at["at"]["reachable"], true);
    assert_eq!(at["at"]["backup"], id);
    let (code, early) = pgvault.json(&["window", "--at", "2001-01-01T00:00:00Z"]);
    assert_eq!(code, 8, "{early}");
    assert_eq!(early["at"]["reachable"], false);
    assert!(!early["at"]["reason"].is_null());

    let (code, check) = pgvault.json(&["check", "--deep"]);
    assert_eq!(code, 0, "{check}");
    let deep = check["clusters"][0]["checks"].as_array().unwrap().iter().find(|check| check["name"] == "deep").unwrap();
    assert_eq!(deep["status"], "ok", "{deep}");
    assert_eq!(pgvault.run(["check", "--strict"]).status.code(), Some(11));
    assert_eq!(pgvault.http("/healthz").0, 200);
    assert_eq!(pgvault.http("/healthz?strict=1").0, 503);
    daemon.stop();

    let to = pgvault.state.join("standby");
    let standby = ["--standby", "--primary-conninfo", "host=127.0.0.1 user=postgres", "--to", to.to_str().unwrap()];
    let plan = pgvault.ok(["recover", "main", "--dry-run"].iter().chain(&standby));
    assert!(plan.contains("standby.signal") && plan.contains("it follows its primary as a standby"), "{plan}");
    assert!(!plan.contains("(s)"), "{plan}");
    let done = pgvault.ok(["recover", "main"].iter().chain(&standby));
    assert!(done.contains("it follows its primary as a standby"), "{done}");

    // The disaster case: nothing runs, and the repository alone answers the same.
    let (code, alone) = pgvault.json(&["window", "main"]);
    assert_eq!(code, 0, "{alone}");
    assert_eq!(alone["ranges"][0]["first_backup"], id);
    assert_eq!(pgvault.json(&["backup", "list"]).1[0]["id"], id);
}

#[test]
fn without_a_daemon_a_backup_brings_its_own_wal() {
    let setup = setup("");
    setup.node.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    let (code, backup) = setup.pgvault.json(&["backup", "now", "--fast-checkpoint"]);
    assert_eq!(code, 0, "{backup}");
    assert_eq!(backup["status"], "ok", "{backup}");
    let (code, window) = setup.pgvault.json(&["window"]);
    assert_eq!(code, 0);
    assert_eq!(window["ranges"][0]["first_backup"], backup["id"]);
}

#[test]
fn acting_over_http_needs_permission_and_the_token() {
    let setup = setup("");
    let token = setup.pgvault.dir.join("token");
    fs::write(&token, "s3cret\n").unwrap();
    let text = fs::read_to_string(&setup.pgvault.config).unwrap();
    let act = |pgvault: &Pgvault, token: Option<&str>| post(pgvault, "/api/v1/backups?cluster=main", token);
    let daemon = serve(&setup);
    assert_eq!(act(&setup.pgvault, Some("Bearer s3cret")), 403, "actions are off");
    daemon.stop();
    let allowed = text.replace("[http]", &format!("[http]\nactions = true\ntoken_file = \"{}\"", token.display()));
    fs::write(&setup.pgvault.config, allowed).unwrap();
    let daemon = serve(&setup);
    assert_eq!(act(&setup.pgvault, None), 401);
    assert_eq!(act(&setup.pgvault, Some("Bearer wrong")), 401);
    assert_eq!(act(&setup.pgvault, Some("Basic s3cret")), 401);
    assert_eq!(act(&setup.pgvault, Some("bearer s3cret")), 202, "schemes are told apart without regard to case");
    assert!(!daemon.log().contains("s3cret"));
    daemon.stop();
}

fn post(pgvault: &Pgvault, path: &str, token: Option<&str>) -> u16 {
    use std::io::{Read, Write};
    let address = format!("127.0.0.1:{}", pgvault.http_port);
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let token = token.map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\n{token}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_port_that_is_taken_is_said_clearly() {
    let setup = setup("");
    let _taken = std::net::TcpListener::bind(("127.0.0.1", setup.pgvault.http_port)).unwrap();
    let (code, error) = setup.pgvault.json(&["serve"]);
    assert_eq!(code, 3, "{error}");
    assert!(error["message"].as_str().unwrap().contains(&setup.pgvault.http_port.to_string()), "{error}");
    assert!(error["help"].to_string().contains("PGVAULT_LISTEN"), "{error}");
}

#[test]
fn one_broken_cluster_never_stops_the_others() {
    let setup = setup("");
    let text = fs::read_to_string(&setup.pgvault.config).unwrap();
    fs::write(
        &setup.pgvault.config,
        format!("{text}\n[cluster.broken]\nconninfo = \"host=127.0.0.1 port=1 user=x\"\n"),
    )
    .unwrap();
    let daemon = serve(&setup);
    setup.pgvault.wait("the broken one tells why", LIMIT, || {
        !setup.pgvault.json(&["status", "broken"]).1["clusters"][0]["wal"]["error"].is_null()
    });
    let (code, status) = setup.pgvault.json(&["status"]);
    assert_eq!(code, 0);
    let names: Vec<&str> = status["clusters"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["broken", "main"]);
    let of = |name: &str| status["clusters"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    assert_eq!(of("main")["wal"]["streaming"], true);
    assert_eq!(of("broken")["wal"]["streaming"], false);
    daemon.stop();
}

#[test]
fn the_documented_metrics_are_those_of_the_interface() {
    // The contract lies outside of this repository; where it is at hand, the copy must be the same.
    let Ok(interface) = fs::read_to_string(Path::new("/work/shared/INTERFACE.md")) else { return };
    let section = interface.split("## 7. Metrics").nth(1).unwrap().split("## 8.").next().unwrap();
    let named: BTreeSet<&str> = section
        .split('`')
        .filter(|word| word.starts_with("pgvault_"))
        .map(|word| word.split('{').next().unwrap())
        .collect();
    let copied: BTreeSet<String> = documented_metrics().into_iter().map(|(name, _)| name).collect();
    for name in named {
        assert!(copied.contains(name), "{name} is not in documented_metrics.txt");
    }
}
