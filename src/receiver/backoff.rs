//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// First pause.
const FIRST: Duration = Duration::from_millis(100);
/// First pause while another member may be ready at any moment, and the longest after a minute of it.
const SHORT: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(3));
/// A stream that ended sooner proves nothing: the next attempt waits longer than the one before.
const STEADY: Duration = Duration::from_secs(1);
/// But the server lets us in: it is not waited for longer than this.
const SHAKY: Duration = Duration::from_secs(5);
/// Longest pause; attempts never end.
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses that double, up to 30 seconds unless told otherwise.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    short: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    /// Pauses that double up to another longest one.
    pub fn up_to(longest: Duration) -> Self {
        Self { next: FIRST, short: SHORT.0, longest }
    }

    /// The next pause; `jitter` from 0 to 1 takes up to half of it away, so that many do not come back at once.
    pub fn pause(&mut self, jitter: f64) -> Duration {
        let pause = self.next.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// The longest pause, for what only a person can change.
    pub fn longest(&mut self, jitter: f64) -> Duration {
        self.next = self.longest;
        self.pause(jitter)
    }

    /// A short pause, for what another server can change at any moment: from 0.3 seconds, growing slowly to 3.
    pub fn short(&mut self, jitter: f64) -> Duration {
        let pause = self.short.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        self.short = self.short.mul_f64(1.05).min(SHORT.1);
        pause
    }

    /// A stream ended after so long: after one that lasted the shortest pause is next again.
    pub(super) fn reset_after(&mut self, lasted: Duration) {
        if lasted >= STEADY {
            self.reset();
        } else {
            self.next = self.next.min(SHAKY);
        }
    }

    /// It went well: begin with the shortest pause again.
    pub fn reset(&mut self) {
        *self = Self::up_to(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_is_waited_for_in_short_steps_that_grow_slowly() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..60).map(|_| backoff.short(0.0)).collect();
        assert_eq!(pauses[0], SHORT.0);
        assert!(
            pauses.iter().take_while(|&&pause| pause < Duration::from_secs(1)).sum::<Duration>()
                > Duration::from_secs(12)
        );
        assert_eq!(pauses.last(), Some(&SHORT.1));
        backoff.reset();
        assert_eq!(backoff.short(1.0), SHORT.0 / 2);
    }

    #[test]
    fn pauses_double_up_to_thirty_seconds_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..11).map(|_| backoff.pause(0.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(backoff.pause(1.0), LONGEST / 2);
        backoff.reset_after(STEADY / 2);
        assert_eq!(backoff.pause(0.0), SHAKY, "a stream that breaks at once is no success");
        assert_eq!(backoff.pause(0.0), SHAKY * 2);
        backoff.reset_after(STEADY);
        assert_eq!(backoff.pause(0.0), FIRST);
        assert_eq!(backoff.longest(0.0), LONGEST);
    }
}
