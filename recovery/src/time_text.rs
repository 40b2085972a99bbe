//! Reading the times that people write: always with a zone, or relative to now.

use chrono::{DateTime, Duration, FixedOffset, LocalResult, NaiveDate, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;
use wal::PgTime;

/// The zone in which a person would read a time that has none; only ever used to show what it could have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalZone {
    /// Its name, `Europe/Paris` or `+02:00`.
    pub name: String,
    /// Its offset from UTC at present.
    pub offset: FixedOffset,
}

/// The text is not one certain moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeTextError {
    /// It is in none of the known forms.
    #[error(
        "\"{0}\" is not a time: expected one such as 2026-11-20T05:22:36Z, \"2026-11-20 05:22:36 Europe/Paris\" or \"5 minutes ago\""
    )]
    NotATime(String),
    /// It has no zone.
    #[error("\"{text}\" has no time zone: it is {utc} if UTC is meant, {local} if {zone} is meant")]
    WithoutZone {
        /// What was written.
        text: String,
        /// The moment if UTC is meant.
        utc: PgTime,
        /// The moment if the local zone is meant.
        local: PgTime,
        /// Name of the local zone.
        zone: String,
    },
    /// There is no such zone.
    #[error("\"{zone}\" is not a time zone: expected Z, an offset such as +02:00, or a name such as Europe/Paris")]
    UnknownZone {
        /// What was written.
        zone: String,
    },
    /// The clocks were set back: the local time occurred twice.
    #[error("{text} occurred twice in {zone}: {first} and {second}")]
    Ambiguous {
        /// The local time.
        text: String,
        /// The zone.
        zone: String,
        /// The first time.
        first: PgTime,
        /// The second time.
        second: PgTime,
    },
    /// The clocks were set forward: the local time never was.
    #[error(
        "{text} never was in {zone}: clocks were set forward; {before} is what it means by the clock before, {after} by the clock after"
    )]
    NeverWas {
        /// The local time.
        text: String,
        /// The zone.
        zone: String,
        /// The moment by the offset that held before the change.
        before: PgTime,
        /// The moment by the offset that held after it.
        after: PgTime,
    },
}

/// Reads a moment: RFC 3339, `YYYY-MM-DD HH:MM[:SS[.ffffff]]` with a zone (`Z`, `UTC`, `+02`, `+02:00`, `+0200`,
/// `Europe/Paris`), or relative to `now` (`now`, `5 minutes ago`, `1h 30min ago`). Second 60 is the next minute's first.
pub fn parse(text: &str, now: PgTime, local: &LocalZone) -> Result<PgTime, TimeTextError> {
    let trimmed = text.trim();
    if let Some(time) = relative(trimmed, now) {
        return Ok(time);
    }
    let (civil, zone) = split_zone(trimmed).ok_or_else(|| TimeTextError::NotATime(text.to_owned()))?;
    match zone {
        "" => Err(TimeTextError::WithoutZone {
            text: trimmed.to_owned(),
            utc: civil.and_utc().into(),
            local: at_offset(civil, local.offset),
            zone: local.name.clone(),
        }),
        zone => match offset(zone) {
            Some(offset) => Ok(at_offset(civil, offset)),
            None => in_region(civil, zone),
        },
    }
}

fn at_offset(civil: NaiveDateTime, offset: FixedOffset) -> PgTime {
    PgTime::from(civil.and_utc() - Duration::seconds(offset.local_minus_utc().into()))
}

fn in_region(civil: NaiveDateTime, name: &str) -> Result<PgTime, TimeTextError> {
    let zone: Tz = name.parse().map_err(|_| TimeTextError::UnknownZone { zone: name.to_owned() })?;
    let moment = |time: DateTime<Tz>| PgTime::from(time.with_timezone(&Utc));
    let text = || civil.format("%Y-%m-%d %H:%M:%S%.f").to_string();
    match zone.from_local_datetime(&civil) {
        LocalResult::Single(time) => Ok(moment(time)),
        LocalResult::Ambiguous(one, other) => Err(TimeTextError::Ambiguous {
            text: text(),
            zone: name.to_owned(),
            first: moment(one.min(other)),
            second: moment(one.max(other)),
        }),
        LocalResult::None => {
            // No zone moves its clocks twice within a day, so a day to either side the other offset holds.
            let offset_near = |days: i64| {
                let offset = chrono::Offset::fix(&zone.offset_from_utc_datetime(&(civil + Duration::days(days))));
                at_offset(civil, offset)
            };
            Err(TimeTextError::NeverWas {
                text: text(),
                zone: name.to_owned(),
                before: offset_near(-1),
                after: offset_near(1),
            })
        }
    }
}

