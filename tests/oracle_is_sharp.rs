//! Does the oracle accept exact restores, and reject every other?

use std::fs;
use std::sync::{Arc, Mutex, Weak};

use wal::{Lsn, SegmentSize, TimelineId};

use crate::support::LIMIT;
use crate::support::ledger::Ledger;
use crate::support::oracle::{Fault, Oracle, Verdict};
use crate::support::pg::{PgNode, test_dir};
use crate::support::plain_restore::PlainBackup;
use crate::support::receivewal::{self, Difference, ReceiveWal, complete_segments};
use crate::support::truth::{End, Target, Truth};
use crate::support::waldump;

/// A past made once for all tests here: a backup, a load, the reference's WAL.
struct Past {
    dir: tempfile::TempDir,
    backup: PlainBackup,
    oracle: Oracle,
    /// Where the last acknowledged commit was.
    end: Lsn,
}

impl Past {
    /// Tests that run at the same time share one; the last removes it.
    fn get() -> Arc<Self> {
        static PAST: Mutex<Weak<Past>> = Mutex::new(Weak::new());
        let mut shared = PAST.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let past = Arc::new(Self::make());
            *shared = Arc::downgrade(&past);
            past
        })
    }

    fn make() -> Self {
        let dir = test_dir();
        let settings = [("max_prepared_transactions", "20")];
        let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &settings);
        node.start();
        let reference = ReceiveWal::start(&node, &dir.path().join("reference"));
        let ledger = Ledger::create(&node, &dir.path().join("ledger"), None);
        let load = ledger.load(&node, 4);
        load.wait_for_more(100);
        let backup = PlainBackup::take(&node, &dir.path().join("backup"));
        load.wait_for_more(200);
        let mut barriers = vec![load.barrier(&node, "half way")];
        node.sql("SELECT pg_switch_wal()");
        load.wait_for_more(100);
        node.sql("SELECT pg_switch_wal()");
        load.wait_for_more(100);
        barriers.push(load.barrier(&node, "nearly there"));
        node.sql("SELECT pg_switch_wal()");
        load.wait_for_more(100);
        load.stop();
        // Recovery to a time or a transaction ends only where something later shows that it is reached.
        node.sql("INSERT INTO scratch VALUES (2); INSERT INTO accounts VALUES (0, 0)");
        let end = node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        reference.wait_for(&node, end);
        reference.stop();
        assert!(node.stop("immediate", LIMIT));
        let truth = Truth::read(&dir.path().join("reference"), TimelineId::FIRST, SegmentSize::new(1 << 20).unwrap());
        let oracle = Oracle::new(&ledger, truth, barriers);
        Self { dir, backup, oracle, end }
    }

    fn restore(&self, name: &str, target: &Target) -> PgNode {
        self.backup.restore(self.dir.path(), name, &self.dir.path().join("reference"), target)
    }

    /// Commits of the ledger after the backup, in the order of the log.
    fn commits(&self) -> Vec<End> {
        let ours = |end: &End| self.oracle.attempts().iter().any(|attempt| attempt.xid == end.xid);
        let after = self.backup.stop;
        self.oracle.truth().ends.iter().copied().filter(|end| end.committed && end.lsn >= after && ours(end)).collect()
    }
}

#[test]
fn exact_restores_are_accepted_at_every_kind_of_target() {
    let past = Past::get();
    let commits = past.commits();
    let (third, half) = (commits[commits.len() / 3], commits[commits.len() / 2]);
    let targets = [
        Target::Time { time: third.time, inclusive: true },
        Target::Time { time: third.time, inclusive: false },
        Target::Lsn { lsn: half.lsn, inclusive: true },
        Target::Lsn { lsn: half.lsn, inclusive: false },
        Target::Lsn { lsn: half.end, inclusive: true },
        Target::Xid { xid: third.xid, inclusive: true },
        Target::Xid { xid: third.xid, inclusive: false },
        Target::Name("half way".to_owned()),
        Target::Name("nearly there".to_owned()),
        Target::Immediate { backup_stop: past.backup.stop },
        Target::EndOfWal(past.end),
    ];
    let mut sizes = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        let node = past.restore(&format!("exact-{number}"), target);
        let verdict = past.oracle.check(&node, target);
        assert!(verdict.is_exact(), "{target:?}: {verdict}");
        sizes.push(verdict.found);
    }
    assert_eq!(sizes[2], sizes[3] + 1, "inclusive and exclusive differ by the commit at the position");
    assert_eq!(sizes[5], sizes[6] + 1);
    assert!(sizes[9] < sizes[7] && sizes[7] < sizes[8] && sizes[8] < sizes[10], "{sizes:?}");
}

