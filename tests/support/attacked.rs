//! A busy server, pgvault as its users run it, the ledger and pg_receivewal beside: what every attack begins with, and the
//! questions that every attack ends with.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pgvault::storage::{StorageContext, StorageOptions, open};
use wal::{Lsn, SegmentName, SegmentSize, TimelineId};

pub use super::LIMIT;
use super::ledger::{Ledger, Load};
use super::oracle::Oracle;
use super::pg::{PgNode, major, test_dir};
use super::pgvault::Pgvault;
use super::plain_restore::wait_until_writable;
use super::receivewal::{self, Difference, ReceiveWal};
use super::stored_wal::local;
use super::truth::{Target, Truth};
use super::vault::Vault;

/// Segments of 1 MiB, so that many of them are finished.
pub fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// Everything at hand; nothing of pgvault runs yet.
pub struct Attacked {
    pub node: PgNode,
    pub pgvault: Pgvault,
    pub ledger: Ledger,
    // Last, so that it outlives the server.
    pub dir: tempfile::TempDir,
}

impl Attacked {
    /// A server with a ledger, and an installed pgvault with more keys for its cluster.
    pub fn new(settings: &[(&str, &str)], more: &str) -> Self {
        let dir = test_dir();
        let mut node = PgNode::init(dir.path(), "primary", major(17), &["--wal-segsize=1"], settings);
        node.start();
        let pgvault = Pgvault::new(dir.path());
        pgvault.config_for(&node, more);
        let ledger = Ledger::create(&node, &dir.path().join("ledger"), None);
        Self { node, pgvault, ledger, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn load(&self) -> Load {
        self.ledger.load(&self.node, 3)
    }

    /// pg_receivewal, from now on.
    pub fn reference(&self) -> ReceiveWal {
        ReceiveWal::start(&self.node, &self.path("reference"))
    }

    /// Where the server's durable WAL ends.
    pub fn end(&self) -> Lsn {
        self.node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
    }

    /// Waits until the repository holds everything before `lsn`, tails included.
    pub fn wait_shipped(&self, lsn: Lsn) {
        wait_shipped(&self.pgvault, lsn);
    }

    /// Everything of the reference, once it has all before `lsn`.
    pub fn truth(&self, reference: ReceiveWal, lsn: Lsn) -> Truth {
        reference.wait_for(&self.node, lsn);
        reference.stop();
        Truth::read(&self.path("reference"), TimelineId::FIRST, size())
    }

    /// No gap is known, nothing was refused as another content, and every whole segment is the reference's.
    pub fn assert_stored_exactly(&self, context: &str) {
        self.assert_holds_exactly(&stored(&self.pgvault), context);
    }

    /// The same of what lies somewhere else than in the installation's directory.
    pub fn assert_holds_exactly(&self, stored: &Vault, context: &str) {
        let names = stored.segments();
        assert!(names.len() >= 2, "{context}: {names:?}");
        let numbers: Vec<u64> = names.iter().map(|name| name.number(size()).unwrap().get()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{context}: {numbers:?}");
        let reference = self.path("reference");
        let ours = |name: SegmentName| names.contains(&name).then(|| stored.segment(name));
        // The reference may have begun later; what pgvault has is complete, so all of the reference must be there.
        let found = receivewal::differences(&reference, |_| true, ours);
        assert_eq!(found, Vec::<Difference>::new(), "{context}");
        let refused: Vec<String> = stored.keys().into_iter().filter(|key| key.contains("conflict")).collect();
        assert_eq!(refused, Vec::<String>::new(), "{context}");
        let (code, gaps) = self.pgvault.json(&["wal", "gaps", "main"]);
        assert_eq!((code, &gaps["gaps"]), (0, &serde_json::json!([])), "{context}");
        let (code, window) = self.pgvault.json(&["window", "main"]);
        assert_eq!((code, &window["gaps"]), (0, &serde_json::json!([])), "{context}");
    }

    /// `recover --latest` into a new directory, started and writable. The servers' user runs all of it.
    pub fn recover_latest(&self, name: &str) -> PgNode {
        let mut node = PgNode::at(self.dir.path(), name, self.node.major);
        self.pgvault.ok(["recover", "main", "--latest", "--action", "promote", "--to", node.data.to_str().unwrap()]);
        // Nobody stands by for what was recovered.
        node.configure(&[("synchronous_standby_names", "")]);
        node.start();
        wait_until_writable(&node);
        node
    }

    /// Recovers everything there is and compares it with what really happened up to `end`.
    pub fn assert_latest_is_exact(&self, truth: Truth, end: Lsn) {
        let oracle = Oracle::new(&self.ledger, truth, Vec::new());
        let restored = self.recover_latest("restored");
        let verdict = oracle.check(&restored, &Target::EndOfWal(end));
        assert!(verdict.expected > 20, "{verdict}");
        verdict.assert_exact();
    }
}

/// What is in an installation's repository.
pub fn stored(pgvault: &Pgvault) -> Vault {
    let scratch = pgvault.dir.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let store = tokio::runtime::Runtime::new().unwrap().block_on(local(&pgvault.repository));
    Vault::on(&scratch, store)
}

/// What is in a store that is reached by these options.
pub fn stored_at(pgvault: &Pgvault, options: &StorageOptions) -> Vault {
    let scratch = pgvault.dir.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    // Its connections live on it for as long as the store is used.
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap());
    let store = runtime.block_on(open(options, StorageContext::default())).unwrap();
    Vault::on(&scratch, store)
}

/// Waits until the repository holds everything before `lsn`, tails included.
pub fn wait_shipped(pgvault: &Pgvault, lsn: Lsn) {
    let (mut deadline, mut seen) = (Instant::now() + LIMIT, None);
    loop {
        let (_, status) = pgvault.json(&["status", "main"]);
        let wal = &status["clusters"][0]["wal"];
        let shipped = wal["shipped_lsn"].as_str().map(|text| text.parse::<Lsn>().unwrap());
        if shipped >= Some(lsn) {
            return;
        }
        if shipped > seen {
            (seen, deadline) = (shipped, Instant::now() + LIMIT);
        }
        assert!(Instant::now() < deadline, "never shipped up to {lsn}: {status:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The spool's folder of the only lineage.
pub fn spool(pgvault: &Pgvault) -> PathBuf {
    let cluster = pgvault.state.join("spool/main");
    std::fs::read_dir(cluster).unwrap().next().unwrap().unwrap().path()
}

/// Numbers from a seed, which a failing test tells.
#[derive(Debug)]
pub struct Dice {
    pub seed: u64,
    state: u64,
}

impl Dice {
    /// From `PGVAULT_TEST_SEED`, else at random.
    pub fn new() -> Self {
        let seed = std::env::var("PGVAULT_TEST_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
        Self { seed, state: seed }
    }

    /// A number below `limit` (splitmix64).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    pub fn pause(&mut self, from_millis: u64, to_millis: u64) {
        let pause = from_millis + self.below(to_millis - from_millis);
        std::thread::sleep(Duration::from_millis(pause));
    }
}
