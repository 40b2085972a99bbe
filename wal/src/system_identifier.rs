//! The number that ties WAL and backups to one initdb.

use std::fmt;
use std::str::FromStr;

/// The 64-bit number that initdb gives to a cluster. Restored clones share it, so it alone does not name a lineage.
///
/// Always text outside the program: it is larger than the integers that JSON readers keep exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(u64);

impl SystemIdentifier {
    /// The identifier with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, as in WAL page headers.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The text is not a system identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a system identifier: expected an unsigned 64-bit number")]
pub struct ParseSystemIdentifierError(String);

impl FromStr for SystemIdentifier {
    type Err = ParseSystemIdentifierError;

    fn from_str(text: &str) -> Result<Self, ParseSystemIdentifierError> {
        text.parse().map(Self).map_err(|_| ParseSystemIdentifierError(text.to_owned()))
    }
}

crate::time::serde_as_text!(SystemIdentifier);
