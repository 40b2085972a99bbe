//! A WAL pipeline in this process, on a local repository whose store can be made to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::LIMIT;
use pgvault::clock::{Clock, SystemClock};
use pgvault::error::Result;
use pgvault::primary::{Conninfo, Environment, SlotName};
use pgvault::repository::{ClusterName, LineageRepository, Repository, RepositoryId, RepositoryOptions};
use pgvault::storage::Storage;
use pgvault::storage::faulty::Faulty;
use pgvault::storage::local::LocalStorage;
use pgvault::storage::memory::MemoryStorage;
use pgvault::wal_pipeline::{WalParts, WalPipeline, WalSettings, WalStatus};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wal::{Lsn, SegmentName};

/// Where WAL goes.
pub struct Vault {
    pub runtime: Runtime,
    pub store: Arc<Faulty>,
    pub repository: Repository,
    pub dir: PathBuf,
}

/// A pipeline that runs.
pub struct Running<'a> {
    vault: &'a Vault,
    pub status: watch::Receiver<WalStatus>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Vault {
    /// On a store in memory.
    pub fn new(dir: &Path) -> Self {
        Self::on(dir, Arc::new(MemoryStorage::new()))
    }

    /// On a store in a directory, which outlives this process.
    pub fn on_disk(dir: &Path) -> Self {
        let root = dir.join("repository");
        let opened = LocalStorage::open(&root, SystemClock.now());
        Self::on(dir, Arc::new(Self::runtime().block_on(opened).unwrap()))
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    /// A vault whose repository lies in `store`.
    pub fn on(dir: &Path, store: Arc<dyn Storage>) -> Self {
        let runtime = Self::runtime();
        let store = Arc::new(Faulty::new(store));
        let now = SystemClock.now().into();
        let options = RepositoryOptions { scratch_dir: dir.to_owned(), ..RepositoryOptions::default() };
        let opened = Repository::create_or_open(
            Arc::clone(&store) as Arc<dyn Storage>,
            options,
            now,
            RepositoryId::new([7; 16]),
        );
        let repository = runtime.block_on(opened).unwrap();
        Self { runtime, store, repository, dir: dir.to_owned() }
    }

    pub fn cluster() -> ClusterName {
        ClusterName::new("main").unwrap()
    }

    pub fn settings(&self, conninfo: &str) -> WalSettings {
        WalSettings {
            cluster: Self::cluster(),
            conninfo: Conninfo::parse(conninfo, &Environment::default()).unwrap(),
            application_name: "pgvault".to_owned(),
            slot: Some(SlotName::new("pgvault").unwrap()),
            create_slot: true,
            max_rpo: Duration::from_millis(300),
            synchronous: false,
            report_apply: false,
            spool_dir: self.dir.join("spool"),
            spool_max_size: None,
            state_dir: self.dir.join("state"),
            uploads: 3,
            wait_for_silent: Duration::from_secs(3),
            drain: Duration::from_secs(20),
        }
    }

    pub fn start(&self, conninfo: &str) -> Running<'_> {
        self.start_with(self.settings(conninfo))
    }

    pub fn start_with(&self, settings: WalSettings) -> Running<'_> {
        let repository = self.repository.cluster(&settings.cluster);
        let parts = WalParts::with_repository(settings, repository, Arc::new(SystemClock));
        self.start_parts(parts)
    }

    pub fn start_parts(&self, parts: WalParts) -> Running<'_> {
        let status = parts.board.subscribe();
        let shutdown = CancellationToken::new();
        let task = self.runtime.spawn(WalPipeline::run(parts, shutdown.clone()));
        Running { vault: self, status, shutdown, task }
    }

    pub fn lineage(&self) -> LineageRepository {
        let cluster = self.repository.cluster(&Self::cluster());
        self.runtime.block_on(cluster.newest_lineage()).unwrap().unwrap()
    }

    /// A stored segment.
    pub fn segment(&self, name: SegmentName) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.runtime.block_on(self.lineage().fetch_segment(name, &mut bytes)).unwrap();
        bytes
    }

    /// What is stored of a segment that is not complete: its bytes, padded, and where they end.
    pub fn tail(&self, name: SegmentName) -> Option<(Vec<u8>, Lsn)> {
        let mut bytes = Vec::new();
        let lineage = self.lineage();
        let end = self.runtime.block_on(lineage.fetch_tail(name, &mut bytes)).unwrap()?;
        bytes.resize(usize::try_from(lineage.segment_size().bytes()).unwrap(), 0);
        Some((bytes, end))
    }

    /// Names of all stored whole segments.
    pub fn segments(&self) -> Vec<SegmentName> {
        let objects = self.runtime.block_on(self.store.list("", None, None)).unwrap();
        let name = |key: &str| key.rsplit('/').next().and_then(|name| name.strip_suffix(".zst")?.parse().ok());
        objects.iter().filter_map(|object| name(object.key.as_str())).collect()
    }

    /// Keys of all stored objects.
    pub fn keys(&self) -> Vec<String> {
        let objects = self.runtime.block_on(self.store.list("", None, None)).unwrap();
        objects.iter().map(|object| object.key.to_string()).collect()
    }

    /// The spool's folder of the only lineage.
    pub fn spool(&self) -> PathBuf {
        let cluster = self.dir.join("spool/main");
        fs::read_dir(cluster).unwrap().next().unwrap().unwrap().path()
    }
}

impl Running<'_> {
    pub fn now(&self) -> WalStatus {
        self.status.borrow().clone()
    }

    /// Waits until the status is as it should be; panics with the status when it never is.
    pub fn wait(&self, what: &str, mut holds: impl FnMut(&WalStatus) -> bool) -> WalStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.now();
            assert!(
                !status.state.needs_a_person() || status.error.is_some(),
                "a state without its reason: {status:#?}"
            );
            if holds(&status) {
                return status;
            }
            assert!(!self.task.is_finished(), "the pipeline ended; waited for: {what}: {status:#?}");
            assert!(Instant::now() < deadline, "never: {what}: {status:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait_streaming(&self) {
        self.wait("streaming", WalStatus::streaming);
    }

    /// Waits until everything before `lsn` is in the repository, tails included.
    pub fn wait_shipped(&self, lsn: Lsn) {
        self.wait("shipped", |status| status.shipped.is_some_and(|shipped| shipped >= lsn));
    }

    pub fn wait_flushed(&self, lsn: Lsn) {
        self.wait("flushed", |status| status.flushed.is_some_and(|flushed| flushed >= lsn));
    }

    /// A clean stop.
    pub fn stop(self) {
        self.shutdown.cancel();
        let ended = async { tokio::time::timeout(LIMIT, self.task).await };
        self.vault.runtime.block_on(ended).expect("stops in time").unwrap().unwrap();
    }

    /// Ends it as a crash would.
    pub fn kill(self) {
        self.task.abort();
        assert!(self.vault.runtime.block_on(self.task).unwrap_err().is_cancelled());
    }
}
