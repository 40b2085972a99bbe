//! Times as WAL records carry them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};

/// Writes and reads a type as its text form wherever it is serialised.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;

/// A moment in microseconds since 2000-01-01 00:00:00 UTC: PostgreSQL's `TimestampTz`, the primary's wall clock.
///
/// Printed and serialised as RFC 3339 in UTC with microseconds. Commit times are not monotone in WAL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(i64);

/// Seconds from the Unix epoch to PostgreSQL's.
const EPOCH_SECONDS: i64 = 946_684_800;
/// 0000-01-01 00:00:00 UTC in microseconds of the Unix epoch.
const YEAR_0: i64 = -62_167_219_200_000_000;
/// The last microsecond of the year 9999.
const YEAR_9999_END: i64 = 253_402_300_799_999_999;

impl PgTime {
    /// The moment `micros` microseconds after 2000-01-01 00:00:00 UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 2000-01-01 00:00:00 UTC: the number in WAL and on the wire.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The moment this many microseconds after the Unix epoch.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(EPOCH_SECONDS * 1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_SECONDS * 1_000_000)
    }

    /// As a date and time in UTC, held inside the years 0 to 9999: what RFC 3339 can say, and so what is read back.
    pub fn to_datetime(self) -> DateTime<Utc> {
        let micros = self.unix_micros().clamp(YEAR_0, YEAR_9999_END);
        DateTime::from_timestamp_micros(micros).unwrap_or_default()
    }
}

impl From<DateTime<Utc>> for PgTime {
    /// Drops what is finer than a microsecond.
    fn from(time: DateTime<Utc>) -> Self {
        Self::from_unix_micros(time.timestamp_micros())
    }
}

impl fmt::Display for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_datetime().to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a time in RFC 3339 form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time as in 2026-11-20T05:22:36.114000Z")]
pub struct ParsePgTimeError(String);

impl FromStr for PgTime {
    type Err = ParsePgTimeError;

    fn from_str(text: &str) -> Result<Self, ParsePgTimeError> {
        DateTime::parse_from_rfc3339(text)
            .map(|time| time.with_timezone(&Utc).into())
            .map_err(|_| ParsePgTimeError(text.to_owned()))
    }
}

serde_as_text!(PgTime);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_epoch_is_postgresql_s() {
        assert_eq!(PgTime::from_micros(0).to_string(), "2000-01-01T00:00:00.000000Z");
        assert_eq!(PgTime::from_unix_micros(0).to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!("2026-11-20T06:22:36.114+01:00".parse(), "2026-11-20T05:22:36.114000Z".parse::<PgTime>());
    }

    #[test]
    fn times_beyond_the_calendar_are_held_and_read_back() {
        for micros in [i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1] {
            let text = PgTime::from_micros(micros).to_string();
            assert_eq!(text.parse::<PgTime>().unwrap().to_string(), text);
        }
        assert_eq!(PgTime::from_micros(i64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(PgTime::from_micros(i64::MIN).to_string(), "0000-01-01T00:00:00.000000Z");
    }

    #[test]
    fn a_time_without_offset_is_refused() {
        for wrong in ["2026-11-20T05:22:36", "2026-11-20", "", "now", "2026-13-20T05:22:36Z"] {
            assert!(wrong.parse::<PgTime>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(micros in -60_000_000_000_000_000..200_000_000_000_000_000_i64) {
            let time = PgTime::from_micros(micros);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            prop_assert_eq!(PgTime::from_unix_micros(time.unix_micros()), time);
            prop_assert_eq!(PgTime::from(time.to_datetime()), time);
        }
    }
}
