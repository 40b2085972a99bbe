//! Days, weeks, months and years, in UTC.

use std::fmt;

use chrono::Datelike;
use wal::PgTime;

/// One day, ISO week, month or year, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// Year, month, day.
    Day(i32, u32, u32),
    /// ISO year, ISO week.
    Week(i32, u32),
    /// Year, month.
    Month(i32, u32),
    /// Year.
    Year(i32),
}

impl Period {
    /// The day of a moment.
    pub(crate) fn day(time: PgTime) -> Self {
        let date = time.to_datetime();
        Self::Day(date.year(), date.month(), date.day())
    }

    /// The ISO week of a moment.
    pub(crate) fn week(time: PgTime) -> Self {
        let week = time.to_datetime().iso_week();
        Self::Week(week.year(), week.week())
    }

    /// The month of a moment.
    pub(crate) fn month(time: PgTime) -> Self {
        let date = time.to_datetime();
        Self::Month(date.year(), date.month())
    }

    /// The year of a moment.
    pub(crate) fn year(time: PgTime) -> Self {
        Self::Year(time.to_datetime().year())
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(year, month, day) => write!(f, "daily {year:04}-{month:02}-{day:02}"),
            Self::Week(year, week) => write!(f, "weekly {year:04}-W{week:02}"),
            Self::Month(year, month) => write!(f, "monthly {year:04}-{month:02}"),
            Self::Year(year) => write!(f, "yearly {year:04}"),
        }
    }
}