#[test]
fn a_restore_that_ended_early_is_rejected() {
    let past = Past::get();
    let commits = past.commits();
    let (early, late) = (commits[commits.len() / 2 - 1], commits[commits.len() / 2]);
    let node = past.restore("early", &Target::Xid { xid: early.xid, inclusive: true });
    let attempt = past.oracle.attempts().iter().find(|attempt| attempt.xid == late.xid).unwrap();
    let verdict = past.oracle.check(&node, &Target::Xid { xid: late.xid, inclusive: true });
    assert_eq!(verdict.faults, [Fault::Missing(vec![(attempt.worker, attempt.seq)])], "one commit too few");
    let verdict = past.oracle.check(&node, &Target::EndOfWal(past.end));
    assert!(matches!(&verdict.faults[..], [Fault::Missing(rows)] if rows.len() > 100), "{verdict}");
}

#[test]
fn a_restore_that_went_too_far_is_rejected() {
    let past = Past::get();
    let commits = past.commits();
    let (early, late) = (commits[commits.len() / 2 - 1], commits[commits.len() / 2]);
    let node = past.restore("late", &Target::Xid { xid: late.xid, inclusive: true });
    let attempt = past.oracle.attempts().iter().find(|attempt| attempt.xid == late.xid).unwrap();
    let verdict = past.oracle.check(&node, &Target::Xid { xid: early.xid, inclusive: true });
    assert_eq!(verdict.faults, [Fault::Extra(vec![(attempt.worker, attempt.seq)])], "one commit too many");
    let verdict = past.oracle.check(&node, &Target::Name("half way".to_owned()));
    assert!(verdict.faults.iter().any(|fault| matches!(fault, Fault::Digest { .. })), "{verdict}");
}

type Expected = fn(&[Fault]) -> bool;

