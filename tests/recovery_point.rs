//! How much is lost when the primary and the machine of pgvault are lost at once, and only the bucket is left? Seconds.

use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

use serde_json::Value;
use wal::{Lsn, PgTime};

use crate::support::attacked::{Attacked, Dice, LIMIT, size, stored, wait_shipped};
use crate::support::ledger::{Attempt, Ledger};
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::plain_restore::wait_until_writable;
use crate::support::proxy::{Direction, Proxy};
use crate::support::s3;
use crate::support::scene::store_in_s3;
use crate::support::truth::Truth;

/// What a double loss cost.
#[derive(Clone, Copy)]
struct Loss {
    acknowledged: usize,
    lost: usize,
    /// From the commit of the first that is lost to the commit of the last that was acknowledged.
    span: Duration,
    /// How many stored tails stood for the last segment.
    tails: u64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, lost, span, tails } = self;
        write!(f, "{lost} of {acknowledged} acknowledged commits are lost, a span of {span:?}; {tails} tails were used")
    }
}

/// The port of the tests' S3 server.
fn s3_port() -> u16 {
    s3::server().endpoint.rsplit(':').next().unwrap().parse().unwrap()
}

/// Sends the installation's S3 requests through a proxy.
fn through(pgvault: &Pgvault, proxy: &Proxy) {
    let text = fs::read_to_string(&pgvault.config).unwrap();
    let there = format!("http://127.0.0.1:{}", proxy.port());
    fs::write(&pgvault.config, text.replace(&s3::server().endpoint, &there)).unwrap();
}

/// Slow writers, then both machines are gone; what the bucket gives back.
fn lose_both(dice: &mut Dice, latency: Duration) -> Loss {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &[("wal_keep_size", "1GB")]);
    node.start();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(&format!("[cluster.main]\nconninfo = \"{}\"\nschedule = \"\"\nmax_rpo = \"1s\"\n", node.conninfo()));
    store_in_s3(&pgvault);
    let slow = Proxy::start(s3_port());
    if !latency.is_zero() {
        slow.delay(Direction::ToServer, latency);
        through(&pgvault, &slow);
    }
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let ledger = Ledger::create(&node, &dir.path().join("ledger"), None);
    let load = ledger.slow_load(&node, 3, Duration::from_millis(30));
    load.wait_for_more(70);
    let begun: Lsn = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    wait_shipped(&pgvault, begun);
    dice.pause(1500, 6000);
    let shipped: Lsn = wal_status(&pgvault)["shipped_lsn"].as_str().unwrap().parse().unwrap();
    node.kill();
    daemon.kill();
    load.stop();

    // The disks are gone; the WAL is kept aside only to know what the truth was.
    let pg_wal = dir.path().join("the primary's wal");
    fs::rename(node.data.join("pg_wal"), &pg_wal).unwrap();
    fs::remove_dir_all(&node.data).unwrap();
    fs::remove_dir_all(&pgvault.state).unwrap();
    fs::remove_dir_all(&pgvault.repository).unwrap();
    fs::create_dir(&pgvault.state).unwrap();
    crate::support::pg::give_to_server_user(&pgvault.state);

    let mut restored = PgNode::at(dir.path(), "restored", node.major);
    let to = restored.data.to_str().unwrap().to_owned();
    let (code, plan) = pgvault.json(&["recover", "main", "--latest", "--dry-run", "--to", &to]);
    assert_eq!(code, 0, "{plan}");
    let tails = plan["tail"]["objects"].as_u64().unwrap_or(0);
    pgvault.ok(["recover", "main", "--latest", "--action", "promote", "--to", &to]);
    restored.configure(&[]);
    restored.start();
    wait_until_writable(&restored);
    let present = restored.sql("SELECT worker || ' ' || seq FROM ledger");
    let present: std::collections::BTreeSet<&str> = present.lines().collect();
    let attempts = ledger.attempts();
    let acknowledged: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.acknowledged.is_some()).collect();
    let is_lost = |attempt: &&&Attempt| !present.contains(format!("{} {}", attempt.worker, attempt.seq).as_str());
    let lost: Vec<&Attempt> = acknowledged.iter().filter(is_lost).copied().collect();
    let end = acknowledged.iter().filter_map(|attempt| attempt.acknowledged).max().unwrap();
    let span = span(&lost, &acknowledged, &pg_wal, &dir.path().join("reference"), end);
    assert!(restored.stop("immediate", LIMIT));
    let loss = Loss { acknowledged: acknowledged.len(), lost: lost.len(), span, tails };
    println!("{loss}");
    // What was said to be stored is there, whatever the time that it took.
    let false_promise = lost.iter().find(|attempt| attempt.acknowledged <= Some(shipped));
    assert!(false_promise.is_none(), "{false_promise:?} is lost, and {shipped} was shipped");
    loss
}

