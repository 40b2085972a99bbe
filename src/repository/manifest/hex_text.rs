//! SHA-256 as 64 lower-case hexadecimal digits in JSON.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

use crate::codec::digest;
use crate::storage::Sha256;

pub(super) fn serialize<S: Serializer>(sha256: &Sha256, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&digest::to_hex(sha256))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sha256, D::Error> {
    let text = <Cow<'de, str>>::deserialize(deserializer)?;
    digest::from_hex(&text).ok_or_else(|| D::Error::custom("not a SHA-256 in 64 lower-case hexadecimal digits"))
}
