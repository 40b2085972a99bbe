//! What is left when the machine of pgvault loses power, and the primary's disk is lost with it? Everything acknowledged.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use wal::{Lsn, SystemIdentifier};

use crate::support::attacked::{Dice, LIMIT, size, wait_shipped};
use crate::support::ledger::Ledger;
use crate::support::oracle::Oracle;
use crate::support::pg::{PgNode, give_to_server_user, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::plain_restore::wait_until_writable;
use crate::support::power_loss::disk::{Doctored, Survives};
use crate::support::power_loss::trace::Event;
use crate::support::power_loss::{Record, Traced};
use crate::support::tap::tapped;
use crate::support::truth::{Target, Truth};

/// pgvault as the only synchronous standby of a server under load, that was killed together with it.
struct Scene {
    record: Record,
    pgvault: Pgvault,
    ledger: Ledger,
    /// Flush positions that a tap between the two saw.
    tapped: Vec<Lsn>,
    major: u32,
    // Last, so that it outlives everything.
    dir: tempfile::TempDir,
}

/// Ended when dropped.
struct Pgbench(Child);

impl Pgbench {
    fn start(node: &PgNode) -> Self {
        let init = node.tool("pgbench").args(["-i", "-q"]).output().unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let quiet = Stdio::null;
        let child = node.tool("pgbench").args(["-c", "4", "-T", "3600", "-n"]).stdout(quiet()).stderr(quiet()).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        // With its server it has ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Scene {
    /// `injected`: what strace does to the daemon besides looking on.
    fn play(commits: u64, injected: &[&str]) -> Self {
        let dir = test_dir();
        let settings = [
            ("synchronous_standby_names", "the_vault"),
            ("synchronous_commit", "local"),
            ("wal_keep_size", "1GB"),
            ("max_wal_size", "1GB"),
        ];
        let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &settings);
        node.start();
        let pgvault = Pgvault::new(dir.path());
        let (proxy, told) = tapped(node.port);
        pgvault.config(&format!(
            "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=postgres\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n\
             application_name = \"the_vault\"\nsynchronous = true\n",
            proxy.port()
        ));
        let traced = Traced::serve(&pgvault, "first", injected);
        pgvault.wait_streaming();
        pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
        pgvault.wait("synchronous", LIMIT, || node.sql("SELECT sync_state FROM pg_stat_replication") == "sync");
        let ledger = Ledger::create(&node, &dir.path().join("ledger"), None);
        let bench = Pgbench::start(&node);
        node.sql("ALTER SYSTEM SET synchronous_commit = on");
        node.sql("SELECT pg_reload_conf()");
        let load = ledger.load(&node, 3);
        load.wait_for_more(commits / 3);
        // The connection breaks, the process dies; the disk goes on from where it is.
        proxy.cut();
        load.wait_for_more(commits / 3);
        let mut events = traced.kill();
        let traced = Traced::serve(&pgvault, "second", injected);
        load.wait_for_more(commits / 3);
        // The end of both machines.
        events.push(Event::NewProcess);
        events.extend(traced.kill());
        let system = node.sql("SELECT system_identifier FROM pg_control_system()");
        let system = SystemIdentifier::new(system.parse().unwrap());
        assert!(node.stop("immediate", LIMIT));
        load.stop();
        drop(bench);
        let pg_wal = dir.path().join("the primary's wal");
        fs::rename(node.data.join("pg_wal"), &pg_wal).unwrap();
        fs::remove_dir_all(&node.data).unwrap();
        let record =
            Record { events, state: pgvault.state.clone(), repository: pgvault.repository.clone(), pg_wal, system };
        let tapped = told.lock().unwrap().updates.iter().map(|update| update.flush).collect();
        Self { record, pgvault, ledger, tapped, major: node.major, dir }
    }

    fn told(&self) -> Vec<Lsn> {
        let flush = |event: &Event| if let Event::Told { flush, .. } = event { Some(*flush) } else { None };
        self.record.events.iter().filter_map(flush).collect()
    }
}

/// What survives a power loss takes the place of what was there.
fn replace(files: &std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>, roots: [&Path; 2]) {
    for root in roots {
        fs::remove_dir_all(root).unwrap();
        fs::create_dir(root).unwrap();
    }
    for (path, bytes) in files {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    roots.iter().for_each(|root| give_to_server_user(root));
}

/// Plays the scene, loses power at so many moments of it, and recovers from what the last power loss leaves. Returns how
/// often a sync had failed.
fn every_acknowledged_commit_survives(moments: usize, commits: u64, injected: &[&str]) -> usize {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let scene = Scene::play(commits, injected);
    let disk = scene.record.disk_at_the_end();
    assert_eq!(disk.differences(), Vec::<String>::new(), "the model of the disk is not the disk");
    // What strace saw being sent is what the tap saw passing; the last ones may not have got that far.
    let told = scene.told();
    assert!(told.len() > 100 && scene.tapped.len() > 100, "{} told, {} passed", told.len(), scene.tapped.len());
    assert!(scene.tapped.iter().all(|flush| told.contains(flush)), "the trace misses what was told");

    let started = std::time::Instant::now();
    let findings = scene.record.audit(Doctored::No, moments, &mut dice);
    println!(
        "{} events, {} status updates; power lost at {} moments, {} disks looked at in {:?}",
        scene.record.events.len(),
        told.len(),
        findings.moments,
        findings.images,
        started.elapsed()
    );
    assert_eq!(findings.faults, Vec::<String>::new(), "seed {}", dice.seed);
    assert!(findings.images >= moments, "{findings:?}");

    // What the audit says is true of the product: with the least that a disk may keep, all of it comes back.
    let roots = [scene.record.state.as_path(), scene.record.repository.as_path()];
    replace(&disk.after_power_loss(Survives::Nothing, &mut dice), roots);
    let daemon = scene.pgvault.serve();
    wait_shipped(&scene.pgvault, findings.acknowledged);
    daemon.stop();
    let mut restored = PgNode::at(scene.dir.path(), "restored", scene.major);
    let to = restored.data.to_str().unwrap().to_owned();
    scene.pgvault.ok(["recover", "main", "--latest", "--action", "promote", "--to", &to]);
    restored.configure(&[("synchronous_standby_names", "")]);
    restored.start();
    wait_until_writable(&restored);
    let (_, window) = scene.pgvault.json(&["window", "main"]);
    let end: Lsn = window["ranges"][0]["to"]["lsn"].as_str().unwrap().parse().unwrap();
    let present = restored.sql("SELECT worker || ' ' || seq FROM ledger");
    let present: std::collections::BTreeSet<&str> = present.lines().collect();
    let attempts = scene.ledger.attempts();
    let acknowledged: Vec<_> = attempts.iter().filter(|attempt| attempt.acknowledged.is_some()).collect();
    let lost = |attempt: &&&crate::support::ledger::Attempt| {
        !present.contains(format!("{} {}", attempt.worker, attempt.seq).as_str())
    };
    println!("{} commits were acknowledged", acknowledged.len());
    assert_eq!(acknowledged.iter().filter(lost).collect::<Vec<_>>(), Vec::<&&_>::new());
    let scratch = scene.dir.path().join("reference");
    let truth = Truth::of_pg_wal(findings.acknowledged.max(end), &scene.record.pg_wal, &scratch, size());
    let verdict = Oracle::new(&scene.ledger, truth, Vec::new()).check(&restored, &Target::EndOfWal(end));
    verdict.assert_exact();
    disk.failed_syncs
}

#[test]
fn every_commit_that_was_acknowledged_survives_a_power_loss_at_any_moment() {
    every_acknowledged_commit_survives(300, 300, &[]);
}

#[test]
#[ignore = "long: make chaos"]
fn every_commit_that_was_acknowledged_survives_a_thousand_power_losses() {
    every_acknowledged_commit_survives(4000, 3000, &[]);
}

#[test]
fn a_sync_that_fails_is_never_acknowledged_and_everything_goes_on() {
    let fail = ["inject=fdatasync:error=EIO:when=20+60", "inject=fsync:error=EIO:when=60+50"];
    let failed = every_acknowledged_commit_survives(200, 300, &fail);
    println!("{failed} syncs of files failed");
    assert!(failed >= 2, "{failed} syncs failed");
}

#[test]
fn an_acknowledgement_that_is_not_true_is_found() {
    let mut dice = Dice::new();
    println!("seed {}", dice.seed);
    let mut scene = Scene::play(150, &[]);
    for doctored in [
        Doctored::NoFolderSync,
        Doctored::NoFolderSyncAfterPublishing,
        Doctored::NoSyncBeforePublishing,
        Doctored::NoContentSync,
    ] {
        let findings = scene.record.audit(doctored, 2000, &mut dice);
        println!("{doctored:?}: {:?}", findings.faults.first());
        assert!(!findings.faults.is_empty(), "{doctored:?} is not noticed: {findings:?}");
    }
    // One that tells as flushed what it has merely received.
    for event in &mut scene.record.events {
        if let Event::Told { write, flush, .. } = event {
            *flush = *write;
        }
    }
    let findings = scene.record.audit(Doctored::No, 200, &mut dice);
    println!("flush told as received: {:?}", findings.faults.first());
    assert!(!findings.faults.is_empty(), "{findings:?}");
}