/// By the times in the commit records.
fn span(lost: &[&Attempt], acknowledged: &[&Attempt], pg_wal: &Path, scratch: &Path, end: Lsn) -> Duration {
    let truth = Truth::of_pg_wal(end, pg_wal, scratch, size());
    let time = |attempt: &&Attempt| -> Option<PgTime> {
        truth.ends.iter().find(|end| end.xid == attempt.xid).map(|end| end.time)
    };
    let Some(first) = lost.iter().filter_map(time).min() else { return Duration::ZERO };
    let last = acknowledged.iter().filter_map(time).max().unwrap();
    Duration::from_micros(u64::try_from(last.as_micros() - first.as_micros()).unwrap())
}

fn report(losses: &mut [Loss]) {
    losses.sort_by_key(|loss| loss.span);
    let (median, worst) = (losses[losses.len() / 2].span, losses.last().unwrap().span);
    println!("{} double losses with max_rpo = 1s: median {median:?}, worst {worst:?}", losses.len());
}

#[test]
fn the_bucket_alone_gives_back_all_but_the_last_moments() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let loss = lose_both(&mut dice, Duration::ZERO);
    // How long the moments are depends on the machine: `make chaos` tells the figures.
    assert!(loss.acknowledged > 60 && loss.lost < loss.acknowledged, "{loss}");
}

#[test]
#[ignore = "long, and its figures want a quiet machine: make chaos"]
fn twenty_double_losses_cost_a_second_and_a_half_at_worst() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let mut losses: Vec<Loss> = (0..20).map(|_| lose_both(&mut dice, Duration::ZERO)).collect();
    report(&mut losses);
    assert!(losses.iter().all(|loss| loss.span <= Duration::from_millis(1500)));
}

#[test]
#[ignore = "long, and its figures want a quiet machine: make chaos"]
fn a_store_that_answers_slowly_costs_its_latency_more() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let mut losses: Vec<Loss> = (0..6).map(|_| lose_both(&mut dice, Duration::from_millis(30))).collect();
    report(&mut losses);
    assert!(losses.iter().all(|loss| loss.span <= Duration::from_millis(2500)));
}

/// What `status` says of the WAL.
fn wal_status(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

fn micros_now(node: &PgNode) -> i64 {
    node.sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").parse().unwrap()
}

#[test]
fn what_is_told_of_the_recovery_point_is_the_age_of_the_oldest_commit_that_is_not_stored() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &[]);
    node.start();
    node.sql("CREATE TABLE t (n int)");
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(&format!("[cluster.main]\nconninfo = \"{}\"\nschedule = \"\"\nmax_rpo = \"1s\"\n", node.conninfo()));
    store_in_s3(&pgvault);
    let road = Proxy::start(s3_port());
    through(&pgvault, &road);
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    wait_shipped(&pgvault, node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap());
    pgvault.wait("nothing is exposed", LIMIT, || wal_status(&pgvault)["rpo_seconds"] == 0.0);

    // The store cannot be reached any more, and then somebody commits.
    road.refuse(true);
    road.cut();
    node.sql("INSERT INTO t VALUES (1)");
    let first: i64 = node
        .sql("SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM t WHERE n = 1")
        .parse()
        .unwrap();
    let end: Lsn = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    pgvault.wait("it is noticed", LIMIT, || wal_status(&pgvault)["rpo_seconds"].as_f64() > Some(0.0));
    for n in 2..12 {
        node.sql(&format!("INSERT INTO t VALUES ({n})"));
        let before = micros_now(&node);
        let told = wal_status(&pgvault);
        let after = micros_now(&node);
        let [least, most] = [before, after].map(|now| (now - first) as f64 / 1e6);
        let rpo = told["rpo_seconds"].as_f64().unwrap();
        // It is told twice a second; the clocks of the two are one.
        assert!(rpo <= most + 0.1, "{rpo} is more than {most}");
        let grows = || wal_status(&pgvault)["rpo_seconds"].as_f64() >= Some(least);
        pgvault.wait("it grows with the clock", LIMIT, grows);
        assert!(told["shipped_lsn"].as_str().unwrap().parse::<Lsn>().unwrap() < end, "{told}");
        let (_, metrics) = pgvault.http("/metrics");
        let metric = metrics.lines().find(|line| line.starts_with("pgvault_rpo_seconds{")).unwrap();
        let metric: f64 = metric.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(metric >= rpo - 0.1, "{metric} after {rpo}");
        std::thread::sleep(Duration::from_millis(200));
    }
    road.refuse(false);
    wait_shipped(&pgvault, end);
    pgvault.wait("nothing is exposed any more", LIMIT, || wal_status(&pgvault)["rpo_seconds"] == 0.0);
    daemon.stop();
}

