//! One cluster's pipeline from its start to its stop.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use wal::PgTime;

use super::home::{self, Home, StoredEnds};
use super::usage;
use super::{GapRecord, GapStore, WalParts, WalSettings, WalState};
use crate::archiver::{Archiver, STORE_AGAIN};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::ConnectOptions;
use crate::receiver::{self, Backoff, Errands, Loyalty, Receiver};
use crate::repository::{ClusterIdentity, ClusterRepository, LineageRepository};
use crate::spool::{LEAST_SEGMENTS, Spool, SpoolError, SpoolOptions};

/// How much longer than its time to drain the archiver may take to let go.
const GRACE: Duration = Duration::from_secs(5);

/// One cluster's way of the WAL.
#[derive(Debug)]
pub struct WalPipeline;

impl WalPipeline {
    /// Receives, keeps and stores WAL until `shutdown` is cancelled; then ends the stream cleanly, ships the tail and
    /// stores what it can within `settings.drain`. Trouble with the server, the spool or the repository is told through
    /// the board and tried again for ever.
    ///
    /// Dropping the future ends everything at once, as a crash would; nothing that was acknowledged is lost.
    ///
    /// # Errors
    /// When something of our own ended that must not end.
    pub async fn run(mut parts: WalParts, shutdown: CancellationToken) -> Result<()> {
        let started = tokio::select! {
            started = start(&mut parts) => started,
            () = shutdown.cancelled() => {
                parts.board.update(|status| status.state = WalState::Stopped);
                return Ok(());
            }
        };
        let Started { home, spool, gaps, lineage, ends } = started;
        let receiver = Receiver {
            settings: parts.settings.clone(),
            spool: spool.clone(),
            gaps: gaps.clone(),
            clock: parts.clock.clone(),
            board: parts.board.clone(),
            stored: ends.newest,
            removed: None,
            unprovable: None,
            slot_refused: false,
            slot_fate: None,
            suspect: false,
            witness: parts.witness.clone(),
            loyal_to: None,
            loyalty: Loyalty::in_dir(&gaps_dir(&parts, &home)),
            last: None,
            without_since: None,
            followed: None,
            errands: parts.settings.synchronous.then(Errands::default),
            told: None,
        };
        let abort = CancellationToken::new();
        // Dropped with this future: the thread then ends at its next step, without any farewell.
        let _abort_on_drop = abort.clone().drop_guard();
        let received = spawn_receiver(receiver, shutdown, abort)?;

        let drain_now = CancellationToken::new();
        let tell_usage = usage::keep_telling(spool.clone(), parts.board.clone());
        let archive = archive(parts, home, spool, gaps, lineage, drain_now.clone());
        let receive = async {
            let ended = received.await;
            drain_now.cancel();
            ended.map_err(|_| Error::new(ErrorCode::Unclassified, "the receiver's thread ended without an answer"))
        };
        tokio::select! {
            (received, ()) = async { tokio::join!(receive, archive) } => received,
            () = tell_usage => Err(Error::new(ErrorCode::Unclassified, "the watch over the spool ended")),
        }
    }
}

/// What a pipeline has once it knows where it belongs.
struct Started {
    home: Home,
    spool: Spool,
    gaps: GapStore,
    lineage: Option<LineageRepository>,
    ends: StoredEnds,
}

/// Finds out where the WAL belongs and what is held of it, for as long as it takes.
async fn start(parts: &mut WalParts) -> Started {
    let mut backoff = Backoff::up_to(STORE_AGAIN);
    loop {
        match try_start(parts).await {
            Ok(started) => return started,
            Err(error) => {
                tracing::warn!(cluster = %parts.settings.cluster, %error, "cannot start");
                parts.board.update(|status| status.error = Some(error));
                tokio::time::sleep(backoff.pause(rand::random())).await;
            }
        }
    }
}

