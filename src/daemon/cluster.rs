//! One cluster inside the daemon: its tasks, and what they know. Each task is started again when it ends or panics, and
//! none of them can stop another cluster.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backups::Backups;
use super::members::{KeptSlot, Members};
use super::view::{BackupActivity, ClusterView, Failover, Member, Stored};
use super::{gaps, open, pipeline_thread, stored, verified};
use crate::clock::Clock;
use crate::config::{ClusterConfig, Config};
use crate::error::{Error, ErrorCode, Result};
use crate::patroni::{self, Topology};
use crate::primary::ConnectOptions;
use crate::receiver::Witness;
use crate::repository::{ClusterRepository, Repository};
use crate::wal_pipeline::{StatusBoard, WalParts, WalSettings};

/// How often members are asked.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// How often the slots of idle members are looked at: one small query each.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How often the repository is listed without a reason.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// How soon it is listed again after something went wrong or while a backup waits for its WAL.
const LIST_SOON: Duration = Duration::from_secs(5);

/// One cluster. Shared by its tasks and by whoever asks.
#[derive(Debug)]
pub struct Cluster {
    /// What the configuration says.
    pub config: ClusterConfig,
    /// Where its repository is, for people.
    pub location: String,
    /// How its servers are reached.
    pub connect: ConnectOptions,
    /// Where local state lives.
    pub state_dir: PathBuf,
    /// Keys that are set for it and do nothing in this version.
    pub without_effect: Vec<String>,
    /// Its base backups.
    pub backups: Backups,
    clock: Arc<dyn Clock>,
    board: StatusBoard,
    repository: watch::Receiver<Option<Repository>>,
    known: Mutex<Known>,
    refresh: Notify,
    ask: Notify,
    refreshed: watch::Sender<u64>,
    topology: watch::Sender<Topology>,
}

/// What the tasks have found out.
#[derive(Debug, Default)]
struct Known {
    stored: Option<Arc<Stored>>,
    repository_error: Option<Error>,
    members: Vec<Member>,
    down_since: Option<DateTime<Utc>>,
}

impl Cluster {
    /// Checks the configuration of a cluster; nothing runs yet.
    pub fn new(
        config: &Config,
        cluster: &ClusterConfig,
        clock: Arc<dyn Clock>,
        repository: watch::Receiver<Option<Repository>>,
    ) -> Result<Self> {
        let connect = open::connect_options(config, cluster)?;
        let members = Members::unasked(&connect);
        let down_since = Some(clock.now());
        Ok(Self {
            config: cluster.clone(),
            location: config.repository.storage.url.clone(),
            connect,
            state_dir: config.state_dir.clone(),
            without_effect: config.without_effect_of(&cluster.name),
            backups: Backups::new(),
            clock,
            board: StatusBoard::new(),
            repository,
            known: Mutex::new(Known { members, down_since, ..Known::default() }),
            refresh: Notify::new(),
            ask: Notify::new(),
            refreshed: watch::Sender::new(0),
            topology: watch::Sender::new(Topology::default()),
        })
    }

    /// Starts everything that this cluster does; it ends when `stop` is cancelled.
    pub fn start(self: &Arc<Self>, settings: WalSettings, tasks: &TaskTracker, stop: &CancellationToken) {
        let (of_cluster, repository) = watch::channel(None);
        let parts = WalParts {
            settings,
            repository,
            witness: Witness::patroni(self.topology.subscribe()),
            clock: Arc::clone(&self.clock),
            board: self.board.clone(),
        };
        let name = self.config.name.clone();
        tasks.spawn(pipeline_thread::keep_running(name, parts, stop.clone()));
        self.keep("patroni", tasks, stop, |cluster, stop| async move {
            let (urls, named) = (&cluster.config.patroni_urls, cluster.connect.conninfo.hosts());
            patroni::keep_asking(urls, named, &cluster.topology, &stop).await;
        });
        self.keep("members", tasks, stop, |cluster, stop| async move { cluster.ask_members(stop).await });
        self.keep("repository", tasks, stop, |cluster, stop| async move { cluster.keep_reading(stop).await });
        self.keep("changes", tasks, stop, |cluster, stop| async move { cluster.watch_changes(stop).await });
        self.keep("backups", tasks, stop, super::backups::keep_taking);
        let cluster = Arc::clone(self);
        let stop = stop.clone();
        tasks.spawn(async move { cluster.hand_over_repository(of_cluster, stop).await });
    }