#[test]
fn a_piece_that_is_missing_ends_the_chain_and_nothing_more_is_claimed() {
    let it = Attacked::new(&[("autovacuum", "off"), ("wal_keep_size", "1GB")], "");
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let load = it.load();
    load.wait_for_more(40);
    load.stop();
    // A segment of its own, whose tails come one by one.
    it.node.sql("SELECT pg_switch_wal()");
    let load = it.ledger.slow_load(&it.node, 1, Duration::from_millis(300));
    let mut tails = Vec::new();
    it.pgvault.wait("several tails", LIMIT, || {
        tails = stored(&it.pgvault).keys().into_iter().filter(|key| key.contains(".tail/")).collect();
        let last = tails.last().and_then(|key| key.split(".tail/").next()).map(str::to_owned);
        tails.retain(|key| last.as_ref().is_some_and(|last| key.starts_with(last.as_str())));
        tails.len() >= 6
    });
    load.stop();
    daemon.stop();
    let to = it.path("dry").to_str().unwrap().to_owned();
    let plan = || it.pgvault.json(&["recover", "main", "--latest", "--dry-run", "--to", &to]).1;
    let whole = plan();
    let end = |plan: &Value| plan["tail"]["to_lsn"].as_str().unwrap().parse::<Lsn>().unwrap();
    let shown = it.pgvault.ok(["recover", "main", "--latest", "--dry-run", "--to", &to]);
    assert!(shown.contains("stored tails of it reach to"), "{shown}");
    // The fourth piece is gone, and with it all that was behind it; nor is there a spool to take it from.
    fs::remove_dir_all(it.pgvault.state.join("spool")).unwrap();
    let key = &tails[3];
    fs::remove_file(it.pgvault.repository.join(key)).unwrap();
    let ends = key.rsplit('/').next().unwrap().split('-').next().unwrap();
    let shortened = plan();
    assert!(end(&shortened) < end(&whole), "{shortened} {whole}");
    assert_eq!(shortened["tail"]["objects"], 3, "{shortened}: the chain ends before {ends}");
    let (_, window) = it.pgvault.json(&["window", "main"]);
    let claimed: Lsn = window["ranges"][0]["to"]["lsn"].as_str().unwrap().parse().unwrap();
    assert!(claimed <= end(&shortened), "{claimed} is claimed, {} is stored", end(&shortened));
    let truth = Truth::of_pg_wal(it.end(), &it.node.data.join("pg_wal"), &it.path("truth"), size());
    it.assert_latest_is_exact(truth, claimed);
}

#[test]
fn a_stop_ships_what_is_left_however_rarely_tails_are_wanted() {
    let it = Attacked::new(&[], "");
    let text = fs::read_to_string(&it.pgvault.config).unwrap();
    fs::write(&it.pgvault.config, text.replace("max_rpo = \"500ms\"", "max_rpo = \"1h\"")).unwrap();
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let load = it.load();
    load.wait_for_more(50);
    load.stop();
    let end = it.end();
    it.pgvault.wait("it is received", LIMIT, || {
        wal_status(&it.pgvault)["received_lsn"].as_str().is_some_and(|lsn| lsn.parse::<Lsn>().unwrap() >= end)
    });
    let shipped: Lsn = wal_status(&it.pgvault)["shipped_lsn"].as_str().unwrap().parse().unwrap();
    assert!(shipped < end, "no tail is due yet: {shipped} {end}");
    daemon.stop();
    let to = it.path("dry").to_str().unwrap().to_owned();
    let (_, plan) = it.pgvault.json(&["recover", "main", "--latest", "--dry-run", "--to", &to]);
    assert!(plan["tail"]["to_lsn"].as_str().unwrap().parse::<Lsn>().unwrap() >= end, "{plan}");
}
