//! Where in the WAL a target lies, and what PostgreSQL has to be told to stop there.
//!
//! PostgreSQL's rules are those of `recoveryStopsBefore` and `recoveryStopsAfter` in xlogrecovery.c. A target that it
//! waits for in vain ends in FATAL there: such a target is refused here, or told in other words that come to the same.

use wal::{Lsn, PgTime};

use crate::branch::Branch;
use crate::facts::Facts;
use crate::plan::{NoPlan, Note, StopAt};
use crate::window::Reach;
use crate::{Backup, BackupId, NotRecoverable, RecoveryRequest, RecoveryTarget, TargetAction};

/// A target in the WAL.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Which reach holds it.
    pub(crate) reach: usize,
    /// What stops PostgreSQL.
    pub(crate) stop: StopAt,
    pub(crate) stop_inclusive: bool,
    /// Records that start before this position are replayed.
    pub(crate) boundary: Lsn,
    /// A backup must be consistent here at the latest.
    pub(crate) consistent_by: Lsn,
    /// First byte of WAL that need not be there.
    pub(crate) wal_end: Lsn,
    pub(crate) notes: Vec<Note>,
    /// Whether the record at `boundary` ends a transaction that is not to be part of it.
    pub(crate) stops_before_transaction_end: bool,
    /// Set when nothing in the WAL stops PostgreSQL at the target: then all of the reach is meant, and it is told the
    /// last record that matters, or, where the backup holds that already, to stop when it is consistent.
    everything: Option<Everything>,
}

#[derive(Clone, Copy, Debug)]
struct Everything {
    /// The last record that matters.
    last: Option<Lsn>,
    /// How a person is told.
    note: fn(StopAt) -> Note,
}

impl Located {
    fn at(reach: usize, stop: StopAt, inclusive: bool, record: Lsn, record_end: Lsn) -> Self {
        Self {
            reach,
            stop,
            stop_inclusive: inclusive,
            boundary: if inclusive { record.saturating_add(1) } else { record },
            consistent_by: record,
            wal_end: record_end,
            notes: Vec::new(),
            stops_before_transaction_end: false,
            everything: None,
        }
    }

    fn everything(index: usize, reach: &Reach, last: Option<Lsn>, note: fn(StopAt) -> Note) -> Self {
        let everything = Some(Everything { last, note });
        Self { everything, ..Self::at(index, StopAt::Consistency, true, reach.to.lsn, reach.to.lsn) }
    }

    /// The same target, now that the backup is chosen.
    pub(crate) fn starting_from(mut self, backup: &Backup) -> Self {
        if let Some(Everything { last, note }) = self.everything {
            match last.filter(|&last| backup.stop_lsn <= last) {
                Some(last) => {
                    self.stop = StopAt::Lsn(last);
                    self.boundary = last.saturating_add(1);
                }
                None => self.stop = StopAt::Consistency,
            }
            self.notes.push(note(self.stop.clone()));
        }
        if self.stop == StopAt::Consistency {
            self.boundary = backup.stop_lsn;
            self.wal_end = backup.stop_lsn;
        }
        self
    }
}

/// Finds the target of `request` in what the branch reaches.
pub(crate) fn locate(
    branch: &Branch<'_>,
    reaches: &[Reach],
    request: &RecoveryRequest,
    facts: &Facts,
) -> Result<Located, NoPlan> {
    match &request.target {
        RecoveryTarget::Time(time) => locate_time(branch, reaches, request, *time, facts),
        RecoveryTarget::Lsn(lsn) => locate_lsn(branch, reaches, request, *lsn, facts),
        RecoveryTarget::Xid(xid) => locate_xid(branch, reaches, request, *xid, facts),
        RecoveryTarget::Name(name) => locate_name(branch, reaches, request, name, facts),
        RecoveryTarget::Latest => locate_latest(branch, reaches, request),
        RecoveryTarget::Immediate => {
            let index = preferred(reaches, request.backup.as_ref())[0];
            let end = reaches[index].to.lsn;
            Ok(Located::at(index, StopAt::Consistency, true, end, end))
        }
    }
}

/// The reaches in the order in which a target is looked for: the one with the wanted backup, then from the last on.
fn preferred(reaches: &[Reach], backup: Option<&BackupId>) -> Vec<usize> {
    let wanted = |reach: &Reach| reach.stretch.backups.iter().any(|held| Some(&held.id) == backup);
    let mut order: Vec<usize> = (0..reaches.len()).rev().collect();
    order.sort_by_key(|&index| !wanted(&reaches[index]));
    order
}

fn locate_time(
    branch: &Branch<'_>,
    reaches: &[Reach],
    request: &RecoveryRequest,
    time: PgTime,
    facts: &Facts,
) -> Result<Located, NoPlan> {
    // An exclusive target stops before the first transaction end of that very time, which must not be in the backup.
    let holds = |reach: &Reach| {
        (reach.from.time..=reach.to.time).contains(&time) && (request.inclusive || reach.max_before < Some(time))
    };
    let Some(index) = preferred(reaches, request.backup.as_ref()).into_iter().find(|&i| holds(&reaches[i])) else {
        let after = reaches.iter().position(|reach| time <= reach.from.time);
        return Err(outside(reaches, after.unwrap_or(reaches.len()), &request.target).into());
    };
    let reach = &reaches[index];
    let span = (reach.from.lsn, reach.to.lsn);
    // No transaction end before `span` is later than `time` (see `Reach::of`), so the first one in it is where
    // PostgreSQL stops, whichever backup of the reach it starts from.
    if let Some(xact) = facts.first_later(branch.timeline(), span, Some(time), !request.inclusive)? {
        let mut located = Located::at(index, StopAt::Time(time), request.inclusive, xact.lsn, xact.end);
        located.boundary = xact.lsn;
        located.stops_before_transaction_end = true;
        return Ok(located);
    }
    let last = facts.last_xact(branch.timeline(), span)?.map(|mark| mark.lsn);
    Ok(Located::everything(index, reach, last, |stop| Note::TranslatedTime { stop }))
}

