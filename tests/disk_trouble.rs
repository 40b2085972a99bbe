//! Does the daemon get over a disk that is full or fails, at every operation on every kind of file? Nothing that was
//! acknowledged is lost, it goes on by itself, and says meanwhile what is wrong.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use wal::{Lsn, SegmentName};

use crate::support::attacked::{Attacked, Dice, LIMIT, size, spool, wait_shipped};
use crate::support::filler::Filler;
use crate::support::injected::{Injected, Injection};
use crate::support::ledger::Load;
use crate::support::pg::give_to_server_user;
use crate::support::pgvault::{Daemon, Pgvault};
use crate::support::receivewal::ReceiveWal;
use crate::support::small_disk::SmallDisk;

fn wal(pgvault: &Pgvault) -> Value {
    pgvault.json(&["status", "main"]).1["clusters"][0]["wal"].clone()
}

/// Which files an operation is about.
#[derive(Clone, Copy, Debug)]
enum Files {
    /// Segments that are being made.
    New,
    /// Segments that are being written.
    Partial,
    /// Complete segments.
    Complete,
    /// The spool's folder.
    SpoolFolder,
    /// Whole segments in the repository.
    Objects,
    /// The folder of whole segments in the repository.
    ObjectFolder,
    /// Whatever comes.
    Any,
}

/// One operation.
type Operation = (&'static str, &'static str, Files);

/// Every operation of the spool and of a repository in a directory.
const OPERATIONS: [Operation; 15] = [
    ("create a segment", "openat", Files::New),
    ("reserve its space", "fallocate", Files::New),
    ("sync it", "fsync", Files::New),
    ("name it", "rename", Files::New),
    ("sync the spool's folder", "fsync", Files::SpoolFolder),
    ("write WAL", "pwrite64", Files::Partial),
    ("sync WAL", "fdatasync", Files::Partial),
    ("read WAL that is being written", "pread64", Files::Partial),
    ("name a complete segment", "rename", Files::Partial),
    ("open a complete segment", "openat", Files::Complete),
    ("remove a stored segment", "unlink", Files::Complete),
    ("name an object", "renameat2", Files::Objects),
    ("sync an object's folder", "fsync", Files::ObjectFolder),
    ("sync any file", "fsync,fdatasync", Files::Any),
    ("remove any file", "unlink", Files::Any),
];

/// A cluster under load whose disk fails.
struct Disk {
    it: Attacked,
    daemon: Daemon,
    reference: ReceiveWal,
    load: Load,
    filler: Filler,
}

impl Disk {
    fn new() -> Self {
        let it = Attacked::new(&[], "");
        let daemon = it.pgvault.serve();
        it.pgvault.wait_streaming();
        let reference = it.reference();
        let load = it.load();
        it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        let filler = Filler::start(&it.node, 2 << 20);
        Self { it, daemon, reference, load, filler }
    }

