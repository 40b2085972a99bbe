//! BLAKE3 of plaintext: what WAL is, whatever form it is stored in.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest;

/// BLAKE3 of a piece of plaintext.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// A hash that is not known yet: its text is as long as that of any other.
    pub const UNKNOWN: Self = Self([0; 32]);

    /// The hash of these bytes.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&digest::to_hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As 64 lower-case hexadecimal digits.
impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash =
            digest::from_hex(&text).ok_or_else(|| D::Error::custom("expected 64 lower-case hexadecimal digits"))?;
        Ok(Self(hash))
    }
}

/// BLAKE3 of plaintext that comes in pieces: large ones, or much of its speed is lost.
#[derive(Clone, Debug, Default)]
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, plain: &[u8]) {
        self.0.update(plain);
    }

    /// The hash of everything taken.
    pub fn finish(&self) -> ContentHash {
        ContentHash(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::{ContentHash, ContentHasher};

    const ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";

    #[test]
    fn the_hash_is_that_of_the_specification() {
        assert_eq!(ContentHash::of(b"abc").to_string(), ABC);
    }

    #[test]
    fn pieces_give_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
        let mut hasher = ContentHasher::new();
        bytes.chunks(999).for_each(|piece| hasher.update(piece));
        assert_eq!(hasher.finish(), ContentHash::of(&bytes));
    }

    #[test]
    fn json_has_one_spelling_of_it() {
        let text = format!("\"{ABC}\"");
        assert_eq!(serde_json::to_string(&ContentHash::of(b"abc")).unwrap(), text);
        assert_eq!(serde_json::from_str::<ContentHash>(&text).unwrap(), ContentHash::of(b"abc"));
        for bad in [text.to_uppercase(), "\"\"".to_owned(), format!("\"{ABC}00\""), "17".to_owned()] {
            assert!(serde_json::from_str::<ContentHash>(&bad).is_err(), "{bad}");
        }
    }
}