/// Reads `Z`, `UTC`, `±HH`, `±HHMM`, `±HH:MM`; `None` when it is not an offset.
fn offset(zone: &str) -> Option<FixedOffset> {
    if ["z", "utc", "gmt"].contains(&zone.to_ascii_lowercase().as_str()) {
        return FixedOffset::east_opt(0);
    }
    let (sign, digits) = match zone.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits.split_once(':') {
        Some((hours, minutes)) => (hours, minutes),
        None if digits.len() == 4 => digits.split_at_checked(2)?,
        None => (digits, "0"),
    };
    let hours = number(hours, 1..=2).filter(|&h| h <= 15)?;
    let minutes = number(minutes, 1..=2).filter(|&m| m < 60)?;
    FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60))
}

/// A run of digits, of a length in `length`, as a number.
fn number(digits: &str, length: std::ops::RangeInclusive<usize>) -> Option<i32> {
    (length.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Splits `YYYY-MM-DD HH:MM[:SS[.f]]` from the zone behind it, which may be empty.
fn split_zone(text: &str) -> Option<(NaiveDateTime, &str)> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let unsigned = |digits: &str, len: usize| number(digits, len..=len).and_then(|n| u32::try_from(n).ok());
    let date = NaiveDate::from_ymd_opt(number(year, 4..=4)?, unsigned(month, 2)?, unsigned(day, 2)?)?;
    let rest = rest.strip_prefix(['T', 't']).unwrap_or_else(|| rest.trim_start());
    let (hour, rest) = rest.split_at_checked(2)?;
    let (minute, mut rest) = rest.strip_prefix(':')?.split_at_checked(2)?;
    let (mut second, mut micros) = (0, 0);
    if let Some(seconds) = rest.strip_prefix(':') {
        let (digits, after) = seconds.split_at_checked(2)?;
        (second, rest) = (unsigned(digits, 2)?, after);
        if let Some(fraction) = rest.strip_prefix(['.', ',']) {
            let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, after) = fraction.split_at_checked(len)?;
            (micros, rest) = (fraction_micros(digits)?, after);
        }
    }
    let leap = i64::from(second == 60);
    let time =
        date.and_hms_micro_opt(unsigned(hour, 2)?, unsigned(minute, 2)?, second.min(60) - leap as u32, micros)?;
    Some((time.checked_add_signed(Duration::seconds(leap))?, rest.trim()))
}

/// The digits after the decimal point as microseconds; what is finer is dropped.
fn fraction_micros(digits: &str) -> Option<u32> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let six: String = digits.chars().chain("000000".chars()).take(6).collect();
    six.parse().ok()
}