    /// The files of this kind, those of the next segments included.
    fn paths(&self, files: Files) -> Vec<PathBuf> {
        let spool = spool(&self.it.pgvault);
        let lineages = self.it.pgvault.repository.join("main");
        let lineage = fs::read_dir(lineages)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.join("wal").exists())
            .unwrap();
        let folder = lineage.join("wal/00000001/00000000");
        let here = self.it.end().as_u64() / size().bytes();
        let names = (here.saturating_sub(3)..here + 300)
            .map(|number| SegmentName::new(wal::TimelineId::FIRST, wal::SegmentNumber::new(number), size()));
        let paths = |path: &dyn Fn(SegmentName) -> PathBuf| names.clone().map(path).collect();
        match files {
            Files::New => paths(&|name| spool.join(format!(".tmp-{name}"))),
            Files::Partial => paths(&|name| spool.join(name.partial())),
            Files::Complete => paths(&|name| spool.join(name.to_string())),
            Files::Objects => paths(&|name| folder.join(format!("{name}.zst"))),
            Files::SpoolFolder => vec![spool],
            Files::ObjectFolder => vec![folder],
            Files::Any => Vec::new(),
        }
    }

    /// What the server was told to be flushed: a slot starts where its receiver's flushed WAL ends.
    fn flushed(&self) -> Lsn {
        self.it.node.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pgvault'").parse().unwrap()
    }

    /// Lets the operation fail, for a while or at one call; then everything works again, and must.
    fn fail(&mut self, (what, calls, files): Operation, error: &str, when: &str) {
        let paths = self.paths(files);
        let log = self.it.path("strace");
        let injected = Injected::start(self.daemon.pid(), Injection { calls, error, when, paths: &paths }, &log);
        let begun = Instant::now();
        let mut said = String::new();
        let mut failed = 0;
        while failed == 0 || begun.elapsed() < Duration::from_millis(1500) {
            failed = injected.failed().len();
            let wal = wal(&self.it.pgvault);
            if let Some(error) = wal["error"].as_str() {
                error.clone_into(&mut said);
            }
            let patience = if when == "1+" { LIMIT } else { Duration::from_secs(8) };
            if begun.elapsed() > patience {
                assert!(when != "1+", "{what}: {calls} was never called about {:?}", paths.first());
                break;
            }
        }
        let failed = injected.stop().len();
        let healed = Instant::now();
        let end = self.it.end();
        wait_shipped(&self.it.pgvault, end);
        let took = healed.elapsed().as_secs_f64();
        assert!(!self.daemon.has_ended(), "{what} {error}: the daemon ended\n{}", self.daemon.log());
        let pgvault = &self.it.pgvault;
        pgvault.wait("nothing is wrong any more", LIMIT, || {
            let wal = wal(pgvault);
            wal["streaming"] == true && wal["error"].is_null()
        });
        println!("| {what} | {calls} | {error} | {when} | {failed} failed | stored {took:.1} s after | {said} |");
        self.assert_tidy(what);
    }

    /// No temporary file is left.
    fn assert_tidy(&self, what: &str) {
        let spool = spool(&self.it.pgvault);
        let left_over = || -> Vec<String> {
            let names = |dir: &PathBuf| -> Vec<String> {
                let entries = fs::read_dir(dir).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
                entries.into_iter().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
            };
            let mut names = [names(&spool), names(&self.it.pgvault.repository.join(".tmp"))].concat();
            names.retain(|name| name.starts_with(".tmp-"));
            names
        };
        // What is being written right now has a temporary name as well, for a moment.
        let first = left_over();
        self.it.pgvault.wait(&format!("{what}: temporary files are gone: {first:?}"), LIMIT, || {
            !left_over().iter().any(|name| first.contains(name))
        });
    }

    /// While no sync succeeds nothing more is told to be flushed.
    fn assert_no_sync_no_acknowledgement(&mut self) {
        let paths =
            [Files::New, Files::Partial, Files::Complete, Files::SpoolFolder].map(|files| self.paths(files)).concat();
        let log = self.it.path("strace");
        let injection = Injection { calls: "fsync,fdatasync", error: "EIO", when: "1+", paths: &paths };
        let injected = Injected::start(self.daemon.pid(), injection, &log);
        self.it.pgvault.wait("syncs fail", LIMIT, || injected.failed().len() > 2);
        // What was told before the first failure may still be on its way to the server.
        let (mut before, mut since) = (self.flushed(), Instant::now());
        self.it.pgvault.wait("nothing more is told", LIMIT, || {
            let now = self.flushed();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            since.elapsed() > Duration::from_secs(1)
        });
        let mut told = vec![before];
        for _ in 0..30 {
            told.push(self.flushed());
            std::thread::sleep(Duration::from_millis(100));
        }
        injected.stop();
        let held = wal(&self.it.pgvault)["flushed_lsn"].as_str().unwrap().parse::<Lsn>().unwrap();
        let (least, most) = (*told.iter().min().unwrap(), *told.iter().max().unwrap());
        println!("while no sync succeeded the server was told {least} to {most}");
        assert_eq!(least, most, "an acknowledgement without a sync");
        assert!(most <= held, "{most} {held}");
        let end = self.it.end();
        wait_shipped(&self.it.pgvault, end);
    }

    fn end(mut self) {
        // A new one, so that the recovery at the end does not replay a thousand segments.
        self.it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        self.filler.stop();
        self.load.wait_for_more(20);
        self.load.stop();
        let end = self.it.end();
        wait_shipped(&self.it.pgvault, end);
        assert!(!self.daemon.has_ended());
        let truth = self.it.truth(self.reference, end);
        self.it.assert_stored_exactly("a failing disk");
        // What a restart finds is as good.
        self.daemon.kill();
        let daemon = self.it.pgvault.serve();
        self.it.pgvault.wait_streaming();
        daemon.stop();
        self.it.assert_latest_is_exact(truth, end);
    }
}

