//! Whether the read loop may wait for the disk itself. Pure.

use std::time::Duration;

/// A sync that takes longer is slow.
const SLOW: Duration = Duration::from_millis(20);
/// So many quick syncs make a disk quick, at the beginning of a stream.
const AT_FIRST: u32 = 100;
/// And so many after a slow one.
const AFTER_SLOW: u32 = 1000;

/// Trust in a disk, from how long its last syncs took.
///
/// Handing a sync to another thread costs a commit that waits for it about as much as the sync of a good disk. So while the
/// disk is known to be quick the read loop syncs itself: what it risks is to be late once, by one sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trust {
    missing: u32,
}

impl Default for Trust {
    fn default() -> Self {
        Self { missing: AT_FIRST }
    }
}

impl Trust {
    /// A sync took so long.
    pub(super) fn took(&mut self, duration: Duration) {
        self.missing = if duration > SLOW { AFTER_SLOW } else { self.missing.saturating_sub(1) };
    }

    /// Whether the disk is known to be quick.
    pub(super) fn is_earned(self) -> bool {
        self.missing == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_earns_trust_by_quick_syncs_and_loses_it_by_one_slow_one() {
        let (quick, slow) = (Duration::from_micros(100), Duration::from_secs(2));
        let mut trust = Trust::default();
        (0..99).for_each(|_| trust.took(quick));
        assert!(!trust.is_earned());
        trust.took(quick);
        assert!(trust.is_earned());
        trust.took(slow);
        (0..999).for_each(|_| trust.took(quick));
        assert!(!trust.is_earned());
        trust.took(quick);
        assert!(trust.is_earned());
    }

    #[test]
    fn a_disk_that_is_always_slow_is_never_waited_for() {
        let mut trust = Trust::default();
        for _ in 0..5000 {
            trust.took(Duration::from_secs(2));
            assert!(!trust.is_earned());
        }
    }
}
