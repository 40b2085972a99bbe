//! `pgvault wal fetch %f %p`: the `restore_command`.
//!
//! PostgreSQL takes every exit code from 1 to 125 for "this file does not exist": recovery ends there, and without a
//! target the server promotes (observed: `reference/CORRECTNESS.md`, OBS-8 to OBS-10). So [`FetchOutcome::Absent`] is
//! said only where the store itself answered that exactly this file is not there *and* nothing that comes after it is.
//! All other trouble is repeated for a while and then ends in 255, which stops recovery with an error instead of
//! letting it end early. A running standby has another source, its primary: there trouble with a segment ends in 1.

mod absent;
mod destination;
mod local;
mod name;
mod way;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use wal::{Lsn, SegmentName, SegmentNumber, TimelineId};

use crate::clock::Clock;
use crate::error::{Error, ErrorCode};
use crate::repository::{ClusterRepository, LineageRepository, RepositoryError};

use absent::first_stored;
use destination::{Cut, Destination};
use way::{Served, Way};

pub use local::{LocalSegment, LocalSource, NoLocalSource};
pub use name::{FetchName, InvalidFetchName};

/// What PostgreSQL asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// The file: `%f`.
    pub file: FetchName,
    /// Where it goes: `%p`.
    pub destination: PathBuf,
    /// The branch that is being recovered, if the command says so: what it has left behind is not served.
    pub timeline: Option<TimelineId>,
    /// Where recovery will stop, if the command says so: WAL missing behind it is no hole.
    pub until: Option<Lsn>,
    /// Whether a running standby asks. It follows its primary wherever that goes, so the two limits are not for it.
    pub standby: bool,
}

/// How long trouble is put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// How long attempts are repeated before 255.
    pub patience: Duration,
    /// The same for a segment that a standby asks for, which it can stream instead.
    pub standby_segment: Duration,
    /// The same for a history file that a standby asks for. "Absent" would be a lie that can end in two servers on one
    /// timeline, and 255 ends a server that people read from: so it waits for the store, and goes on where it stood.
    pub standby_history: Duration,
    /// Pause before the second attempt; doubled up to five seconds.
    pub first_pause: Duration,
}

impl FetchLimits {
    /// Puts up with trouble for this long; on a standby only where the answer is then "absent".
    pub fn patient_for(patience: Duration) -> Self {
        Self { patience, standby_segment: patience, ..Self::default() }
    }

    fn for_request(&self, request: &FetchRequest) -> Duration {
        match (request.standby, &request.file) {
            (true, FetchName::Segment(_)) => self.standby_segment,
            (true, _) => self.standby_history,
            (false, _) => self.patience,
        }
    }
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(120),
            standby_segment: Duration::from_secs(10),
            standby_history: Duration::from_secs(3600),
            first_pause: Duration::from_millis(200),
        }
    }
}

/// How a fetch ended.
#[derive(Debug)]
pub enum FetchOutcome {
    /// The file is complete and correct at its destination.
    Found,
    /// It is not in the repository, and nothing behind it is: this is the end. Nothing was written.
    Absent,
    /// Neither can be said. Nothing was written.
    Failed(Error),
}

impl FetchOutcome {
    /// What the process exits with: 0, 1 or 255 and nothing between.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Found => 0,
            Self::Absent => 1,
            Self::Failed(_) => 255,
        }
    }
}

/// Why an attempt did not end in an answer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Opening(Error),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("{missing} is not in the repository, but {later}, which comes after it, is")]
    Hole { missing: SegmentName, later: SegmentName },
    #[error("{}: {source}", path.display())]
    Destination { path: PathBuf, source: std::io::Error },
    #[error("local WAL: {0}")]
    Local(std::io::Error),
    #[error("{0} is no segment of this cluster: its segments have {1} bytes")]
    ForeignName(SegmentName, u64),
}

/// Whether a standby's data directory is what PostgreSQL runs in: its `restore_command` runs there.
pub fn is_standby(data_directory: &Path) -> bool {
    data_directory.join("standby.signal").exists()
}

/// Fetches one file. `open` opens the lineage; it is repeated as everything else.
pub async fn run(
    request: &FetchRequest,
    open: impl AsyncFn() -> crate::error::Result<LineageRepository>,
    local: &dyn LocalSource,
    limits: FetchLimits,
    clock: &dyn Clock,
) -> FetchOutcome {
    let FetchName::Other(_) = request.file else {
        return repeat(request, open, local, limits, clock).await;
    };
    // Backup history files and partial segments: never needed, never stored under that name.
    FetchOutcome::Absent
}

