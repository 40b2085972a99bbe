//! When the next base backup is due. Pure: the time is an argument.

use chrono::{DateTime, TimeDelta, Utc};

use crate::config::Schedule;

/// What has happened so far, as far as it matters for what is next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Start of the newest backup that was committed.
    pub last_backup: Option<DateTime<Utc>>,
    /// End of the last run that failed, and how many have failed in a row.
    pub failures: Option<(DateTime<Utc>, u32)>,
    /// When a gap in the WAL was found that no backup follows yet: nothing beyond it can be recovered.
    pub open_gap: Option<DateTime<Utc>>,
}

/// Why a backup is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is none yet.
    First,
    /// The schedule says so.
    Scheduled,
    /// WAL is missing, and moments after the gap need a backup taken after it.
    Gap,
}

/// The next backup by itself: when, and why.
///
/// A run that was missed because the daemon was down is made up for once. Without a schedule only a gap starts one: what
/// was recoverable would otherwise end there for good.
pub fn next(schedule: Option<&Schedule>, past: &Past, now: DateTime<Utc>) -> Option<(DateTime<Utc>, Why)> {
    let (due, why) = match (past.open_gap, past.last_backup) {
        (Some(found), _) => (found, Why::Gap),
        (None, None) => schedule.map(|_| (now, Why::First))?,
        (None, Some(last)) => (occurrence_after(schedule?, last)?, Why::Scheduled),
    };
    match past.failures {
        Some((failed, count)) => Some((due.max(failed + delay_after(count)), why)),
        None => Some((due, why)),
    }
}

/// How long to wait after so many failures in a row: 1, 2, 4, … minutes, at most an hour.
fn delay_after(failures: u32) -> TimeDelta {
    TimeDelta::minutes(1_i64.checked_shl(failures.saturating_sub(1)).unwrap_or(60).clamp(1, 60))
}

/// The first occurrence after a moment; `None` for a schedule that never comes (`0 0 31 2 *`).
pub fn occurrence_after(schedule: &Schedule, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let local = moment.with_timezone(&schedule.zone);
    schedule.cron.find_next_occurrence(&local, false).ok().map(|next| next.to_utc())
}

/// The longest time between two runs, over the next ones: what "overdue" is measured against.
pub fn longest_interval(schedule: &Schedule, from: DateTime<Utc>) -> Option<TimeDelta> {
    // Sixty runs see a month of a daily schedule and more than a year of a weekly one.
    let mut longest = None;
    let mut last = occurrence_after(schedule, from)?;
    for _ in 0..60 {
        let Some(next) = occurrence_after(schedule, last) else { break };
        longest = longest.max(Some(next - last));
        last = next;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values;

    fn schedule(cron: &str, zone: &str) -> Schedule {
        Schedule { cron: values::cron(cron).unwrap(), zone: values::zone(zone).unwrap(), text: cron.to_owned() }
    }

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    const NOW: &str = "2026-11-20T12:00:00Z";

    #[test]
    fn the_first_backup_is_due_at_once() {
        let next = next(Some(&schedule("0 3 * * *", "UTC")), &Past::default(), at(NOW));
        assert_eq!(next, Some((at(NOW), Why::First)));
    }

    #[test]
    fn without_a_schedule_nothing_starts_by_itself() {
        assert_eq!(next(None, &Past::default(), at(NOW)), None);
    }

    #[test]
    fn the_next_run_follows_the_last_backup_in_the_zone_of_the_schedule() {
        let past = Past { last_backup: Some(at("2026-11-20T02:10:00Z")), ..Past::default() };
        let due = |zone: &str| next(Some(&schedule("0 3 * * *", zone)), &past, at(NOW)).unwrap().0;
        assert_eq!(due("UTC"), at("2026-11-20T03:00:00Z"));
        assert_eq!(due("Europe/Paris"), at("2026-11-21T02:00:00Z"));
    }

    #[test]
    fn a_missed_run_is_made_up_for_once() {
        let past = Past { last_backup: Some(at("2026-11-10T03:00:05Z")), ..Past::default() };
        let (due, why) = next(Some(&schedule("0 3 * * *", "UTC")), &past, at(NOW)).unwrap();
        assert!(due < at(NOW) && why == Why::Scheduled);
        let after = Past { last_backup: Some(at(NOW)), ..Past::default() };
        assert_eq!(next(Some(&schedule("0 3 * * *", "UTC")), &after, at(NOW)).unwrap().0, at("2026-11-21T03:00:00Z"));
    }

    #[test]
    fn an_open_gap_makes_a_backup_due_with_and_without_a_schedule() {
        let gap = at("2026-11-20T11:00:00Z");
        let past = Past { last_backup: Some(at("2026-11-20T03:00:00Z")), open_gap: Some(gap), ..Past::default() };
        assert_eq!(next(Some(&schedule("0 3 * * *", "UTC")), &past, at(NOW)), Some((gap, Why::Gap)));
        assert_eq!(next(None, &past, at(NOW)), Some((gap, Why::Gap)));
        let failed = Past { failures: Some((at(NOW), 2)), ..past.clone() };
        assert_eq!(next(None, &failed, at(NOW)), Some((at(NOW) + TimeDelta::minutes(2), Why::Gap)));
        let closed = Past { open_gap: None, ..past };
        assert_eq!(next(Some(&schedule("0 3 * * *", "UTC")), &closed, at(NOW)).unwrap().1, Why::Scheduled);
        assert_eq!(next(None, &closed, at(NOW)), None);
    }

    #[test]
    fn failures_are_retried_later_and_later() {
        let after = |count| {
            let past = Past { failures: Some((at(NOW), count)), ..Past::default() };
            next(Some(&schedule("0 3 * * *", "UTC")), &past, at(NOW)).unwrap().0 - at(NOW)
        };
        assert_eq!(after(1), TimeDelta::minutes(1));
        assert_eq!(after(3), TimeDelta::minutes(4));
        assert_eq!(after(7), TimeDelta::minutes(60));
        assert_eq!(after(4_000_000_000), TimeDelta::minutes(60));
    }

    #[test]
    fn clock_changes_neither_skip_nor_double_a_run() {
        let nightly = schedule("30 2 * * *", "Europe/Berlin");
        let mut moment = at("2026-03-27T12:00:00Z");
        let mut days = Vec::new();
        for _ in 0..5 {
            moment = occurrence_after(&nightly, moment).unwrap();
            days.push(moment.with_timezone(&nightly.zone).date_naive().to_string());
        }
        assert_eq!(days, ["2026-03-28", "2026-03-29", "2026-03-30", "2026-03-31", "2026-04-01"]);
        let autumn = occurrence_after(&nightly, at("2026-10-24T12:00:00Z")).unwrap();
        let second = occurrence_after(&nightly, autumn).unwrap();
        assert_eq!(second.with_timezone(&nightly.zone).date_naive().to_string(), "2026-10-26");
    }

    #[test]
    fn the_interval_is_the_longest_one() {
        assert_eq!(longest_interval(&schedule("0 3 * * *", "UTC"), at(NOW)), Some(TimeDelta::days(1)));
        assert_eq!(longest_interval(&schedule("0 3 * * 1-5", "UTC"), at(NOW)), Some(TimeDelta::days(3)));
        assert_eq!(longest_interval(&schedule("0 0 31 2 *", "UTC"), at(NOW)), None);
    }
}