fn locate_lsn(
    branch: &Branch<'_>,
    reaches: &[Reach],
    request: &RecoveryRequest,
    lsn: Lsn,
    facts: &Facts,
) -> Result<Located, NoPlan> {
    let Some(index) = reaches.iter().position(|reach| (reach.from.lsn..=reach.to.lsn).contains(&lsn)) else {
        let after = reaches.iter().position(|reach| lsn < reach.from.lsn);
        return Err(outside(reaches, after.unwrap_or(reaches.len()), &request.target).into());
    };
    let reach = &reaches[index];
    match facts.first_record(branch.timeline(), (lsn, reach.to.lsn))? {
        Some(record) => Ok(Located::at(index, StopAt::Lsn(lsn), request.inclusive, record.lsn, record.end)),
        None => Ok(Located::everything(index, reach, reach.last_record, |stop| Note::TranslatedLsn { stop })),
    }
}

fn locate_xid(
    branch: &Branch<'_>,
    reaches: &[Reach],
    request: &RecoveryRequest,
    xid: u32,
    facts: &Facts,
) -> Result<Located, NoPlan> {
    for index in preferred(reaches, request.backup.as_ref()) {
        let reach = &reaches[index];
        let ends = facts.xid(branch.timeline(), replayed(reach), xid)?;
        if let Some(end) = ends.last().filter(|end| reach.from.lsn <= end.lsn) {
            let mut located = Located::at(index, StopAt::Xid(xid), request.inclusive, end.lsn, end.end);
            located.mean_the_last_of(ends.len(), end.lsn);
            located.stops_before_transaction_end = !request.inclusive;
            return Ok(located);
        }
    }
    Err(NotRecoverable::UnknownXid { xid, timeline: branch.timeline() }.into())
}

fn locate_name(
    branch: &Branch<'_>,
    reaches: &[Reach],
    request: &RecoveryRequest,
    name: &str,
    facts: &Facts,
) -> Result<Located, NoPlan> {
    for index in preferred(reaches, request.backup.as_ref()) {
        let reach = &reaches[index];
        let points = facts.restore_point(branch.timeline(), replayed(reach), name)?;
        if let Some(point) = points.last().filter(|point| reach.from.lsn <= point.lsn) {
            // A restore point changes nothing: PostgreSQL stops after it, inclusive or not.
            let mut located = Located::at(index, StopAt::Name(name.to_owned()), true, point.lsn, point.end);
            located.mean_the_last_of(points.len(), point.lsn);
            return Ok(located);
        }
    }
    Err(NotRecoverable::UnknownName { name: name.to_owned(), timeline: branch.timeline() }.into())
}

impl Located {
    /// PostgreSQL would stop at the first of `count`: when there are several, it is told where the last one starts.
    fn mean_the_last_of(&mut self, count: usize, lsn: Lsn) {
        if count > 1 {
            self.stop = StopAt::Lsn(lsn);
            self.notes.push(Note::Repeated { count, lsn });
        }
    }
}

/// All WAL that is replayed from any backup of the reach: what bears the wanted name before a backup is consistent would
/// stop PostgreSQL as well.
fn replayed(reach: &Reach) -> (Lsn, Lsn) {
    let starts = reach.stretch.backups.iter().map(|backup| backup.start_lsn);
    (starts.fold(reach.from.lsn, Lsn::min), reach.to.lsn)
}

fn locate_latest(branch: &Branch<'_>, reaches: &[Reach], request: &RecoveryRequest) -> Result<Located, NoPlan> {
    let index = reaches.len() - 1;
    let reach = &reaches[index];
    if let Some(gap) = reach.stretch.gap {
        let (target, before) = (request.target.clone(), reach.to);
        return Err(NotRecoverable::InGap { target, gap, before, after: None }.into());
    }
    let mut located = match request.action {
        None | Some(TargetAction::Promote) => {
            let mut located = Located::at(index, StopAt::EndOfWal, true, reach.to.lsn, reach.stretch.end);
            located.boundary = reach.to.lsn;
            located
        }
        Some(TargetAction::Pause | TargetAction::Shutdown) => {
            Located::everything(index, reach, reach.last_record, |stop| Note::TranslatedLatest { stop })
        }
    };
    if let Some(parent) = branch.history().parent().filter(|parent| reach.to.lsn < parent.switch_point) {
        let (timeline, switch_point) = (branch.timeline(), parent.switch_point);
        located.notes.push(Note::EndsBeforeTimeline { timeline, switch_point, end: reach.to.lsn });
    }
    Ok(located)
}

/// Why a target outside every reach cannot be recovered; `next` is the first reach after it.
fn outside(reaches: &[Reach], next: usize, target: &RecoveryTarget) -> NotRecoverable {
    let target = target.clone();
    let before = next.checked_sub(1).and_then(|index| reaches.get(index));
    let after = reaches.get(next);
    match (before, after) {
        (None, Some(first)) => NotRecoverable::BeforeFirstBackup {
            target,
            earliest: first.from,
            first_backup: first.stretch.first_backup().id.clone(),
        },
        (Some(before), after) => match before.stretch.gap {
            Some(gap) => NotRecoverable::InGap { target, gap, before: before.to, after: after.map(|r| r.from) },
            None => NotRecoverable::AfterLastCommit { target, latest: before.to },
        },
        (None, None) => NotRecoverable::NothingStored,
    }
}