async fn repeat(
    request: &FetchRequest,
    open: impl AsyncFn() -> crate::error::Result<LineageRepository>,
    local: &dyn LocalSource,
    limits: FetchLimits,
    clock: &dyn Clock,
) -> FetchOutcome {
    let patience = limits.for_request(request);
    let begun = clock.instant();
    let mut pause = limits.first_pause;
    let mut opened: Option<LineageRepository> = None;
    loop {
        let trouble = match attempt(request, &open, &mut opened, local).await {
            Ok(true) => return FetchOutcome::Found,
            Ok(false) => return FetchOutcome::Absent,
            Err(trouble) => trouble,
        };
        let waited = clock.instant().saturating_duration_since(begun);
        if !trouble.may_pass() || waited + pause > patience {
            return give_up(request, trouble);
        }
        tracing::warn!(file = %request.file, error = %trouble, "wal fetch failed, trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// One attempt: whether the file was served (else it is authoritatively absent).
async fn attempt(
    request: &FetchRequest,
    open: &impl AsyncFn() -> crate::error::Result<LineageRepository>,
    opened: &mut Option<LineageRepository>,
    local: &dyn LocalSource,
) -> Result<bool, Trouble> {
    // What this machine's daemon holds whole needs no repository, and is served while that is out of reach.
    if let FetchName::Segment(segment) = request.file
        && request.limit_timeline().is_none_or(|target| target == segment.timeline())
        && let Some(found) = local.segment(segment).map_err(Trouble::Local)?.filter(|found| found.whole)
    {
        return serve_local(request, found, None).map(|()| true);
    }
    let lineage = match opened {
        Some(lineage) => lineage,
        None => opened.insert(open().await.map_err(Trouble::Opening)?),
    };
    match request.file {
        FetchName::History(timeline) => fetch_history(request, lineage, timeline).await,
        FetchName::Segment(segment) => fetch_segment(request, lineage, segment, local).await,
        FetchName::Other(_) => Ok(false),
    }
}

async fn fetch_history(
    request: &FetchRequest,
    lineage: &LineageRepository,
    timeline: TimelineId,
) -> Result<bool, Trouble> {
    let Some(bytes) = lineage.history_bytes(timeline).await? else { return Ok(false) };
    let mut destination = Destination::open(&request.destination)?;
    destination.write_all(&bytes)?;
    destination.publish()?;
    Ok(true)
}

async fn fetch_segment(
    request: &FetchRequest,
    lineage: &LineageRepository,
    segment: SegmentName,
    local: &dyn LocalSource,
) -> Result<bool, Trouble> {
    let size = lineage.segment_size();
    let number = segment.number(size).ok_or(Trouble::ForeignName(segment, size.bytes()))?;
    let way = Way::to(request.limit_timeline(), size).knowing(lineage, segment.timeline()).await?;
    let cut = match way.serves(segment.timeline(), number) {
        Served::Whole => None,
        Served::UpTo(limit) => Some(Cut { keep: limit.bytes_since(number.start(size)), size: size.bytes() }),
        // The branch has left this timeline before the segment: replaying it would be another history.
        Served::Never => return Ok(false),
    };
    if fetch_whole(request, lineage, segment, cut).await? {
        return Ok(true);
    }
    // Not stored whole. What comes behind it tells an end from a hole.
    let beyond_target = request.limit_until().is_some_and(|until| number > SegmentNumber::containing_end(until, size));
    let way = way.knowing_all(lineage).await?;
    if !beyond_target && let Some(later) = first_later(lineage, &way, segment, number, local).await? {
        // It may have been completed while we looked.
        let completed = fetch_whole(request, lineage, segment, cut).await?;
        return if completed { Ok(true) } else { Err(Trouble::Hole { missing: segment, later }) };
    }
    let mut destination = Destination::open(&request.destination)?;
    let stored = match lineage.fetch_tail(segment, destination.file()).await {
        Err(RepositoryError::Sink(source)) => return Err(destination.trouble(source)),
        fetched => fetched?,
    };
    let stored_bytes = stored.map_or(0, |end| end.bytes_since(number.start(size)));
    if let Some(found) = local.segment(segment).map_err(Trouble::Local)?.filter(|f| f.durable_bytes > stored_bytes) {
        // One temporary file at a time.
        drop(destination);
        return serve_local(request, found, Some((size.bytes(), cut))).map(|()| true);
    }
    if stored_bytes == 0 {
        return Ok(false);
    }
    destination.pad(stored_bytes, size.bytes())?;
    destination.cut(cut)?;
    destination.publish()?;
    Ok(true)
}

/// Serves the segment if it is stored whole.
async fn fetch_whole(
    request: &FetchRequest,
    lineage: &LineageRepository,
    segment: SegmentName,
    cut: Option<Cut>,
) -> Result<bool, Trouble> {
    let mut destination = Destination::open(&request.destination)?;
    match lineage.fetch_segment(segment, destination.file()).await {
        Ok(_) => {
            destination.cut(cut)?;
            destination.publish()?;
            Ok(true)
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(RepositoryError::Sink(source)) => Err(destination.trouble(source)),
        Err(error) => Err(error.into()),
    }
}

/// Serves what this machine's daemon holds: a whole segment, or one to be padded to its size.
fn serve_local(
    request: &FetchRequest,
    found: LocalSegment,
    padding: Option<(u64, Option<Cut>)>,
) -> Result<(), Trouble> {
    let (size, cut) = padding.unwrap_or((found.durable_bytes, None));
    let mut destination = Destination::open(&request.destination)?;
    destination.copy_padded(found, size)?;
    destination.cut(cut)?;
    destination.publish()
}

/// The first WAL that is there behind a missing segment, on any way that leads over it.
async fn first_later(
    lineage: &LineageRepository,
    way: &Way,
    segment: SegmentName,
    number: SegmentNumber,
    local: &dyn LocalSource,
) -> Result<Option<SegmentName>, Trouble> {
    if local.has_later(segment).map_err(Trouble::Local)? {
        return Ok(Some(SegmentName::new(segment.timeline(), number.next(), lineage.segment_size())));
    }
    for leg in way.legs_behind(segment.timeline(), number) {
        if let Some(later) = first_stored(lineage, leg).await? {
            return Ok(Some(later));
        }
    }
    Ok(None)
}

impl FetchRequest {
    /// Whether trouble may end in "absent": only for a segment, and only where a running standby asks.
    fn may_end_in_absent(&self) -> bool {
        self.standby && matches!(self.file, FetchName::Segment(_))
    }

    fn limit_timeline(&self) -> Option<TimelineId> {
        self.timeline.filter(|_| !self.standby)
    }

    fn limit_until(&self) -> Option<Lsn> {
        self.until.filter(|_| !self.standby)
    }
}

impl Trouble {
    /// Whether another attempt can end otherwise. A hole can: segments are stored in parallel.
    fn may_pass(&self) -> bool {
        match self {
            // A repository that is not there can be one that is not mounted.
            Self::Opening(error) => {
                !matches!(error.code(), ErrorCode::FormatTooNew | ErrorCode::InvalidConfig | ErrorCode::ForeignCluster)
            }
            Self::Repository(error) => {
                !matches!(error, RepositoryError::TooNew { .. } | RepositoryError::Mismatch { .. })
            }
            Self::Hole { .. } | Self::Local(_) => true,
            Self::Destination { .. } | Self::ForeignName(..) => false,
        }
    }

    fn into_error(self, file: &FetchName) -> Error {
        let (code, help) = match &self {
            Self::Opening(error) => (error.code(), None),
            Self::Hole { .. } => (ErrorCode::TargetInGap, Some("see what can be recovered: pgvault window")),
            Self::Repository(RepositoryError::Damaged { .. }) => {
                (ErrorCode::Damaged, Some("read everything that is stored: pgvault check --deep"))
            }
            Self::Repository(RepositoryError::TooNew { .. }) => (ErrorCode::FormatTooNew, None),
            Self::Repository(_) => (ErrorCode::RepositoryDenied, Some("check the repository: pgvault repo check")),
            Self::Destination { .. } | Self::Local(_) | Self::ForeignName(..) => (ErrorCode::Unclassified, None),
        };
        let error = Error::new(code, format!("cannot fetch {file}: {self}"));
        let error = error.because("recovery is stopped (exit 255) so that it does not end early in silence");
        match help {
            Some(help) => error.help(help),
            None => error,
        }
    }
}

fn give_up(request: &FetchRequest, trouble: Trouble) -> FetchOutcome {
    if request.may_end_in_absent() {
        tracing::warn!(file = %request.file, error = %trouble, "wal fetch gives up: the standby can stream instead");
        return FetchOutcome::Absent;
    }
    FetchOutcome::Failed(trouble.into_error(&request.file))
}

/// The lineage whose WAL the data directory needs: of the cluster's lineages with its system identifier, the newest.
///
/// The first eight bytes of `global/pg_control` are the system identifier (pg_control.h). Where it cannot be read, the
/// newest lineage of all is taken.
pub async fn lineage_of(cluster: &ClusterRepository, data_directory: &Path) -> crate::error::Result<LineageRepository> {
    let found = std::fs::read(data_directory.join("global/pg_control")).ok();
    let system = found.as_deref().and_then(<[u8]>::first_chunk::<8>).map(|bytes| u64::from_ne_bytes(*bytes));
    let mut lineages = cluster.lineages().await?;
    let newest = lineages.last().map(LineageRepository::id);
    if let Some(system) = system {
        lineages.retain(|lineage| lineage.system_identifier().get() == system);
    }
    match (lineages.pop(), system, newest) {
        (Some(lineage), ..) => Ok(lineage),
        (None, Some(system), Some(newest)) => Err(Error::new(
            ErrorCode::ForeignCluster,
            format!("the data directory has system identifier {system}, cluster \"{}\" holds {newest}", cluster.name()),
        )),
        _ => Err(Error::new(ErrorCode::NotFound, format!("nothing is stored of cluster \"{}\"", cluster.name()))),
    }
}
