//! `wal fetch`, the restore_command, and the prefetcher that it starts.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Ended;
use super::args::{OfCluster, WalFetch, WalPrefetch};
use super::context::Context;
use crate::config::{ClusterConfig, Config};
use crate::daemon::open::{self, Missing};
use crate::daemon::signals::{Signals, Stop};
use crate::error::{Error, ErrorCode, Result};
use crate::repository::LineageRepository;
use crate::storage::RetryPolicy;
use crate::storage::metered::NoMeter;
use crate::wal_fetch::prefetch::{self, Life, PrefetchLimits, PrefetchPlace, PrefetchRequest};
use crate::wal_fetch::{self, Asker, FetchLimits, FetchOutcome, FetchRequest, LocalSource, NoLocalSource, SpoolSource};

/// PostgreSQL runs a restore_command in the data directory, with a path relative to it.
pub(super) const DATA_DIRECTORY: &str = ".";

/// `wal fetch` repeats what failed, each time with a word to PostgreSQL's log: the store does not have to for long.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: 3,
    first_delay: Duration::from_millis(200),
    max_delay: Duration::from_secs(1),
    deadline: Duration::from_secs(5),
};

/// The restore_command: 0 found, 1 authoritatively absent, 255 anything else.
pub(super) async fn fetch(context: &Context, args: &WalFetch) -> Ended {
    let file = args
        .file
        .parse()
        .map_err(|error: wal_fetch::InvalidFetchName| Error::new(ErrorCode::Usage, error.to_string()))?;
    let config = context.config()?;
    let cluster = context.cluster(&config, &OfCluster { name: Some(args.name.clone()) })?;
    let data_directory = Path::new(DATA_DIRECTORY);
    let request = FetchRequest {
        file,
        destination: args.path.clone(),
        timeline: args.timeline,
        until: args.until,
        standby: wal_fetch::is_standby(data_directory),
        asker: Asker::in_directory(data_directory),
    };
    let open = async || lineage(context, &config, &cluster).await;
    let local = local_source(&config, &cluster);
    let limits = args.patience.map_or_else(FetchLimits::default, FetchLimits::patient_for);
    let outcome = wal_fetch::run(&request, open, local.as_ref(), limits, context.clock.as_ref()).await;
    if let FetchOutcome::Failed(error) = &outcome {
        context.output.error(error);
    }
    Ok(outcome.exit_code())
}

/// Answers what `wal fetch` asks, as long as the recovery goes on.
pub(super) async fn prefetch(context: &Context, args: &WalPrefetch) -> Ended {
    let data_directory = Path::new(DATA_DIRECTORY);
    let Some(life) = Life::in_directory(data_directory) else { return Ok(0) };
    let mut signals = Signals::listen()?;
    let config = context.config()?;
    let cluster = context.cluster(&config, &OfCluster { name: Some(args.name.clone()) })?;
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::Unclassified, format!("cannot fetch ahead in {}", args.dir.display())).because(error)
    };
    let Some(claim) = PrefetchPlace::at(&args.dir).claim().map_err(failed)? else { return Ok(0) };
    let request =
        PrefetchRequest { timeline: args.timeline, until: args.until, standby: wal_fetch::is_standby(data_directory) };
    let open = async || lineage(context, &config, &cluster).await;
    let limits = PrefetchLimits { bytes: args.prefetch, ..PrefetchLimits::default() };
    let parts = prefetch::Parts {
        open,
        local: local_source(&config, &cluster),
        life: &life,
        clock: context.clock.as_ref(),
        // Whoever started us waits for this word.
        listening: || writeln!(std::io::stdout(), "listening"),
        stop: async {
            match signals.next_stop().await {
                Stop::Interrupt | Stop::Terminate => {}
            }
        },
    };
    prefetch::serve(claim, request, limits, parts).await.map_err(failed)?;
    Ok(0)
}

async fn lineage(context: &Context, config: &Config, cluster: &ClusterConfig) -> Result<LineageRepository> {
    let meter = Arc::new(NoMeter);
    let repository = open::repository_with(config, &context.clock, meter, Missing::Refuse, RETRY).await?;
    let cluster = repository.cluster(&open::cluster_name(cluster)?);
    wal_fetch::lineage_of(&cluster, Path::new(DATA_DIRECTORY)).await
}

/// The spool of a daemon on this machine, where there is one that this user may read.
fn local_source(config: &Config, cluster: &ClusterConfig) -> Arc<dyn LocalSource> {
    let dir = config.spool.dir.join(&cluster.name);
    match SpoolSource::find(&dir, Path::new(DATA_DIRECTORY)) {
        Some(spool) => Arc::new(spool),
        None => Arc::new(NoLocalSource),
    }
}
