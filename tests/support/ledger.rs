//! A load whose every acknowledged commit is known outside of the database.
//!
//! Each writer keeps a chain of rows, each row's hash covering the one before, and moves money between accounts. Before a
//! commit the transaction's number is written to the writer's own file, after it the acknowledgement, fsynced.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::RwLock;
use tokio_postgres::{Client, NoTls};
use wal::Lsn;

use super::LIMIT;
use super::pg::PgNode;

/// Number of accounts, and what each starts with.
const ACCOUNTS: i32 = 20;
const BALANCE: i64 = 1000;

/// The sum of all accounts, always.
pub const SUM: i64 = ACCOUNTS as i64 * BALANCE;

/// The tables, and the directory in which the writers keep their records.
#[derive(Clone, Debug)]
pub struct Ledger {
    dir: PathBuf,
}

/// One attempt to commit, as its writer noted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub worker: i32,
    pub seq: i64,
    /// The transaction.
    pub xid: u32,
    /// The server's insert position after the commit was acknowledged; none when it never was: then nobody knows.
    pub acknowledged: Option<Lsn>,
}

/// A moment at which no writer was writing, with a restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    pub name: String,
    /// What `pg_create_restore_point` returned: the end of its record.
    pub lsn: Lsn,
    /// See [`digest`].
    pub digest: String,
}

impl Ledger {
    /// Creates the tables. `tablespace` puts the ledger's index into a tablespace at this path (a directory of the servers' user).
    pub fn create(node: &PgNode, dir: &Path, tablespace: Option<&Path>) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut index = String::new();
        if let Some(path) = tablespace {
            node.sql(&format!("CREATE TABLESPACE ledger_space LOCATION '{}'", path.display()));
            index.push_str("USING INDEX TABLESPACE ledger_space");
        }
        node.sql(&format!(
            "CREATE TABLE ledger(worker int, seq bigint, prev bytea NOT NULL, h bytea NOT NULL, pad text NOT NULL, PRIMARY KEY(worker, seq) {index});
             CREATE TABLE accounts(id int PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(1, {ACCOUNTS}) id;
             CREATE UNLOGGED TABLE scratch(i int); INSERT INTO scratch VALUES (1)"
        ));
        Self { dir: dir.to_owned() }
    }

    /// A ledger that was created before.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Starts the writers.
    pub fn load(&self, node: &PgNode, writers: i32) -> Load {
        self.slow_load(node, writers, Duration::ZERO)
    }

    /// Starts writers that rest after each row.
    pub fn slow_load(&self, node: &PgNode, writers: i32, rest: Duration) -> Load {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            rest,
            gate: RwLock::new(()),
            conninfo: Mutex::new(node.conninfo()),
            prepared: node.sql("SHOW max_prepared_transactions") != "0",
        });
        let spawn = |worker: i32| {
            let shared = Arc::clone(&shared);
            let record = OpenOptions::new().create(true).append(true).open(self.file(worker)).unwrap();
            std::thread::spawn(move || Writer { worker, shared, record }.run())
        };
        Load { threads: (1..=writers).map(spawn).collect(), shared }
    }

    /// Everything that the writers noted so far.
    pub fn attempts(&self) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for worker in (1..).take_while(|&worker| self.file(worker).exists()) {
            for line in fs::read_to_string(self.file(worker)).unwrap().lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["try", seq, xid] => attempts.push(Attempt {
                        worker,
                        seq: seq.parse().unwrap(),
                        xid: xid.parse().unwrap(),
                        acknowledged: None,
                    }),
                    ["ack", lsn] => attempts.last_mut().unwrap().acknowledged = Some(lsn.parse().unwrap()),
                    _ => panic!("worker {worker} wrote {line:?}"),
                }
            }
        }
        attempts
    }

    fn file(&self, worker: i32) -> PathBuf {
        self.dir.join(format!("worker-{worker}"))
    }
}

/// Writers at work.
pub struct Load {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    rest: Duration,
    /// Writers hold it while they write one row.
    gate: RwLock<()>,
    conninfo: Mutex<String>,
    prepared: bool,
}

