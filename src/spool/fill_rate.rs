//! How long the spool lasts at the rate at which it fills. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::SpoolUsage;

/// The rate is that of so long: short, so that an alarm comes soon after archiving stops.
const WINDOW: Duration = Duration::from_secs(10);
/// Less says nothing.
const LEAST: Duration = Duration::from_secs(2);
/// What takes longer is no news.
const HORIZON: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the spool took at the last moments.
#[derive(Clone, Debug, Default)]
pub struct FillRate {
    looks: VecDeque<(Instant, u64)>,
}

impl FillRate {
    /// At `now` it takes `used` bytes.
    pub fn look(&mut self, now: Instant, used: u64) {
        // The last look before the window stays: what filled since then is all of the window's.
        while self.looks.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.looks.pop_front();
        }
        self.looks.push_back((now, used));
    }

    /// When it is full if it goes on like this; `None` while it does not fill, or not within a week.
    pub fn time_left(&self, usage: SpoolUsage) -> Option<Duration> {
        let (&(from, before), &(to, now)) = (self.looks.front()?, self.looks.back()?);
        let span = to.saturating_duration_since(from);
        let grown = now.checked_sub(before).filter(|&grown| grown > 0 && span >= LEAST)?;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let left = span.as_secs_f64() * usage.room() as f64 / grown as f64;
        Duration::try_from_secs_f64(left).ok().filter(|left| *left <= HORIZON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    const MB: u64 = 1 << 20;

    fn at(begun: Instant, secs: u64) -> Instant {
        begun + Duration::from_secs(secs)
    }

    #[test]
    fn the_time_left_is_that_of_the_last_seconds() {
        let begun = SystemClock.instant();
        let mut rate = FillRate::default();
        let usage = |used| SpoolUsage { used, capacity: 1000 * MB };
        rate.look(begun, 0);
        assert_eq!(rate.time_left(usage(0)), None, "one look says nothing");
        for secs in 1..=60 {
            rate.look(at(begun, secs), 0);
        }
        assert_eq!(rate.time_left(usage(0)), None, "it does not fill");
        for secs in 1..=10 {
            rate.look(at(begun, 60 + secs), secs * 10 * MB);
        }
        // 10 MB a second; full at 95 hundredths.
        assert_eq!(rate.time_left(usage(100 * MB)), Some(Duration::from_secs(85)));
        for secs in 1..=20 {
            rate.look(at(begun, 70 + secs), 100 * MB - secs * MB);
        }
        assert_eq!(rate.time_left(usage(80 * MB)), None, "it drains");
    }

    #[test]
    fn a_full_spool_has_no_time_left_and_a_slow_one_is_no_news() {
        let begun = SystemClock.instant();
        let mut rate = FillRate::default();
        rate.look(begun, 0);
        rate.look(at(begun, 10), MB);
        assert_eq!(rate.time_left(SpoolUsage { used: 95, capacity: 100 }), Some(Duration::ZERO));
        assert_eq!(rate.time_left(SpoolUsage { used: MB, capacity: u64::MAX / 2 }), None);
    }
}
