//! One base backup: from the wish to the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use recovery::Backup;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wal::WalRange;

use super::backups::{BackupWish, WishedKind};
use super::cluster::Cluster;
use super::stored;
use crate::backup::{
    self, BackupDeps, BackupProgress, BackupRequest, FilesAccess, ProgressSender, ReadKind, WalProgress,
};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{CheckpointMode, ConnectOptions, Host, HostName, MaxRate};
use crate::repository::LineageRepository;
use crate::wal_pipeline::{StatusBoard, WalStatus};

/// How long after a wish the daemon may take to be ready for it, and how often that is looked at.
const START_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a backup needs besides the wish.
#[derive(Debug)]
pub struct Place<'a> {
    /// The server.
    pub connect: &'a ConnectOptions,
    /// Where it goes.
    pub lineage: &'a LineageRepository,
    /// Where the index of known chunks lies.
    pub state_dir: PathBuf,
    /// What the pipeline that streams meanwhile tells.
    pub board: &'a StatusBoard,
    /// The time.
    pub clock: &'a Arc<dyn Clock>,
    /// The server's data directory, where it is to be read.
    pub data_directory: Option<PathBuf>,
    /// Limit of the configuration.
    pub max_rate: Option<u64>,
}

/// Takes a backup of a supervised cluster, and tells how far it is.
pub(super) async fn take(
    cluster: &Arc<Cluster>,
    number: u64,
    wish: BackupWish,
    cancel: &CancellationToken,
) -> Result<Backup> {
    let lineage = lineage_soon(cluster, cancel).await?;
    let progress = ProgressSender::new(BackupProgress::default());
    let mut told = progress.subscribe();
    let place = Place {
        connect: &cluster.connect,
        lineage: &lineage,
        state_dir: cluster.state_dir.clone(),
        board: cluster.board(),
        clock: cluster.clock(),
        data_directory: cluster.config.data_directory.clone(),
        max_rate: cluster.config.max_rate,
    };
    let run = run(&place, wish, &progress, cancel);
    tokio::pin!(run);
    loop {
        tokio::select! {
            ended = &mut run => return ended,
            Ok(()) = told.changed() => {
                let now = told.borrow_and_update().clone();
                cluster.backups.progress(number, |running| {
                    running.id = now.id;
                    running.phase = now.phase.as_str().to_owned();
                    running.done_bytes = now.done_bytes;
                    running.total_bytes = now.total_bytes;
                    running.not_files = now.not_files;
                    running.reason = now.reason;
                });
            }
        }
    }
}

/// The lineage to store into. Right after the start of a daemon its repository is not open yet, and before the first WAL
/// arrives there is no lineage: that is waited for, for as long as nothing is known to be wrong.
async fn lineage_soon(cluster: &Arc<Cluster>, cancel: &CancellationToken) -> Result<LineageRepository> {
    let begun = cluster.clock().instant();
    loop {
        let found = match cluster.repository() {
            Ok(repository) => stored::newest_lineage(&repository).await,
            Err(error) => Err(error),
        };
        let error = match found {
            Ok(lineage) => return Ok(lineage),
            Err(error) => error,
        };
        let not_open_yet = error.code() == ErrorCode::RepositoryDenied && cluster.repository_is_opening();
        let wrong = cluster.board().read(|status| status.error.is_some());
        let begins = error.code() == ErrorCode::NotFound && !wrong;
        let waited = cluster.clock().instant().saturating_duration_since(begun);
        if cancel.is_cancelled() || waited > START_WITHIN || !(not_open_yet || begins) {
            return Err(error);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes a backup and waits until it is usable.
pub async fn run(
    place: &Place<'_>,
    wish: BackupWish,
    progress: &ProgressSender,
    cancel: &CancellationToken,
) -> Result<Backup> {
    // One index per cluster: it is a cache, and made anew from the packs when it is lost.
    let chunks = place.state_dir.join("chunks");
    let index_file = crate::durable::create_dir_all(&chunks, crate::durable::PRIVATE_DIR)
        .is_ok()
        .then(|| chunks.join(format!("{}.redb", place.lineage.cluster())));
    let noted = place.state_dir.join("noted");
    let noted_file = crate::durable::create_dir_all(&noted, crate::durable::PRIVATE_DIR)
        .is_ok()
        .then(|| noted.join(place.lineage.cluster().as_str()));
    let wal = PipelineProgress { board: place.board.clone() };
    let request = BackupRequest {
        kind: match wish.kind {
            WishedKind::Auto => ReadKind::Auto,
            WishedKind::Full => ReadKind::Full,
            WishedKind::Incremental => ReadKind::Incremental,
        },
        label: None,
        annotations: wish.annotations,
        checkpoint: if wish.fast_checkpoint { CheckpointMode::Fast } else { CheckpointMode::Spread },
        max_rate: wish.max_rate.or(place.max_rate).map(MaxRate::from_bytes_per_second),
        ..BackupRequest::default()
    };
    let deps = BackupDeps {
        server: &streamed_from(place),
        files: place.data_directory.clone().map(|directory| FilesAccess::new(directory, noted_file)),
        repository: place.lineage,
        index_file,
        wal: &wal,
        clock: place.clock.as_ref(),
        random: rand::random(),
        cancel,
    };
    backup::run(&request, &deps, progress).await
}

/// Of several members the one whose WAL is received: only of its branch all that a backup needs will be stored.
fn streamed_from(place: &Place<'_>) -> ConnectOptions {
    let connect = place.connect.clone();
    let source = place.board.read(|status| status.source.clone());
    let Some((name, port)) = source else { return connect };
    let is_source = |host: &&Host| {
        let text = match &host.name {
            HostName::Tcp(name) => name.clone(),
            HostName::Unix(directory) => directory.display().to_string(),
        };
        (text, host.port) == (name.clone(), port)
    };
    let known = connect.conninfo.hosts().iter().find(is_source).cloned();
    let host = match known {
        Some(_) if connect.conninfo.hosts().len() == 1 => return connect,
        Some(host) => host,
        // Patroni named it.
        None => Host { name: HostName::Tcp(name), address: None, port },
    };
    ConnectOptions { conninfo: connect.conninfo.clone().for_host(host), ..connect }
}

/// Knows from the pipeline when WAL is in the repository.
#[derive(Debug)]
struct PipelineProgress {
    board: StatusBoard,
}

#[async_trait]
impl WalProgress for PipelineProgress {
    async fn wait_until_stored(&self, range: WalRange) -> Result<()> {
        let mut status: watch::Receiver<WalStatus> = self.board.subscribe();
        let ended = || Error::new(ErrorCode::Interrupted, "streaming ended while a backup waited for its WAL");
        let left = |status: &WalStatus| {
            let left = status.followed.as_ref()?.history.switch_point_of(range.timeline);
            left.filter(|&left| left < range.end)
        };
        // Positions only grow along the way of a cluster: whatever timeline is received now, WAL before it is stored. But
        // a failover may have left the backup's timeline before the backup's end.
        let stored = |status: &WalStatus| status.shipped.max(status.archived) >= Some(range.end);
        let status =
            status.wait_for(|status| stored(status) || left(status).is_some()).await.map_err(|_| ended())?.clone();
        if let Some(left) = left(&status) {
            let said =
                format!("timeline {} was left at {left}, before the backup's end at {}", range.timeline, range.end);
            return Err(Error::new(ErrorCode::TimelineConflict, "a failover overtook the backup").because(said));
        }
        Ok(())
    }
}