impl Load {
    /// Commits that were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits for so many more commits.
    pub fn wait_for_more(&self, commits: u64) {
        let mut seen = self.acknowledged();
        let goal = seen + commits;
        let mut deadline = Instant::now() + LIMIT;
        while seen < goal {
            let now = self.acknowledged();
            if now > seen {
                (seen, deadline) = (now, Instant::now() + LIMIT);
            }
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a writer has ended");
            assert!(Instant::now() < deadline, "the load does not get on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends the writers to another server as soon as they have to connect again.
    pub fn redirect(&self, node: &PgNode) {
        *self.shared.conninfo.lock().unwrap() = node.conninfo();
    }

    /// Holds all writers for a moment, and marks the moment with a restore point.
    pub fn barrier(&self, node: &PgNode, name: &str) -> Barrier {
        let held = self.shared.gate.blocking_write();
        let digest = digest(node);
        let lsn = node.sql(&format!("SELECT pg_create_restore_point('{name}')")).parse().unwrap();
        drop(held);
        Barrier { name: name.to_owned(), lsn, digest }
    }

    /// Ends the writers after the row that each is at.
    pub fn stop(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// A hash over all rows of the ledger, by the server.
pub fn digest(node: &PgNode) -> String {
    node.sql("SELECT coalesce(encode(sha256(string_agg(h, ''::bytea ORDER BY worker, seq)), 'hex'), '') FROM ledger")
}

/// What a row's hash must be.
pub fn row_hash(prev: &[u8], worker: i32, seq: i64, pad: &str) -> Vec<u8> {
    let hash = Sha256::new().chain_update(prev).chain_update(worker.to_be_bytes()).chain_update(seq.to_be_bytes());
    hash.chain_update(pad.as_bytes()).finalize().to_vec()
}

struct Writer {
    worker: i32,
    shared: Arc<Shared>,
    record: File,
}

impl Writer {
    fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        while !self.shared.stop.load(Ordering::SeqCst) {
            // A lost connection is part of the game: what was under way stays without an acknowledgement.
            if runtime.block_on(self.write_while_connected()).is_err() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    async fn write_while_connected(&mut self) -> Result<(), tokio_postgres::Error> {
        let conninfo = self.shared.conninfo.lock().unwrap().clone();
        let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
        let connection = tokio::spawn(connection);
        self.settle_what_was_prepared(&client).await?;
        let last = client
            .query_opt("SELECT seq, h FROM ledger WHERE worker = $1 ORDER BY seq DESC LIMIT 1", &[&self.worker])
            .await?;
        let (mut seq, mut prev) = last.map_or((0, Vec::new()), |row| (row.get(0), row.get(1)));
        while !self.shared.stop.load(Ordering::SeqCst) {
            let shared = Arc::clone(&self.shared);
            let writing = shared.gate.read().await;
            seq += 1;
            prev = self.write(&client, seq, prev).await?;
            drop(writing);
            tokio::time::sleep(shared.rest).await;
        }
        drop(client);
        connection.await.unwrap()
    }

    /// After a crash a transaction may be left between its two phases, and block the next one.
    async fn settle_what_was_prepared(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let pattern = format!("ledger-{}-%", self.worker);
        for row in client.query("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1", &[&pattern]).await? {
            client.batch_execute(&format!("COMMIT PREPARED '{}'", row.get::<_, String>(0))).await?;
        }
        Ok(())
    }

    /// One row, one transfer, one commit; returns the row's hash.
    async fn write(&mut self, client: &Client, seq: i64, prev: Vec<u8>) -> Result<Vec<u8>, tokio_postgres::Error> {
        let pad = pad(self.worker, seq);
        let hash = row_hash(&prev, self.worker, seq, &pad);
        if seq % 7 == 0 {
            // What is rolled back must never be seen.
            client.batch_execute("BEGIN").await?;
            self.insert(client, -seq, &prev, &hash, &pad).await?;
            client.batch_execute("ROLLBACK").await?;
        }
        client.batch_execute("BEGIN").await?;
        self.insert(client, seq, &prev, &hash, &pad).await?;
        if seq % 5 == 0 {
            client.batch_execute("SAVEPOINT a; UPDATE accounts SET balance = 0 WHERE id = 1; ROLLBACK TO a").await?;
        }
        self.transfer(client, seq).await?;
        let xid: String = client.query_one("SELECT pg_current_xact_id()::xid::text", &[]).await?.get(0);
        self.note(&format!("try {seq} {xid}"));
        if self.shared.prepared && seq % 11 == 0 {
            let name = format!("ledger-{}-{seq}", self.worker);
            client.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await?;
            client.batch_execute(&format!("COMMIT PREPARED '{name}'")).await?;
        } else {
            client.batch_execute("COMMIT").await?;
        }
        let lsn: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        self.note(&format!("ack {lsn}"));
        self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
        Ok(hash)
    }

    async fn insert(
        &self,
        client: &Client,
        seq: i64,
        prev: &[u8],
        hash: &[u8],
        pad: &str,
    ) -> Result<u64, tokio_postgres::Error> {
        let sql = "INSERT INTO ledger(worker, seq, prev, h, pad) VALUES ($1, $2, $3, $4, $5)";
        client.execute(sql, &[&self.worker, &seq, &prev, &hash, &pad]).await
    }

    /// Moves money between two accounts, the lower number first so that writers do not lock each other out.
    async fn transfer(&self, client: &Client, seq: i64) -> Result<(), tokio_postgres::Error> {
        let pick = |salt: i64| i32::try_from((seq * salt + i64::from(self.worker)) % i64::from(ACCOUNTS)).unwrap() + 1;
        let (from, to) = (pick(13), pick(17));
        if from == to {
            return Ok(());
        }
        let amount = seq % 9;
        let mut steps = [(from, -amount), (to, amount)];
        steps.sort_unstable();
        for (id, change) in steps {
            client.execute("UPDATE accounts SET balance = balance + $2 WHERE id = $1", &[&id, &change]).await?;
        }
        Ok(())
    }

    /// Writes a line to the writer's own file and waits until it is on disk.
    fn note(&mut self, line: &str) {
        self.record.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.record.sync_data().unwrap();
    }
}

/// Text of very different lengths that does not compress, so that some of it goes to TOAST.
fn pad(worker: i32, seq: i64) -> String {
    let blocks = match seq % 23 {
        0 => 160,
        n => n % 6,
    };
    (0..blocks).map(|block| hex::encode(row_hash(&[], worker, seq * 1000 + block, ""))).collect()
}
