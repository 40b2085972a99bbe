//! Is a restored server exactly what it should be at its target: every acknowledged commit up to it, none beyond it?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::ledger::{self, Attempt, Barrier, Ledger};
use super::pg::PgNode;
use super::truth::{Target, Truth};

/// What the writers noted, and what really happened.
#[derive(Debug)]
pub struct Oracle {
    attempts: Vec<Attempt>,
    truth: Truth,
    barriers: Vec<Barrier>,
}

/// What is wrong with a restored server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Rows whose commit lies before the target, and that are not there.
    Missing(Vec<(i32, i64)>),
    /// Rows whose commit lies beyond the target or never happened, and that are there.
    Extra(Vec<(i32, i64)>),
    /// A row whose hash or predecessor is not right.
    BrokenChain { worker: i32, seq: i64 },
    /// The accounts' sum.
    Sum(String),
    /// Rows of the unlogged table, which is empty after a recovery.
    Unlogged(String),
    /// The ledger's digest at a barrier's restore point.
    Digest { name: String, found: String },
    /// Indexes and tables do not agree, or a page is broken.
    Structure(String),
    /// The server could not be asked.
    Unreadable(String),
}

/// What the check came to.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Rows that must be there.
    pub expected: usize,
    /// Rows that are there.
    pub found: usize,
    pub faults: Vec<Fault>,
}

impl Verdict {
    /// Whether the server is exactly what it should be.
    pub fn is_exact(&self) -> bool {
        self.faults.is_empty()
    }

    /// Panics when it is not.
    #[track_caller]
    pub fn assert_exact(&self) {
        assert!(self.is_exact(), "{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows expected, {} found", self.expected, self.found)?;
        for fault in &self.faults {
            let text = format!("{fault:?}");
            write!(f, "\n  {}", text.chars().take(300).collect::<String>())?;
        }
        Ok(())
    }
}

struct Row {
    prev: Vec<u8>,
    hash: Vec<u8>,
    pad: String,
}

impl Oracle {
    /// Panics when the notes and the reference's WAL contradict each other: an acknowledged commit that the reference does not
    /// have means that the reference was asked too early, or that PostgreSQL lost a commit.
    pub fn new(ledger: &Ledger, truth: Truth, barriers: Vec<Barrier>) -> Self {
        let attempts = settled(ledger.attempts());
        let committed: BTreeMap<u32, wal::Lsn> =
            truth.ends.iter().filter(|end| end.committed).map(|end| (end.xid, end.end)).collect();
        for attempt in &attempts {
            let Some(acknowledged) = attempt.acknowledged else { continue };
            match committed.get(&attempt.xid) {
                Some(&end) => assert!(end <= acknowledged, "{attempt:?} ends at {end}"),
                None => panic!("{attempt:?} is not in the reference's WAL, which ends at {}", truth.valid_end),
            }
        }
        Self { attempts, truth, barriers }
    }

    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The rows that must be there after recovery to `target`.
    pub fn expected(&self, target: &Target) -> BTreeSet<(i32, i64)> {
        let committed = self
            .truth
            .committed_at(target)
            .unwrap_or_else(|| panic!("recovery would not find {target:?} in the reference's WAL"));
        self.attempts.iter().filter(|a| committed.contains(&a.xid)).map(|a| (a.worker, a.seq)).collect()
    }

    /// Checks a server that was restored to `target` and answers queries.
    pub fn check(&self, node: &PgNode, target: &Target) -> Verdict {
        let expected = self.expected(target);
        let rows = match rows(node) {
            Ok(rows) => rows,
            Err(error) => {
                return Verdict { expected: expected.len(), found: 0, faults: vec![Fault::Unreadable(error)] };
            }
        };
        let found: BTreeSet<(i32, i64)> = rows.keys().copied().collect();
        let mut faults = Vec::new();
        let missing: Vec<(i32, i64)> = expected.difference(&found).copied().collect();
        if !missing.is_empty() {
            faults.push(Fault::Missing(missing));
        }
        let extra: Vec<(i32, i64)> = found.difference(&expected).copied().collect();
        if !extra.is_empty() {
            faults.push(Fault::Extra(extra));
        }
        faults.extend(broken_chains(&rows));
        faults.extend(self.other_tables(node, target));
        Verdict { expected: expected.len(), found: found.len(), faults }
    }

    fn other_tables(&self, node: &PgNode, target: &Target) -> Vec<Fault> {
        let ask = |sql: &str| node.try_sql(sql).unwrap_or_else(|error| format!("error: {error}"));
        let mut faults = Vec::new();
        let sum = ask("SELECT sum(balance) FROM accounts");
        if sum != ledger::SUM.to_string() {
            faults.push(Fault::Sum(sum));
        }
        // An unlogged table cannot be read while in recovery, and is reset when recovery ends.
        if ask("SELECT pg_is_in_recovery()") == "f" {
            let unlogged = ask("SELECT count(*) FROM scratch");
            if unlogged != "0" {
                faults.push(Fault::Unlogged(unlogged));
            }
        }
        if let Target::Name(name) = target
            && let Some(barrier) = self.barriers.iter().find(|barrier| barrier.name == *name)
        {
            let found = ledger::digest(node);
            if found != barrier.digest {
                faults.push(Fault::Digest { name: name.clone(), found });
            }
        }
        faults.extend(structure(node));
        faults
    }
}

