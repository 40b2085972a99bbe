//! Why something cannot be recovered, and which moments can instead.

use wal::{Gap, Lsn, TimelineId};

use crate::{BackupId, Catalog, Moment, RecoveryTarget, UnreadableBackup};

/// Why there is no plan. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRecoverable {
    /// There is no usable backup on the branch.
    #[error("there is no usable backup on timeline {timeline}")]
    NoBackup {
        /// The branch.
        timeline: TimelineId,
        /// A backup that waits for WAL, and what it waits for.
        waiting: Option<(BackupId, Gap)>,
        /// Timelines that have usable backups.
        others: Vec<TimelineId>,
    },
    /// The repository holds nothing of the lineage.
    #[error("nothing is stored yet")]
    NothingStored,
    /// The target lies before the first moment that can be recovered.
    #[error("{target} is before the first recoverable moment")]
    BeforeFirstBackup {
        /// What was asked for.
        target: RecoveryTarget,
        /// The first moment that can be recovered.
        earliest: Moment,
        /// The backup that it is reached from.
        first_backup: BackupId,
    },
    /// The target lies after the last moment that can be recovered.
    #[error("{target} is after the last stored commit")]
    AfterLastCommit {
        /// What was asked for.
        target: RecoveryTarget,
        /// The last moment that can be recovered.
        latest: Moment,
    },
    /// The target lies where WAL is missing, or between missing WAL and the next backup.
    #[error("{target} is in a gap: WAL from {} to {} of timeline {} is not stored", gap.start, gap.end, gap.timeline)]
    InGap {
        /// What was asked for.
        target: RecoveryTarget,
        /// The missing WAL.
        gap: Gap,
        /// The last moment before it that can be recovered.
        before: Moment,
        /// The first moment after it that can be recovered; `None` while there is no backup after it.
        after: Option<Moment>,
    },
    /// No transaction with this id ended in the WAL that can be replayed.
    #[error("no transaction {xid} ended in the recoverable WAL of timeline {timeline}")]
    UnknownXid {
        /// The transaction.
        xid: u32,
        /// The branch.
        timeline: TimelineId,
    },
    /// No restore point of this name is in the WAL that can be replayed.
    #[error("there is no restore point \"{name}\" in the recoverable WAL of timeline {timeline}")]
    UnknownName {
        /// The name.
        name: String,
        /// The branch.
        timeline: TimelineId,
    },
    /// The history file of the timeline is not stored: PostgreSQL recovers to no timeline but the first without it.
    #[error("the history file of timeline {timeline} is not stored")]
    NoHistory {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Nothing is known of this timeline.
    #[error("there is no timeline {timeline}")]
    UnknownTimeline {
        /// What was asked for.
        timeline: TimelineId,
        /// Those that there are.
        known: Vec<TimelineId>,
    },
    /// The target is not on the live branch, and on several others.
    #[error("{target} is not on the live timeline {live}, and lies on several that were left")]
    AmbiguousTimeline {
        /// What was asked for.
        target: RecoveryTarget,
        /// The live one.
        live: TimelineId,
        /// Those that hold the target.
        timelines: Vec<TimelineId>,
    },
    /// There is no backup of this name.
    #[error("there is no backup {0}")]
    UnknownBackup(BackupId),
    /// The manifest of the backup that was asked for cannot be read.
    #[error("the manifest of backup {id} cannot be read: {reason}")]
    UnreadableBackup {
        /// The backup.
        id: BackupId,
        /// What is wrong with it.
        reason: String,
    },
    /// WAL that the backup needs is not stored: it cannot become consistent.
    #[error("backup {id} is not usable: WAL from {} to {} of timeline {} is not stored", missing.start, missing.end, missing.timeline)]
    BackupNotUsable {
        /// The backup.
        id: BackupId,
        /// The missing WAL.
        missing: Gap,
    },
    /// The backup was taken on a branch that does not lead to the timeline.
    #[error("backup {id} of timeline {backup_timeline} is not on the way to timeline {timeline}")]
    BackupOnOtherBranch {
        /// The backup.
        id: BackupId,
        /// Its timeline.
        backup_timeline: TimelineId,
        /// The branch.
        timeline: TimelineId,
    },
    /// The backup becomes consistent only after the target.
    #[error("backup {id} becomes consistent at {stop_lsn}, after {target}")]
    BackupAfterTarget {
        /// The backup.
        id: BackupId,
        /// Where it becomes consistent.
        stop_lsn: Lsn,
        /// What was asked for.
        target: RecoveryTarget,
        /// The backup that would do.
        instead: BackupId,
    },
    /// WAL is missing between the backup and the target.
    #[error("WAL from {} to {} of timeline {}, between backup {id} and {target}, is not stored", gap.start, gap.end, gap.timeline)]
    GapAfterBackup {
        /// The backup.
        id: BackupId,
        /// The missing WAL.
        gap: Gap,
        /// What was asked for.
        target: RecoveryTarget,
        /// The backup that would do.
        instead: BackupId,
    },
}

impl NotRecoverable {
    /// Backups of which nothing but the name is known and that may lead to what was asked for: for want of a backup it is
    /// refused, and they began before it, as far as a target tells when it was.
    pub fn may_be_reached_by<'a>(&self, catalog: &'a Catalog) -> Vec<&'a UnreadableBackup> {
        let target = match self {
            Self::NoBackup { .. } => None,
            Self::BeforeFirstBackup { target, .. } | Self::InGap { target, .. } => Some(target),
            _ => return Vec::new(),
        };
        catalog.unreadable.iter().filter(|backup| target.is_none_or(|target| backup.may_lead_to(target))).collect()
    }

    /// The WAL whose absence is the reason.
    pub fn missing(&self) -> Option<Gap> {
        match self {
            Self::InGap { gap, .. } | Self::GapAfterBackup { gap, .. } | Self::BackupNotUsable { missing: gap, .. } => {
                Some(*gap)
            }
            Self::NoBackup { waiting, .. } => waiting.as_ref().map(|(_, gap)| *gap),
            _ => None,
        }
    }
}