async fn try_start(parts: &mut WalParts) -> Result<Started> {
    let cluster_dir = parts.settings.spool_dir.join(parts.settings.cluster.as_str());
    let in_spool = {
        let dir = cluster_dir.clone();
        blocking(move || Home::in_spool(&dir)).await?
    };
    let repository = parts.repository.borrow().clone();
    let (home, lineage) = match (in_spool, repository) {
        // The repository is away, but we know where the WAL belongs: receive.
        (Some(home), None) => (home, None),
        (Some(home), Some(repository)) => match home::open_lineage(&repository, Some(&home)).await {
            Ok(lineage) => (home, lineage),
            Err(error) => {
                parts.board.update(|status| status.archive_error = Some(error.into()));
                (home, None)
            }
        },
        (None, Some(repository)) => {
            let lineage = match home::open_lineage(&repository, None).await? {
                Some(lineage) => lineage,
                None => first_contact(parts, &repository).await?,
            };
            (Home::of(&lineage), Some(lineage))
        }
        (None, None) => {
            wait_for_repository(&mut parts.repository).await;
            return Box::pin(try_start(parts)).await;
        }
    };
    check_spool_size(&parts.settings, &home)?;
    let options = SpoolOptions {
        dir: home.dir(&cluster_dir),
        segment_size: home.segment_size,
        system_identifier: home.system_identifier,
        max_size: parts.settings.spool_max_size,
    };
    let keep = home.clone();
    let spool = blocking(move || {
        keep.keep(&cluster_dir)?;
        Ok(Spool::open(options)?)
    })
    .await?;
    let gaps = {
        let (board, dir) = (parts.board.clone(), gaps_dir(parts, &home));
        blocking(move || GapStore::open(dir, board)).await?
    };
    let ends = match &lineage {
        Some(lineage) => match home::look(lineage, &spool).await {
            Ok(ends) => ends,
            // What the spool holds is enough to go on.
            Err(error) if spool.last().is_some() => {
                parts.board.update(|status| status.archive_error = Some(error));
                StoredEnds::default()
            }
            Err(error) => return Err(error),
        },
        None => StoredEnds::default(),
    };
    record_again(&gaps, ends.lost.clone()).await?;
    note_holes(parts, &spool, &gaps, lineage.as_ref()).await?;
    parts.board.update(|status| {
        status.system_identifier = Some(home.system_identifier);
        status.lineage = Some(home.lineage);
        status.segment_size = Some(home.segment_size);
        status.postgres_version.get_or_insert(home.postgres_version);
        status.archived = ends.archived;
        status.shipped = ends.newest.map(|(_, end)| end);
        let held = spool.durable().max(ends.newest);
        status.timeline = held.map(|(timeline, _)| timeline);
        status.flushed = held.map(|(_, end)| end);
        status.received = status.flushed;
        status.error = None;
    });
    Ok(Started { home, spool, gaps, lineage, ends })
}

/// The configuration knows no segment size: segments can have 1 GB.
fn check_spool_size(settings: &WalSettings, home: &Home) -> Result<()> {
    let least = home.segment_size.bytes().saturating_mul(LEAST_SEGMENTS);
    match settings.spool_max_size {
        Some(size) if size < least => {
            let said = format!("the spool of \"{}\" may take {size} bytes, which is too few", settings.cluster);
            Err(Error::new(ErrorCode::InvalidConfig, said)
                .because(format!("its WAL segments have {} bytes", home.segment_size.bytes()))
                .help(format!("allow {LEAST_SEGMENTS} segments at least: [spool] max_size = \"{}MB\"", least >> 20)))
        }
        Some(_) | None => Ok(()),
    }
}

/// Nothing is known of the cluster yet: the server says who it is, and its lineage begins.
async fn first_contact(parts: &WalParts, repository: &ClusterRepository) -> Result<LineageRepository> {
    let settings = &parts.settings;
    parts.board.update(|status| status.state = WalState::Connecting);
    let options = ConnectOptions::new(settings.conninfo.clone(), settings.application_name.clone());
    let doing = format!("cannot stream WAL of \"{}\"", settings.cluster);
    let met = receiver::meet(&options, parts.witness.clone(), &settings.cluster, &doing).await?;
    Ok(repository.lineage_for(&met.identity(), false, PgTime::from(parts.clock.now())).await?)
}

/// WAL that is missing between the files of the spool, and that the repository does not have either, is a gap.
async fn note_holes(
    parts: &WalParts,
    spool: &Spool,
    gaps: &GapStore,
    lineage: Option<&LineageRepository>,
) -> Result<()> {
    if spool.holes().is_empty() {
        return Ok(());
    }
    let coverage = match lineage {
        Some(lineage) => lineage.catalog().await?.coverage,
        None => wal::Coverage::new(),
    };
    let at = parts.clock.now();
    let missing = spool
        .holes()
        .iter()
        .filter(|hole| coverage.contiguous_end(hole.timeline, hole.start).is_none_or(|end| end < hole.end));
    let records = missing
        .map(|hole| GapRecord {
            timeline: hole.timeline,
            from: hole.start,
            to: hole.end,
            reason: "missing between the files of the spool".to_owned(),
            at,
        })
        .collect();
    let gaps = gaps.clone();
    blocking(move || gaps.record(records)).await
}

/// Takes over what the repository knows of losses: the machine that found them may be gone.
async fn record_again(gaps: &GapStore, lost: Vec<GapRecord>) -> Result<()> {
    if lost.is_empty() {
        return Ok(());
    }
    let gaps = gaps.clone();
    blocking(move || gaps.record(lost)).await
}

