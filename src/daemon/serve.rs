//! `pgvault serve`, from start to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::http::{Access, router};
use super::metrics::Metrics;
use super::signals::{Request, Signals};
use super::state_dir::StateDir;
use super::supervisor::Supervisor;
use super::{control, notify, open, status};
use crate::clock::Clock;
use crate::config::{Config, Flags, Variables};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::metered::NoMeter;
use crate::wal_pipeline::{self, NewLineage, WalParts};

/// How long an end in good order may take.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// Opens the log file anew.
pub type ReopenLog = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Runs the daemon until it is asked to stop.
///
/// # Errors
///
/// `Interrupted` when it was told a second time to stop, or did not end within a minute.
pub async fn serve(
    config: Config,
    flags: Flags,
    variables: Variables,
    new_lineage: Option<String>,
    clock: Arc<dyn Clock>,
    reopen_log: ReopenLog,
) -> Result<()> {
    // Signals first: from here on a stop is always one in good order.
    let mut signals = Signals::listen()?;
    let state = StateDir::claim(&config.state_dir, clock.now())?;
    for line in config.without_effect() {
        tracing::warn!("{line}");
    }
    if let Some(name) = new_lineage {
        begin_lineage(&config, &name, &clock).await?;
    }
    // Both listeners before anything runs: what cannot be reached is refused at once, not after a backup.
    let control_path = config.control_socket();
    let socket = control::listen(&control_path)?;
    let tcp = match config.http.listen {
        Some(address) => Some((bind(address).await?, address)),
        None => None,
    };
    let http = config.http.clone();
    let metrics = Arc::new(Metrics::new()?);
    let supervisor = Supervisor::start(config, flags, clock, metrics)?;
    let listening = CancellationToken::new();
    let owner = router(Arc::clone(&supervisor), Access::Owner);
    spawn_listener(
        "control socket",
        axum::serve(socket, owner).with_graceful_shutdown(listening.clone().cancelled_owned()).into_future(),
    );
    if let Some((listener, address)) = tcp {
        let access =
            Access::Network { loopback: address.ip().is_loopback(), token: http.token.clone(), actions: http.actions };
        let network = router(Arc::clone(&supervisor), access);
        tracing::info!(%address, "HTTP server listens");
        spawn_listener(
            "HTTP server",
            axum::serve(listener, network).with_graceful_shutdown(listening.clone().cancelled_owned()).into_future(),
        );
    }
    notify::ready("streaming");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), state_dir = %state.path().display(), "pgvault serves");
    until_stopped(&supervisor, &mut signals, &variables, &reopen_log).await;
    notify::stopping();
    let ended = end(&supervisor, &mut signals).await;
    listening.cancel();
    // After a clean end nobody may find a socket that does not answer.
    if let Err(error) = super::state_dir::remove_stale(&control_path) {
        tracing::warn!(%error, "cannot remove the control socket");
    }
    drop(state);
    ended
}

/// Before anything of the cluster runs: another history under its name, if the server's is another one.
async fn begin_lineage(config: &Config, name: &str, clock: &Arc<dyn Clock>) -> Result<()> {
    let cluster = config.cluster(name).ok_or_else(|| {
        let names: Vec<&str> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        Error::new(ErrorCode::NotFound, format!("no cluster \"{name}\" is configured"))
            .help(format!("configured: {}", names.join(", ")))
    })?;
    let repository = open::repository(config, clock, Arc::new(NoMeter), open::Missing::Create).await?;
    let repository = repository.cluster(&open::cluster_name(cluster)?);
    let settings = open::wal_settings(config, cluster)?;
    let parts = WalParts::with_repository(settings, repository.clone(), Arc::clone(clock));
    match wal_pipeline::new_lineage(&parts, &repository).await? {
        NewLineage::Begun(lineage) => tracing::warn!(cluster = name, %lineage, "a new lineage was begun"),
        NewLineage::Continues(lineage) => {
            tracing::warn!(cluster = name, %lineage, "the server continues this lineage: no new one was begun");
        }
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let error = Error::new(ErrorCode::InvalidConfig, format!("cannot listen on {address}")).because(error);
        error
            .help("see who does: ss -ltnp")
            .help("or use another address: PGVAULT_LISTEN=127.0.0.1:8081, listen in [http]")
    })
}

fn spawn_listener(name: &'static str, server: impl Future<Output = std::io::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the {name} ended");
        }
    });
}

/// Serves until a stop is asked for.
async fn until_stopped(
    supervisor: &Arc<Supervisor>,
    signals: &mut Signals,
    variables: &Variables,
    reopen_log: &ReopenLog,
) {
    let beat = notify::watchdog_interval().unwrap_or(Duration::from_secs(3600));
    let mut heart = tokio::time::interval(beat);
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop => return,
                Request::Reload => reload(supervisor, variables, reopen_log).await,
                Request::Report => report(supervisor),
            },
            _ = heart.tick() => notify::watchdog(),
        }
    }
}

async fn reload(supervisor: &Arc<Supervisor>, variables: &Variables, reopen_log: &ReopenLog) {
    notify::reloading();
    if let Err(error) = reopen_log() {
        tracing::error!(causes = ?error.causes(), "the log goes on in the file that was open: {}", error.message());
    }
    match supervisor.reload(variables).await {
        Ok(()) => tracing::info!("configuration was read again"),
        Err(error) => tracing::error!(
            code = error.code().as_str(),
            causes = ?error.causes(),
            help = ?error.help_lines(),
            "the configuration was not changed: {}",
            error.message()
        ),
    }
    notify::ready("streaming");
}

/// Writes the status to the log.
fn report(supervisor: &Supervisor) {
    let now = supervisor.clock.now();
    for view in supervisor.views() {
        let status = status::status(&view, now);
        match serde_json::to_string(&status) {
            Ok(text) => tracing::info!(cluster = %view.name, status = text, "status"),
            Err(error) => tracing::error!(%error, "the status cannot be written"),
        }
    }
}

/// Ends in good order: the stream is closed, tails are shipped, a running backup is given up. A second request, or a
/// minute, ends at once: nothing that was acknowledged is lost by that.
async fn end(supervisor: &Supervisor, signals: &mut Signals) -> Result<()> {
    tracing::info!("pgvault ends");
    let again = async { while signals.next().await != Request::Stop {} };
    tokio::select! {
        () = supervisor.stop() => {
            tracing::info!("pgvault has ended");
            Ok(())
        }
        () = again => Err(Error::new(ErrorCode::Interrupted, "ended at once, as asked a second time")),
        () = tokio::time::sleep(STOP_WITHIN) => {
            Err(Error::new(ErrorCode::Interrupted, format!("did not end in good order within {} s", STOP_WITHIN.as_secs())))
        }
    }
}
