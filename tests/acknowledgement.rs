//! Is what PostgreSQL is told to be flushed really on disk, and does nobody wait for pgvault but those who asked for it?

#![allow(clippy::print_stdout, reason = "seeds and figures are shown with --nocapture and on failure")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use wal::{Lsn, SegmentName, SegmentNumber, TimelineId};

use crate::support::attacked::{Attacked, LIMIT, size, spool, wait_shipped};
use crate::support::oracle::Oracle;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::plain_restore::wait_until_writable;
use crate::support::proxy::{Direction, Proxy};
use crate::support::tap;
use crate::support::truth::{Target, Truth};

/// Keys of a cluster whose commits wait for pgvault, and the server's side of it.
const SYNCHRONOUS: &str = "application_name = \"the_vault\"\nsynchronous = true\n";
const STANDBY: (&str, &str) = ("synchronous_standby_names", "the_vault");

/// What was on disk when the server was told so.
#[derive(Clone, Copy, Debug)]
struct Told {
    flush: Lsn,
    /// Checksum of what the spool had before `flush`, from `from` on.
    from: Lsn,
    crc: u32,
}

/// Looks into the spool whenever a status update passes, before the server gets it.
#[derive(Default)]
struct Audit {
    tap: tap::Told,
    told: Vec<Told>,
    /// What was told and not there.
    ahead: Vec<String>,
    last: Lsn,
    /// Where the first stream of all was asked to start.
    started_at: Option<Lsn>,
}

impl Audit {
    fn pass(&mut self, connection: usize, bytes: &[u8], pgvault: &Places) {
        let updates = self.tap.pass(connection, Direction::ToServer, bytes);
        if self.started_at.is_none()
            && let Some((_, start)) = self.tap.starts.first().copied()
        {
            // The first of all: nothing is held, and the server's own WAL begins to count here.
            (self.started_at, self.last) = (Some(start), start);
        }
        for flush in updates.into_iter().map(|update| update.flush) {
            if flush > self.last {
                self.look(flush, pgvault);
                self.last = flush;
            }
        }
    }

    fn look(&mut self, flush: Lsn, pgvault: &Places) {
        let number = SegmentNumber::containing_end(flush, size());
        let name = SegmentName::new(TimelineId::FIRST, number, size());
        let start = number.start(size());
        let from = self.last.max(start);
        // Renamed between two looks it is there at the third.
        let dir = pgvault.spool();
        let file = [name.to_string(), name.partial(), name.to_string()]
            .iter()
            .find_map(|file| fs::File::open(dir.as_ref()?.join(file)).ok());
        // The spool lets a segment go only when it is stored: then it is as durable there. And where the first stream
        // ever began, there is nothing before it that could be held.
        let first_start = self.told.is_empty() && flush == number.end(size());
        if file.is_none() && (first_start || pgvault.stores(name)) {
            return;
        }
        let mut held = vec![0; usize::try_from(flush.bytes_since(from)).unwrap()];
        let read = file
            .ok_or_else(|| "no file".to_owned())
            .and_then(|file| file.read_exact_at(&mut held, from.bytes_since(start)).map_err(|error| error.to_string()));
        match read {
            Ok(()) => self.told.push(Told { flush, from, crc: crc32c::crc32c(&held) }),
            Err(error) => self.ahead.push(format!("flush {flush}: {error}")),
        }
    }
}

/// Where pgvault keeps WAL.
struct Places {
    state: PathBuf,
    repository: PathBuf,
}

impl Places {
    /// The spool's folder, once there is one.
    fn spool(&self) -> Option<PathBuf> {
        Some(fs::read_dir(self.state.join("spool/main")).ok()?.next()?.ok()?.path())
    }

    /// Whether the repository has the whole segment.
    fn stores(&self, name: SegmentName) -> bool {
        let object = format!("wal/{}/{:08X}/{name}.zst", name.timeline().hex(), name.log());
        let lineages = fs::read_dir(self.repository.join("main")).into_iter().flatten().flatten();
        lineages.into_iter().any(|lineage| lineage.path().join(&object).exists())
    }
}

/// A proxy before the server that looks at every status update.
fn audited(node: &PgNode, pgvault: &Pgvault) -> (Proxy, Arc<Mutex<Audit>>) {
    let audit = Arc::new(Mutex::new(Audit::default()));
    let shared = Arc::clone(&audit);
    let places = Places { state: pgvault.state.clone(), repository: pgvault.repository.clone() };
    let proxy = Proxy::start_tapped(node.port, move |connection, direction, bytes| {
        if direction == Direction::ToServer {
            shared.lock().unwrap().pass(connection, bytes, &places);
        }
    });
    (proxy, audit)
}

