//! The plan of one recovery, or the reason why there is none.

use std::fmt;

use wal::{Lsn, PgTime, TimelineId, XactMark};

use crate::branch::{Branch, branches, live_timeline, parting};
use crate::facts::{Facts, LastSettled, Question};
use crate::locate::{Located, locate};
use crate::select::select;
use crate::window::Reach;
use crate::{
    Backup, BackupId, Catalog, NotRecoverable, RecoveryRequest, RecoveryTarget, RequiredWal, TargetAction,
    TargetTimeline, required_wal,
};

/// What PostgreSQL is told to stop at: the target itself, or what comes to the same where PostgreSQL would refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopAt {
    /// No target: replay to the end of the WAL, then promote.
    EndOfWal,
    /// `recovery_target = 'immediate'`
    Consistency,
    /// `recovery_target_time`
    Time(PgTime),
    /// `recovery_target_lsn`
    Lsn(Lsn),
    /// `recovery_target_xid`
    Xid(u32),
    /// `recovery_target_name`
    Name(String),
}

/// Something that a person should know before the recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// No transaction end is later than the target: PostgreSQL would wait for one and give up, so it gets a position.
    TranslatedTime {
        /// What PostgreSQL is told instead.
        stop: StopAt,
    },
    /// No record starts at the target or after it yet: everything before it is replayed.
    TranslatedLsn {
        /// What PostgreSQL is told instead.
        stop: StopAt,
    },
    /// PostgreSQL would promote at the end of the WAL whatever the action: so it gets the end as a position.
    TranslatedLatest {
        /// What PostgreSQL is told instead.
        stop: StopAt,
    },
    /// PostgreSQL will pause for somebody to look: it stops right after what is wanted, before later transactions begin
    /// to hold locks that would block a look at exactly the table that one of them drops.
    BeforeLaterLocks {
        /// What PostgreSQL is told instead.
        stop: StopAt,
    },
    /// The target is not on the live branch.
    OtherBranch {
        /// The live timeline.
        live: TimelineId,
        /// The one that holds the target.
        timeline: TimelineId,
        /// Where it parted from the live branch.
        parted: Lsn,
    },
    /// There are several restore points of this name, or the transaction number was used several times.
    Repeated {
        /// How many there are.
        count: usize,
        /// The position of the one that is meant, the last.
        lsn: Lsn,
    },
    /// The stored WAL ends before the timeline begins.
    EndsBeforeTimeline {
        /// The timeline.
        timeline: TimelineId,
        /// Where it begins.
        switch_point: Lsn,
        /// Where the stored WAL ends.
        end: Lsn,
    },
    /// The manifest of a backup that began later cannot be read: perhaps less WAL would have to be replayed from it.
    UnreadableBackup {
        /// That backup.
        id: BackupId,
    },
    /// Page checksums of the backup failed, or a verification found damage, and no other backup does.
    DamagedBackup,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TranslatedTime { stop } => {
                write!(f, "no later commit is stored, for which PostgreSQL would wait: it stops at {stop} instead")
            }
            Self::TranslatedLsn { stop } => {
                write!(f, "no record is stored there yet, for which PostgreSQL would wait: it stops at {stop} instead")
            }
            Self::TranslatedLatest { stop } => {
                write!(f, "without a target PostgreSQL would promote at the end of the WAL: it stops at {stop} instead")
            }
            Self::BeforeLaterLocks { stop } => {
                write!(
                    f,
                    "it stops at {stop}, the last transaction before the target, so that no lock of a later one blocks a look"
                )
            }
            Self::OtherBranch { live, timeline, parted } => write!(
                f,
                "this moment is not on the live timeline {live}: it is recovered on timeline {timeline}, which parted from it at {parted}"
            ),
            Self::Repeated { count, lsn } => {
                write!(f, "it occurs {count} times in the WAL; the last is meant, at {lsn}")
            }
            Self::EndsBeforeTimeline { timeline, switch_point, end } => {
                write!(f, "timeline {timeline} begins at {switch_point}, but the stored WAL ends at {end}")
            }
            Self::UnreadableBackup { id } => {
                write!(f, "backup {id} began later, but its manifest cannot be read: it is passed over")
            }
            Self::DamagedBackup => f.write_str("damage was found in this backup, and no other one leads to the target"),
        }
    }
}