/// `now`, or numbers with units before the word `ago`.
fn relative(text: &str, now: PgTime) -> Option<PgTime> {
    if text.eq_ignore_ascii_case("now") {
        return Some(now);
    }
    let mut rest = text.strip_suffix("ago")?.trim_end();
    let mut back: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, after) = rest.split_at_checked(len)?;
        let after = after.trim_start();
        let unit_len = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(unit_len)?;
        let seconds: i64 = match unit {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 7 * 86_400,
            _ => return None,
        };
        let amount: i64 = if digits.len() <= 9 { digits.parse().ok()? } else { return None };
        back = back.checked_add(amount.checked_mul(seconds)?)?;
        rest = after.trim_start_matches([' ', ',']);
    }
    now.as_micros().checked_sub(back.checked_mul(1_000_000)?).map(PgTime::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paris() -> LocalZone {
        LocalZone { name: "Europe/Paris".to_owned(), offset: FixedOffset::east_opt(3600).unwrap() }
    }

    fn read(text: &str) -> Result<String, TimeTextError> {
        let now: PgTime = "2026-11-20T12:00:00Z".parse().unwrap();
        parse(text, now, &paris()).map(|time| time.to_string())
    }

    #[test]
    fn times_with_a_zone_are_moments() {
        let table = [
            ("2026-11-20T05:22:36Z", "2026-11-20T05:22:36.000000Z"),
            ("2026-11-20T05:22:36.114z", "2026-11-20T05:22:36.114000Z"),
            ("2026-11-20 05:22:36.1145678Z", "2026-11-20T05:22:36.114567Z"),
            ("2026-11-20 05:22 UTC", "2026-11-20T05:22:00.000000Z"),
            ("2026-11-20 05:22+02", "2026-11-20T03:22:00.000000Z"),
            ("2026-11-20T05:22:36+02:00", "2026-11-20T03:22:36.000000Z"),
            ("2026-11-20 05:22:36 -0330", "2026-11-20T08:52:36.000000Z"),
            ("2026-11-20 05:22:36-05", "2026-11-20T10:22:36.000000Z"),
            ("2026-11-20 05:22 Europe/Paris", "2026-11-20T04:22:00.000000Z"),
            ("2026-07-20 05:22 Europe/Paris", "2026-07-20T03:22:00.000000Z"),
            ("2026-12-31 23:59:60Z", "2027-01-01T00:00:00.000000Z"),
            ("  2026-11-20  05:22:36   America/New_York ", "2026-11-20T10:22:36.000000Z"),
        ];
        for (text, expected) in table {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn relative_times_count_back_from_now() {
        let table = [
            ("now", "2026-11-20T12:00:00.000000Z"),
            ("5 minutes ago", "2026-11-20T11:55:00.000000Z"),
            ("1h ago", "2026-11-20T11:00:00.000000Z"),
            ("1h 30min ago", "2026-11-20T10:30:00.000000Z"),
            ("2 days, 1 hour ago", "2026-11-18T11:00:00.000000Z"),
            ("1w ago", "2026-11-13T12:00:00.000000Z"),
        ];
        for (text, expected) in table {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_with_both_readings() {
        let error = read("2026-11-20 05:22:36").unwrap_err();
        let TimeTextError::WithoutZone { utc, local, .. } = &error else { panic!("{error}") };
        assert_eq!(utc.to_string(), "2026-11-20T05:22:36.000000Z");
        assert_eq!(local.to_string(), "2026-11-20T04:22:36.000000Z");
        assert!(error.to_string().contains("Europe/Paris"), "{error}");
    }

    #[test]
    fn local_times_at_a_change_of_the_clocks_are_refused_with_both_readings() {
        let error = read("2026-10-25 02:30 Europe/Paris").unwrap_err();
        let TimeTextError::Ambiguous { first, second, .. } = error else { panic!("{error}") };
        assert_eq!(first.to_string(), "2026-10-25T00:30:00.000000Z");
        assert_eq!(second.to_string(), "2026-10-25T01:30:00.000000Z");
        let error = read("2026-03-29 02:30 Europe/Paris").unwrap_err();
        let TimeTextError::NeverWas { before, after, .. } = error else { panic!("{error}") };
        assert_eq!(before.to_string(), "2026-03-29T01:30:00.000000Z");
        assert_eq!(after.to_string(), "2026-03-29T00:30:00.000000Z");
    }

    #[test]
    fn other_texts_are_refused() {
        let not_times = [
            "",
            "yesterday",
            "2026-11-20",
            "20.11.2026 05:22",
            "2026-13-20 05:22Z",
            "2026-02-30 05:22Z",
            "2026-11-20 24:00Z",
            "2026-11-20 05:60Z",
            "2026-11-20 05:22:61Z",
            "2026-11-20 05:22:36.Z",
            "+026-11-20 05:22Z",
            "ago",
            "five minutes ago",
            "5 fortnights ago",
            "99999999999 days ago",
            "2026-11-20T05:22:36é",
            "éééééééééé",
        ];
        for text in not_times {
            let error = read(text).unwrap_err();
            assert!(matches!(error, TimeTextError::NotATime(_) | TimeTextError::UnknownZone { .. }), "{text}: {error}");
        }
        for zone in ["Mars/Olympus", "+25", "+02:60", "+1:2:3", "CEST?"] {
            let error = read(&format!("2026-11-20 05:22 {zone}")).unwrap_err();
            assert_eq!(error, TimeTextError::UnknownZone { zone: zone.to_owned() });
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,40}") {
            drop(read(&text));
        }

        #[test]
        fn what_is_printed_is_read_back(micros in -946_684_800_000_000i64..7_000_000_000_000_000) {
            let time = PgTime::from_micros(micros);
            proptest::prop_assert_eq!(parse(&time.to_string(), time, &paris()), Ok(time));
        }
    }
}