#[test]
fn operations_of_the_spool_and_the_repository_may_fail_for_a_while() {
    let mut disk = Disk::new();
    for name in [
        "create a segment",
        "reserve its space",
        "sync the spool's folder",
        "write WAL",
        "sync WAL",
        "name a complete segment",
        "name an object",
        "remove a stored segment",
    ] {
        let operation = OPERATIONS.into_iter().find(|(what, ..)| *what == name).unwrap();
        let error = if matches!(name, "create a segment" | "reserve its space" | "write WAL" | "name an object") {
            "ENOSPC"
        } else {
            "EIO"
        };
        disk.fail(operation, error, "1+");
    }
    disk.assert_no_sync_no_acknowledgement();
    disk.end();
}

#[test]
#[ignore = "the whole matrix takes minutes: make chaos"]
fn every_operation_of_the_spool_and_the_repository_may_fail_at_any_call() {
    let mut disk = Disk::new();
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    for operation in OPERATIONS {
        for error in ["EIO", "ENOSPC"] {
            disk.fail(operation, error, "1+");
            for _ in 0..2 {
                let call = 1 + dice.below(6);
                disk.fail(operation, error, &call.to_string());
            }
        }
    }
    for error in ["EIO", "ENOSPC", "EACCES"] {
        for call in [1, 2, 3, 5, 8] {
            disk.fail(("open any file", "openat", Files::Any), error, &call.to_string());
        }
    }
    disk.assert_no_sync_no_acknowledgement();
    disk.end();
}

#[test]
fn a_full_disk_under_the_spool_or_the_repository_is_got_over() {
    let it = Attacked::new(&[("max_slot_wal_keep_size", "2GB")], "");
    let Some(under_spool) = SmallDisk::over(&it.pgvault.state, 200) else { return };
    let Some(under_repository) = SmallDisk::over(&it.pgvault.repository, 150) else { return };
    let mut daemon = it.pgvault.serve();
    it.pgvault.wait_streaming();
    let reference = it.reference();
    // So little that neither is filled by it, however long this takes.
    let load = it.ledger.slow_load(&it.node, 3, Duration::from_millis(10));
    it.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    let filler = Filler::start(&it.node, 256 << 10);

    under_repository.fill();
    it.pgvault.wait("the full repository is told", LIMIT, || {
        let wal = wal(&it.pgvault);
        wal["error"].as_str().is_some_and(|error| error.contains("space")) && wal["streaming"] == true
    });
    load.wait_for_more(50);
    under_repository.relieve();
    wait_shipped(&it.pgvault, it.end());

    under_spool.fill();
    it.pgvault.wait("the full spool is told", LIMIT, || wal(&it.pgvault)["state"] == "stalled");
    it.pgvault.wait("check tells what that means", LIMIT, || {
        let (code, check) = it.pgvault.json(&["check", "main"]);
        let text = check.to_string();
        code == 10 && text.contains("nothing more is received") && text.contains("before it is lost")
    });
    // The primary goes on, checkpoints included.
    load.wait_for_more(50);
    it.node.sql("CHECKPOINT");
    load.wait_for_more(50);
    assert!(!daemon.has_ended());
    under_spool.relieve();
    it.pgvault.wait_streaming();
    filler.stop();
    load.stop();
    let end = it.end();
    wait_shipped(&it.pgvault, end);
    let truth = it.truth(reference, end);
    it.assert_stored_exactly("a full disk");
    daemon.stop();
    // The restored server reads the repository as the servers' user.
    give_to_server_user(&it.pgvault.repository);
    it.assert_latest_is_exact(truth, end);
    drop((under_spool, under_repository));
}
