//! `pgvault wal fetch %f %p`: the `restore_command`.
//!
//! PostgreSQL takes every exit code from 1 to 125 for "this file does not exist": recovery ends there, and without a
//! target the server promotes (observed: `reference/CORRECTNESS.md`, OBS-8 to OBS-10). So [`FetchOutcome::Absent`] is
//! said only where the store itself answered that exactly this file is not there *and* nothing that comes after it is.
//! All other trouble is repeated for a while and then ends in 255, which stops recovery with an error instead of
//! letting it end early. A running standby has another source, its primary: there trouble with a segment ends in 1.

mod absent;
mod asker;
mod attempt;
mod destination;
mod local;
mod locked_file;
mod name;
pub mod prefetch;
mod spooled;
mod trouble;
mod way;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wal::{Lsn, TimelineId};

use crate::clock::Clock;
use crate::error::{Error, ErrorCode};
use crate::repository::{ClusterRepository, LineageRepository};

use attempt::{Fetched, attempt};
use trouble::Trouble;

pub use asker::Asker;
pub use local::{LocalSegment, LocalSource, NoLocalSource};
pub use name::{FetchName, InvalidFetchName};
pub use spooled::SpoolSource;

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
    /// The server that waits for it.
    pub asker: Asker,
}

/// How long trouble is put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// How long attempts are repeated before 255.
    pub patience: Duration,
    /// The same for a segment that a standby asks for, which it can stream instead.
    pub standby_segment: Duration,
    /// The same for a history file that a standby asks for: without end. "Absent" would be a lie that can end in two
    /// servers on one timeline, and 255 ends a server that people read from: so it waits for the store, however long,
    /// and goes on where it stood. A server that is told to stop stops all the same.
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
            standby_history: Duration::MAX,
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
            Ok(Fetched::Whole | Fetched::Tail) => return FetchOutcome::Found,
            Ok(Fetched::Absent) => return FetchOutcome::Absent,
            Err(trouble) => trouble,
        };
        let waited = clock.instant().saturating_duration_since(begun);
        if !trouble.may_pass() || waited.saturating_add(pause) > patience {
            return give_up(request, trouble);
        }
        tracing::warn!(file = %request.file, error = %trouble, "wal fetch failed, trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
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

fn give_up(request: &FetchRequest, trouble: Trouble) -> FetchOutcome {
    if request.may_end_in_absent() && !trouble.is_no_key() {
        tracing::warn!(file = %request.file, error = %trouble, "wal fetch gives up: the standby can stream instead");
        return FetchOutcome::Absent;
    }
    FetchOutcome::Failed(trouble.into_error(&request.file))
}

/// The first eight bytes of `global/pg_control` are the system identifier (pg_control.h).
fn system_identifier(data_directory: &Path) -> Option<u64> {
    let mut bytes = [0; 8];
    File::open(data_directory.join("global/pg_control")).and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

/// The lineage whose WAL the data directory needs: of the cluster's lineages with its system identifier, the newest.
///
/// Where `pg_control` cannot be read, the newest lineage of all is taken.
pub async fn lineage_of(cluster: &ClusterRepository, data_directory: &Path) -> crate::error::Result<LineageRepository> {
    let system = system_identifier(data_directory);
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
