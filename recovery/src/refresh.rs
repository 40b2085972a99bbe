//! What an old data directory needs to become a standby of the present primary: nothing but WAL, or other files as well.

use std::fmt;

use wal::{ControlFile, Gap, Lsn, SegmentName, SystemIdentifier, TimelineId, WalRange};

use crate::branch::Branch;
use crate::{Catalog, live_timeline};

/// A stopped data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldDirectory {
    /// Its `pg_control`.
    pub control: ControlFile,
    /// `PG_VERSION`
    pub major: u32,
    /// Whether `standby.signal` lies in it.
    pub standby_signal: bool,
    /// Whether a base backup lies in it that was never started (`backup_label`).
    pub backup_label: bool,
    /// Segments in its `pg_wal` that hold what their name says (a server also keeps old ones under names to come).
    pub wal: Vec<SegmentName>,
}

/// What brings it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// How.
    pub way: RefreshWay,
    /// Segments of its `pg_wal` that the branch has left behind, in whole or in part. They must go: PostgreSQL could replay them.
    pub stray: Vec<SegmentName>,
    /// Those of them that the repository does not have whole: what was committed there may be nowhere else.
    pub only_here: Vec<SegmentName>,
}

/// Whether its files can stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefreshWay {
    /// All its files lie on the branch, and the WAL from there on is there: it only has to be started.
    Replay {
        /// Where replay starts.
        from: Lsn,
        /// Where the WAL ends that needs no primary.
        to: Lsn,
    },
    /// Files must be put right.
    Delta(DeltaReason),
}

/// Why replaying is not enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeltaReason {
    /// It wrote or replayed what the branch does not have.
    Diverged {
        /// Its timeline.
        timeline: TimelineId,
        /// How far its files have come, at least.
        position: Lsn,
        /// Where the branch left its timeline; `None` when the branch never was on it.
        left: Option<Lsn>,
    },
    /// It was a primary that did not stop cleanly while another took over: how far its files have come is not known.
    Crashed,
    /// It has never been consistent.
    NeverConsistent,
    /// WAL that it needs is stored no more, or was lost.
    WalMissing(Gap),
}

impl fmt::Display for DeltaReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diverged { timeline, position, left: Some(left) } => {
                write!(f, "it went on to {position} on timeline {timeline}, which was left at {left}")
            }
            Self::Diverged { timeline, left: None, .. } => {
                write!(f, "it is on timeline {timeline}, which is not on the way to its primary's")
            }
            Self::Crashed => f.write_str("it was a primary that did not stop cleanly before another one took over"),
            Self::NeverConsistent => f.write_str("it holds a backup that never became consistent"),
            Self::WalMissing(gap) => {
                write!(f, "WAL from {} to {} of timeline {} is not stored", gap.start, gap.end, gap.timeline)
            }
        }
    }
}

/// Why it cannot be brought back at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRefresh {
    /// It belongs to another cluster.
    #[error("it has system identifier {found}, the cluster's is {stored}")]
    Foreign {
        /// Of the directory.
        found: SystemIdentifier,
        /// Of what is stored.
        stored: SystemIdentifier,
    },
    /// It is of another major version than what is stored.
    #[error("it is of PostgreSQL {found}, the newest backup of PostgreSQL {stored}")]
    OtherMajor {
        /// Of the directory.
        found: u32,
        /// Of the backup.
        stored: u32,
    },
    /// It is the primary: nobody has taken over from it.
    #[error("it is the primary of timeline {0}: nobody has taken over from it")]
    IsPrimary(TimelineId),
}

/// Decides, for a standby on `timeline` (see [`crate::standby_timeline`]).
///
/// Files may stay when every change in them comes from WAL of the branch: `pg_control` says how far they can have come. After a
/// clean stop that is the shutdown checkpoint, in recovery the minimum recovery point, which PostgreSQL makes durable before any
/// page that lies behind it (`UpdateMinRecoveryPoint` in xlog.c). Of a primary that crashed nothing is known.
pub fn refresh(directory: &OldDirectory, catalog: &Catalog, timeline: TimelineId) -> Result<Refresh, NoRefresh> {
    let control = &directory.control;
    let (found, stored) = (control.system_identifier, catalog.lineage.system_identifier);
    if found != stored {
        return Err(NoRefresh::Foreign { found, stored });
    }
    if let Some(stored) = catalog.backups.last().map(|backup| backup.postgres_version / 10_000)
        && stored != directory.major
    {
        return Err(NoRefresh::OtherMajor { found: directory.major, stored });
    }
    let was_primary = !control.state.is_recovery() && !directory.standby_signal && !directory.backup_label;
    if was_primary && control.checkpoint_timeline == timeline && live_timeline(catalog) == Some(timeline) {
        return Err(NoRefresh::IsPrimary(timeline));
    }
    let branch = Branch::new(catalog, timeline);
    let stray: Vec<SegmentName> = directory.wal.iter().filter(|name| !belongs(&branch, **name)).copied().collect();
    let only_here = stray.iter().filter(|name| !is_stored(&branch, catalog, directory, **name)).copied().collect();
    let way = match way(directory, catalog, &branch, &stray) {
        Ok((from, to)) => RefreshWay::Replay { from, to },
        Err(reason) => RefreshWay::Delta(reason),
    };
    Ok(Refresh { way, stray, only_here })
}

