//! What a person asks recovery to do.

use std::fmt;

use wal::{Lsn, PgTime, TimelineId};

use crate::BackupId;

/// The moment to recover to, in the words of PostgreSQL's `recovery_target*` settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// Just before the first transaction end later than this (`recovery_target_time`).
    Time(PgTime),
    /// The first record that starts here or later (`recovery_target_lsn`).
    Lsn(Lsn),
    /// The end of this transaction (`recovery_target_xid`).
    Xid(u32),
    /// A restore point (`recovery_target_name`).
    Name(String),
    /// The end of the stored WAL.
    Latest,
    /// As soon as the backup is consistent (`recovery_target = 'immediate'`).
    Immediate,
}

impl RecoveryTarget {
    /// What kind of target it is: `time`, `lsn`, `xid`, `name`, `latest`, `immediate`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Time(_) => "time",
            Self::Lsn(_) => "lsn",
            Self::Xid(_) => "xid",
            Self::Name(_) => "name",
            Self::Latest => "latest",
            Self::Immediate => "immediate",
        }
    }

    /// Its value as text; `None` for those that are their own value.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Time(time) => Some(time.to_string()),
            Self::Lsn(lsn) => Some(lsn.to_string()),
            Self::Xid(xid) => Some(xid.to_string()),
            Self::Name(name) => Some(name.clone()),
            Self::Latest | Self::Immediate => None,
        }
    }
}

impl fmt::Display for RecoveryTarget {
    /// As part of a sentence: "cannot recover main to …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "{time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{name}\""),
            Self::Latest => f.write_str("the end of the stored WAL"),
            Self::Immediate => f.write_str("the end of the backup"),
        }
    }
}

/// Which branch of the cluster's history to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The live one, see [`crate::live_timeline`]; always resolved to a number before anything is written.
    Latest,
    /// This one.
    Number(TimelineId),
}

/// What PostgreSQL does when it has reached the target (`recovery_target_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    /// Waits, readable, until `pg_wal_replay_resume()`.
    Pause,
    /// Becomes writable on a new timeline.
    Promote,
    /// Stops.
    Shutdown,
}

impl fmt::Display for TargetAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        })
    }
}

/// A wish for a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryRequest {
    /// The moment.
    pub target: RecoveryTarget,
    /// Whether the target itself is part of what is recovered (`recovery_target_inclusive`).
    pub inclusive: bool,
    /// The branch. `None`: the live one, and where only one other branch holds the target, that one, and the plan says so.
    pub timeline: Option<TargetTimeline>,
    /// What to do at the target. `None`: pause, and for [`RecoveryTarget::Latest`] promote.
    pub action: Option<TargetAction>,
    /// The backup to start from. `None`: the newest one from which the target can be reached.
    pub backup: Option<BackupId>,
}

impl RecoveryRequest {
    /// A request for `target`, the target included, with everything else as pgvault chooses.
    pub fn new(target: RecoveryTarget) -> Self {
        Self { target, inclusive: true, timeline: None, action: None, backup: None }
    }
}
