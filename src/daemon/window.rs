//! To which moments one can go back: the documents of INTERFACE section 4, `window`.

use recovery::{BackupId, Catalog, LineageId, NotRecoverable, RecoveryRequest, RecoveryTarget, TimelineFork, Window};
use serde::Serialize;
use wal::{Lsn, PgTime, TimelineId, XactMark};

use super::view::Stored;
use crate::error::Result;
use crate::repository::LineageRepository;
use crate::restore;

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct WindowDocument {
    /// The cluster.
    pub cluster: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// Recoverable ranges, both ends included.
    pub ranges: Vec<Range>,
    /// Missing WAL.
    pub gaps: Vec<Gap>,
    /// Timelines and where they forked.
    pub timelines: Vec<Timeline>,
    /// Backups whose manifest cannot be read: what only they would reach is not among the ranges.
    pub unreadable_backups: Vec<Unreadable>,
    /// The answer about one moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<At>,
}

/// A backup whose manifest cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct Unreadable {
    /// Its name.
    pub id: BackupId,
    /// What is wrong with it.
    pub reason: String,
}

/// A recoverable range.
#[derive(Clone, Debug, Serialize)]
pub struct Range {
    /// First moment.
    pub from: Moment,
    /// Last moment.
    pub to: Moment,
    /// The oldest backup from which it is reached.
    pub first_backup: BackupId,
    /// The branch to name as `--timeline`.
    pub branch: TimelineId,
}

/// A moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Moment {
    /// By the primary's clock.
    pub time: PgTime,
    /// Position.
    pub lsn: Lsn,
    /// Timeline.
    pub timeline: TimelineId,
}

/// Missing WAL.
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    /// Timeline.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from_lsn: Lsn,
    /// First byte that is there again.
    pub to_lsn: Lsn,
    /// Why.
    pub reason: String,
}

/// A timeline.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timeline {
    /// Its number.
    pub timeline: TimelineId,
    /// From which it forked.
    pub parent: Option<TimelineId>,
    /// Where.
    pub switch_lsn: Option<Lsn>,
}

/// Whether one moment can be recovered.
#[derive(Clone, Debug, Serialize)]
pub struct At {
    /// The moment.
    pub time: PgTime,
    /// The answer.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The backup that recovery would start from.
    pub backup: Option<BackupId>,
    /// The branch.
    pub timeline: Option<TimelineId>,
    /// The last commit that would be there.
    pub commit_before: Option<Commit>,
    /// The first commit that would not.
    pub commit_after: Option<Commit>,
}

/// A commit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Commit {
    /// By the primary's clock.
    pub time: PgTime,
    /// Where its record starts.
    pub lsn: Lsn,
    /// Its transaction.
    pub xid: u32,
}

impl From<XactMark> for Commit {
    fn from(mark: XactMark) -> Self {
        Self { time: mark.time, lsn: mark.lsn, xid: mark.xid }
    }
}

/// The document without a moment.
pub fn document(stored: &Stored) -> WindowDocument {
    let Window { ranges, gaps, timelines } = stored.window.clone();
    let moment = |moment: recovery::Moment| Moment { time: moment.time, lsn: moment.lsn, timeline: moment.timeline };
    let fork =
        |fork: TimelineFork| Timeline { timeline: fork.timeline, parent: fork.parent, switch_lsn: fork.switch_lsn };
    WindowDocument {
        cluster: stored.catalog.cluster.clone(),
        lineage: stored.catalog.lineage,
        ranges: ranges
            .into_iter()
            .map(|range| Range {
                from: moment(range.from),
                to: moment(range.to),
                first_backup: range.first_backup,
                branch: range.branch,
            })
            .collect(),
        gaps: gaps
            .into_iter()
            .map(|gap| Gap { timeline: gap.timeline, from_lsn: gap.from_lsn, to_lsn: gap.to_lsn, reason: gap.reason })
            .collect(),
        timelines: timelines.into_iter().map(fork).collect(),
        unreadable_backups: stored
            .catalog
            .unreadable
            .iter()
            .map(|backup| Unreadable { id: backup.id.clone(), reason: backup.reason.clone() })
            .collect(),
        at: None,
    }
}

/// Can this moment be recovered, and what would be there?
pub async fn at(lineage: &LineageRepository, catalog: &Catalog, time: PgTime) -> Result<At> {
    let request = RecoveryRequest::new(RecoveryTarget::Time(time));
    let answer = At {
        time,
        reachable: false,
        reason: None,
        backup: None,
        timeline: None,
        commit_before: None,
        commit_after: None,
    };
    Ok(match restore::recovery_plan(lineage, catalog, &request).await? {
        Ok(plan) => At {
            reachable: true,
            backup: Some(plan.backup.id.clone()),
            timeline: Some(plan.timeline),
            commit_before: plan.commit_before.map(Commit::from),
            commit_after: plan.commit_after.map(Commit::from),
            ..answer
        },
        Err(reason) => {
            let error = restore::refused(lineage, catalog, &reason);
            let told = std::iter::once(reason.to_string()).chain(error.causes().iter().cloned());
            let commit_before = match nearest_before(&reason) {
                Some(before) => last_commit(lineage, catalog, before).await?,
                None => None,
            };
            At { reason: Some(told.collect::<Vec<_>>().join("; ")), commit_before, ..answer }
        }
    })
}

/// The last moment before an unreachable one that can be recovered.
fn nearest_before(reason: &NotRecoverable) -> Option<recovery::Moment> {
    match reason {
        NotRecoverable::AfterLastCommit { latest, .. } => Some(*latest),
        NotRecoverable::InGap { before, .. } => Some(*before),
        _ => None,
    }
}

/// The last commit up to a moment that can be recovered.
async fn last_commit(
    lineage: &LineageRepository,
    catalog: &Catalog,
    moment: recovery::Moment,
) -> Result<Option<Commit>> {
    let request = RecoveryRequest::new(RecoveryTarget::Lsn(moment.lsn));
    let plan = restore::recovery_plan(lineage, catalog, &request).await?;
    Ok(plan.ok().and_then(|plan| plan.commit_before).map(Commit::from))
}
