//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A byte position in the WAL stream of one cluster, as `pg_lsn` prints it: `16/B374D848`.
///
/// Positions are never compared as text: PostgreSQL 19 pads the lower half, earlier majors do not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `InvalidXLogRecPtr`: no position. The first usable byte of any cluster lies after it.
    pub const INVALID: Self = Self(0);

    /// The position `bytes` after the start of the log.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes since the start of the log: the number on the wire.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether this is a real position, not [`Lsn::INVALID`].
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position `bytes` further on, or `None` past the end of the 64-bit log.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// The position `bytes` further on; stays at the end of the 64-bit log.
    pub fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// The position `bytes` earlier; stays at zero.
    pub fn saturating_sub(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// How many bytes this position lies after `earlier`; zero when it does not.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Sixteen hexadecimal digits, for names that must sort as the positions do.
    pub fn to_sortable(self) -> String {
        format!("{:016X}", self.0)
    }

    /// Reads what [`Lsn::to_sortable`] wrote: exactly sixteen upper-case hexadecimal digits.
    pub fn from_sortable(text: &str) -> Result<Self, ParseLsnError> {
        let canonical = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        match u64::from_str_radix(text, 16) {
            Ok(bytes) if canonical => Ok(Self(bytes)),
            _ => Err(ParseLsnError(text.to_owned())),
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a WAL position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a WAL position: expected two hexadecimal numbers of up to eight digits, as in 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let half = |digits: &str| {
            let well_formed = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if well_formed { u32::from_str_radix(digits, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some((half(high)?, half(low)?)))
            .map(|(high, low)| Self(u64::from(high) << 32 | u64::from(low)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

crate::time::serde_as_text!(Lsn);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_are_read_as_pg_lsn_reads_them() {
        let cases = [
            ("0/0", 0),
            ("16/B374D848", 0x16_B374_D848),
            ("0/05000148", 0x0500_0148),
            ("ffffffff/ffffffff", u64::MAX),
            ("00000001/0", 1 << 32),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Lsn::new(bytes)), "{text}");
        }
        for wrong in ["", "/", "0/", "/0", "0", "0/000000001", "G/0", "0/-1", "+1/0", " 0/0", "0/0/0", "0/0 "] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sortable_names_are_exact() {
        assert_eq!(Lsn::new(0x16_B374_D848).to_sortable(), "00000016B374D848");
        for wrong in ["", "16B374D848", "00000016b374d848", "+0000016B374D848", "00000016B374D8480"] {
            assert!(Lsn::from_sortable(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arithmetic_stays_inside_the_log() {
        let end = Lsn::new(u64::MAX);
        assert_eq!((end.checked_add(1), end.saturating_add(9)), (None, end));
        assert_eq!(Lsn::new(5).saturating_sub(6), Lsn::INVALID);
        assert_eq!((Lsn::new(9).bytes_since(Lsn::new(4)), Lsn::new(4).bytes_since(Lsn::new(9))), (5, 0));
        assert!(!Lsn::INVALID.is_valid() && end.is_valid());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes in any::<u64>()) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            prop_assert_eq!(Lsn::from_sortable(&lsn.to_sortable()), Ok(lsn));
            prop_assert_eq!(serde_json::from_str::<Lsn>(&serde_json::to_string(&lsn).unwrap()).unwrap(), lsn);
        }

        #[test]
        fn sortable_names_sort(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(a.cmp(&b), Lsn::new(a).to_sortable().cmp(&Lsn::new(b).to_sortable()));
        }
    }
}
