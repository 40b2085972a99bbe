//! The names of files that PostgreSQL asks a `restore_command` for.

use std::fmt;
use std::str::FromStr;

use wal::{SegmentName, TimelineId};

/// A file of the WAL archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchName {
    /// A segment.
    Segment(SegmentName),
    /// A timeline history file.
    History(TimelineId),
    /// A backup history file or a partial segment: real names, of which recovery needs none.
    Other(String),
}

/// The text is not the name of a file in a WAL archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the name of a WAL file: expected a segment (24 hexadecimal digits) or 0000000N.history")]
pub struct InvalidFetchName(String);

impl FromStr for FetchName {
    type Err = InvalidFetchName;

    fn from_str(text: &str) -> Result<Self, InvalidFetchName> {
        let invalid = || InvalidFetchName(text.chars().take(100).collect());
        let (base, suffix) = text.split_once('.').unwrap_or((text, ""));
        let segment = || base.parse::<SegmentName>().map_err(|_| invalid());
        match suffix {
            "" if base == text => segment().map(Self::Segment),
            "history" => TimelineId::from_hex(base).map(Self::History).map_err(|_| invalid()),
            "partial" => segment().map(|_| Self::Other(text.to_owned())),
            _ => {
                // `IsBackupHistoryFileName` (xlog_internal.h): <segment>.<8 digits>.backup
                let digits = suffix.strip_suffix(".backup").ok_or_else(invalid)?;
                let is_offset = digits.len() == 8 && digits.bytes().all(|b| b"0123456789ABCDEF".contains(&b));
                segment()?;
                if is_offset { Ok(Self::Other(text.to_owned())) } else { Err(invalid()) }
            }
        }
    }
}

impl fmt::Display for FetchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::History(timeline) => f.write_str(&timeline.history_file_name()),
            Self::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_a_wal_archive_are_accepted() {
        for good in ["000000010000000500000012", "0000000A.history", "000000010000000500000012.partial"] {
            assert_eq!(good.parse::<FetchName>().unwrap().to_string(), good);
        }
        assert!(matches!("000000010000000500000012.00000028.backup".parse(), Ok(FetchName::Other(_))));
        let bad = [
            "",
            "..",
            "../../etc/passwd",
            "000000010000000500000012/..",
            "00000001000000050000001",
            "0000000100000005000000123",
            "00000001000000050000001g",
            "00000001000000050000001a",
            "000000000000000500000012",
            "00000000.history",
            "1.history",
            "0000000a.history",
            "00000002.history.history",
            "000000010000000500000012.",
            "000000010000000500000012.backup",
            "000000010000000500000012.0028.backup",
            "000000010000000500000012.gz",
            "archive_status",
        ];
        for text in bad {
            assert!(text.parse::<FetchName>().is_err(), "{text}");
        }
    }
}