/// Stores WAL until `drain` is cancelled and everything is stored, or time is up.
async fn archive(
    mut parts: WalParts,
    home: Home,
    spool: Spool,
    gaps: GapStore,
    lineage: Option<LineageRepository>,
    drain: CancellationToken,
) {
    let lineage = match lineage {
        Some(lineage) => lineage,
        None => tokio::select! {
            lineage = reach_lineage(&mut parts, &home, &spool, &gaps) => lineage,
            () = drain.cancelled() => return,
        },
    };
    let settings = parts.settings;
    let refetch = {
        let (settings, spool) = (settings.clone(), spool.clone());
        move |name| -> BoxFuture<'static, Result<()>> {
            let (settings, spool) = (settings.clone(), spool.clone());
            Box::pin(async move { receiver::refetch(&settings, &spool, name).await })
        }
    };
    let (records, to) = (gaps.clone(), lineage.clone());
    let archiver = Archiver {
        refetch: Box::new(refetch),
        spool,
        repository: lineage,
        gaps,
        clock: parts.clock.clone(),
        board: parts.board.clone(),
        max_rpo: settings.max_rpo,
        uploads: settings.uploads,
        drain: settings.drain,
    };
    let stopping = drain.clone();
    let limit = async move {
        stopping.cancelled().await;
        tokio::time::sleep(settings.drain + GRACE).await;
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(archiver.run(drain.clone()), records.keep_stored(&to, drain)) } => {}
        () = limit => tracing::warn!(cluster = %settings.cluster, "not everything could be stored; it waits in the spool"),
    }
}

/// Waits until the repository can be reached, and opens the lineage that the spool belongs to.
async fn reach_lineage(parts: &mut WalParts, home: &Home, spool: &Spool, gaps: &GapStore) -> LineageRepository {
    let mut backoff = Backoff::up_to(STORE_AGAIN);
    loop {
        let repository = wait_for_repository(&mut parts.repository).await;
        match try_reach(parts, &repository, home, spool, gaps).await {
            Ok(lineage) => return lineage,
            Err(error) => {
                parts.board.update(|status| {
                    *status.counters.archive_errors.entry("other").or_default() += 1;
                    status.archive_error = Some(error);
                });
                tokio::time::sleep(backoff.pause(rand::random())).await;
            }
        }
    }
}

async fn try_reach(
    parts: &WalParts,
    repository: &ClusterRepository,
    home: &Home,
    spool: &Spool,
    gaps: &GapStore,
) -> Result<LineageRepository> {
    let lineage = match home::open_lineage(repository, Some(home)).await? {
        Some(lineage) => lineage,
        None => {
            // An empty repository in place of the one we know: the lineage begins there anew.
            let timeline = spool.durable().map_or(wal::TimelineId::FIRST, |(timeline, _)| timeline);
            let identity = ClusterIdentity {
                system_identifier: home.system_identifier,
                history: spool.history(timeline)?,
                postgres_version: home.postgres_version,
                segment_size: home.segment_size,
            };
            repository.lineage_for(&identity, false, PgTime::from(parts.clock.now())).await?
        }
    };
    if lineage.id() != home.lineage {
        let said = format!("the spool belongs to lineage {}, the repository holds {}", home.lineage, lineage.id());
        return Err(Error::new(ErrorCode::ForeignCluster, said)
            .help("point [repository] at the one that was used before, or give the spool another folder"));
    }
    let ends = home::look(&lineage, spool).await?;
    record_again(gaps, ends.lost).await?;
    Ok(lineage)
}

async fn wait_for_repository(repository: &mut watch::Receiver<Option<ClusterRepository>>) -> ClusterRepository {
    loop {
        if let Some(repository) = repository.borrow_and_update().clone() {
            return repository;
        }
        if repository.changed().await.is_err() {
            // Whoever would open it is gone: the pipeline is about to be stopped.
            std::future::pending::<()>().await;
        }
    }
}

fn gaps_dir(parts: &WalParts, home: &Home) -> PathBuf {
    parts.settings.state_dir.join(parts.settings.cluster.as_str()).join(home.lineage.to_string())
}

/// Runs the receiver on a thread of its own; the answer comes when it has ended.
fn spawn_receiver(
    receiver: Receiver,
    stop: CancellationToken,
    abort: CancellationToken,
) -> Result<oneshot::Receiver<()>> {
    let failed = |error: std::io::Error| Error::new(ErrorCode::Unclassified, "cannot start a receiver").because(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (ended, receive_end) = oneshot::channel();
    let name = format!("wal-{}", receiver.settings.cluster);
    let watch = format!("{name}-2");
    let body = move || {
        let errands = receiver.errands.clone();
        let receiving = async {
            tokio::select! {
                () = receiver.run(stop) => Some(ended),
                () = abort.cancelled() => None,
            }
        };
        let ended = match errands {
            None => runtime.block_on(receiving),
            Some(errands) => receiver::drive(&runtime, &errands, &watch, receiving).unwrap_or_else(|error| {
                tracing::error!(%error, "cannot start a second thread for a receiver");
                None
            }),
        };
        // Waits for the helpers that write to the spool, so that nothing is written after the answer.
        drop(runtime);
        if let Some(ended) = ended {
            // Nobody listens any more when the pipeline was dropped.
            ended.send(()).unwrap_or_default();
        }
    };
    std::thread::Builder::new().name(name).spawn(body).map_err(failed)?;
    Ok(receive_end)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string()).into()))
}