/// Everything that the server was told is what the server wrote.
fn assert_never_ahead(audit: &Audit, pg_wal: &Path) {
    assert_eq!(audit.ahead, Vec::<String>::new());
    let wrong: Vec<&Told> = audit
        .told
        .iter()
        .filter(|told| {
            let number = SegmentNumber::containing_end(told.flush, size());
            let name = SegmentName::new(TimelineId::FIRST, number, size());
            let bytes = fs::read(pg_wal.join(name.to_string())).unwrap();
            let [from, to] =
                [told.from, told.flush].map(|lsn| usize::try_from(lsn.bytes_since(number.start(size()))).unwrap());
            crc32c::crc32c(&bytes[from..to]) != told.crc
        })
        .collect();
    assert!(wrong.is_empty(), "told and not on disk: {:?}", &wrong[..wrong.len().min(5)]);
}

#[test]
fn as_the_only_synchronous_standby_it_never_tells_more_than_the_spool_holds() {
    let dir = test_dir();
    let settings = [STANDBY, ("synchronous_commit", "local"), ("wal_keep_size", "1GB")];
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &settings);
    node.start();
    let pgvault = Pgvault::new(dir.path());
    let (proxy, audit) = audited(&node, &pgvault);
    pgvault.config(&format!(
        "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=postgres\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n{SYNCHRONOUS}",
        proxy.port()
    ));
    let daemon = pgvault.serve();
    pgvault.wait_streaming();
    pgvault.wait("synchronous", LIMIT, || node.sql("SELECT sync_state FROM pg_stat_replication") == "sync");
    node.sql("ALTER SYSTEM SET synchronous_commit = on");
    node.sql("SELECT pg_reload_conf()");
    let ledger = crate::support::ledger::Ledger::create(&node, &dir.path().join("ledger"), None);
    let load = ledger.load(&node, 4);
    load.wait_for_more(150);
    // The connection breaks, the process dies: what is told afterwards must hold as well.
    proxy.cut();
    load.wait_for_more(100);
    daemon.kill();
    let before = load.acknowledged();
    let daemon = pgvault.serve();
    load.wait_for_more(150);
    println!("{} commits were acknowledged before the restart, {} after", before, load.acknowledged() - before);
    load.stop();
    let end: Lsn = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    wait_shipped(&pgvault, end);
    daemon.stop();
    let audit = audit.lock().unwrap();
    println!("{} status updates moved the flush position", audit.told.len());
    assert!(audit.started_at.is_some(), "no START_REPLICATION was seen");
    assert!(audit.told.len() > 100, "{} status updates", audit.told.len());
    assert_never_ahead(&audit, &node.data.join("pg_wal"));
}

/// Makes the repository's directory unreachable, and reachable again.
fn hide_repository(pgvault: &Pgvault, hidden: bool) {
    let aside = pgvault.dir.join("repository.away");
    if hidden {
        fs::rename(&pgvault.repository, &aside).unwrap();
        fs::write(&pgvault.repository, "no directory").unwrap();
    } else {
        fs::remove_file(&pgvault.repository).unwrap();
        fs::rename(aside, &pgvault.repository).unwrap();
    }
}

