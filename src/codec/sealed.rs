//! Sealed documents: JSON, then a line with its SHA-256 (`docs/FORMAT.md` section 2).
//!
//! Members common to all, `kind`, `format` and `features`, are written and checked here; `T` holds the others.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::{from_hex, sha256, to_hex};

/// The format version that this program writes, and the highest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Features that this program knows, beyond those that every version 1 has.
const KNOWN_FEATURES: &[&str] = &[PAGE_PATCH, ENCRYPTION];

/// Chunks may be stored as the difference to others (FORMAT 6.3).
pub const PAGE_PATCH: &str = "page-patch";

/// Objects of the repository may be encrypted (FORMAT 7).
pub const ENCRYPTION: &str = "encryption";

/// The largest sealed document that is read. A backup's manifest names every pack: a million packs are 32 TiB.
pub const MAX_LEN: usize = 128 * 1024 * 1024;

/// `{"sha256":"`, 64 digits, `"}` and a newline.
const SEAL_HEAD: &[u8] = b"{\"sha256\":\"";
const SEAL_TAIL: &[u8] = b"\"}\n";
const SEAL_LEN: usize = SEAL_HEAD.len() + 64 + SEAL_TAIL.len();

/// Bytes are not the sealed document that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Too long to be one.
    #[error("{0} bytes are too many for a document of this repository")]
    TooLong(usize),
    /// The last line is not a seal: cut short, or something else altogether.
    #[error("no checksum line at the end: the document was cut short or is something else")]
    NoSeal,
    /// The checksum is not that of the document.
    #[error("the checksum is wrong: the document says {stated}, its bytes give {actual}")]
    Checksum {
        /// What the last line says.
        stated: String,
        /// What the bytes give.
        actual: String,
    },
    /// Its checksum is right and its content is not what it should be.
    #[error("the document of kind \"{kind}\" cannot be read: {reason}")]
    Content {
        /// The kind that was expected.
        kind: String,
        /// What is wrong.
        reason: String,
    },
    /// It is another document.
    #[error("a document of kind \"{found}\" where one of kind \"{expected}\" should be")]
    WrongKind {
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A newer version wrote it.
    #[error("the document needs format version {found}, this program reads up to {FORMAT_VERSION}")]
    FormatTooNew {
        /// The version that it needs.
        found: u64,
    },
    /// It uses something that this program does not know.
    #[error("the document uses the feature \"{0}\", which this program does not know")]
    UnknownFeature(String),
}

impl SealedError {
    /// Whether a newer program could read it: the bytes are intact, we are too old.
    pub fn is_too_new(&self) -> bool {
        matches!(self, Self::FormatTooNew { .. } | Self::UnknownFeature(_))
    }
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    kind: &'a str,
    format: u32,
    features: &'a [&'a str],
    #[serde(flatten)]
    content: &'a T,
}

#[derive(Deserialize)]
struct Common {
    kind: String,
    format: u64,
    features: Vec<String>,
}

/// The sealed document of `kind` with the members of `content`, which must be a struct or map without the common members.
pub fn seal<T: Serialize>(kind: &str, content: &T) -> Result<Vec<u8>, SealedError> {
    seal_with_features(kind, &[], content)
}

/// As [`seal`], naming the features that a reader must know.
pub fn seal_with_features<T: Serialize>(kind: &str, features: &[&str], content: &T) -> Result<Vec<u8>, SealedError> {
    let outgoing = Outgoing { kind, format: FORMAT_VERSION, features, content };
    let mut document = serde_json::to_vec(&outgoing)
        .map_err(|error| SealedError::Content { kind: kind.to_owned(), reason: error.to_string() })?;
    document.push(b'\n');
    let digest = to_hex(&sha256(&document));
    document.extend_from_slice(SEAL_HEAD);
    document.extend_from_slice(digest.as_bytes());
    document.extend_from_slice(SEAL_TAIL);
    if document.len() > MAX_LEN { Err(SealedError::TooLong(document.len())) } else { Ok(document) }
}

/// Reads a sealed document of `kind`. Checked in this order: length, checksum, format and features, kind, content;
/// so whoever gets `FormatTooNew` or `UnknownFeature` knows that the bytes are intact.
pub fn unseal<T: DeserializeOwned>(bytes: &[u8], kind: &str) -> Result<T, SealedError> {
    let document = checked_document(bytes)?;
    let content = |error: serde_json::Error| SealedError::Content { kind: kind.to_owned(), reason: error.to_string() };
    let common: Common = serde_json::from_slice(document).map_err(content)?;
    if common.format > u64::from(FORMAT_VERSION) {
        return Err(SealedError::FormatTooNew { found: common.format });
    }
    if let Some(unknown) = common.features.into_iter().find(|name| !KNOWN_FEATURES.contains(&name.as_str())) {
        return Err(SealedError::UnknownFeature(unknown));
    }
    if common.kind != kind {
        return Err(SealedError::WrongKind { expected: kind.to_owned(), found: common.kind });
    }
    serde_json::from_slice(document).map_err(content)
}