/// Without attempts whose transaction number was given out again: after a failover the next primary counts on from what it
/// knows, so the first holder of the number never committed.
fn settled(attempts: Vec<Attempt>) -> Vec<Attempt> {
    let acknowledged: BTreeSet<u32> = attempts.iter().filter(|a| a.acknowledged.is_some()).map(|a| a.xid).collect();
    attempts.into_iter().filter(|a| a.acknowledged.is_some() || !acknowledged.contains(&a.xid)).collect()
}

/// What is wrong with a server that was restored to the end, compared with the server that survived: for histories of which no
/// single reference has all the WAL.
pub fn compare(restored: &PgNode, survivor: &PgNode) -> Verdict {
    let (there, here) = match (rows(survivor), rows(restored)) {
        (Ok(there), Ok(here)) => (there, here),
        (Err(error), _) | (_, Err(error)) => {
            return Verdict { expected: 0, found: 0, faults: vec![Fault::Unreadable(error)] };
        }
    };
    let mut faults = Vec::new();
    let only = |a: &BTreeMap<(i32, i64), Row>, b: &BTreeMap<(i32, i64), Row>| -> Vec<(i32, i64)> {
        a.iter()
            .filter(|(key, row)| b.get(key).is_none_or(|other| other.hash != row.hash))
            .map(|(key, _)| *key)
            .collect()
    };
    let (missing, extra) = (only(&there, &here), only(&here, &there));
    if !missing.is_empty() {
        faults.push(Fault::Missing(missing));
    }
    if !extra.is_empty() {
        faults.push(Fault::Extra(extra));
    }
    faults.extend(broken_chains(&here));
    let sum = restored.sql("SELECT sum(balance) FROM accounts");
    if sum != ledger::SUM.to_string() {
        faults.push(Fault::Sum(sum));
    }
    faults.extend(structure(restored));
    Verdict { expected: there.len(), found: here.len(), faults }
}

/// Commits that were acknowledged and that this server does not have: what a failover without synchronous replication costs.
pub fn acknowledged_and_missing(ledger: &Ledger, node: &PgNode) -> Vec<(i32, i64)> {
    let rows = rows(node).unwrap_or_else(|error| panic!("{error}"));
    let acknowledged = ledger.attempts().into_iter().filter(|attempt| attempt.acknowledged.is_some());
    acknowledged.map(|attempt| (attempt.worker, attempt.seq)).filter(|key| !rows.contains_key(key)).collect()
}

/// All rows of the ledger, read past every index.
fn rows(node: &PgNode) -> Result<BTreeMap<(i32, i64), Row>, String> {
    let sql = "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off;
               SELECT worker, seq, encode(prev, 'hex'), encode(h, 'hex'), pad FROM ledger";
    let text = node.try_sql(sql)?;
    text.lines()
        .filter(|line| *line != "SET")
        .map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            let [worker, seq, prev, hash, pad] = fields[..] else { return Err(format!("row {line:?}")) };
            let key = (worker.parse().map_err(|_| line)?, seq.parse().map_err(|_| line)?);
            let (prev, hash) = (hex::decode(prev).map_err(|_| line)?, hex::decode(hash).map_err(|_| line)?);
            Ok((key, Row { prev, hash, pad: pad.to_owned() }))
        })
        .collect()
}

/// Rows whose hash is wrong, or that do not follow the row with the number before.
fn broken_chains(rows: &BTreeMap<(i32, i64), Row>) -> Vec<Fault> {
    let none = Vec::new();
    let is_right = |&(worker, seq): &(i32, i64), row: &Row| {
        let before = if seq == 1 { Some(&none) } else { rows.get(&(worker, seq - 1)).map(|before| &before.hash) };
        before == Some(&row.prev) && ledger::row_hash(&row.prev, worker, seq, &row.pad) == row.hash
    };
    rows.iter()
        .filter(|(key, row)| !is_right(key, row))
        .map(|(&(worker, seq), _)| Fault::BrokenChain { worker, seq })
        .collect()
}

/// What pg_amcheck says. It needs its extension, and so a server that accepts writes.
fn structure(node: &PgNode) -> Option<Fault> {
    if node.try_sql("SELECT pg_is_in_recovery()").as_deref() == Ok("t") {
        return None;
    }
    if let Err(error) = node.try_sql("CREATE EXTENSION IF NOT EXISTS amcheck") {
        return Some(Fault::Structure(error));
    }
    let output = node.tool("pg_amcheck").args(["--heapallindexed", "-t", "ledger", "-t", "accounts"]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (!output.status.success()).then(|| Fault::Structure(String::from_utf8_lossy(&said).into_owned()))
}