/// Where the last checkpoint of a server that was stopped begins.
fn last_checkpoint(node: &PgNode) -> Lsn {
    let output = node.tool("pg_controldata").arg("-D").arg(&node.data).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("Latest checkpoint location:")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Status of a running daemon, as a position.
fn position(pgvault: &Pgvault, name: &str) -> Option<Lsn> {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"][name].as_str().map(|text| text.parse().unwrap())
}

/// A load, the repository away, then a fast stop, which must not wait for it; afterwards everything is brought home. The
/// server must not lose its patience: then a stop that waits for pgvault never ends.
fn stop_while_storage_is_down(settings: &[(&str, &str)], more: &str) {
    let mut it = Attacked::new(settings, more);
    let (proxy, told) = tap::tapped(it.node.port);
    it.pgvault.config(&format!(
        "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=postgres\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n{more}",
        proxy.port()
    ));
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.node.sql("ALTER SYSTEM SET synchronous_commit = on");
    it.node.sql("SELECT pg_reload_conf()");
    let began = Instant::now();
    let load = it.load();
    load.wait_for_more(30);
    hide_repository(&it.pgvault, true);
    load.wait_for_more(60);
    let shipped = position(&it.pgvault, "shipped_lsn");
    let asked = Instant::now();
    assert!(it.node.stop("fast", LIMIT), "the primary's fast stop hangs");
    println!("the fast stop took {:?}", asked.elapsed());
    load.stop();
    {
        // A receiver that tells too little is asked tens of thousands of times a second.
        let told = told.lock().unwrap();
        let during_the_stop = told.keepalives.iter().filter(|keepalive| keepalive.at >= asked).count();
        let (keepalives, updates) = (told.keepalives.len(), told.updates.len());
        println!(
            "{keepalives} keepalives, {during_the_stop} of them during the stop, {updates} status updates in {:?}",
            began.elapsed()
        );
        // It asks ten times a second for as long as a sync takes, and that is as long as the disk likes.
        let (stop, all) = (asked.elapsed().as_secs(), began.elapsed().as_secs());
        assert!(during_the_stop as u64 <= 50 + 20 * stop, "{during_the_stop} keepalives in a stop of {stop} s");
        assert!(keepalives as u64 <= 50 + 20 * all, "{keepalives} in {all} s");
    }
    // Its last record is durable here, though nothing could be stored.
    let checkpoint = last_checkpoint(&it.node);
    it.pgvault.wait("the end is durable", LIMIT, || position(&it.pgvault, "flushed_lsn") > Some(checkpoint));
    assert!(position(&it.pgvault, "shipped_lsn") < Some(checkpoint), "{shipped:?}");
    hide_repository(&it.pgvault, false);
    it.pgvault.wait("all is stored", LIMIT, || position(&it.pgvault, "shipped_lsn") > Some(checkpoint));
    daemon.stop();
}

#[test]
fn a_fast_stop_under_load_with_storage_down_is_not_delayed() {
    stop_while_storage_is_down(&[("wal_sender_timeout", "0")], "");
}

#[test]
fn a_fast_stop_is_not_delayed_by_the_only_synchronous_standby_either() {
    stop_while_storage_is_down(&[STANDBY, ("synchronous_commit", "local"), ("wal_sender_timeout", "0")], SYNCHRONOUS);
}

#[test]
fn what_was_acknowledged_survives_the_end_of_the_primary_and_of_the_daemon() {
    let mut it = Attacked::new(&[STANDBY, ("synchronous_commit", "local"), ("wal_keep_size", "1GB")], SYNCHRONOUS);
    let daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    it.node.sql("ALTER SYSTEM SET synchronous_commit = on");
    it.node.sql("SELECT pg_reload_conf()");
    let load = it.load();
    load.wait_for_more(60);
    // From here on only the spool has it.
    hide_repository(&it.pgvault, true);
    load.wait_for_more(120);
    // Both die at once, and the primary's disk is gone: it is kept aside only to know what the truth was.
    daemon.kill();
    assert!(it.node.stop("immediate", LIMIT));
    load.stop();
    let truth_dir = it.path("truth");
    fs::rename(it.node.data.join("pg_wal"), &truth_dir).unwrap();
    fs::remove_dir_all(&it.node.data).unwrap();
    hide_repository(&it.pgvault, false);

    // The daemon alone, with nobody to stream from, brings home what the spool holds.
    let daemon = it.pgvault.serve();
    let held = spool(&it.pgvault);
    assert!(held.exists());
    it.pgvault.wait("what is held is known", LIMIT, || position(&it.pgvault, "flushed_lsn").is_some());
    let flushed = position(&it.pgvault, "flushed_lsn").unwrap();
    wait_shipped(&it.pgvault, flushed);
    daemon.stop();

    let last = it.ledger.attempts().iter().filter_map(|attempt| attempt.acknowledged).max().unwrap();
    let mut restored = PgNode::at(it.dir.path(), "restored", it.node.major);
    let directory = restored.data.to_str().unwrap().to_owned();
    it.pgvault.ok(["recover", "main", "--latest", "--action", "promote", "--to", &directory]);
    restored.configure(&[("synchronous_standby_names", "")]);
    restored.start();
    wait_until_writable(&restored);
    // The primary's WAL ends somewhere beyond; what counts is all that was acknowledged.
    let present = restored.sql("SELECT worker || ' ' || seq FROM ledger");
    let present: std::collections::BTreeSet<&str> = present.lines().collect();
    let attempts = it.ledger.attempts();
    let lost: Vec<_> = attempts
        .iter()
        .filter(|attempt| attempt.acknowledged.is_some())
        .filter(|attempt| !present.contains(format!("{} {}", attempt.worker, attempt.seq).as_str()))
        .collect();
    assert!(lost.is_empty(), "acknowledged up to {last}, flushed up to {flushed}, lost: {lost:?}");
    // And exactly what the primary wrote, up to where the spool ends: nothing else.
    let truth = Truth::of_pg_wal(flushed, &truth_dir, &it.path("reference"), size());
    let oracle = Oracle::new(&it.ledger, truth, Vec::new());
    let verdict = oracle.check(&restored, &Target::EndOfWal(flushed));
    assert!(verdict.expected >= 150, "{verdict}");
    verdict.assert_exact();
}
