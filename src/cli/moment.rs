//! Moments as people write them.

use chrono::{DateTime, Duration, FixedOffset, Local, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use wal::PgTime;

use crate::error::{Error, ErrorCode, Result};

/// Reads a moment: RFC 3339; `YYYY-MM-DD HH:MM[:SS[.ffffff]]` with a zone (`Z`, `+02`, `+05:30`, `UTC`, `Europe/Paris`);
/// or `5 minutes ago`, `now`.
///
/// # Errors
///
/// A time without a zone is refused with both readings: the wrong one can be hours off, and nobody notices at night.
pub(super) fn parse(text: &str, now: DateTime<Utc>) -> Result<PgTime> {
    let text = text.trim();
    if let Some(moment) = relative(text, now)? {
        return Ok(PgTime::from(moment));
    }
    let (date_time, zone) = split_zone(text).ok_or_else(|| cannot_read(text))?;
    let naive = naive(date_time).ok_or_else(|| cannot_read(text))?;
    match zone {
        None => Err(without_zone(text, naive)),
        Some(zone) => in_zone(text, naive, zone).map(PgTime::from),
    }
}

/// `90 s ago`, `1 hour 30 minutes ago`, `now`.
fn relative(text: &str, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
    if text.eq_ignore_ascii_case("now") {
        return Ok(Some(now));
    }
    let Some(length) = text.strip_suffix("ago") else { return Ok(None) };
    let duration = crate::config::values::duration(length).map_err(|what| {
        Error::new(ErrorCode::Usage, format!("\"{text}\" is not a time: \"{}\" {what}", length.trim()))
    })?;
    let too_far = || Error::new(ErrorCode::Usage, format!("\"{text}\" is not a time: it is too long ago"));
    let duration = Duration::from_std(duration).map_err(|_| too_far())?;
    now.checked_sub_signed(duration).map(Some).ok_or_else(too_far)
}

/// Date with time, and the zone's text if there is one.
fn split_zone(text: &str) -> Option<(&str, Option<&str>)> {
    let time_at = text.find([' ', 'T', 't'])? + 1;
    let rest = text.get(time_at..)?;
    let zone_at = rest.find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.'));
    match zone_at {
        None => Some((text, None)),
        Some(at) => {
            let (date_time, zone) = text.split_at(time_at + at);
            Some((date_time, Some(zone.trim())))
        }
    }
}

fn naive(text: &str) -> Option<NaiveDateTime> {
    let (date, time) = text.split_once([' ', 'T', 't'])?;
    let date = NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?;
    let time = ["%H:%M:%S%.f", "%H:%M"].iter().find_map(|form| NaiveTime::parse_from_str(time, form).ok())?;
    Some(date.and_time(time))
}

fn in_zone(text: &str, naive: NaiveDateTime, zone: &str) -> Result<DateTime<Utc>> {
    if let Some(offset) = offset(zone) {
        return offset.from_local_datetime(&naive).single().map(|time| time.to_utc()).ok_or_else(|| cannot_read(text));
    }
    let zone: Tz = zone.parse().map_err(|_| {
        Error::new(ErrorCode::Usage, format!("\"{text}\" is not a time: \"{zone}\" is not a zone"))
            .help("write Z, +02, +05:30, UTC or a name such as Europe/Paris")
    })?;
    match zone.from_local_datetime(&naive) {
        chrono::LocalResult::Single(time) => Ok(time.to_utc()),
        chrono::LocalResult::None => Err(Error::new(
            ErrorCode::Usage,
            format!("\"{text}\" never was: clocks in {zone} were set forward over it"),
        )
        .help("write the time with an offset, as in +02")),
        chrono::LocalResult::Ambiguous(first, second) => {
            Err(Error::new(ErrorCode::TimeWithoutZone, format!("\"{text}\" was twice: clocks in {zone} were set back"))
                .help(format!("write {}", first.to_rfc3339()))
                .help(format!("or    {}", second.to_rfc3339())))
        }
    }
}

/// `Z`, `+02`, `+0530`, `-05:30`.
fn offset(zone: &str) -> Option<FixedOffset> {
    if zone.eq_ignore_ascii_case("z") || zone.eq_ignore_ascii_case("utc") {
        return Some(Utc.fix());
    }
    let (sign, digits) = match zone.split_at_checked(1)? {
        ("+", rest) => (1, rest.replace(':', "")),
        ("-", rest) => (-1, rest.replace(':', "")),
        _ => return None,
    };
    let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
    let (hours, minutes) = match digits.len() {
        1 | 2 if all_digits => (digits.parse::<i32>().ok()?, 0),
        4 if all_digits => (digits.get(..2)?.parse::<i32>().ok()?, digits.get(2..)?.parse::<i32>().ok()?),
        _ => return None,
    };
    if minutes < 60 { FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60)) } else { None }
}

