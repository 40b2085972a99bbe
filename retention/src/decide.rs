//! Which backups stay, and why.

use std::collections::BTreeSet;
use std::time::Duration;

use recovery::{Backup, BackupStatus, Branch, Catalog, branches, live_timeline};
use wal::{Lsn, PgTime};

use crate::calendar::Period;
use crate::{Policy, Reason, Verdict};

/// A verdict on every backup of the catalog, in its order.
///
/// A backup stays when any rule needs it. Only backups that are usable and not damaged count towards a rule: others never
/// push one of those out, and stay themselves until rules are satisfied without them. The newest clean backup always stays.
pub fn decide(catalog: &Catalog, policy: &Policy, now: PgTime) -> Vec<Verdict> {
    let facts = Situation::new(catalog);
    catalog.backups.iter().map(|backup| verdict(&facts, policy, now, backup)).collect()
}

fn verdict(facts: &Situation<'_>, policy: &Policy, now: PgTime, backup: &Backup) -> Verdict {
    let judged = [
        judge_state(facts, policy, backup),
        judge_redundancy(facts, policy.redundancy, backup),
        judge_window(facts, policy.recovery_window, now, backup),
        judge_periods(facts, policy, backup),
    ];
    let keep = judged.iter().any(|judgement| !judgement.needs.is_empty());
    let reasons =
        judged.into_iter().flat_map(|judgement| if keep { judgement.needs } else { judgement.dismissals }).collect();
    Verdict { backup: backup.id.clone(), keep, reasons }
}

/// What one rule says of one backup: why it needs it, or why it does not.
#[derive(Default)]
struct Judgement {
    needs: Vec<Reason>,
    dismissals: Vec<Reason>,
}

impl Judgement {
    fn needed(reason: Reason) -> Self {
        Self { needs: vec![reason], dismissals: Vec::new() }
    }

    fn dismissed(reason: Reason) -> Self {
        Self { needs: Vec::new(), dismissals: vec![reason] }
    }
}

/// What the rules look at, worked out once.
struct Situation<'a> {
    live: Option<Branch<'a>>,
    /// Whether the live branch holds any clean backup. When it does not we know too little of it to judge by it alone.
    live_is_known: bool,
    branches: Vec<Branch<'a>>,
    /// Backups that can be restored cleanly.
    clean: Vec<&'a Backup>,
}

/// Backups of one branch are ordered by what they hold, not by clocks.
fn place(backup: &Backup) -> (Lsn, Lsn) {
    (backup.stop_lsn, backup.start_lsn)
}

pub(crate) fn is_clean(backup: &Backup) -> bool {
    backup.status == BackupStatus::Ok && !backup.damaged
}

impl<'a> Situation<'a> {
    fn new(catalog: &'a Catalog) -> Self {
        let live = live_timeline(catalog).map(|timeline| Branch::new(catalog, timeline));
        let clean: Vec<&Backup> = catalog.backups.iter().filter(|backup| is_clean(backup)).collect();
        let live_is_known = live.as_ref().is_some_and(|live| clean.iter().any(|backup| live.holds(backup)));
        Self { live, live_is_known, branches: branches(catalog), clean }
    }

    /// Whether a backup lies on the live branch, as far as we know.
    fn is_on_live(&self, backup: &Backup) -> bool {
        !self.live_is_known || self.live.as_ref().is_some_and(|live| live.holds(backup))
    }

    /// How many clean backups come after this one: on the live branch if it holds the backup, and by the clock on all.
    /// The lower number counts, so that a rule needs the newest of both orders: after a recovery to an earlier moment the
    /// backups that were left behind are newer by the clock only.
    fn clean_after(&self, backup: &Backup) -> usize {
        let by_clock = self.clean.iter().filter(|other| other.stopped_at > backup.stopped_at).count();
        if !self.is_on_live(backup) {
            return by_clock;
        }
        let by_place = self.clean.iter().filter(|other| self.is_on_live(other) && place(other) > place(backup)).count();
        by_place.min(by_clock)
    }