#[test]
fn damage_inside_a_restore_is_rejected() {
    let past = Past::get();
    let target = Target::EndOfWal(past.end);
    let node = past.restore("damaged", &target);
    past.oracle.check(&node, &target).assert_exact();
    let last = "SELECT max(seq) FROM ledger WHERE worker = 2";
    let cases: [(&str, &str, &str, Expected); 8] = [
        (
            "the last row is gone",
            "CREATE TABLE kept AS SELECT * FROM ledger; DELETE FROM ledger WHERE worker = 2 AND seq = (@last)",
            "INSERT INTO ledger SELECT * FROM kept WHERE worker = 2 AND seq = (SELECT max(seq) FROM kept WHERE worker = 2)",
            |faults| matches!(faults, [Fault::Missing(rows)] if rows.len() == 1),
        ),
        (
            "a row in the middle is gone",
            "DELETE FROM ledger WHERE worker = 1 AND seq = 20",
            "INSERT INTO ledger SELECT * FROM kept WHERE worker = 1 AND seq = 20",
            |faults| matches!(faults, [Fault::Missing(_), Fault::BrokenChain { worker: 1, seq: 21 }]),
        ),
        (
            "a row too many, with the right hash",
            "INSERT INTO ledger SELECT 2, seq + 1, h, sha256(h || int4send(2) || int8send(seq + 1)), '' FROM ledger WHERE worker = 2 AND seq = (@last)",
            "DELETE FROM ledger WHERE worker = 2 AND seq = (@last)",
            |faults| matches!(faults, [Fault::Extra(rows)] if rows.len() == 1),
        ),
        (
            "a row of a transaction that was rolled back",
            "INSERT INTO ledger SELECT worker, -seq, prev, h, pad FROM ledger WHERE worker = 1 AND seq = 7",
            "DELETE FROM ledger WHERE seq < 0",
            |faults| matches!(faults, [Fault::Extra(_), Fault::BrokenChain { seq: -7, .. }]),
        ),
        (
            "another text",
            "UPDATE ledger SET pad = pad || 'x' WHERE worker = 3 AND seq = 15",
            "UPDATE ledger SET pad = left(pad, -1) WHERE worker = 3 AND seq = 15",
            |faults| matches!(faults, [Fault::BrokenChain { worker: 3, seq: 15 }]),
        ),
        (
            "another predecessor",
            "UPDATE ledger SET prev = '\\x00' WHERE worker = 3 AND seq = 15",
            "UPDATE ledger SET prev = (SELECT prev FROM kept WHERE worker = 3 AND seq = 15) WHERE worker = 3 AND seq = 15",
            |faults| matches!(faults, [Fault::BrokenChain { worker: 3, seq: 15 }]),
        ),
        (
            "money out of nothing",
            "UPDATE accounts SET balance = balance + 1 WHERE id = 3",
            "UPDATE accounts SET balance = balance - 1 WHERE id = 3",
            |faults| matches!(faults, [Fault::Sum(_)]),
        ),
        ("an unlogged table that was not reset", "INSERT INTO scratch VALUES (1)", "TRUNCATE scratch", |faults| {
            matches!(faults, [Fault::Unlogged(_)])
        }),
    ];
    for (name, damage, repair, expected) in cases {
        node.sql(&damage.replace("@last", last));
        let verdict = past.oracle.check(&node, &target);
        assert!(expected(&verdict.faults), "{name}: {verdict}");
        node.sql(&repair.replace("@last", last));
        past.oracle.check(&node, &target).assert_exact();
    }
}

#[test]
fn an_index_that_lost_entries_is_rejected() {
    let past = Past::get();
    let target = Target::EndOfWal(past.end);
    let mut node = past.restore("index", &target);
    let file = node.data.join(node.sql("CHECKPOINT; SELECT pg_relation_filepath('ledger_pkey')"));
    assert!(node.stop("fast", LIMIT));
    let mut bytes = fs::read(&file).unwrap();
    // The second page is a leaf: an entry that points to another row.
    let entry = &mut bytes[2 * 8192 - 64..2 * 8192 - 32];
    entry.rotate_left(8);
    fs::write(&file, bytes).unwrap();
    node.start();
    let verdict = past.oracle.check(&node, &target);
    assert!(matches!(verdict.faults[..], [Fault::Structure(_)]), "{verdict}");
}

#[test]
fn a_server_that_does_not_answer_is_rejected() {
    let past = Past::get();
    let target = Target::EndOfWal(past.end);
    let node = PgNode::at(past.dir.path(), "nobody", 17);
    let verdict: Verdict = past.oracle.check(&node, &target);
    assert!(matches!(verdict.faults[..], [Fault::Unreadable(_)]), "{verdict}");
}

#[test]
fn a_commit_that_the_reference_lost_is_not_overlooked() {
    let past = Past::get();
    let mut truth =
        Truth::read(&past.dir.path().join("reference"), TimelineId::FIRST, SegmentSize::new(1 << 20).unwrap());
    let lost = past.commits()[10].xid;
    truth.ends.retain(|end| end.xid != lost);
    let dir = past.dir.path().join("ledger");
    let ledger = Ledger::of(&dir);
    let outcome = std::panic::catch_unwind(|| Oracle::new(&ledger, truth, Vec::new()));
    let message = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("is not in the reference's WAL"), "{message}");
}

