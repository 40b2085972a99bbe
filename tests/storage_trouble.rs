//! Does the daemon get over trouble with its store under load: away, slow, lying, refusing? Nothing lost, nothing stored
//! twice with other bytes, no restart, and every trouble told while it lasts.

use std::fs;
use std::time::{Duration, Instant};

use pgvault::storage::StorageOptions;
use serde_json::Value;

use crate::support::attacked::{Attacked, LIMIT, stored_at};
use crate::support::fake_s3::{Conditions, FakeS3Process, Wrong};
use crate::support::filler::Filler;
use crate::support::pgvault::{Daemon, Pgvault};
use crate::support::proxy::{Direction, Proxy};
use crate::support::s3;
use crate::support::scene::store_at;

/// What `status` says of the WAL.
fn wal(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

fn position(wal: &Value, name: &str) -> u64 {
    wal[name].as_str().map_or(0, |text| text.parse::<wal::Lsn>().unwrap().as_u64())
}

/// One metric without labels besides the cluster.
fn metric(pgvault: &Pgvault, name: &str) -> f64 {
    let (_, text) = pgvault.http("/metrics");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Lines of the daemon's log that are warnings or errors.
fn complaints(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count()
}

/// A busy cluster whose repository lies behind `endpoint`.
struct Trouble {
    it: Attacked,
    options: StorageOptions,
    daemon: Daemon,
    reference: crate::support::receivewal::ReceiveWal,
    load: crate::support::ledger::Load,
    begun_complaints: usize,
    begun: Instant,
}

impl Trouble {
    fn begin(options: StorageOptions, endpoint: Option<String>, settings: &[(&str, &str)], spool: &str) -> Self {
        let it = Attacked::new(settings, "");
        let through = StorageOptions { endpoint: endpoint.or_else(|| options.endpoint.clone()), ..options.clone() };
        store_at(&it.pgvault, &through);
        let text = fs::read_to_string(&it.pgvault.config).unwrap();
        fs::write(&it.pgvault.config, format!("{text}\n[spool]\n{spool}\n")).unwrap();
        let daemon = it.pgvault.serve();
        it.pgvault.wait_streaming();
        let reference = it.reference();
        let load = it.load();
        it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        load.wait_for_more(20);
        let begun_complaints = complaints(&daemon);
        Self { it, options, daemon, reference, load, begun_complaints, begun: Instant::now() }
    }

    fn pgvault(&self) -> &Pgvault {
        &self.it.pgvault
    }

    /// Waits until `status`, `check` and the metrics tell that nothing is stored; how long that took is printed.
    fn wait_told(&self, what: &str) -> String {
        let begun = Instant::now();
        let mut said = String::new();
        self.pgvault().wait(&format!("{what} is told"), LIMIT, || {
            let error = &wal(self.pgvault())["error"];
            error.as_str().unwrap_or_default().clone_into(&mut said);
            !said.is_empty()
        });
        println!("{what}: told after {:.1} s: {said}", begun.elapsed().as_secs_f64());
        self.pgvault().wait("the metric tells it", LIMIT, || metric(self.pgvault(), "pgvault_repository_up") == 0.0);
        let streaming = self.finding("streaming");
        assert_eq!(streaming["status"], "failed", "{streaming}");
        said
    }

    fn wait_forgotten(&self, what: &str) {
        let begun = Instant::now();
        self.pgvault().wait(&format!("{what} is forgotten"), LIMIT, || {
            wal(self.pgvault())["error"].is_null() && metric(self.pgvault(), "pgvault_repository_up") == 1.0
        });
        println!("{what}: all is well again after {:.1} s", begun.elapsed().as_secs_f64());
    }

    /// What the daemon itself finds, without trying anything.
    fn finding(&self, name: &str) -> Value {
        let (_, body) = self.pgvault().http("/healthz");
        let document: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        let checks = document["clusters"][0]["checks"].as_array().unwrap_or_else(|| panic!("{document:#}"));
        checks.iter().find(|check| check["name"] == name).unwrap().clone()
    }

    /// So many lines, and one for each second that it took.
    fn assert_log_is_short(&self, what: &str, most: usize) {
        let (lines, took) = (complaints(&self.daemon) - self.begun_complaints, self.begun.elapsed());
        println!("{what}: {lines} warnings and errors in the log in {took:.0?}");
        let most = most + usize::try_from(took.as_secs()).unwrap();
        assert!(lines <= most, "{what}: {lines} lines\n{}", self.daemon.log());
    }

    /// Everything that was acknowledged is stored, byte for byte, and can be recovered; the daemon is the one that was
    /// started.
    fn end(mut self, what: &str) {
        self.load.wait_for_more(20);
        self.load.stop();
        let end = self.it.end();
        self.it.wait_shipped(end);
        assert!(!self.daemon.has_ended(), "{what}: the daemon ended");
        let truth = self.it.truth(self.reference, end);
        self.it.assert_holds_exactly(&stored_at(&self.it.pgvault, &self.options), what);
        self.daemon.stop();
        self.it.assert_latest_is_exact(truth, end);
    }
}

/// How long the store is away, and how much WAL is written a second meanwhile.
fn outage(away: Duration, bytes_per_second: u64) -> f64 {
    let options = s3::server().fresh();
    let port = options.endpoint.as_ref().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(port);
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let trouble = Trouble::begin(options, Some(endpoint), &[], "");
    let filler = Filler::start(&trouble.it.node, bytes_per_second);

    // Nobody listens.
    let before = wal(trouble.pgvault());
    let begun = Instant::now();
    proxy.refuse(true);
    proxy.cut();
    trouble.wait_told("a store that is away");
    std::thread::sleep(away.saturating_sub(begun.elapsed()));
    let after = wal(trouble.pgvault());
    let (filled, fill_time) = (position(&after, "flushed_lsn") - position(&before, "flushed_lsn"), begun.elapsed());
    assert_eq!(after["streaming"], true, "the spool takes what comes: {after:#}");
    assert!(filled > 2 << 20, "{filled} bytes came");
    // What waits is drained while as much as before goes on coming.
    let begun = Instant::now();
    let waiting = position(&after, "flushed_lsn") - position(&after, "shipped_lsn");
    proxy.heal();
    let goal = position(&wal(trouble.pgvault()), "flushed_lsn");
    trouble.pgvault().wait("what waited is stored", LIMIT, || position(&wal(trouble.pgvault()), "shipped_lsn") >= goal);
    let drain_time = begun.elapsed();
    let mib = |bytes: u64, time: Duration| bytes as f64 / 1048576.0 / time.as_secs_f64();
    let (fills, drains) = (mib(filled, fill_time), mib(waiting + goal - position(&after, "flushed_lsn"), drain_time));
    println!(
        "filled at {fills:.2} MiB/s for {:.0} s, drained at {drains:.2} MiB/s: {:.1} times",
        fill_time.as_secs_f64(),
        drains / fills
    );
    trouble.wait_forgotten("a store that is away");

    // It takes connections and never answers.
    proxy.stall_both(true);
    trouble.wait_told("a store that does not answer");
    proxy.stall_both(false);
    trouble.wait_forgotten("a store that does not answer");

    // Slow, and every so often cut in the middle of something.
    proxy.delay(Direction::ToServer, Duration::from_millis(20));
    for cut in 0..8 {
        proxy.cut_after([Direction::ToServer, Direction::ToClient][cut % 2], 40_000 + 70_000 * cut as u64);
        std::thread::sleep(Duration::from_millis(700));
    }
    proxy.heal();
    filler.stop();
    trouble.assert_log_is_short("outages", 120);
    trouble.end("outages");
    drains / fills
}

#[test]
fn a_store_that_is_away_under_load_costs_nothing_but_time() {
    outage(Duration::from_secs(12), 1 << 20);
}

#[test]
#[ignore = "three minutes of outage: make chaos"]
fn a_store_that_is_away_for_minutes_is_caught_up_with_three_times_faster() {
    // As much as leaves an unoptimised daemon room to be three times faster beside the load.
    let times = outage(Duration::from_secs(180), 2 << 20);
    assert!(times >= 3.0, "{times:.1}");
}

/// The store fails three requests of ten, loses answers of puts that it has done, and lets nobody delete.
fn lying_store(conditions: Conditions) {
    let store = FakeS3Process::start(conditions);
    let fake = &store.fake;
    fake.sometimes("delete", 100, Wrong::Status(403, "AccessDenied"));
    fake.sometimes("delete_one", 100, Wrong::Status(403, "AccessDenied"));
    let trouble = Trouble::begin(fake.options(), None, &[], "");
    fake.sometimes("put", 8, Wrong::DoneButNoAnswer);
    fake.sometimes("put", 8, Wrong::DoneButError);
    fake.sometimes("", 30, Wrong::Status(503, "SlowDown"));
    let filler = Filler::start(&trouble.it.node, 1 << 20);
    for _ in 0..8 {
        trouble.load.wait_for_more(40);
        std::thread::sleep(Duration::from_millis(800));
    }
    filler.stop();
    // What was asked for is stored while it lasts.
    let end = trouble.it.end();
    trouble.it.wait_shipped(end);
    let status = wal(trouble.pgvault());
    println!("{conditions:?}: {} requests, {status}", fake.seen().len());
    trouble.assert_log_is_short("a lying store", 60);
    fake.heal();
    assert_eq!(fake.rewritten(), Vec::<String>::new());
    trouble.end("a lying store");
    assert_eq!(fake.rewritten(), Vec::<String>::new());
}

#[test]
fn a_store_that_fails_and_loses_answers_under_load_stores_everything_once() {
    lying_store(Conditions::Atomic);
}

#[test]
fn the_same_holds_where_the_store_ignores_conditions() {
    lying_store(Conditions::Ignored);
}

#[test]
fn wrong_credentials_are_told_and_corrected_without_a_restart() {
    let it = Attacked::new(&[], "");
    let options = s3::server().fresh();
    store_at(&it.pgvault, &options);
    let secret = it.pgvault.dir.join("secret");
    let right = fs::read(&secret).unwrap();
    fs::write(&secret, "not-the-secret").unwrap();
    let begun = Instant::now();
    let daemon = it.pgvault.serve();
    let refused = || {
        it.pgvault.json(&["status", "main"]).1["clusters"][0]["repository"]
            .to_string()
            .contains("SignatureDoesNotMatch")
    };
    it.pgvault.wait("the store's refusal is told", LIMIT, refused);
    let (code, check) = it.pgvault.json(&["check", "main"]);
    assert_eq!(code, 10, "{check:#}");
    assert!(!check.to_string().contains("not-the-secret"));

    fs::write(&secret, &right).unwrap();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    let load = it.load();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    // The key is rotated at the store's side, and the file follows later.
    fs::write(&secret, "not-the-secret").unwrap();
    it.pgvault.wait("the store's refusal is told", LIMIT, || {
        let wal = wal(&it.pgvault);
        assert_eq!(wal["streaming"], true, "{wal:#}");
        wal["error"].as_str().is_some_and(|error| error.contains("SignatureDoesNotMatch"))
    });
    it.pgvault.wait("the metric tells it", LIMIT, || metric(&it.pgvault, "pgvault_repository_up") == 0.0);
    load.wait_for_more(50);
    fs::write(&secret, &right).unwrap();
    it.pgvault.wait("all is well again", LIMIT, || {
        wal(&it.pgvault)["error"].is_null() && metric(&it.pgvault, "pgvault_repository_up") == 1.0
    });
    load.stop();
    let end = it.end();
    it.wait_shipped(end);
    let (lines, took) = (complaints(&daemon), begun.elapsed().as_secs());
    assert!(lines as u64 <= 60 + took, "{lines} lines in {took} s\n{}", daemon.log());
    assert!(!daemon.log().contains("not-the-secret"));
    let truth = it.truth(reference, end);
    it.assert_holds_exactly(&stored_at(&it.pgvault, &options), "credentials");
    daemon.stop();
    it.assert_latest_is_exact(truth, end);
}

#[test]
fn an_idle_daemon_asks_nothing_of_its_store() {
    let store = FakeS3Process::start(Conditions::Atomic);
    let it = Attacked::new(&[("checkpoint_timeout", "1h"), ("autovacuum", "off")], "");
    store_at(&it.pgvault, &store.fake.options());
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    it.node.sql("SELECT pg_switch_wal()");
    let end = it.end();
    it.wait_shipped(end);
    // A snapshot of running transactions comes within 15 s of the last activity; it is the last WAL of an idle server.
    let quiet = || it.end();
    let mut last = quiet();
    it.pgvault.wait("the server writes nothing any more", LIMIT, || {
        std::thread::sleep(Duration::from_secs(17));
        let before = std::mem::replace(&mut last, quiet());
        before == last
    });
    // Of these times one in which the server was idle indeed.
    let idle = (0..5).any(|_| {
        let before = quiet();
        it.wait_shipped(before);
        std::thread::sleep(Duration::from_secs(3));
        store.fake.forget();
        let (begun, used) = (Instant::now(), cpu_seconds(&daemon));
        std::thread::sleep(Duration::from_secs(17));
        let (asked, share) = (store.fake.operations(), (cpu_seconds(&daemon) - used) / begun.elapsed().as_secs_f64());
        println!("idle: {:.2} % of a core", share * 100.0);
        let is_idle = quiet() == before;
        assert!(!is_idle || asked.is_empty(), "{asked:?}");
        is_idle
    });
    assert!(idle, "the server is never idle");
    daemon.stop();
}

/// CPU time of a process so far (proc_pid_stat(5); a hundred ticks a second).
fn cpu_seconds(daemon: &Daemon) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|&index| fields[index].parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

/// Checks of a running daemon, from what it knows.
fn spool_message(trouble: &Trouble) -> String {
    trouble.finding("spool")["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_spool_that_fills_up_is_told_before_and_never_holds_the_primary() {
    let store = FakeS3Process::start(Conditions::Atomic);
    let settings = [("max_slot_wal_keep_size", "1GB")];
    let mut trouble = Trouble::begin(store.fake.options(), None, &settings, "max_size = \"64MB\"");
    let node = &trouble.it.node;
    let filler = Filler::start(node, 3 << 20);
    store.fake.sometimes("", 100, Wrong::Status(503, "SlowDown"));

    // Before it is full, everyone can see when it will be.
    let begun = Instant::now();
    let mut told = Vec::new();
    trouble.pgvault().wait("the spool is full", LIMIT, || {
        let message = spool_message(&trouble);
        let seconds = metric(trouble.pgvault(), "pgvault_wal_spool_full_seconds");
        if message.contains("full in about") && !message.starts_with("full") {
            told.push((begun.elapsed().as_secs_f64(), message, seconds));
        }
        wal(trouble.pgvault())["state"] == "stalled"
    });
    let stalled_after = begun.elapsed().as_secs_f64();
    let (first, ..) = told.first().expect("nobody was told");
    println!("the first alarm came after {first:.1} s, the spool was full after {stalled_after:.1} s");
    for (after, message, seconds) in told.iter().step_by(told.len().div_ceil(5)) {
        println!("  {after:.1} s: {message} (metric: {seconds:.0} s)");
    }
    assert!(told.iter().any(|(.., seconds)| seconds.is_finite()), "{told:?}");

    // Full: the connection is closed, the slot keeps the WAL, and whoever asks is told how long that can last.
    trouble.pgvault().wait("what is full, and what that means", LIMIT, || {
        let message = spool_message(&trouble);
        message.starts_with("full") && message.contains("before it is lost")
    });
    let message = spool_message(&trouble);
    node.wait_idle("pgvault");
    let safe = || -> i64 {
        let sql = "SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = 'pgvault'";
        node.sql(sql).parse().unwrap()
    };
    let (safe_before, complaints_before) = (safe(), complaints(&trouble.daemon));
    let checkpoint = Instant::now();
    node.sql("CHECKPOINT");
    println!("{message}\na checkpoint took {:.1} s", checkpoint.elapsed().as_secs_f64());
    trouble.load.wait_for_more(60);
    std::thread::sleep(Duration::from_secs(4));
    node.sql("CHECKPOINT");
    assert!(safe() < safe_before, "the slot retains what is not received");
    let lines = complaints(&trouble.daemon) - complaints_before;
    println!("{lines} lines in the log while it was full");
    assert!(lines as u64 <= 20 + checkpoint.elapsed().as_secs(), "{}", trouble.daemon.log());
    assert!(!trouble.daemon.has_ended());

    // With room again it goes on by itself.
    let begun = Instant::now();
    store.fake.heal();
    trouble.pgvault().wait_streaming();
    println!("streaming {:.1} s after the store was back", begun.elapsed().as_secs_f64());
    filler.stop();
    let end = trouble.it.end();
    trouble.it.wait_shipped(end);
    trouble.pgvault().wait("nothing is wrong any more", LIMIT, || {
        wal(trouble.pgvault())["error"].is_null() && trouble.finding("spool")["status"] == "ok"
    });
    trouble.end("a full spool");
}

#[test]
fn commits_that_wait_for_a_full_spool_go_on_with_it_or_when_an_operator_says_so() {
    let store = FakeS3Process::start(Conditions::Atomic);
    let it =
        Attacked::new(&[("max_slot_wal_keep_size", "1GB")], "application_name = \"the_vault\"\nsynchronous = true\n");
    store_at(&it.pgvault, &store.fake.options());
    let text = fs::read_to_string(&it.pgvault.config).unwrap();
    fs::write(&it.pgvault.config, format!("{text}\n[spool]\nmax_size = \"64MB\"\n")).unwrap();
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    // Before commits wait: the restored server has nobody to wait for.
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    it.node.sql("ALTER SYSTEM SET synchronous_standby_names = 'the_vault'");
    it.node.sql("SELECT pg_reload_conf()");
    let load = it.load();
    let fill = || {
        let filler = Filler::start(&it.node, 16 << 20);
        it.pgvault.wait("the spool is full", LIMIT, || wal(&it.pgvault)["state"] == "stalled");
        filler.stop();
    };
    let waiting = || it.node.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") != "0";

    // Commits wait, as they were asked to, and go on as soon as there is room.
    store.fake.sometimes("", 100, Wrong::Status(503, "SlowDown"));
    fill();
    it.pgvault.wait("commits wait", LIMIT, waiting);
    store.fake.heal();
    load.wait_for_more(50);

    // The operator can release them: the words of RECOVERY.md.
    store.fake.sometimes("", 100, Wrong::Status(503, "SlowDown"));
    fill();
    it.pgvault.wait("commits wait", LIMIT, waiting);
    it.node.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    it.node.sql("SELECT pg_reload_conf()");
    load.wait_for_more(50);
    it.pgvault.wait("it is still full", LIMIT, || wal(&it.pgvault)["state"] == "stalled");
    store.fake.heal();
    it.pgvault.wait_streaming();
    load.stop();
    let end = it.end();
    it.wait_shipped(end);
    let truth = it.truth(reference, end);
    it.assert_holds_exactly(&stored_at(&it.pgvault, &store.fake.options()), "a full spool and synchronous commits");
    daemon.stop();
    it.assert_latest_is_exact(truth, end);
}
