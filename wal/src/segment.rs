//! Segments: the fixed-size files that PostgreSQL cuts its WAL into.

use std::fmt;
use std::str::FromStr;

use crate::{Lsn, TimelineId};

/// Size of a WAL segment: a power of two from 1 MiB to 1 GiB, fixed at initdb, different from cluster to cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// What initdb chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// Checks that PostgreSQL could have this segment size (`IsValidWalSegSize` in xlog_internal.h).
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(Self(size)),
            _ => Err(SegmentSizeError(bytes.to_string())),
        }
    }

    /// Bytes in one segment.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Reads the answer to `SHOW wal_segment_size`, such as `16MB` or `1GB`.
    pub fn from_setting(text: &str) -> Result<Self, SegmentSizeError> {
        let invalid = || SegmentSizeError(text.to_owned());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.parse().ok().filter(|_| !digits.starts_with('+')).ok_or_else(invalid)?;
        let unit: u64 = match &text[digits.len()..] {
            "" | "B" => 1,
            "kB" => 1 << 10,
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            _ => return Err(invalid()),
        };
        number.checked_mul(unit).ok_or_else(invalid).and_then(Self::new)
    }

    /// Segments per 4 GiB of log: the third part of a segment's name counts up to it.
    const fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u64) -> Result<Self, SegmentSizeError> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.bytes()
    }
}

/// No PostgreSQL cluster has this segment size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("WAL segment size \"{0}\" is not a power of two from 1 MB to 1 GB")]
pub struct SegmentSizeError(String);

/// Position of a segment in the log: how many segments of this cluster's size come before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentNumber(u64);

impl SegmentNumber {
    /// The segment with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The segment that holds the byte at `lsn`.
    pub const fn containing(lsn: Lsn, size: SegmentSize) -> Self {
        Self(lsn.as_u64() / size.bytes())
    }

    /// The segment that holds the last byte before `end`: where a range that ends at `end` needs WAL from.
    pub const fn containing_end(end: Lsn, size: SegmentSize) -> Self {
        Self(end.as_u64().saturating_sub(1) / size.bytes())
    }

    /// First byte of this segment.
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.bytes()))
    }

    /// First byte after this segment.
    pub fn end(self, size: SegmentSize) -> Lsn {
        self.start(size).saturating_add(size.bytes())
    }

    /// The following segment.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The preceding segment, if there is one.
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

/// Name of a WAL segment: 24 hexadecimal digits for timeline, 4-GiB log and segment in it (`XLogFileName`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of segment `number` on `timeline`.
    pub const fn new(timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        #[expect(clippy::cast_possible_truncation, reason = "a 64-bit log has at most 2^32 logs of 4 GiB")]
        Self { timeline, log: (number.get() / per_log) as u32, segment: (number.get() % per_log) as u32 }
    }

    /// The name of the segment on `timeline` that holds the byte at `lsn`.
    pub const fn containing(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        Self::new(timeline, SegmentNumber::containing(lsn, size), size)
    }

    /// The timeline in the name.
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The 4-GiB log in the name, which groups segments into folders.
    pub const fn log(self) -> u32 {
        self.log
    }

    /// Where the segment lies in a log of segments of this size; `None` when no segment of that size has this name.
    pub fn number(self, size: SegmentSize) -> Option<SegmentNumber> {
        let per_log = size.segments_per_log();
        (u64::from(self.segment) < per_log)
            .then(|| SegmentNumber::new(u64::from(self.log) * per_log + u64::from(self.segment)))
    }

    /// The name of the file while it is not complete: only a complete segment has the bare name.
    pub fn partial(self) -> String {
        format!("{self}.partial")
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.segment)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the name of a WAL segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the name of a WAL segment: expected 24 upper-case hexadecimal digits")]
pub struct ParseSegmentNameError(String);

impl FromStr for SegmentName {
    type Err = ParseSegmentNameError;

    fn from_str(text: &str) -> Result<Self, ParseSegmentNameError> {
        let well_formed = text.len() == 24 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        let part = |at: usize| u32::from_str_radix(&text[at..at + 8], 16).ok();
        well_formed
            .then(|| Some(Self { timeline: TimelineId::new(part(0)?)?, log: part(8)?, segment: part(16)? }))
            .flatten()
            .ok_or_else(|| ParseSegmentNameError(text.to_owned()))
    }
}