    /// The newest clean backup of a branch that finished before `moment`: from it every later moment can be reached.
    fn anchor(&self, branch: &Branch<'_>, moment: PgTime) -> Option<&'a Backup> {
        let finished = self.clean.iter().copied().filter(|other| other.stopped_at <= moment && branch.holds(other));
        finished.max_by_key(|backup| place(backup))
    }
}

/// What holds whatever the rules say.
fn judge_state(facts: &Situation<'_>, policy: &Policy, backup: &Backup) -> Judgement {
    let mut needs = Vec::new();
    if backup.keep {
        needs.push(Reason::Pinned);
    }
    if backup.status == BackupStatus::Running {
        needs.push(Reason::Running);
    }
    if !policy.forgets_backups() {
        needs.push(Reason::NoRule);
    }
    if facts.clean_after(backup) == 0 {
        needs.push(if is_clean(backup) { Reason::NewestUsable } else { Reason::NothingNewerUsable });
    }
    Judgement { needs, dismissals: Vec::new() }
}

fn judge_redundancy(facts: &Situation<'_>, count: u32, backup: &Backup) -> Judgement {
    if count == 0 {
        return Judgement::default();
    }
    if facts.clean_after(backup) < count as usize {
        return Judgement::needed(Reason::Redundancy(count));
    }
    Judgement::dismissed(Reason::BeyondRedundancy(count))
}

/// The window needs what finished in it, and on each branch everything from the newest clean backup on that finished
/// before it starts. A branch that was left before the window starts has no moment in it.
fn judge_window(facts: &Situation<'_>, window: Option<Duration>, now: PgTime, backup: &Backup) -> Judgement {
    let Some(window) = window else { return Judgement::default() };
    let start = before(now, window);
    let live_anchor = facts.live.as_ref().and_then(|live| facts.anchor(live, start));
    let needed_on = |branch: &Branch<'_>| {
        let left_before = live_anchor.is_some_and(|anchor| !branch.holds(anchor));
        let is_needed = || facts.anchor(branch, start).is_none_or(|anchor| place(backup) >= place(anchor));
        branch.holds(backup) && !left_before && is_needed()
    };
    if backup.stopped_at > start || facts.branches.iter().any(needed_on) {
        return Judgement::needed(Reason::RecoveryWindow(window));
    }
    Judgement::dismissed(Reason::BeforeRecoveryWindow(window))
}

/// The moment `span` before `now`.
pub(crate) fn before(now: PgTime, span: Duration) -> PgTime {
    let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    PgTime::from_micros(now.as_micros().saturating_sub(micros))
}

fn judge_periods(facts: &Situation<'_>, policy: &Policy, backup: &Backup) -> Judgement {
    type PeriodOf = fn(PgTime) -> Period;
    let rules: [(u32, PeriodOf); 4] = [
        (policy.keep_daily, Period::day),
        (policy.keep_weekly, Period::week),
        (policy.keep_monthly, Period::month),
        (policy.keep_yearly, Period::year),
    ];
    if rules.iter().all(|&(count, _)| count == 0) {
        return Judgement::default();
    }
    let needs: Vec<Reason> = rules
        .into_iter()
        .filter(|&(count, period_of)| is_newest_of_kept_period(facts, count, period_of, backup))
        .map(|(_, period_of)| Reason::NewestOf(period_of(backup.started_at)))
        .collect();
    if needs.is_empty() { Judgement::dismissed(Reason::NoPeriod) } else { Judgement { needs, dismissals: Vec::new() } }
}

/// Whether `backup` is the newest clean one of its period on the live branch, and its period one of the last `count` that
/// have any.
fn is_newest_of_kept_period(
    facts: &Situation<'_>,
    count: u32,
    period_of: fn(PgTime) -> Period,
    backup: &Backup,
) -> bool {
    if !is_clean(backup) || !facts.is_on_live(backup) {
        return false;
    }
    let on_live = || facts.clean.iter().copied().filter(|other| facts.is_on_live(other));
    let period = period_of(backup.started_at);
    let newest = on_live().filter(|other| period_of(other.started_at) == period).max_by_key(|other| place(other));
    let later: BTreeSet<Period> = on_live().map(|other| period_of(other.started_at)).filter(|&p| p > period).collect();
    newest.is_some_and(|newest| newest.id == backup.id) && later.len() < count as usize
}