impl fmt::Display for StopAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfWal => f.write_str("the end of the WAL"),
            Self::Consistency => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{name}\""),
        }
    }
}

/// How a target will be recovered. Everything in it is decided; nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// What was asked for.
    pub target: RecoveryTarget,
    /// Whether the target itself is to be part of it.
    pub inclusive: bool,
    /// The backup it starts from.
    pub backup: Backup,
    /// The branch: written as `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// What PostgreSQL is told to stop at.
    pub stop: StopAt,
    /// `recovery_target_inclusive` for that.
    pub stop_inclusive: bool,
    /// `recovery_target_action`
    pub action: TargetAction,
    /// Records that start before this position are replayed, those that start at it or after it are not.
    pub boundary: Lsn,
    /// The last commit that is part of what is recovered; `None`: the backup's own.
    pub commit_before: Option<XactMark>,
    /// The first commit that is not; `None` when none is stored.
    pub commit_after: Option<XactMark>,
    /// The WAL that is read.
    pub wal: RequiredWal,
    /// First byte of WAL that need not be there.
    pub wal_end: Lsn,
    /// What a person should know.
    pub notes: Vec<Note>,
}

/// Why there is no plan yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlan {
    /// Something must be looked up in the WAL first.
    Ask(Question),
    /// There can be none.
    NotRecoverable(NotRecoverable),
}

impl From<Question> for NoPlan {
    fn from(question: Question) -> Self {
        Self::Ask(question)
    }
}

impl From<NotRecoverable> for NoPlan {
    fn from(reason: NotRecoverable) -> Self {
        Self::NotRecoverable(reason)
    }
}

/// Plans the recovery that `request` asks for.
///
/// When it succeeds, PostgreSQL will reach the target: the backup becomes consistent before it, the WAL between is
/// stored without a hole, and what stops it is in the stored WAL.
pub fn plan(catalog: &Catalog, request: &RecoveryRequest, facts: &Facts) -> Result<RecoveryPlan, NoPlan> {
    let live = live_timeline(catalog).ok_or(NotRecoverable::NothingStored)?;
    let wanted = match request.timeline {
        Some(TargetTimeline::Number(timeline)) => timeline,
        Some(TargetTimeline::Latest) | None => live,
    };
    if catalog.timelines().contains(&wanted) && catalog.lacks_history(wanted) {
        return Err(NotRecoverable::NoHistory { timeline: wanted }.into());
    }
    match request.timeline {
        Some(TargetTimeline::Latest) => plan_on(&Branch::new(catalog, live), request, facts),
        Some(TargetTimeline::Number(timeline)) => {
            let known = catalog.timelines();
            if !known.contains(&timeline) {
                return Err(NotRecoverable::UnknownTimeline { timeline, known }.into());
            }
            plan_on(&Branch::new(catalog, timeline), request, facts)
        }
        None => match plan_on(&Branch::new(catalog, live), request, facts) {
            Err(NoPlan::NotRecoverable(reason)) if request.target != RecoveryTarget::Latest => {
                plan_on_other_branch(catalog, live, reason, request, facts)
            }
            result => result,
        },
    }
}

/// Looks for a target that the live branch does not hold on the branches that were left. `reason` is why the live one
/// does not.
fn plan_on_other_branch(
    catalog: &Catalog,
    live: TimelineId,
    reason: NotRecoverable,
    request: &RecoveryRequest,
    facts: &Facts,
) -> Result<RecoveryPlan, NoPlan> {
    let mut found: Vec<RecoveryPlan> = Vec::new();
    for branch in branches(catalog)
        .into_iter()
        .filter(|branch| branch.timeline() != live && !catalog.lacks_history(branch.timeline()))
    {
        match plan_on(&branch, request, facts) {
            Ok(plan) => {
                // The same moment on the way to several timelines is one moment.
                let same = |other: &RecoveryPlan| {
                    let parted = parting(&catalog.history(other.timeline), branch.history());
                    plan.boundary <= parted && other.boundary == plan.boundary
                };
                if !found.iter().any(same) {
                    found.push(plan);
                }
            }
            Err(NoPlan::Ask(question)) => return Err(question.into()),
            Err(NoPlan::NotRecoverable(_)) => {}
        }
    }
    match found.len() {
        0 => Err(reason.into()),
        1 => {
            let mut plan = found.remove(0);
            let parted = parting(&catalog.history(live), &catalog.history(plan.timeline));
            plan.notes.insert(0, Note::OtherBranch { live, timeline: plan.timeline, parted });
            Ok(plan)
        }
        _ => {
            let timelines = found.iter().map(|plan| plan.timeline).collect();
            Err(NotRecoverable::AmbiguousTimeline { target: request.target.clone(), live, timelines }.into())
        }
    }
}

