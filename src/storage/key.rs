//! Object keys.

use std::fmt;

/// Key of an object: components joined by `/`, in a character set that every store keeps as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// The text cannot be an object key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" cannot be an object key: up to 400 letters, digits and - _ . in components joined by /")]
pub struct InvalidKey(String);

/// Several stores fail above about 500 bytes; a prefix of the repository's own comes in front.
const MAX_LEN: usize = 400;

impl ObjectKey {
    /// Checks the text: no empty component, none that starts with a dot (`.`, `..`, temporary names), no odd characters.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidKey> {
        let text = text.into();
        let component_ok = |component: &str| {
            !component.is_empty()
                && !component.starts_with('.')
                && component.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if text.len() <= MAX_LEN && text.split('/').all(component_ok) { Ok(Self(text)) } else { Err(InvalidKey(text)) }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks a prefix for listings: empty, or whole key components ending in `/`.
pub(super) fn check_prefix(prefix: &str) -> Result<(), InvalidKey> {
    match prefix.strip_suffix('/') {
        Some(folder) => ObjectKey::new(folder).map(|_| ()),
        None if prefix.is_empty() => Ok(()),
        None => Err(InvalidKey(prefix.to_owned())),
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
