//! All clusters of one daemon, and the one repository that they share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::check::{self, Finding};
use super::cluster::{Cluster, pause};
use super::metrics::Metrics;
use super::open::{self, Missing};
use super::probe::{self, Probes};
use super::view::ClusterView;
use crate::clock::Clock;
use crate::config::keys::{Place, Section};
use crate::config::{Config, Flags, Variables, load};
use crate::error::{Error, ErrorCode, Result};
use crate::repository::Repository;
use crate::storage::StorageMeter;

/// How often the repository is tried when it cannot be opened: first, and at most.
const OPEN_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// How long one cluster may take to end when its configuration has changed.
const CLUSTER_ENDS: Duration = Duration::from_secs(45);

/// The daemon as requests, signals and tasks see it.
#[derive(Debug)]
pub struct Supervisor {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    flags: Flags,
    config: Mutex<Arc<Config>>,
    clusters: Mutex<BTreeMap<String, Running>>,
    repository: watch::Sender<Option<Repository>>,
    repository_task: Mutex<CancellationToken>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A cluster with the means to end it.
#[derive(Debug)]
struct Running {
    cluster: Arc<Cluster>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Supervisor {
    /// Checks every cluster's configuration and starts them all.
    pub fn start(config: Config, flags: Flags, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Result<Arc<Self>> {
        let supervisor = Arc::new(Self {
            clock,
            metrics,
            flags,
            config: Mutex::new(Arc::new(config)),
            clusters: Mutex::new(BTreeMap::new()),
            repository: watch::Sender::new(None),
            repository_task: Mutex::new(CancellationToken::new()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let config = supervisor.config();
        let prepared = supervisor.prepare_all(&config)?;
        for (name, prepared) in prepared {
            supervisor.run_cluster(name, prepared);
        }
        supervisor.open_repository(&config);
        Ok(supervisor)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster with this name.
    pub fn cluster(&self, name: &str) -> Result<Arc<Cluster>> {
        let running = self.running();
        running.get(name).map(|running| Arc::clone(&running.cluster)).ok_or_else(|| {
            let names: Vec<&str> = running.keys().map(String::as_str).collect();
            Error::new(ErrorCode::NotFound, format!("no cluster \"{name}\" is configured"))
                .help(format!("configured: {}", names.join(", ")))
        })
    }

    /// The named cluster, or all of them.
    pub fn clusters(&self, name: Option<&str>) -> Result<Vec<Arc<Cluster>>> {
        match name {
            Some(name) => Ok(vec![self.cluster(name)?]),
            None => Ok(self.running().values().map(|running| Arc::clone(&running.cluster)).collect()),
        }
    }

    /// The named cluster, or the only one.
    pub fn one_cluster(&self, name: Option<&str>) -> Result<Arc<Cluster>> {
        let mut found = self.clusters(name)?;
        match (found.pop(), found.len()) {
            (Some(only), 0) => Ok(only),
            (None, _) => Err(Error::new(ErrorCode::NotFound, "no cluster is configured")),
            (Some(_), _) => Err(Error::new(ErrorCode::Usage, "several clusters are configured: say which one")
                .help("add ?cluster=NAME")),
        }
    }

    /// Everything that is known of every cluster.
    pub fn views(&self) -> Vec<ClusterView> {
        self.running().values().map(|running| running.cluster.view()).collect()
    }

    /// The checks of every cluster, from what is known: nothing is asked.
    pub fn findings(&self) -> BTreeMap<String, Vec<Finding>> {
        let now = self.clock.now();
        let probes = Probes::default();
        self.views().into_iter().map(|view| (view.name.clone(), check::findings(&view, &probes, now))).collect()
    }

    /// The checks of one cluster, with everything asked and tried anew.
    pub async fn check_now(&self, cluster: &Cluster) -> Vec<Finding> {
        let replication = probe::replication(&cluster.connect);
        let repository = async {
            match self.open_now() {
                Some(repository) => Some(probe::repository(&repository, &self.clock).await),
                None => None,
            }
        };
        let read = async {
            // What it found is in the view, as a state or as an error.
            if let Err(error) = cluster.read_now().await
                && error.code() != ErrorCode::NotFound
            {
                cluster.repository_state(Some(error));
            }
        };
        let data_directory = probe::data_directory(cluster.config.data_directory.as_deref(), &cluster.connect);
        let (replication, data_directory, repository, (), ()) =
            tokio::join!(replication, data_directory, repository, cluster.ask_members_now(), read);
        check::findings(&cluster.view(), &Probes { replication, data_directory, repository }, self.clock.now())
    }

    fn open_now(&self) -> Option<Repository> {
        self.repository.borrow().clone()
    }

    fn prepare(&self, config: &Config, name: &str) -> Result<(Arc<Cluster>, crate::wal_pipeline::WalSettings)> {
        let of_cluster =
            config.cluster(name).ok_or_else(|| Error::new(ErrorCode::NotFound, format!("no cluster \"{name}\"")))?;
        let settings = open::wal_settings(config, of_cluster)?;
        let cluster = Cluster::new(config, of_cluster, Arc::clone(&self.clock), self.repository.subscribe())?;
        Ok((Arc::new(cluster), settings))
    }

    #[expect(clippy::type_complexity, reason = "a list of what prepare() makes")]
    fn prepare_all(&self, config: &Config) -> Result<Vec<(String, (Arc<Cluster>, crate::wal_pipeline::WalSettings))>> {
        config.clusters.iter().map(|cluster| Ok((cluster.name.clone(), self.prepare(config, &cluster.name)?))).collect()
    }

    fn run_cluster(&self, name: String, (cluster, settings): (Arc<Cluster>, crate::wal_pipeline::WalSettings)) {
        tracing::info!(cluster = %name, "cluster starts");
        let running = Running { cluster, tasks: TaskTracker::new(), stop: self.stop.child_token() };
        running.cluster.start(settings, &running.tasks, &running.stop);
        self.running().insert(name, running);
    }

    /// Opens the repository as soon as it can be, and says meanwhile why it cannot.
    fn open_repository(self: &Arc<Self>, config: &Arc<Config>) {
        let token = self.stop.child_token();
        *self.repository_task.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        let supervisor = Arc::clone(self);
        let config = Arc::clone(config);
        self.tasks.spawn(async move {
            let mut wait = OPEN_AGAIN.0;
            while !token.is_cancelled() {
                let meter: Arc<dyn StorageMeter> = Arc::clone(&supervisor.metrics) as Arc<dyn StorageMeter>;
                let opened = tokio::select! {
                    opened = open::repository(&config, &supervisor.clock, meter, Missing::Create) => opened,
                    () = token.cancelled() => return,
                };
                match opened {
                    Ok(repository) => {
                        tracing::info!(repository = repository.location(), "repository is open");
                        supervisor.tell_repository(None);
                        supervisor.repository.send_replace(Some(repository));
                        return;
                    }
                    Err(error) => {
                        tracing::error!(code = error.code().as_str(), causes = ?error.causes(), "{}", error.message());
                        supervisor.tell_repository(Some(&error));
                    }
                }
                pause(wait, &token).await;
                wait = (wait * 2).min(OPEN_AGAIN.1);
            }
        });
    }

    fn tell_repository(&self, error: Option<&Error>) {
        for running in self.running().values() {
            running.cluster.repository_state(error.cloned());
        }
    }

    /// Reads the configuration again. What has changed is ended and started anew; a broken file changes nothing.
    pub async fn reload(self: &Arc<Self>, variables: &Variables) -> Result<()> {
        let old = self.config();
        let loaded = load(&self.flags, variables).and_then(|new| {
            // Everything is prepared before anything is ended.
            for cluster in &new.clusters {
                open::wal_settings(&new, cluster)?;
            }
            if new.clusters.is_empty() {
                return Err(Error::new(ErrorCode::InvalidConfig, "no cluster is configured any more"));
            }
            Ok(new)
        });
        let new = match loaded {
            Ok(new) => Arc::new(new),
            Err(error) => {
                self.metrics.config_loaded(false);
                return Err(error);
            }
        };
        for place in [Place::Daemon, Place::Http, Place::Log] {
            if differs(&old, &new, |section| section.place() == place) {
                tracing::warn!("changes of [daemon], [http] and [log] take effect when pgvault is started again");
                break;
            }
        }
        let everything = old.variables != new.variables
            || differs(&old, &new, |section| matches!(section, Section::Repository | Section::Spool));
        let of_cluster = |name: &str| {
            let name = name.to_owned();
            move |section: &Section| matches!(section, Section::Cluster(n) | Section::Retention(n) if *n == name)
        };
        let ends: Vec<String> = self
            .running()
            .keys()
            .filter(|name| everything || new.cluster(name).is_none() || differs(&old, &new, of_cluster(name)))
            .cloned()
            .collect();
        for name in ends {
            self.end_cluster(&name).await;
        }
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        if everything {
            self.repository_task.lock().unwrap_or_else(PoisonError::into_inner).cancel();
            self.repository.send_replace(None);
        }
        for cluster in &new.clusters {
            let runs = self.running().contains_key(&cluster.name);
            if !runs {
                let prepared = self.prepare(&new, &cluster.name)?;
                self.run_cluster(cluster.name.clone(), prepared);
            }
        }
        if everything {
            self.open_repository(&new);
        } else if let Some(repository) = self.open_now() {
            // Whoever has made a new key says so by a reload.
            repository.objects().refresh_keys().await?;
        }
        self.metrics.config_loaded(true);
        Ok(())
    }

    async fn end_cluster(&self, name: &str) {
        let ended = self.running().remove(name);
        if let Some(running) = ended {
            tracing::info!(cluster = name, "cluster ends");
            running.stop.cancel();
            running.tasks.close();
            if tokio::time::timeout(CLUSTER_ENDS, running.tasks.wait()).await.is_err() {
                tracing::error!(cluster = name, "cluster did not end in time");
            }
        }
    }

    /// Ends everything in good order; returns when all has ended.
    pub async fn stop(&self) {
        self.stop.cancel();
        let running: Vec<TaskTracker> = self.running().values().map(|running| running.tasks.clone()).collect();
        for tasks in running {
            tasks.close();
            tasks.wait().await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Whether any value differs in the sections that `of` picks.
fn differs(old: &Config, new: &Config, of: impl Fn(&Section) -> bool) -> bool {
    let values = |config: &Config| {
        let values = config.settings.iter().filter(|(section, ..)| of(section));
        values.map(|(section, name, setting)| (section.clone(), name, setting.raw.clone())).collect::<Vec<_>>()
    };
    values(old) != values(new)
}