crate::time::serde_as_text!(SegmentName);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(mib: u64) -> SegmentSize {
        SegmentSize::new(mib << 20).unwrap()
    }

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20..=30_u32).prop_map(|power| SegmentSize::new(1 << power).unwrap())
    }

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn segments_are_powers_of_two_from_1_mib_to_1_gib() {
        for power in 20..=30 {
            assert_eq!(SegmentSize::new(1 << power).unwrap().bytes(), 1 << power);
        }
        for wrong in [0, 1, 1 << 19, 1 << 31, 1 << 32, 3 << 20, (16 << 20) + 1, u64::MAX] {
            assert!(SegmentSize::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_setting_is_read_as_the_server_prints_it() {
        let read = |text| SegmentSize::from_setting(text).ok().map(SegmentSize::bytes);
        assert_eq!(read("1MB"), Some(1 << 20));
        assert_eq!(read("16MB"), Some(16 << 20));
        assert_eq!(read("1GB"), Some(1 << 30));
        assert_eq!(read("1024kB"), Some(1 << 20));
        assert_eq!(read("16777216"), Some(16 << 20));
        for wrong in [
            "",
            "MB",
            "16 MB",
            "+16MB",
            "-16MB",
            "16TB",
            "3MB",
            "2GB",
            "99999999999999999999GB",
            "18446744073709551615GB",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_last_segment_of_a_log_is_followed_by_the_first_of_the_next() {
        let cases = [(1, "FFF"), (16, "FF"), (64, "3F"), (256, "F"), (1024, "3")];
        for (mib, last) in cases {
            let last = name(&format!("00000001000000AB{last:0>8}"));
            let next = SegmentName::new(TimelineId::FIRST, last.number(size(mib)).unwrap().next(), size(mib));
            assert_eq!(next.to_string(), "00000001000000AC00000000", "{mib} MiB");
            let beyond = SegmentName { segment: last.segment + 1, ..last };
            assert_eq!(beyond.number(size(mib)), None);
        }
    }

    #[test]
    fn a_segment_ends_where_the_next_one_starts_also_at_ffffffff() {
        let last = Lsn::new(0x5_FFFF_FFFF);
        let number = SegmentNumber::containing(last, SegmentSize::DEFAULT);
        assert_eq!(
            SegmentName::new(TimelineId::FIRST, number, SegmentSize::DEFAULT).to_string(),
            "0000000100000005000000FF"
        );
        assert_eq!(number.end(SegmentSize::DEFAULT), Lsn::new(0x6_0000_0000));
        assert_eq!(SegmentNumber::containing_end(Lsn::new(0x6_0000_0000), SegmentSize::DEFAULT), number);
        assert_eq!(SegmentNumber::containing(Lsn::new(0x6_0000_0000), SegmentSize::DEFAULT), number.next());
    }

    #[test]
    fn the_edges_of_the_log_do_not_overflow() {
        let last = SegmentNumber::containing(Lsn::new(u64::MAX), SegmentSize::DEFAULT);
        assert_eq!(last.end(SegmentSize::DEFAULT), Lsn::new(u64::MAX));
        assert_eq!(SegmentNumber::new(u64::MAX).start(SegmentSize::DEFAULT), Lsn::new(u64::MAX));
        assert_eq!(SegmentNumber::new(u64::MAX).next(), SegmentNumber::new(u64::MAX));
        assert_eq!(SegmentNumber::new(0).previous(), None);
        assert_eq!(SegmentNumber::containing_end(Lsn::INVALID, SegmentSize::DEFAULT), SegmentNumber::new(0));
    }

    #[test]
    fn only_canonical_names_are_names() {
        for good in ["000000010000000000000001", "0000001F0000000A000000FF", "FFFFFFFFFFFFFFFFFFFFFFFF"] {
            assert_eq!(name(good).to_string(), good);
        }
        let wrong = [
            "",
            "00000001000000000000001",
            "0000000100000000000000001",
            "00000001000000000000000a",
            "00000000000000000000000A",
            "+0000001000000000000000A",
            "00000001000000000000000G",
            "0000000100000000000001é",
            "000000010000000000000001.partial",
        ];
        for text in wrong {
            assert!(text.parse::<SegmentName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_position_lies_in_its_segment(lsn in any::<u64>(), size in sizes()) {
            let lsn = Lsn::new(lsn);
            let number = SegmentNumber::containing(lsn, size);
            prop_assert!(number.start(size) <= lsn);
            prop_assert!(lsn < number.end(size) || lsn == Lsn::new(u64::MAX));
            prop_assert_eq!(number.start(size).as_u64() % size.bytes(), 0);
        }

        #[test]
        fn names_and_numbers_name_the_same(tli in 1..=u32::MAX, lsn in any::<u64>(), size in sizes()) {
            let timeline = TimelineId::new(tli).unwrap();
            let named = SegmentName::containing(timeline, Lsn::new(lsn), size);
            prop_assert_eq!(named.number(size), Some(SegmentNumber::containing(Lsn::new(lsn), size)));
            prop_assert_eq!(named.to_string().parse::<SegmentName>(), Ok(named));
            prop_assert_eq!(named.log(), (lsn >> 32) as u32);
            prop_assert!(named.to_string().starts_with(&timeline.hex()));
            prop_assert_eq!(named.partial(), format!("{named}.partial"));
        }

        #[test]
        fn names_sort_as_positions_do(tli in 1..=u32::MAX, a in any::<u64>(), b in any::<u64>(), size in sizes()) {
            let named = |lsn| SegmentName::containing(TimelineId::new(tli).unwrap(), Lsn::new(lsn), size);
            let (first, second) = (named(a.min(b)), named(a.max(b)));
            prop_assert!(first <= second);
            prop_assert!(first.to_string() <= second.to_string());
        }

        #[test]
        fn any_text_is_a_name_or_an_error(text in ".{0,30}") {
            if let Ok(name) = text.parse::<SegmentName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
