//! From configuration to the things that it names: repository, connections, a cluster's WAL pipeline.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use wal::PgTime;

use super::state_dir;
use crate::clock::Clock;
use crate::config::environment::read_secret;
use crate::config::{ClusterConfig, Config, IdentityConfig};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, Conninfo, Deadlines, Environment, SlotName};
use crate::repository::keys::IdentitySource;
use crate::repository::{
    ClusterName, EncryptionOptions, Objects, Repository, RepositoryError, RepositoryId, RepositoryOptions,
};
use crate::storage::{self, Probe, RetryPolicy, StorageContext, StorageMeter};
use crate::wal_pipeline::WalSettings;

/// A client must not wait longer than a person does.
const CLIENT_DEADLINES: Deadlines =
    Deadlines { connect: Duration::from_secs(10), reply: Duration::from_secs(20), silence: Duration::from_secs(60) };

/// Whether a repository may be made where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make it: the daemon, `repo init`.
    Create,
    /// Refuse: everything that only reads.
    Refuse,
}

/// Opens the repository that the configuration names.
pub async fn repository(
    config: &Config,
    clock: &Arc<dyn Clock>,
    meter: Arc<dyn StorageMeter>,
    missing: Missing,
) -> Result<Repository> {
    repository_with(config, clock, meter, missing, RetryPolicy::default()).await
}

/// The same, for who repeats failed requests in another way.
pub async fn repository_with(
    config: &Config,
    clock: &Arc<dyn Clock>,
    meter: Arc<dyn StorageMeter>,
    missing: Missing,
    retry: RetryPolicy,
) -> Result<Repository> {
    let explain = |error| cannot_open(config, error);
    // To read, the right to read is enough.
    let probe = if missing == Missing::Create { Probe::AtOpen } else { Probe::AtFirstPut };
    let context = StorageContext { clock: Arc::clone(clock), meter, probe, retry, ..StorageContext::default() };
    let encryption = encryption(config)?;
    let storage = storage::open(&config.repository.storage, context)
        .await
        .map_err(|error| explain(RepositoryError::Storage(error)))?;
    let options = RepositoryOptions {
        compression: config.repository.compression,
        // Who only reads may have no state directory, or not be allowed to write there, and a daemon that starts sweeps it.
        scratch_dir: match missing {
            Missing::Create => state_dir::scratch(&config.state_dir),
            Missing::Refuse => std::env::temp_dir(),
        },
        header_cache_dir: writable(config).then(|| config.state_dir.join("headers")),
        encryption,
        ..RepositoryOptions::default()
    };
    match missing {
        Missing::Refuse => Repository::open(storage, options).await,
        Missing::Create => {
            let id = RepositoryId::new(rand::random());
            Repository::create_or_open(storage, options, PgTime::from(clock.now()), id).await
        }
    }
    .map_err(explain)
}

/// The key ring's place alone: readable without any key.
pub async fn key_ring(config: &Config, clock: &Arc<dyn Clock>) -> Result<Objects> {
    let context = StorageContext { clock: Arc::clone(clock), probe: Probe::AtFirstPut, ..StorageContext::default() };
    let storage = storage::open(&config.repository.storage, context)
        .await
        .map_err(|error| cannot_open(config, RepositoryError::Storage(error)))?;
    Ok(Objects::new(storage))
}

/// For whom the repository is encrypted, and what opens it.
pub fn encryption(config: &Config) -> Result<EncryptionOptions> {
    let identity = match &config.repository.identity {
        IdentityConfig { file: Some(file), .. } => Some(IdentitySource {
            named_by: file.display().to_string(),
            // To a restore_command a file that it may not read is as good as none: never a reason to say "absent".
            text: read_secret("repository.identity_file", file)
                .map_err(|error| {
                    let said = Error::new(ErrorCode::NoKey, error.message());
                    let said = error.causes().iter().fold(said, |said, cause| said.because(cause));
                    error.help_lines().iter().fold(said, |said, help| said.help(help.clone()))
                })?
                .into(),
        }),
        IdentityConfig { text: Some(text), .. } => {
            Some(IdentitySource { named_by: "PGVAULT_IDENTITY".to_owned(), text: text.clone() })
        }
        IdentityConfig { file: None, text: None } => None,
    };
    Ok(EncryptionOptions { recipients: config.repository.encryption.clone(), identity })
}

