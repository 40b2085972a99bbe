//! Timelines: the branches of a cluster's history.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// Number of a timeline: 1 after initdb, and a higher one after every promotion (numbers may be skipped).
///
/// Printed in decimal, as PostgreSQL's messages do; in file names it is eight hexadecimal digits ([`TimelineId::hex`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline of a cluster that was never promoted.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline with this number; `None` for zero, which PostgreSQL uses for "none".
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Eight upper-case hexadecimal digits, as in file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// Reads what [`TimelineId::hex`] writes.
    pub fn from_hex(text: &str) -> Result<Self, ParseTimelineError> {
        let canonical = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        u32::from_str_radix(text, 16)
            .ok()
            .filter(|_| canonical)
            .and_then(Self::new)
            .ok_or_else(|| ParseTimelineError(text.to_owned()))
    }

    /// Name of the file that tells this timeline's ancestry, `00000002.history`.
    pub fn history_file_name(self) -> String {
        format!("{}.history", self.hex())
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The text is not a timeline number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a timeline: expected a number from 1 to 4294967295")]
pub struct ParseTimelineError(String);

impl FromStr for TimelineId {
    type Err = ParseTimelineError;

    /// Reads a decimal number, as in `--timeline 11`.
    fn from_str(text: &str) -> Result<Self, ParseTimelineError> {
        text.parse::<u32>().ok().and_then(Self::new).ok_or_else(|| ParseTimelineError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn file_names_are_hexadecimal_and_messages_decimal() {
        let cases = [(1, "00000001"), (10, "0000000A"), (31, "0000001F"), (u32::MAX, "FFFFFFFF")];
        for (number, hex) in cases {
            let timeline = TimelineId::new(number).unwrap();
            assert_eq!((timeline.hex().as_str(), timeline.to_string()), (hex, number.to_string()));
            assert_eq!(timeline.history_file_name(), format!("{hex}.history"));
            assert_eq!(TimelineId::from_hex(hex), Ok(timeline));
        }
    }

    #[test]
    fn what_is_no_timeline_is_refused() {
        for wrong in ["00000000", "", "1", "0000000a", "000000001", "+0000001"] {
            assert!(TimelineId::from_hex(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0", "", "-1", "4294967296", "0x1", "A"] {
            assert!(wrong.parse::<TimelineId>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<TimelineId>("0").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(number in 1..=u32::MAX) {
            let timeline = TimelineId::new(number).unwrap();
            prop_assert_eq!(TimelineId::from_hex(&timeline.hex()), Ok(timeline));
            prop_assert_eq!(timeline.to_string().parse(), Ok(timeline));
            prop_assert_eq!(serde_json::to_string(&timeline).unwrap(), number.to_string());
        }
    }
}