/// The bytes before the seal, once it has been found right.
fn checked_document(bytes: &[u8]) -> Result<&[u8], SealedError> {
    if bytes.len() > MAX_LEN {
        return Err(SealedError::TooLong(bytes.len()));
    }
    let (document, seal) = bytes.len().checked_sub(SEAL_LEN).map(|at| bytes.split_at(at)).ok_or(SealedError::NoSeal)?;
    let stated = seal
        .strip_prefix(SEAL_HEAD)
        .and_then(|rest| rest.strip_suffix(SEAL_TAIL))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .ok_or(SealedError::NoSeal)?;
    let digest = from_hex(stated).ok_or(SealedError::NoSeal)?;
    if !document.ends_with(b"\n") {
        return Err(SealedError::NoSeal);
    }
    let actual = sha256(document);
    if actual == digest {
        Ok(document)
    } else {
        Err(SealedError::Checksum { stated: stated.to_owned(), actual: to_hex(&actual) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::{prop_assert, proptest};
    use serde::{Deserialize, Serialize};

    use super::{SealedError, seal, seal_with_features, unseal};
    use crate::codec::digest::{sha256, to_hex};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Marker {
        id: String,
        count: u64,
    }

    fn marker() -> Marker {
        Marker { id: "5f".to_owned(), count: u64::MAX }
    }

    /// A right seal around any text.
    fn sealed(document: &str) -> Vec<u8> {
        format!("{document}\n{{\"sha256\":\"{}\"}}\n", to_hex(&sha256(format!("{document}\n").as_bytes()))).into_bytes()
    }

    #[test]
    fn the_form_is_that_of_the_format_page() {
        let document = r#"{"kind":"repository","format":1,"features":[],"id":"5f","count":18446744073709551615}"#;
        assert_eq!(String::from_utf8(seal("repository", &marker()).unwrap()).unwrap().as_bytes(), sealed(document));
    }

    #[test]
    fn what_was_sealed_comes_back_and_unknown_members_are_ignored() {
        assert_eq!(unseal::<Marker>(&seal("repository", &marker()).unwrap(), "repository").unwrap(), marker());
        let newer = sealed(r#"{"later":{"x":[1]},"kind":"k","count":1,"id":"a","features":[],"format":1}"#);
        assert_eq!(unseal::<Marker>(&newer, "k").unwrap(), Marker { id: "a".to_owned(), count: 1 });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let bytes = seal("repository", &marker()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = unseal::<Marker>(&bad, "repository").unwrap_err();
            assert!(matches!(error, SealedError::Checksum { .. } | SealedError::NoSeal), "bit {bit}: {error}");
        }
    }

    #[test]
    fn a_document_cut_anywhere_is_refused() {
        let bytes = seal("repository", &marker()).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(unseal::<Marker>(&bytes[..cut], "repository").unwrap_err(), SealedError::NoSeal);
        }
    }

    #[test]
    fn newer_formats_and_unknown_features_are_refused_before_their_content_is_read() {
        let newer = sealed(r#"{"kind":"other","format":2,"features":[]}"#);
        assert_eq!(unseal::<Marker>(&newer, "k"), Err(SealedError::FormatTooNew { found: 2 }));
        let feature = seal_with_features("k", &["time-travel"], &marker()).unwrap();
        let error = unseal::<Marker>(&feature, "k").unwrap_err();
        assert_eq!(error, SealedError::UnknownFeature("time-travel".to_owned()));
        assert!(error.is_too_new());
    }

    #[test]
    fn another_kind_and_wrong_content_are_distinct() {
        let bytes = seal("lineage", &marker()).unwrap();
        assert!(matches!(unseal::<Marker>(&bytes, "mark"), Err(SealedError::WrongKind { .. })));
        for bad in [r#"{"kind":"k","format":1,"features":[]}"#, r#"{"kind":"k","format":-1,"features":[]}"#, "[]", ""] {
            assert!(matches!(unseal::<Marker>(&sealed(bad), "k"), Err(SealedError::Content { .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert!(unseal::<Marker>(&bytes, "k").is_err());
        }
    }
}