    /// Runs a task, and again when it panics: a fault in one must not silence it for ever.
    fn keep<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        task: &'static str,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        start: impl Fn(Arc<Self>, CancellationToken) -> F + Send + 'static,
    ) {
        let cluster = Arc::clone(self);
        let stop = stop.clone();
        tasks.spawn(async move {
            while !stop.is_cancelled() {
                let ended = tokio::spawn(start(Arc::clone(&cluster), stop.clone())).await;
                if let Err(error) = ended {
                    tracing::error!(cluster = %cluster.config.name, task, %error, "internal error: started again in 10 s");
                    pause(Duration::from_secs(10), &stop).await;
                }
            }
        });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whoever panicked while holding it left whole values behind: every change is one assignment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The repository of this cluster, once it is open.
    pub fn repository(&self) -> Result<ClusterRepository> {
        let name = open::cluster_name(&self.config)?;
        match self.repository.borrow().as_ref() {
            Some(repository) => Ok(repository.cluster(&name)),
            None => Err(self.known().repository_error.clone().unwrap_or_else(|| {
                Error::new(ErrorCode::RepositoryDenied, format!("the repository {} is not open yet", self.location))
                    .help("look again in a moment: pgvault status")
            })),
        }
    }

    /// Whether the repository is being opened, and nothing is known to be wrong with it.
    pub fn repository_is_opening(&self) -> bool {
        self.repository.borrow().is_none() && self.known().repository_error.is_none()
    }

    /// Notes why the repository cannot be used, or that it can.
    pub fn repository_state(&self, error: Option<Error>) {
        self.known().repository_error = error;
    }

    /// Where the pipeline writes what it does.
    pub fn board(&self) -> &StatusBoard {
        &self.board
    }

    /// The time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Everything that is known now.
    pub fn view(&self) -> ClusterView {
        let wal = self.board.read(Clone::clone);
        let failovers = wal.failovers.iter().map(Failover::from).collect();
        let backup: BackupActivity = self.backups.activity();
        let known = self.known();
        ClusterView {
            name: self.config.name.clone(),
            slot: self.config.slot.clone(),
            max_rpo: self.config.max_rpo,
            synchronous: self.config.synchronous,
            application_name: self.config.application_name.clone(),
            schedule: self.config.schedule.clone(),
            without_effect: self.without_effect.clone(),
            wal: Some(wal),
            down_since: known.down_since,
            stored: known.stored.clone(),
            location: self.location.clone(),
            repository_error: known.repository_error.clone(),
            members: known.members.clone(),
            create_slot: self.config.create_slot,
            patroni: (!self.config.patroni_urls.is_empty()).then(|| self.topology.borrow().clone()),
            backup,
            last_committed: self.backups.last_committed(),
            failovers,
            wal_verified: verified::last(&self.state_dir, &self.config.name, verified::Kind::Wal),
        }
    }

    /// What the repository held when it was last read.
    pub fn stored(&self) -> Option<Arc<Stored>> {
        self.known().stored.clone()
    }

    /// Reads the repository now, and says what it holds.
    pub async fn read_now(&self) -> Result<Arc<Stored>> {
        let lineage = stored::newest_lineage(&self.repository()?).await?;
        // Before the listing: what is archived while it goes on may be missing in it.
        let archived = self.board.read(|wal| wal.archived);
        let read = stored::read(&lineage, self.clock.now()).await?;
        let read = Arc::new(gaps::without_what_is_on_its_way(read, archived));
        let mut known = self.known();
        known.stored = Some(Arc::clone(&read));
        known.repository_error = None;
        drop(known);
        self.refreshed.send_modify(|count| *count += 1);
        Ok(read)
    }

    /// Something was stored: list soon.
    pub fn something_changed(&self) {
        self.refresh.notify_one();
    }

    /// Counts how often the repository was read.
    pub fn refreshed(&self) -> watch::Receiver<u64> {
        self.refreshed.subscribe()
    }

    async fn hand_over_repository(
        self: Arc<Self>,
        to: watch::Sender<Option<ClusterRepository>>,
        stop: CancellationToken,
    ) {
        let Ok(name) = open::cluster_name(&self.config) else { return };
        let mut repository = self.repository.clone();
        let opened = tokio::select! {
            opened = repository.wait_for(Option::is_some) => opened.ok().and_then(|repository| repository.clone()),
            () = stop.cancelled() => None,
        };
        if let Some(repository) = opened {
            to.send_replace(Some(repository.cluster(&name)));
            self.something_changed();
            stop.cancelled().await;
        }
    }

    async fn ask_members(&self, stop: CancellationToken) {
        let mut members = Members::new(self.connect.clone(), Arc::clone(&self.clock), Some(self.topology.subscribe()));
        // A slot that the HA manager owns is never touched.
        if self.config.create_slot
            && let Ok(Some(slot)) = open::slot_name(&self.config)
        {
            members = members.keeping(slot);
        }
        while !stop.is_cancelled() {
            let round = async {
                let answers = members.ask().await;
                self.known().members = answers;
                let asked = self.clock.instant();
                while self.clock.instant().saturating_duration_since(asked) < ASK_EVERY {
                    let wal = self.board.read(Clone::clone);
                    let troubles = members.keep_slots(&wal).await;
                    self.note_slots(troubles);
                    tokio::select! {
                        () = self.ask.notified() => return,
                        () = tokio::time::sleep(KEEP_EVERY) => {}
                    }
                }
            };
            tokio::select! {
                () = round => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Notes with each member how keeping its slot went.
    fn note_slots(&self, kept: Vec<KeptSlot>) {
        let mut known = self.known();
        for kept in kept {
            let same = |member: &&mut Member| member.host == kept.host && member.port == kept.port;
            if let Some(member) = known.members.iter_mut().find(same) {
                member.slot_trouble = kept.trouble;
            }
        }
    }

    /// Asks the members now, over connections of their own.
    pub async fn ask_members_now(&self) {
        let topology = Some(self.topology.subscribe());
        let mut answers = Members::new(self.connect.clone(), Arc::clone(&self.clock), topology).ask().await;
        let mut known = self.known();
        for answer in &mut answers {
            let before = known.members.iter().find(|member| (&member.host, member.port) == (&answer.host, answer.port));
            answer.slot_trouble = before.and_then(|member| member.slot_trouble.clone());
        }
        known.members = answers;
    }

    async fn keep_reading(&self, stop: CancellationToken) {
        let mut repository = self.repository.clone();
        tokio::select! {
            _ = repository.wait_for(Option::is_some) => {}
            () = stop.cancelled() => return,
        }
        while !stop.is_cancelled() {
            let again = match self.read_now().await {
                Ok(stored) if self.waits_for_wal(&stored) => LIST_SOON,
                Ok(_) => LIST_EVERY,
                // Before the first WAL arrives there is no lineage, and nothing is wrong.
                Err(error) if error.code() == ErrorCode::NotFound => LIST_SOON,
                Err(error) => {
                    tracing::warn!(cluster = %self.config.name, error = error.message(), causes = ?error.causes(), "cannot read the repository");
                    self.repository_state(Some(error));
                    LIST_SOON
                }
            };
            tokio::select! {
                () = self.refresh.notified() => {}
                () = tokio::time::sleep(again) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn waits_for_wal(&self, stored: &Stored) -> bool {
        stored.catalog.backups.iter().any(|backup| backup.status == recovery::BackupStatus::WaitingForWal)
    }

    /// Notes when streaming ends and comes back, and when the primary or the timeline changes.
    async fn watch_changes(&self, stop: CancellationToken) {
        let mut board = self.board.subscribe();
        let mut before = board.borrow_and_update().clone();
        while !stop.is_cancelled() {
            tokio::select! {
                changed = board.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let now = board.borrow_and_update().clone();
            let at = self.clock.now();
            if now.streaming() != before.streaming() {
                self.known().down_since = (!now.streaming()).then_some(at);
                self.ask.notify_one();
            }
            if now.failovers.last() != before.failovers.last() || now.timeline != before.timeline {
                // The slot and the primary are others now.
                self.ask.notify_one();
                self.something_changed();
            }
            if now.gaps != before.gaps {
                self.something_changed();
            }
            before = now;
        }
    }
}

/// Waits, unless everything is to end.
pub(super) async fn pause(duration: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        () = stop.cancelled() => {}
    }
}
