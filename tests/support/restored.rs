//! Backups of a real server on a local repository, and servers restored from them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgvault::backup::{
    BackupDeps, BackupProgress, BackupRequest, FilesAccess, PollRepository, ProgressSender, ReadKind, run,
};
use pgvault::clock::{Clock, SystemClock};
use pgvault::error::Error;
use pgvault::primary::{CheckpointMode, ConnectOptions, Conninfo, Environment};
use pgvault::restore::{
    ConfigRequest, Effort, RestoreOutcome, RestorePlan, RestoreProgress, RestoreProgressSender, RestoreRequest, apply,
    plan,
};
use recovery::settings::RestoreCommand;
use recovery::{Backup, RecoveryRequest, RecoveryTarget};
use tokio_util::sync::CancellationToken;
use wal::Lsn;

use super::LIMIT;
use super::pg::{PgNode, give_to_server_user};
use super::pgvault::Pgvault;
use super::stored_wal::local;
use super::vault::Vault;

/// A repository in a directory, an installed `pgvault` that can read it, and a place for restored servers.
pub struct Scene {
    pub dir: PathBuf,
    pub vault: Vault,
    pub installed: Pgvault,
}

impl Scene {
    pub fn new(dir: &Path) -> Self {
        let installed = Pgvault::new(dir);
        installed.config("[cluster.main]\nconninfo = \"host=127.0.0.1 port=1\"\n");
        let store = tokio::runtime::Runtime::new().unwrap().block_on(local(&installed.repository));
        let work = dir.join("vault");
        fs::create_dir_all(&work).unwrap();
        Self { dir: dir.to_owned(), vault: Vault::on(&work, store), installed }
    }

    /// A usable backup of the node; its WAL must be streaming into the vault.
    pub fn backup(&self, node: &PgNode) -> Backup {
        self.backup_as(node, ReadKind::Auto).unwrap_or_else(|error| panic!("{error}")).0
    }

    /// The same, read as `kind` says; and why everything was read, when it was.
    pub fn backup_as(&self, node: &PgNode, kind: ReadKind) -> Result<(Backup, Option<String>), Error> {
        let progress = ProgressSender::new(BackupProgress::default());
        self.backup_told(node, kind, &progress).map(|backup| (backup, progress.borrow().reason.clone()))
    }

    /// The same, telling how far it is.
    pub fn backup_told(&self, node: &PgNode, kind: ReadKind, progress: &ProgressSender) -> Result<Backup, Error> {
        let request = BackupRequest { kind, checkpoint: CheckpointMode::Fast, ..BackupRequest::default() };
        self.backup_from(node, None, &request, progress)
    }

    /// The same, read from a data directory where one is given.
    pub fn backup_from(
        &self,
        node: &PgNode,
        files: Option<FilesAccess>,
        request: &BackupRequest,
        progress: &ProgressSender,
    ) -> Result<Backup, Error> {
        self.backup_over(&node.conninfo(), files, request, progress)
    }

    /// The same over this conninfo.
    pub fn backup_over(
        &self,
        conninfo: &str,
        files: Option<FilesAccess>,
        request: &BackupRequest,
        progress: &ProgressSender,
    ) -> Result<Backup, Error> {
        let lineage = self.vault.lineage();
        let server = ConnectOptions::new(Conninfo::parse(conninfo, &Environment::default()).unwrap(), "test");
        let mut wal = PollRepository::new(lineage.clone());
        (wal.interval, wal.deadline) = (Duration::from_millis(50), LIMIT);
        let deps = BackupDeps {
            server: &server,
            files,
            repository: &lineage,
            index_file: None,
            wal: &wal,
            clock: &SystemClock,
            random: u16::try_from(self.vault.keys().len() % 60_000).unwrap(),
            cancel: &CancellationToken::new(),
        };
        self.vault.runtime.block_on(run(request, &deps, progress))
    }

    /// A request to restore to `directory`, with the installed `pgvault` as restore_command.
    pub fn request(&self, directory: &Path, target: RecoveryTarget) -> RestoreRequest {
        RestoreRequest {
            directory: directory.to_owned(),
            recovery: RecoveryRequest::new(target),
            tablespaces: Vec::new(),
            wal_dir: None,
            owner: super::pg::am_root().then(|| "postgres".to_owned()),
            config: Some(ConfigRequest {
                restore_command: RestoreCommand {
                    program: self.installed.binary.to_str().unwrap().to_owned(),
                    config: Some(self.installed.config.to_str().unwrap().to_owned()),
                    arguments: Vec::new(),
                    cluster: "main".to_owned(),
                    timeline: None,
                    until: None,
                },
                standby: None,
                options: Vec::new(),
            }),
            delta: false,
        }
    }

    pub fn plan(&self, request: &RestoreRequest) -> Result<RestorePlan, Error> {
        self.vault.runtime.block_on(plan(&self.vault.lineage(), request))
    }

    pub fn apply(&self, plan: &RestorePlan) -> Result<RestoreOutcome, Error> {
        let progress = RestoreProgressSender::new(RestoreProgress::default());
        let lineage = self.vault.lineage();
        self.vault.runtime.block_on(apply(plan, &lineage, Effort { jobs: 3, max_rate: None }, &progress, &SystemClock))
    }

    /// Restores to a new directory of this name and starts a server on it.
    pub fn recover(&self, name: &str, major: u32, change: impl FnOnce(&mut RestoreRequest)) -> PgNode {
        let mut node = self.restore(name, major, change);
        node.start();
        node
    }

    /// Restores to a new directory of this name; the server on it is configured for tests and not started.
    pub fn restore(&self, name: &str, major: u32, change: impl FnOnce(&mut RestoreRequest)) -> PgNode {
        // The repository was written by this process; the restored server's restore_command reads it as another user.
        give_to_server_user(&self.installed.repository);
        let node = PgNode::at(&self.dir, name, major);
        let mut request = self.request(&node.data, RecoveryTarget::Latest);
        change(&mut request);
        let plan = self.plan(&request).unwrap_or_else(|error| panic!("{error}"));
        self.apply(&plan).unwrap_or_else(|error| panic!("{error}"));
        node.configure(&[]);
        give_to_server_user(&node.data.join("postgresql.conf"));
        node
    }
}

/// Waits until recovery has paused at its target.
pub fn wait_paused(node: &PgNode) {
    wait(node, "SELECT pg_get_wal_replay_pause_state() = 'paused'");
}

/// Waits until recovery has ended.
pub fn wait_promoted(node: &PgNode) {
    wait(node, "SELECT NOT pg_is_in_recovery()");
}

pub fn wait(node: &PgNode, condition: &str) {
    let deadline = Instant::now() + LIMIT;
    while node.try_sql(condition).as_deref() != Ok("t") {
        assert!(Instant::now() < deadline, "never: {condition}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything below a directory, as text, to see whether anything changed.
pub fn listing(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            found.insert(format!("{} {} {:?}", path.display(), meta.len(), meta.modified().unwrap()));
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// A position as SQL prints it.
pub fn lsn(node: &PgNode, sql: &str) -> Lsn {
    node.sql(sql).parse().unwrap()
}

/// Now, by the clock of this machine.
pub fn now() -> wal::PgTime {
    SystemClock.now().into()
}