fn without_zone(text: &str, naive: NaiveDateTime) -> Error {
    let utc = naive.and_utc();
    let error = Error::new(ErrorCode::TimeWithoutZone, format!("\"{text}\" has no time zone"))
        .help(format!("if it is UTC, write      \"{}\"", utc.format("%Y-%m-%d %H:%M:%S%.fZ")));
    let local = Local.from_local_datetime(&naive).earliest();
    match local.filter(|local| local.offset().fix().local_minus_utc() != 0) {
        Some(local) => error.help(format!(
            "if it is local time here \"{}\"  ({} UTC)",
            local.format("%Y-%m-%d %H:%M:%S%.f%:z"),
            local.to_utc().format("%Y-%m-%d %H:%M:%S%.f")
        )),
        None => {
            error.help(format!("if it is local elsewhere \"{text} Europe/Paris\", or with an offset \"{text}+01\""))
        }
    }
}

fn cannot_read(text: &str) -> Error {
    Error::new(ErrorCode::Usage, format!("\"{text}\" is not a time"))
        .help("write it as \"2026-11-20 05:22:36+00\", 2026-11-20T05:22:36Z, \"2026-11-20 06:22 Europe/Paris\" or \"5 minutes ago\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-11-20T12:00:00Z").unwrap().to_utc()
    }

    #[test]
    fn moments_with_a_zone_are_read() {
        let cases = [
            ("2026-11-20T05:22:36Z", "2026-11-20T05:22:36.000000Z"),
            ("2026-11-20T05:22:36.114+01:00", "2026-11-20T04:22:36.114000Z"),
            ("2026-11-20 05:22Z", "2026-11-20T05:22:00.000000Z"),
            ("2026-11-20 05:22:36.123456+00", "2026-11-20T05:22:36.123456Z"),
            ("2026-11-20 05:22:36+02", "2026-11-20T03:22:36.000000Z"),
            ("2026-11-20 05:22:36 +0530", "2026-11-19T23:52:36.000000Z"),
            ("2026-11-20 05:22:36-05:30", "2026-11-20T10:52:36.000000Z"),
            ("2026-11-20 06:22 Europe/Paris", "2026-11-20T05:22:00.000000Z"),
            ("2026-11-20 05:22 UTC", "2026-11-20T05:22:00.000000Z"),
            ("5 minutes ago", "2026-11-20T11:55:00.000000Z"),
            ("1h30m ago", "2026-11-20T10:30:00.000000Z"),
            ("now", "2026-11-20T12:00:00.000000Z"),
        ];
        for (text, moment) in cases {
            assert_eq!(
                parse(text, now()).map(|time| time.to_string()).map_err(|e| e.to_string()),
                Ok(moment.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_with_both_readings() {
        for text in ["2026-11-20 05:22:36", "2026-11-20T05:22", "2026-11-20 05:22:36.5"] {
            let error = parse(text, now()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::TimeWithoutZone, "{text}");
            assert_eq!(error.help_lines().len(), 2, "{error}");
            assert!(
                error.help_lines()[0].contains("2026-11-20 05:22:") && error.help_lines()[0].contains('Z'),
                "{error}"
            );
        }
    }

    #[test]
    fn clock_changes_are_not_guessed() {
        let twice = parse("2026-10-25 02:30 Europe/Paris", now()).unwrap_err();
        assert_eq!(twice.code(), ErrorCode::TimeWithoutZone);
        assert!(twice.to_string().contains("+02:00") && twice.to_string().contains("+01:00"));
        assert!(parse("2026-03-29 02:30 Europe/Paris", now()).unwrap_err().to_string().contains("never was"));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-11-20",
            "2026-13-20 05:22Z",
            "2026-11-20 25:00Z",
            "2026-11-20 05:22 Mars",
            "5 ago",
            "é 1 ago",
            "99999999999d ago",
            "2026-11-20 05:22+99",
        ] {
            let error = parse(text, now()).unwrap_err();
            assert_eq!(error.code().exit_code(), 2, "{text}: {error}");
        }
    }
}
