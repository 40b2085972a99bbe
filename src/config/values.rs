//! The words in which values are written: durations, sizes, rates, schedules, names.

use std::str::FromStr;
use std::time::Duration;

use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// A value, or what is wrong with it as the end of a sentence that starts with the value.
pub type Parsed<T> = Result<T, String>;

/// A schedule: a cron expression of five fields and the zone in which it is read.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// When.
    pub cron: Cron,
    /// In which zone.
    pub zone: Tz,
    /// As it was written.
    pub text: String,
}

/// A length of time: numbers with units, `5s`, `1h30m`, `7d 12h`, `500ms`; `0` needs no unit.
pub fn duration(text: &str) -> Parsed<Duration> {
    let help = "a number with a unit, as in 5s, 1h30m or 7d";
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = trimmed;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, unit, after) =
            number_and_unit(rest).ok_or_else(|| format!("is not a duration: expected {help}"))?;
        let micros_per_unit: u64 = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" | "sec" | "second" | "seconds" => 1_000_000,
            "m" | "min" | "minute" | "minutes" => 60_000_000,
            "h" | "hour" | "hours" => 3_600_000_000,
            "d" | "day" | "days" => 86_400_000_000,
            "w" | "week" | "weeks" => 604_800_000_000,
            "" => return Err(format!("is not a duration: expected {help}")),
            other => return Err(format!("is not a duration: \"{other}\" is not a unit, expected {help}")),
        };
        let part = number.checked_mul(micros_per_unit).map(Duration::from_micros);
        total = part.and_then(|part| total.checked_add(part)).ok_or("is not a duration: it is too long")?;
        rest = after.trim_start();
    }
    if trimmed.is_empty() { Err(format!("is not a duration: expected {help}")) } else { Ok(total) }
}

/// How a duration is written: the fewest units that say it exactly.
pub fn format_duration(duration: Duration) -> String {
    let mut micros = duration.as_micros();
    let mut text = String::new();
    for (unit, size) in
        [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)]
    {
        if micros >= size {
            text.push_str(&format!("{}{unit}", micros / size));
            micros %= size;
        }
    }
    if text.is_empty() { "0".to_owned() } else { text }
}

/// A number of bytes: `10MB`, `8 GB`, `64kB`, `512`. As in PostgreSQL's settings, units are powers of 1024 and `MiB` is
/// the same as `MB`.
pub fn size(text: &str) -> Parsed<u64> {
    let error = || "is not a size: expected a number with a unit, as in 512MB or 10GB".to_owned();
    let (number, unit, rest) = number_and_unit(text.trim()).ok_or_else(error)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(error()),
    };
    if !rest.trim().is_empty() {
        return Err(error());
    }
    number.checked_mul(1 << shift).ok_or_else(|| "is not a size: it is too large".to_owned())
}

/// Bytes per second: a size, with or without `/s`.
pub fn rate(text: &str) -> Parsed<u64> {
    let trimmed = text.trim();
    size(trimmed.strip_suffix("/s").unwrap_or(trimmed))
        .map_err(|_| "is not a rate: expected a size per second, as in 50MB/s".to_owned())
        .and_then(
            |bytes| if bytes == 0 { Err("is not a rate: it must be more than nothing".to_owned()) } else { Ok(bytes) },
        )
}

/// A number, the letters after it, and the rest.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, rest))
}

/// A cron expression of five fields, in which 0 and 7 are Sunday and the two day fields are alternatives, as in crontab.
pub fn cron(text: &str) -> Parsed<Cron> {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(text.trim()).map_err(
        |error| {
            format!(
                "is not a schedule: {}; expected five fields, as in \"0 3 * * *\"",
                error.to_string().trim_end_matches('.')
            )
        },
    )
}

/// A time zone of the tz database.
pub fn zone(text: &str) -> Parsed<Tz> {
    Tz::from_str(text.trim()).map_err(|_| "is not a time zone: expected a name such as UTC or Europe/Paris".to_owned())
}

/// The name of a cluster: it is part of object keys, so its letters are few.
pub fn cluster_name(text: &str) -> Parsed<String> {
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    // `keys` is a folder of the repository itself.
    if (1..=63).contains(&text.len()) && text.bytes().all(letters) && text != "keys" {
        Ok(text.to_owned())
    } else {
        Err("is not a name for a cluster: expected up to 63 of a-z, 0-9, _ and -, and not \"keys\"".to_owned())
    }
}

/// The name of a replication slot, by PostgreSQL's rule (slot.c, `ReplicationSlotValidateName`).
pub fn slot_name(text: &str) -> Parsed<String> {
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&text.len()) && text.bytes().all(letters) {
        Ok(text.to_owned())
    } else {
        Err("is not a name for a slot: PostgreSQL takes up to 63 of a-z, 0-9 and _".to_owned())
    }
}

/// Yes or no, in the words that PostgreSQL takes.
pub fn boolean(text: &str) -> Parsed<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let cases = [
            ("0", 0),
            ("5s", 5_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("7d 12h", 648_000_000),
            ("2 minutes", 120_000),
            ("1w", 604_800_000),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "5 parsecs", "-5s", "1h 5", "99999999999999d", "1.5h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_printed_duration_reads_as_itself() {
        for text in ["0", "5s", "1h30m", "7d", "1m5s", "500ms", "1d1h1m1s1ms1us"] {
            assert_eq!(format_duration(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_use_the_units_of_postgresql() {
        let cases = [
            ("512", 512),
            ("64kB", 65_536),
            ("10MB", 10 << 20),
            ("10 MiB", 10 << 20),
            ("8GB", 8 << 30),
            ("1TB", 1 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "1XB", "-1MB", "1MB 2", "99999999999999999TB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(rate("50MB/s"), Ok(50 << 20));
        assert_eq!(rate("50MB"), Ok(50 << 20));
        assert!(rate("0").is_err());
    }

    #[test]
    fn schedules_have_five_fields() {
        assert!(cron("0 3 * * *").is_ok());
        assert!(cron("*/10 * * * 1-5").is_ok());
        for text in ["", "0 3 * *", "0 0 3 * * *", "61 * * * *", "often"] {
            assert!(cron(text).unwrap_err().contains("is not a schedule"), "{text}");
        }
    }

    #[test]
    fn names_keep_to_their_letters() {
        assert!(cluster_name("main-2_b").is_ok());
        for name in ["", "Main", "a/b", "a.b", &"x".repeat(64)] {
            assert!(cluster_name(name).is_err(), "{name}");
        }
        assert!(slot_name("pgvault").is_ok());
        assert!(slot_name("pg-vault").is_err());
        assert!(zone("Europe/Paris").is_ok());
        assert!(zone("Paris").is_err());
    }
}
