//! Not more bytes from the repository than so many a second.

use std::time::{Duration, Instant};

use crate::clock::Clock;

/// A token bucket that may be overdrawn: whoever takes more than there is waits until it is paid back. So a read of any
/// size gets through, and the average is the rate.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// When everything that was taken is paid for.
    paid_at: Instant,
}

impl Bucket {
    /// Takes `bytes`; how long to wait before reading them. The time in which nobody reads is not saved up.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let begin = self.paid_at.max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        let price = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        // A rate that takes centuries takes one day.
        self.paid_at = begin.checked_add(price.min(Duration::from_secs(86_400))).unwrap_or(begin);
        begin.saturating_duration_since(now)
    }
}

/// The rate of one restore.
#[derive(Debug)]
pub(super) struct Throttle<'a> {
    bucket: Option<Bucket>,
    clock: &'a dyn Clock,
}

impl<'a> Throttle<'a> {
    /// At most so many bytes a second; no limit without a rate.
    pub(super) fn new(bytes_per_second: Option<u64>, clock: &'a dyn Clock) -> Self {
        let bucket = bytes_per_second.map(|bytes_per_second| Bucket { bytes_per_second, paid_at: clock.instant() });
        Self { bucket, clock }
    }

    /// Waits until so many more bytes may be read.
    pub(super) async fn take(&mut self, bytes: u64) {
        let Some(bucket) = &mut self.bucket else { return };
        let wait = bucket.take(bytes, self.clock.instant());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn the_average_is_the_rate_and_rest_is_not_saved_up() {
        let start = SystemClock.instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut bucket = Bucket { bytes_per_second: 10, paid_at: start };
        assert_eq!(bucket.take(100, at(0)), Duration::ZERO, "the first read need not wait");
        assert_eq!(bucket.take(50, at(0)), Duration::from_secs(10));
        assert_eq!(bucket.take(1, at(12)), Duration::from_secs(3));
        assert_eq!(bucket.take(10, at(100)), Duration::ZERO);
        assert_eq!(bucket.take(10, at(100)), Duration::from_secs(1), "not the 80 seconds in which nobody read");
        let mut slow = Bucket { bytes_per_second: 0, paid_at: start };
        assert_eq!(slow.take(u64::MAX, at(0)), Duration::ZERO);
        assert_eq!(slow.take(1, at(0)), Duration::from_secs(86_400));
    }
}
