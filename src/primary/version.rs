//! Versions of PostgreSQL servers.

use std::fmt;

use super::error::PgError;

/// `server_version_num`: 150018 is 15.18.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(u32);

/// The oldest major that pgvault works with.
const OLDEST: u32 = 14;
/// The newest major that pgvault was tested with.
const NEWEST: u32 = 18;

impl ServerVersion {
    /// The version with this `server_version_num`.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// `server_version_num`.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// 15 of 15.18.
    pub const fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Reads the parameter `server_version` that a server reports at connect: `15.18 (Debian 15.18-1)`, `18beta1`, `19rc1`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| -> Option<(u32, usize)> {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            Some((text.get(..digits)?.parse().ok()?, digits))
        };
        let (major, end) = number(text)?;
        if major < 10 {
            // Two-part majors, 9.6.24: 90624.
            let (middle, middle_end) = number(text.get(end + 1..)?)?;
            let minor = text.get(end + 1 + middle_end + 1..).and_then(number).map_or(0, |(minor, _)| minor);
            return Some(Self(major.checked_mul(10_000)?.checked_add(middle.checked_mul(100)?)?.checked_add(minor)?));
        }
        let minor = match text.get(end..).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => number(rest)?.0,
            None => 0,
        };
        Some(Self(major.checked_mul(10_000)?.checked_add(minor)?))
    }

    /// Refuses majors before 14; for majors after 18 tells what to warn about.
    pub(crate) fn check(self) -> Result<Option<String>, PgError> {
        match self.major() {
            ..OLDEST => Err(PgError::TooOld { version: self }),
            OLDEST..=NEWEST => Ok(None),
            _ => Ok(Some(format!(
                "PostgreSQL {self} is newer than this pgvault knows (14 to {NEWEST}): it is treated as {NEWEST}"
            ))),
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.major() < 10 {
            write!(f, "{}.{}.{}", self.major(), self.0 / 100 % 100, self.0 % 100)
        } else {
            write!(f, "{}.{}", self.major(), self.0 % 10_000)
        }
    }
}

impl fmt::Debug for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::ServerVersion;

    #[test]
    fn versions_are_read_as_servers_report_them() {
        let cases = [
            ("15.18 (Debian 15.18-1.pgdg120+1)", Some(150_018)),
            ("14.23", Some(140_023)),
            ("18beta1", Some(180_000)),
            ("19rc1", Some(190_000)),
            ("9.6.24", Some(90_624)),
            ("", None),
            ("devel", None),
            ("99999999999", None),
            ("9", None),
        ];
        for (text, number) in cases {
            assert_eq!(ServerVersion::parse(text).map(ServerVersion::number), number, "{text}");
        }
    }

    #[test]
    fn majors_before_14_are_refused_and_later_than_18_warned_about() {
        assert!(ServerVersion::new(130_020).check().is_err());
        assert_eq!(ServerVersion::new(140_000).check().unwrap(), None);
        assert_eq!(ServerVersion::new(180_006).check().unwrap(), None);
        assert!(ServerVersion::new(190_000).check().unwrap().is_some_and(|warning| warning.contains("19.0")));
    }
}