fn cannot_open(config: &Config, error: RepositoryError) -> Error {
    let not_found = error.is_not_found();
    let inner = Error::from(error);
    let outer = Error::new(
        if not_found { ErrorCode::RepositoryDenied } else { inner.code() },
        format!("cannot open the repository {}", config.repository.storage.url),
    );
    let outer = inner.causes().iter().fold(outer.because(inner.message()), |error, cause| error.because(cause));
    if inner.help_lines().is_empty() {
        return outer.help("see what the store answers: pgvault repo check");
    }
    inner.help_lines().iter().fold(outer, |error, help| error.help(help.clone()))
}

/// Whether state can be kept: a restore_command may run as a user who cannot write there, and works without.
fn writable(config: &Config) -> bool {
    rustix::fs::access(&config.state_dir, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Hosts, credentials and TLS of a cluster: its libpq words, filled up from the environment.
pub fn conninfo(config: &Config, cluster: &ClusterConfig) -> Result<Conninfo> {
    Conninfo::parse(cluster.conninfo.expose_secret(), &environment(config)).map_err(|error| {
        Error::new(ErrorCode::InvalidConfig, format!("the conninfo of cluster {} cannot be used", cluster.name))
            .because(error)
            .help("correct `conninfo`, or the PG* variables: pgvault config show")
    })
}

fn environment(config: &Config) -> Environment {
    let process = Environment::from_process();
    let mut environment = Environment::from_variables(config.variables.iter());
    environment.home = process.home;
    environment.user = process.user;
    environment.socket_directory = process.socket_directory;
    environment
}

/// How a server of the cluster is reached that a person named in libpq's words.
pub fn connect_to(config: &Config, cluster: &ClusterConfig, words: &str) -> Result<ConnectOptions> {
    let conninfo = Conninfo::parse(words, &environment(config))
        .map_err(|error| Error::new(ErrorCode::Usage, "--primary-conninfo cannot be used").because(error))?;
    let options = ConnectOptions::new(conninfo, cluster.application_name.clone());
    Ok(ConnectOptions { deadlines: CLIENT_DEADLINES, ..options })
}

/// How a client command or the supervisor connects.
pub fn connect_options(config: &Config, cluster: &ClusterConfig) -> Result<ConnectOptions> {
    let options = ConnectOptions::new(conninfo(config, cluster)?, cluster.application_name.clone());
    Ok(ConnectOptions { deadlines: CLIENT_DEADLINES, ..options })
}

/// The cluster's name as the repository knows it.
pub fn cluster_name(cluster: &ClusterConfig) -> Result<ClusterName> {
    ClusterName::new(cluster.name.clone()).map_err(|error| Error::new(ErrorCode::InvalidConfig, error.to_string()))
}

/// The cluster's slot, checked.
pub fn slot_name(cluster: &ClusterConfig) -> Result<Option<SlotName>> {
    let parse = |name: &String| {
        SlotName::new(name.clone()).map_err(|error| Error::new(ErrorCode::InvalidConfig, error.to_string()))
    };
    cluster.slot.as_ref().map(parse).transpose()
}

/// What a cluster's WAL pipeline is told.
pub fn wal_settings(config: &Config, cluster: &ClusterConfig) -> Result<WalSettings> {
    Ok(WalSettings {
        cluster: cluster_name(cluster)?,
        conninfo: conninfo(config, cluster)?,
        application_name: cluster.application_name.clone(),
        slot: slot_name(cluster)?,
        create_slot: cluster.create_slot,
        max_rpo: cluster.max_rpo,
        synchronous: cluster.synchronous,
        report_apply: cluster.report_apply,
        spool_dir: config.spool.dir.clone(),
        spool_max_size: config.spool.max_size,
        state_dir: config.state_dir.clone(),
        // Each may hold a segment in memory, besides the packs of a backup.
        uploads: config.repository.storage.connections.unwrap_or(3),
        // A member that restarts is back by then.
        wait_for_silent: Duration::from_secs(90),
        drain: Duration::from_secs(30),
    })
}
