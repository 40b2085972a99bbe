//! Restoring a backup so that PostgreSQL recovers to a moment.
//!
//! [`plan`] reads and decides; it changes nothing, and whatever cannot work is refused there. [`apply`] writes the files,
//! proves each of them, makes them durable and publishes `global/pg_control` as the last step: until then PostgreSQL does
//! not start on the directory, and a restore that was interrupted can be run again.
//!
//! Over an old data directory (`delta`), and when an interrupted restore is run again, what is there is used: the plan says
//! what will be removed ([`Existing`]), an old `pg_control` goes before anything else is changed, and of each file only the
//! chunks that are not right are fetched and written.

mod apply;
mod copy;
mod directory;
mod existing;
mod facts;
mod finish;
mod keep;
mod look;
mod marker;
mod own_manifest;
mod owner;
mod parallel;
mod places;
mod plan;
mod progress;
mod refusal;
mod roots;
mod server;
mod space;
mod sync;
mod tablespace_map;
mod throttle;

use std::path::PathBuf;

use recovery::settings::{RestoreCommand, StandbySettings};
use recovery::{RecoveryRequest, TargetAction};

pub use apply::{Effort, RestoreOutcome, apply};
pub use existing::{Existing, Tally};
pub use facts::{recovery_plan, window};
pub use look::{is_unfinished, refuse_running_server};
pub use owner::Owner;
pub use places::TablespacePlan;
pub use plan::{Place, RestorePlan, plan};
pub use progress::{RestorePhase, RestoreProgress, RestoreProgressSender};
pub use refusal::{not_recoverable, refused};

/// What a person asks `recover` for.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The data directory to write: empty or not there yet, unless `delta`.
    pub directory: PathBuf,
    /// The moment, the branch, the backup.
    pub recovery: RecoveryRequest,
    /// `--tablespace OLD=NEW`.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Where `pg_wal` shall lie instead of in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// Who shall own the files; see [`Owner`].
    pub owner: Option<String>,
    /// Settings and signal files, or `None` for `--no-config`.
    pub config: Option<ConfigRequest>,
    /// Write over an old data directory of the same system: keep what is right in it, remove what the backup does not have.
    pub delta: bool,
}

/// What to write besides the backup's files.
#[derive(Clone, Debug)]
pub struct ConfigRequest {
    /// How PostgreSQL gets WAL. Its `timeline` and `until` are filled in by the plan.
    pub restore_command: RestoreCommand,
    /// Follow this primary instead of recovering and ending.
    pub standby: Option<StandbySettings>,
    /// `--recovery-option K=V`.
    pub options: Vec<(String, String)>,
}

/// What happens when the target is reached, in words for a person.
pub const fn then(action: TargetAction) -> &'static str {
    match action {
        TargetAction::Pause => "it pauses at the target; look, then: SELECT pg_wal_replay_resume();",
        TargetAction::Promote => "it becomes writable on a new timeline",
        TargetAction::Shutdown => "it stops at the target",
    }
}