/// Plans on one branch.
fn plan_on(branch: &Branch<'_>, request: &RecoveryRequest, facts: &Facts) -> Result<RecoveryPlan, NoPlan> {
    let reaches = reaches(branch, request, facts)?;
    let located = locate(branch, &reaches, request, facts)?;
    let reach = &reaches[located.reach];
    let (backup, damaged) = select(branch, reach, &located, request)?;
    let located = located.starting_from(&backup);
    let commits = facts.commits_around(branch.timeline(), (backup.start_lsn, reach.to.lsn), located.boundary)?;
    let action = request.action.unwrap_or(match located.stop {
        StopAt::EndOfWal => TargetAction::Promote,
        _ => TargetAction::Pause,
    });
    let located = match action {
        TargetAction::Pause => before_later_locks(located, branch, &backup, facts)?,
        TargetAction::Promote | TargetAction::Shutdown => located,
    };
    let Located { stop, stop_inclusive, boundary, wal_end, mut notes, .. } = located;
    if damaged {
        notes.push(Note::DamagedBackup);
    }
    if request.backup.is_none() {
        notes.extend(branch.passed_over(&backup, &request.target).map(|id| Note::UnreadableBackup { id }));
    }
    Ok(RecoveryPlan {
        target: request.target.clone(),
        inclusive: request.inclusive,
        timeline: branch.timeline(),
        stop,
        stop_inclusive,
        action,
        boundary,
        commit_before: commits.before,
        commit_after: commits.after,
        wal: required_wal(backup.start_lsn, wal_end, branch.path(), branch.segment_size()),
        wal_end,
        notes,
        backup,
    })
}

/// Moves a stop that lies before a transaction end back to right after the last record that settled anything.
///
/// The same transactions are part of the recovery either way. But a transaction that ends just behind the target has
/// logged its locks before it, and recovery that pauses there holds them: a look at the table that it dropped would wait
/// for ever (XLOG_STANDBY_LOCK, standby.c).
fn before_later_locks(
    mut located: Located,
    branch: &Branch<'_>,
    backup: &Backup,
    facts: &Facts,
) -> Result<Located, NoPlan> {
    if !located.stops_before_transaction_end {
        return Ok(located);
    }
    let stop = match facts.last_settled(branch.timeline(), (backup.start_lsn, located.boundary))? {
        LastSettled::TooFar => return Ok(located),
        LastSettled::At(lsn) if backup.stop_lsn <= lsn => {
            located.boundary = lsn.saturating_add(1);
            StopAt::Lsn(lsn)
        }
        LastSettled::At(_) | LastSettled::Nothing => {
            located.boundary = backup.stop_lsn;
            StopAt::Consistency
        }
    };
    located.notes.push(Note::BeforeLaterLocks { stop: stop.clone() });
    located.stop = stop;
    located.stop_inclusive = true;
    Ok(located)
}

/// What the branch's backups and WAL reach, in order; never empty.
fn reaches(branch: &Branch<'_>, request: &RecoveryRequest, facts: &Facts) -> Result<Vec<Reach>, NoPlan> {
    if let Some(id) = &request.backup {
        let backup = branch.backup(id).ok_or_else(|| branch.not_a_backup(id))?;
        if !branch.holds(backup) {
            let (id, backup_timeline, timeline) = (id.clone(), backup.timeline, branch.timeline());
            return Err(NotRecoverable::BackupOnOtherBranch { id, backup_timeline, timeline }.into());
        }
        if let Some(missing) = branch.missing_for(backup) {
            return Err(NotRecoverable::BackupNotUsable { id: id.clone(), missing }.into());
        }
    }
    let stretches = branch.stretches();
    if stretches.is_empty() {
        return Err(branch.no_backup().into());
    }
    Ok(stretches.into_iter().map(|stretch| Reach::of(branch, stretch, facts)).collect::<Result<_, _>>()?)
}