/// Where replay starts and how far it comes without the primary.
fn way(
    directory: &OldDirectory,
    catalog: &Catalog,
    branch: &Branch<'_>,
    stray: &[SegmentName],
) -> Result<(Lsn, Lsn), DeltaReason> {
    let control = &directory.control;
    if directory.backup_label || control.backup_start.is_some() {
        return Err(DeltaReason::NeverConsistent);
    }
    let (position, timeline) = files_reach(directory)?;
    for (position, timeline) in [(control.redo.saturating_add(1), control.checkpoint_timeline), (position, timeline)] {
        let left = branch.history().switch_point_of(timeline);
        if timeline != branch.timeline() && left.is_none_or(|left| position > left) {
            return Err(DeltaReason::Diverged { timeline, position, left });
        }
    }
    // What its own pg_wal has up to there counts: a server keeps the WAL that its replay starts with.
    let size = catalog.segment_size;
    let mut with_own = catalog.clone();
    for name in directory.wal.iter().filter(|name| !stray.contains(name)) {
        if let Some(start) = name.number(size).map(|number| number.start(size)).filter(|start| *start < position) {
            let end = start.saturating_add(size.bytes()).min(position);
            with_own.coverage.insert(WalRange { timeline: name.timeline(), start, end });
        }
    }
    let first = wal::SegmentNumber::containing(control.redo, size).start(size);
    let branch = Branch::new(&with_own, branch.timeline());
    let end = branch.reachable_end(first);
    if let Some(gap) = branch.gap_at(end) {
        return Err(DeltaReason::WalMissing(gap));
    }
    if end < position {
        let timeline = branch.path().timeline_at(end);
        return Err(DeltaReason::WalMissing(Gap { timeline, start: end, end: position }));
    }
    Ok((control.redo, end))
}

/// How far the files can have come: no change in them comes from WAL at or behind this position.
fn files_reach(directory: &OldDirectory) -> Result<(Lsn, TimelineId), DeltaReason> {
    use wal::ClusterState;
    let control = &directory.control;
    match control.state {
        // The record of the checkpoint is on the branch when it starts before the switch point, which lies between records.
        ClusterState::ShutDown => Ok((control.checkpoint.saturating_add(1), control.checkpoint_timeline)),
        ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery => {
            control.min_recovery.ok_or(DeltaReason::NeverConsistent)
        }
        ClusterState::Starting
        | ClusterState::ShuttingDown
        | ClusterState::InCrashRecovery
        | ClusterState::InProduction => Err(DeltaReason::Crashed),
    }
}

/// Whether all of a segment may be replayed on the way to the branch's timeline.
fn belongs(branch: &Branch<'_>, name: SegmentName) -> bool {
    let size = branch.segment_size();
    let Some(end) = name.number(size).map(|number| number.end(size)) else { return false };
    let left = branch.history().switch_point_of(name.timeline());
    name.timeline() == branch.timeline() || left.is_some_and(|left| end <= left)
}

/// Whether the repository has all that a segment of the directory can hold beyond the branch.
fn is_stored(branch: &Branch<'_>, catalog: &Catalog, directory: &OldDirectory, name: SegmentName) -> bool {
    let size = catalog.segment_size;
    let Some(number) = name.number(size) else { return false };
    let end = match files_reach(directory) {
        // After a clean stop nothing was written behind the checkpoint.
        Ok((position, timeline)) if !directory.control.state.is_recovery() && timeline == name.timeline() => {
            number.end(size).min(position)
        }
        _ => number.end(size),
    };
    // What lies before the switch point is the branch's own.
    let left = branch.history().switch_point_of(name.timeline());
    let start = left.map_or(number.start(size), |left| left.max(number.start(size)));
    end <= start || catalog.coverage.contiguous_end(name.timeline(), start).is_some_and(|stored| stored >= end)
}

#[cfg(test)]
mod tests;
