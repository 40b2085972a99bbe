//! Names of clusters.

use std::fmt;
use std::str::FromStr;

/// Name of a cluster in the configuration and in object keys: `[a-z0-9_-]{1,63}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

const MAX_LEN: usize = 63;

impl ClusterName {
    /// Checks the name.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidClusterName> {
        let text = text.into();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        // `keys` is the folder of the key ring: a cluster of that name would share it.
        let fits = (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) && text != "keys";
        if fits { Ok(Self(text)) } else { Err(InvalidClusterName(text)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text cannot be the name of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" cannot be the name of a cluster: up to 63 of a-z, 0-9, _ and -, and not \"keys\"")]
pub struct InvalidClusterName(String);

impl FromStr for ClusterName {
    type Err = InvalidClusterName;

    fn from_str(text: &str) -> Result<Self, InvalidClusterName> {
        Self::new(text)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
