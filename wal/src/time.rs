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

    /// As a date and time in UTC, held inside what can be printed.
    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.unix_micros()).unwrap_or(if self.0 < 0 {
            DateTime::<Utc>::MIN_UTC
        } else {
            DateTime::<Utc>::MAX_UTC
        })
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
