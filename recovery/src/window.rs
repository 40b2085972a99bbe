//! The moments that can be recovered: ranges per branch, the gaps between them, and how the timelines fork.

use wal::{Gap, Lsn, PgTime, TimelineId};

use crate::branch::{Branch, Stretch, branches, parting};
use crate::facts::{Facts, Question, WalEnd};
use crate::{BackupId, Catalog};

/// A moment in the history of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Moment {
    /// By the primary's clock.
    pub time: PgTime,
    /// The position in the WAL.
    pub lsn: Lsn,
    /// The timeline on which the WAL there was written.
    pub timeline: TimelineId,
}

/// Moments that can be recovered, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RecoverableRange {
    /// The first moment: where the first backup becomes consistent.
    pub from: Moment,
    /// The last moment: the end of the last whole record, and the latest commit before it.
    pub to: Moment,
    /// The oldest backup from which it is reached.
    pub first_backup: BackupId,
    /// The timeline to name as `--timeline` for moments that lie on this branch only.
    pub branch: TimelineId,
}

/// WAL that is not stored though WAL after it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WindowGap {
    /// The timeline on which it is missing.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from_lsn: Lsn,
    /// First byte that is stored again.
    pub to_lsn: Lsn,
    /// Why, as far as is known.
    pub reason: String,
}

/// One timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TimelineFork {
    /// The timeline.
    pub timeline: TimelineId,
    /// From which one it forked; `None` for the first.
    pub parent: Option<TimelineId>,
    /// Where.
    pub switch_lsn: Option<Lsn>,
}

/// What can be recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Window {
    /// Ranges of the live branch by position, then those of branches that were left.
    pub ranges: Vec<RecoverableRange>,
    /// Gaps, by timeline and position.
    pub gaps: Vec<WindowGap>,
    /// All timelines, in increasing order.
    pub timelines: Vec<TimelineFork>,
}

/// A stretch of WAL with the moments it reaches.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) stretch: Stretch,
    pub(crate) from: Moment,
    pub(crate) to: Moment,
    /// The last whole record.
    pub(crate) last_record: Option<Lsn>,
    /// Latest transaction end before the first moment: those that the first backup already holds.
    pub(crate) max_before: Option<PgTime>,
}

impl Reach {
    /// The moments of `stretch`.
    ///
    /// PostgreSQL stops before the first transaction end that is later than the target. Every time in `from..=to` has
    /// its stop behind the first backup's stop LSN and before the end, or is translated (see [`crate::plan`]), because:
    /// no transaction end before the stop LSN is later than `from`, and none before the end is later than `to`.
    /// A backup's own start is where its range begins for people, if commits before it are older: by pgvault's clock,
    /// which may run ahead of the primary's, so a commit that follows the backup corrects it.
    pub(crate) fn of(branch: &Branch<'_>, stretch: Stretch, facts: &Facts) -> Result<Self, Question> {
        let timeline = branch.timeline();
        let from_lsn = stretch.from_lsn();
        let WalEnd { last_record, end } = facts.end(timeline, from_lsn, stretch.end)?;
        let max_before = facts.max_time(timeline, from_lsn)?;
        let max_at_end = facts.max_time(timeline, end)?;
        let mut began = stretch.first_backup().started_at;
        if max_at_end > max_before && max_at_end < Some(began) {
            let next = facts.first_later(timeline, (from_lsn, end), max_before, false)?;
            began = next.map_or(began, |xact| began.min(xact.time));
        }
        let from_time = max_before.map_or(began, |time| time.max(began));
        let to_time = max_at_end.map_or(from_time, |time| time.max(from_time));
        let timeline_before = |lsn: Lsn| branch.history().timeline_at(lsn.saturating_sub(1));
        Ok(Self {
            from: Moment { time: from_time, lsn: from_lsn, timeline: timeline_before(from_lsn) },
            to: Moment { time: to_time, lsn: end, timeline: timeline_before(end) },
            stretch,
            last_record,
            max_before,
        })
    }

    fn range(&self) -> RecoverableRange {
        RecoverableRange {
            from: self.from,
            to: self.to,
            first_backup: self.stretch.first_backup().id.clone(),
            branch: self.stretch.branch,
        }
    }
}

/// What can be recovered from `catalog`; the error is what must be looked up in the WAL first.
pub fn window(catalog: &Catalog, facts: &Facts) -> Result<Window, Question> {
    let mut window = Window { timelines: timelines(catalog), ..Window::default() };
    for branch in branches(catalog).into_iter().filter(|branch| !catalog.lacks_history(branch.timeline())) {
        let stretches = branch.stretches();
        for gap in stretches.first().into_iter().flat_map(|first| branch.gaps_from(first.end)) {
            window.add_gap(catalog, gap);
        }
        // Lost right at the end: nothing is stored beyond it yet.
        for lost in stretches.last().into_iter().flat_map(|last| branch.lost_at_end(last.end)) {
            window.add_gap(catalog, lost);
        }
        for stretch in stretches {
            let range = Reach::of(&branch, stretch, facts)?.range();
            if !window.ranges.iter().any(|other| is_part_of(catalog, &range, other)) {
                window.ranges.push(range);
            }
        }
    }
    window.gaps.sort_by_key(|gap| (gap.timeline, gap.from_lsn));
    Ok(window)
}

impl Window {
    fn add_gap(&mut self, catalog: &Catalog, gap: Gap) {
        let known = self.gaps.iter().any(|known| known.timeline == gap.timeline && known.from_lsn == gap.start);
        if !known {
            let reason = catalog.reason_of(&gap);
            self.gaps.push(WindowGap { timeline: gap.timeline, from_lsn: gap.start, to_lsn: gap.end, reason });
        }
    }
}

/// Whether every moment of `range` is one of `other`'s as well: their branches have not parted where `range` ends.
fn is_part_of(catalog: &Catalog, range: &RecoverableRange, other: &RecoverableRange) -> bool {
    let parting = parting(&catalog.history(other.branch), &catalog.history(range.branch));
    range.to.lsn <= parting && other.from.lsn <= range.from.lsn && range.to.lsn <= other.to.lsn
}

fn timelines(catalog: &Catalog) -> Vec<TimelineFork> {
    let fork = |timeline| {
        let history = catalog.history(timeline);
        let parent = history.parent();
        TimelineFork { timeline, parent: parent.map(|e| e.parent), switch_lsn: parent.map(|e| e.switch_point) }
    };
    catalog.timelines().into_iter().map(fork).collect()
}
