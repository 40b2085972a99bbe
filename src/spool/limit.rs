//! How much WAL the spool may hold. Pure.

use wal::SegmentSize;

use crate::wal_pipeline::SpoolLevel;

/// Left free on the file system beside two segments, so that a restart can still write its small files.
const RESERVE: u64 = 64 << 20;
/// From here on, in hundredths, a person should look.
const HIGH: u64 = 80;
/// From here on, in hundredths, nothing more is received.
const FULL: u64 = 95;

/// Least size of a spool in segments. The last stored one is kept, and a stalled receiver starts again only with room for
/// two: a smaller spool that was full once would never be received into again.
pub const LEAST_SEGMENTS: u64 = 4;

/// What the spool takes and what it could take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolUsage {
    /// Bytes that its files take.
    pub used: u64,
    /// Bytes that it may take in all: by its limit, and by what the file system has.
    pub capacity: u64,
}

impl SpoolUsage {
    /// From what the files take, the configured limit, and what the file system has left for us.
    pub fn new(used: u64, max_size: Option<u64>, available: u64, segment_size: SegmentSize) -> Self {
        let spare = available.saturating_sub(RESERVE + 2 * segment_size.bytes());
        let capacity = used.saturating_add(spare).min(max_size.unwrap_or(u64::MAX));
        Self { used, capacity }
    }

    /// Bytes that it may still take.
    pub fn free(self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    /// Bytes that it takes in before it counts as full.
    pub fn room(self) -> u64 {
        let full = u128::from(self.capacity) * u128::from(FULL) / 100;
        u64::try_from(full).unwrap_or(self.capacity).saturating_sub(self.used)
    }

    /// How full it is.
    pub fn level(self) -> SpoolLevel {
        Self::level_of(self.used, self.capacity)
    }

    /// Whether one more segment may be taken in.
    pub fn has_room(self, segment_size: SegmentSize) -> bool {
        let after = self.used.saturating_add(segment_size.bytes());
        // A spool must be able to hold one segment, or nothing could ever be received.
        after <= self.capacity && (self.used == 0 || Self::level_of(after, self.capacity) < SpoolLevel::Full)
    }

    /// Whether a stalled receiver may start again: with room for two, so that it does not stop again at once.
    pub fn has_room_again(self, segment_size: SegmentSize) -> bool {
        let after_one = Self { used: self.used.saturating_add(segment_size.bytes()), ..self };
        self.has_room(segment_size) && (self.used == 0 || after_one.has_room(segment_size))
    }

    fn level_of(used: u64, capacity: u64) -> SpoolLevel {
        let hundredths = u128::from(used) * 100;
        let capacity = u128::from(capacity);
        if used > 0 && hundredths >= capacity * u128::from(FULL) {
            SpoolLevel::Full
        } else if used > 0 && hundredths >= capacity * u128::from(HIGH) {
            SpoolLevel::High
        } else {
            SpoolLevel::Normal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: SegmentSize = SegmentSize::DEFAULT;
    const GB: u64 = 1 << 30;

    #[test]
    fn the_limit_and_the_file_system_bound_the_capacity() {
        assert_eq!(SpoolUsage::new(GB, Some(2 * GB), 100 * GB, SEGMENT).capacity, 2 * GB);
        let by_disk = SpoolUsage::new(GB, None, GB, SEGMENT);
        assert_eq!(by_disk.capacity, 2 * GB - RESERVE - 2 * SEGMENT.bytes());
        assert_eq!(SpoolUsage::new(GB, None, 0, SEGMENT).level(), SpoolLevel::Full);
        assert_eq!(SpoolUsage::new(0, None, 0, SEGMENT).level(), SpoolLevel::Normal);
        assert!(!SpoolUsage::new(0, None, 0, SEGMENT).has_room(SEGMENT));
    }

    #[test]
    fn levels_are_at_80_and_95_hundredths() {
        let level = |used: u64| SpoolUsage { used, capacity: 1000 }.level();
        assert_eq!(level(0), SpoolLevel::Normal);
        assert_eq!(level(799), SpoolLevel::Normal);
        assert_eq!(level(800), SpoolLevel::High);
        assert_eq!(level(949), SpoolLevel::High);
        assert_eq!(level(950), SpoolLevel::Full);
    }

    #[test]
    fn a_full_spool_takes_no_further_segment_and_wakes_only_with_room_for_two() {
        let segments = |n: u64| SpoolUsage { used: n * SEGMENT.bytes(), capacity: 100 * SEGMENT.bytes() };
        assert!(segments(93).has_room(SEGMENT));
        assert!(!segments(94).has_room(SEGMENT));
        assert!(!segments(93).has_room_again(SEGMENT));
        assert!(segments(92).has_room_again(SEGMENT));
    }

    #[test]
    fn the_least_size_goes_on_with_one_segment_kept_and_a_smaller_one_would_not() {
        let one_kept = |segments: u64| {
            let small_files = 64 << 10;
            SpoolUsage { used: SEGMENT.bytes() + small_files, capacity: segments * SEGMENT.bytes() }
        };
        assert!(one_kept(LEAST_SEGMENTS).has_room_again(SEGMENT));
        assert!(!one_kept(LEAST_SEGMENTS - 1).has_room_again(SEGMENT));
    }

    #[test]
    fn the_smallest_spool_holds_one_segment() {
        let one = SpoolUsage { used: 0, capacity: SEGMENT.bytes() };
        assert!(one.has_room(SEGMENT) && one.has_room_again(SEGMENT));
        assert!(!SpoolUsage { used: 0, capacity: SEGMENT.bytes() - 1 }.has_room(SEGMENT));
    }
}
