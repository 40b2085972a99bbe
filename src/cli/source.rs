//! Where a client command gets its answers: from the daemon that runs, else from the repository and the servers.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cli::context::Context;
use crate::config::{ClusterConfig, Config};
use crate::daemon::control::Client;
use crate::daemon::open::{self, Missing};
use crate::daemon::view::{BackupActivity, ClusterView};
use crate::daemon::{members::Members, stored};
use crate::error::{ErrorCode, Result};
use crate::patroni::{self, Topology};
use crate::repository::{ClusterRepository, LineageRepository, Repository};
use crate::storage::metered::NoMeter;

/// The daemon of this configuration's state directory; `None` when none runs.
pub(super) async fn daemon(config: &Config) -> Result<Option<Client>> {
    Client::connect(&config.control_socket()).await
}

/// The daemon, if one runs that this user may ask; what only reads the repository goes on without.
pub(super) async fn daemon_if_allowed(config: &Config) -> Option<Client> {
    match daemon(config).await {
        Ok(client) => client,
        Err(error) => {
            tracing::info!(causes = ?error.causes(), "{}: goes on without it", error.message());
            None
        }
    }
}

/// Tells the daemon that runs here that something was written beside it. Without one, or when it cannot, it finds it later.
pub(super) async fn refresh(config: &Config, cluster: &str) {
    let Some(daemon) = daemon_if_allowed(config).await else { return };
    let path = format!("/api/v1/refresh?cluster={}", query(cluster));
    if let Err(error) = daemon.post(&path, &serde_json::Value::Object(Default::default())).await {
        tracing::info!(error = error.message(), "the daemon could not read the repository now");
    }
}

/// Opens the repository for reading.
pub(super) async fn repository(context: &Context, config: &Config) -> Result<Repository> {
    open::repository(config, &context.clock, Arc::new(NoMeter), Missing::Refuse).await
}

/// What is stored of a cluster.
pub(super) async fn cluster_repository(
    context: &Context,
    config: &Config,
    cluster: &ClusterConfig,
) -> Result<ClusterRepository> {
    Ok(repository(context, config).await?.cluster(&open::cluster_name(cluster)?))
}

/// The newest lineage of a cluster.
pub(super) async fn lineage(context: &Context, config: &Config, cluster: &ClusterConfig) -> Result<LineageRepository> {
    stored::newest_lineage(&cluster_repository(context, config, cluster).await?).await
}

/// Everything that can be found out of a cluster without a daemon. What cannot be reached is part of the view.
pub(super) async fn view(context: &Context, config: &Config, cluster: &ClusterConfig) -> Result<ClusterView> {
    let (mut members, topology) = members(context, config, cluster).await?;
    let read = async {
        let lineage = lineage(context, config, cluster).await?;
        stored::read(&lineage, context.clock.now()).await
    };
    let (members, read) = tokio::join!(members.ask(), read);
    let (stored, repository_error) = match read {
        Ok(stored) => (Some(Arc::new(stored)), None),
        Err(error) if error.code() == ErrorCode::NotFound => (None, None),
        Err(error) => (None, Some(error)),
    };
    let patroni = (!cluster.patroni_urls.is_empty()).then_some(topology);
    Ok(ClusterView { members, patroni, stored, repository_error, ..empty_view(config, cluster) })
}

/// The members of a cluster, those that only Patroni names among them, and what Patroni says.
pub(super) async fn members(
    context: &Context,
    config: &Config,
    cluster: &ClusterConfig,
) -> Result<(Members, Topology)> {
    let connect = open::connect_options(config, cluster)?;
    let topology = patroni::ask_once(&cluster.patroni_urls, connect.conninfo.hosts()).await;
    // A watch keeps its last value after its sender is gone.
    let (_, known) = watch::channel(topology.clone());
    Ok((Members::new(connect, Arc::clone(&context.clock), Some(known)), topology))
}

/// What the repository holds of a cluster, without asking any server.
pub(super) async fn stored_view(context: &Context, config: &Config, cluster: &ClusterConfig) -> Result<ClusterView> {
    let lineage = lineage(context, config, cluster).await?;
    let stored = Some(Arc::new(stored::read(&lineage, context.clock.now()).await?));
    Ok(ClusterView { stored, ..empty_view(config, cluster) })
}

fn empty_view(config: &Config, cluster: &ClusterConfig) -> ClusterView {
    ClusterView {
        name: cluster.name.clone(),
        slot: cluster.slot.clone(),
        max_rpo: cluster.max_rpo,
        synchronous: cluster.synchronous,
        application_name: cluster.application_name.clone(),
        schedule: cluster.schedule.clone(),
        without_effect: config.without_effect_of(&cluster.name),
        wal: None,
        down_since: None,
        stored: None,
        location: config.repository.storage.url.clone(),
        repository_error: None,
        members: Vec::new(),
        create_slot: cluster.create_slot,
        patroni: None,
        backup: BackupActivity::default(),
        last_committed: None,
        failovers: Vec::new(),
        wal_verified: None,
    }
}

/// A value as part of a query.
pub(super) fn query(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
    }
    encoded
}
