//! Replication slots as the replication protocol shows them.

use std::fmt;
use std::str::FromStr;

use wal::{Lsn, TimelineId};

/// The name of a replication slot: 1 to 63 lower-case letters, digits and underscores (`ReplicationSlotValidateName`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

/// The text cannot name a slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" cannot name a replication slot: 1 to 63 lower-case letters, digits and underscores are allowed")]
pub struct InvalidSlotName(String);

impl SlotName {
    /// The name with this text.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSlotName> {
        let text = text.into();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(InvalidSlotName(text))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotName {
    type Err = InvalidSlotName;

    fn from_str(text: &str) -> Result<Self, InvalidSlotName> {
        Self::new(text)
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What READ_REPLICATION_SLOT tells about a physical slot. Both are `None` for a slot that never reserved WAL and,
/// indistinguishably, for one that was invalidated: only `pg_replication_slots.wal_status` tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPosition {
    /// First byte of WAL that the slot keeps.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of `restart_lsn` in the server's present history.
    pub restart_timeline: Option<TimelineId>,
}

#[cfg(test)]
mod tests {
    use super::SlotName;

    #[test]
    fn slot_names_are_what_postgresql_allows() {
        let longest = "a".repeat(63);
        for good in ["pgvault", "a", "0", "_", "pg_1", &longest] {
            assert!(SlotName::new(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "Pgvault", "a-b", "a b", "a\"b", "é", "a;drop", &too_long] {
            assert!(SlotName::new(bad).is_err(), "{bad}");
        }
    }
}
