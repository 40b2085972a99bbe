//! Restoring a backup so that PostgreSQL recovers to a moment.
//!
//! [`plan`] reads and decides; it changes nothing, and whatever cannot work is refused there. [`apply`] writes the files,
//! proves each of them, makes them durable and publishes `global/pg_control` as the last step: until then PostgreSQL does
//! not start on the directory, and a restore that was interrupted can be run again.

mod apply;
mod copy;
mod directory;
mod facts;
mod finish;
mod own_manifest;
mod owner;
mod plan;
mod progress;
mod refusal;
mod roots;
mod space;
mod tablespace_map;

use std::path::PathBuf;

use recovery::settings::{RestoreCommand, StandbySettings};
use recovery::{RecoveryRequest, TargetAction};

pub use apply::{RestoreOutcome, apply};
pub use facts::{recovery_plan, window};
pub use owner::Owner;
pub use plan::{Place, RestorePlan, plan};
pub use progress::{RestorePhase, RestoreProgress, RestoreProgressSender};
pub use refusal::{not_recoverable, refused};

/// What a person asks `recover` for.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The data directory to write: empty or not there yet.
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
    /// Use what is in the directory already. Not available in this version.
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
