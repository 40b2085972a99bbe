//! How long to wait before the next attempt. Pure.

use std::time::Duration;

/// First pause.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause; attempts never end.
const LONGEST: Duration = Duration::from_secs(30);

/// Pauses that double, up to 30 seconds.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next pause; `jitter` from 0 to 1 takes up to half of it away, so that many do not come back at once.
    pub fn pause(&mut self, jitter: f64) -> Duration {
        let pause = self.next.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(LONGEST);
        pause
    }

    /// The longest pause, for what only a person can change.
    pub fn longest(&mut self, jitter: f64) -> Duration {
        self.next = LONGEST;
        self.pause(jitter)
    }

    /// It went well: begin with the shortest pause again.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_thirty_seconds_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..11).map(|_| backoff.pause(0.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(backoff.pause(1.0), LONGEST / 2);
        backoff.reset();
        assert_eq!(backoff.pause(0.0), FIRST);
        assert_eq!(backoff.longest(0.0), LONGEST);
    }
}