#[test]
fn the_load_and_the_truth_go_on_through_a_crash_and_a_promotion() {
    let dir = test_dir();
    let settings = [("max_prepared_transactions", "20"), ("wal_keep_size", "1GB")];
    let mut primary = PgNode::init(dir.path(), "primary", 18, &["--wal-segsize=1"], &settings);
    primary.start();
    let reference = dir.path().join("reference");
    let receiving = ReceiveWal::start(&primary, &reference);
    let ledger = Ledger::create(&primary, &dir.path().join("ledger"), None);
    let load = ledger.load(&primary, 3);
    load.wait_for_more(100);

    primary.kill();
    receiving.stop();
    primary.start();
    let receiving = ReceiveWal::start(&primary, &reference);
    load.wait_for_more(100);
    let mut standby = primary.make_standby(dir.path(), "standby");
    standby.start();
    load.wait_for_more(100);

    load.redirect(&standby);
    assert!(primary.stop("fast", LIMIT), "waits until the standby has everything");
    receiving.stop();
    standby.promote();
    let receiving = ReceiveWal::start(&standby, &reference);
    load.wait_for_more(100);
    load.stop();
    standby.sql("SELECT pg_switch_wal()");
    let end: Lsn = standby.sql("INSERT INTO scratch VALUES (2); SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    receiving.wait_for(&standby, end);
    receiving.stop();

    let second = TimelineId::new(2).unwrap();
    let truth = Truth::read(&reference, second, SegmentSize::new(1 << 20).unwrap());
    let oracle = Oracle::new(&ledger, truth, Vec::new());
    standby.sql("TRUNCATE scratch");
    let verdict = oracle.check(&standby, &Target::EndOfWal(end));
    assert!(verdict.is_exact() && verdict.found > 400 - 10, "{verdict}");
    assert!(complete_segments(&reference).iter().any(|(name, _)| name.timeline() == second));
}

#[test]
fn the_truth_is_what_pg_waldump_says() {
    let past = Past::get();
    let reference = past.dir.path().join("reference");
    let truth = past.oracle.truth();
    let copy = past.dir.path().join("reference.copy");
    copy_as_complete(&reference, &copy);
    let start = complete_segments(&copy)[0].0.number(SegmentSize::new(1 << 20).unwrap()).unwrap();
    let dumped = waldump::dump(17, &copy, TimelineId::FIRST, start.start(SegmentSize::new(1 << 20).unwrap()));
    assert_eq!(dumped.end, truth.valid_end);
    let theirs: Vec<Lsn> = dumped.records.iter().map(|record| record.lsn).collect();
    assert_eq!(theirs, truth.records);
    let ends = |word: &str| {
        let matching = dumped.records.iter().filter(|record| record.description.starts_with(word));
        matching.map(|record| record.lsn).collect::<Vec<_>>()
    };
    let ours =
        |committed| truth.ends.iter().filter(|end| end.committed == committed).map(|end| end.lsn).collect::<Vec<_>>();
    assert_eq!(ends("COMMIT"), ours(true));
    assert_eq!(ends("ABORT"), ours(false));
    assert!(!ours(false).is_empty());
}

/// A copy of a reference directory in which the open segment bears the name of a complete one.
fn copy_as_complete(reference: &std::path::Path, copy: &std::path::Path) {
    fs::create_dir(copy).unwrap();
    for entry in fs::read_dir(reference).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".partial").to_owned();
        fs::copy(&path, copy.join(&name)).unwrap();
    }
    crate::support::pg::give_to_server_user(copy);
}

#[test]
fn the_byte_oracle_tells_missing_and_different_segments() {
    let past = Past::get();
    let reference = past.dir.path().join("reference");
    let segments = complete_segments(&reference);
    assert!(segments.len() > 3);
    let read = |name| segments.iter().find(|(found, _)| *found == name).map(|(_, path)| fs::read(path).unwrap());
    assert_eq!(receivewal::differences(&reference, |_| true, read), []);
    let damaged = segments[1].0;
    let missing = segments[2].0;
    let ours = |name| {
        let mut bytes = read(name)?;
        if name == damaged {
            bytes[4711] ^= 1;
        }
        (name != missing).then_some(bytes)
    };
    let found = receivewal::differences(&reference, |_| true, ours);
    assert_eq!(found, [Difference::At(damaged, 4711), Difference::Missing(missing)]);
    assert_eq!(receivewal::differences(&reference, |name| name < damaged, ours), []);
}
