//! The header in front of stored WAL: one zstd skippable frame, so that `zstd -d` still reads the object.
//!
//! ```text
//! 50 2A 4D 18 | u32 length | "PGVWAL1\n" | u32 JSON length | JSON | SHA-256 of the content before it
//! ```
//! Integers are little endian (`docs/FORMAT.md` 4.1).

use super::digest::sha256;

/// Magic number of the skippable frame.
const FRAME_MAGIC: [u8; 4] = [0x50, 0x2A, 0x4D, 0x18];
/// First bytes of the content.
const MAGIC: [u8; 8] = *b"PGVWAL1\n";
const FRAME_HEADER: usize = 8;
const FIXED: usize = MAGIC.len() + 4;
const DIGEST: usize = 32;

/// The longest JSON that is written or read: far above any real index, far below what hurts.
pub const MAX_JSON: usize = 64 * 1024 * 1024;

/// How much of an object to read first: nearly every header fits.
pub const FIRST_READ: u64 = 8 * 1024;

/// The bytes are not the header of stored WAL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// They start with something else.
    #[error("not stored WAL: the object starts with {0}")]
    Magic(String),
    /// Its lengths contradict each other or are beyond all reason.
    #[error("the header of stored WAL is damaged: its lengths {frame} and {json} cannot be")]
    Length {
        /// Length of the frame's content.
        frame: u32,
        /// Length of the JSON.
        json: u32,
    },
    /// The JSON to write is too long.
    #[error("{0} bytes of JSON are too many for the header of stored WAL")]
    TooLong(usize),
    /// The checksum is wrong.
    #[error("the header of stored WAL is damaged: its checksum is wrong")]
    Checksum,
}

/// What the first bytes of an object tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The header is whole and intact.
    Whole {
        /// Its JSON.
        json: &'a [u8],
        /// Length of the header: the first zstd frame of WAL starts there.
        len: usize,
    },
    /// The header goes on: `parse` wants the first `len` bytes of the object.
    NeedMore {
        /// How many bytes from the object's start are needed, more than were given.
        len: usize,
    },
}

/// The header that holds `json`.
pub fn write(json: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let too_long = || EnvelopeError::TooLong(json.len());
    if json.len() > MAX_JSON {
        return Err(too_long());
    }
    let json_len = u32::try_from(json.len()).map_err(|_| too_long())?;
    let content_len = u32::try_from(FIXED + json.len() + DIGEST).map_err(|_| too_long())?;
    let mut header = Vec::with_capacity(FRAME_HEADER + FIXED + json.len() + DIGEST);
    header.extend_from_slice(&FRAME_MAGIC);
    header.extend_from_slice(&content_len.to_le_bytes());
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&json_len.to_le_bytes());
    header.extend_from_slice(json);
    let digest = sha256(&header[FRAME_HEADER..]);
    header.extend_from_slice(&digest);
    Ok(header)
}

/// Reads the header from the first bytes of an object, however few. The checksum is verified before the JSON is given.
pub fn parse(prefix: &[u8]) -> Result<Parsed<'_>, EnvelopeError> {
    check_magic(prefix)?;
    let (Some(frame), Some(json)) = (u32_at(prefix, 4), u32_at(prefix, FRAME_HEADER + MAGIC.len())) else {
        return Ok(Parsed::NeedMore { len: FRAME_HEADER + FIXED });
    };
    let json_len = json as usize;
    // Both lengths are bounded here, so the sums below cannot overflow.
    if json_len > MAX_JSON || frame as usize != FIXED + json_len + DIGEST {
        return Err(EnvelopeError::Length { frame, json });
    }
    let len = FRAME_HEADER + frame as usize;
    let Some(content) = prefix.get(FRAME_HEADER..len) else { return Ok(Parsed::NeedMore { len }) };
    let (signed, digest) = content.split_at(content.len() - DIGEST);
    if sha256(signed) != digest {
        return Err(EnvelopeError::Checksum);
    }
    Ok(Parsed::Whole { json: &signed[FIXED..], len })
}

/// Refuses bytes that can never become a header, as soon as the first of them is wrong.
fn check_magic(prefix: &[u8]) -> Result<(), EnvelopeError> {
    let agrees = |at: usize, magic: &[u8]| prefix.iter().skip(at).zip(magic).all(|(found, wanted)| found == wanted);
    if agrees(0, &FRAME_MAGIC) && agrees(FRAME_HEADER, &MAGIC) {
        Ok(())
    } else {
        Err(EnvelopeError::Magic(hex::encode(&prefix[..prefix.len().min(FRAME_HEADER + MAGIC.len())])))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::{EnvelopeError, FIXED, FRAME_HEADER, MAX_JSON, Parsed, parse, write};

    #[test]
    fn every_prefix_asks_for_more_until_the_header_is_whole() {
        let header = write(b"{\"kind\":\"segment\"}").unwrap();
        let mut object = header.clone();
        object.extend_from_slice(b"frames");
        for cut in 0..header.len() {
            match parse(&object[..cut]).unwrap() {
                Parsed::NeedMore { len } => assert!(len > cut && len <= header.len(), "{len} at {cut}"),
                Parsed::Whole { .. } => panic!("whole after {cut} of {} bytes", header.len()),
            }
        }
        assert_eq!(parse(&object).unwrap(), Parsed::Whole { json: b"{\"kind\":\"segment\"}", len: header.len() });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let header = write(b"{\"a\":1}").unwrap();
        for bit in 0..header.len() * 8 {
            let mut bad = header.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse(&bad);
            assert!(!matches!(parsed, Ok(Parsed::Whole { .. })), "bit {bit}: {parsed:?}");
        }
    }

    #[test]
    fn other_objects_are_refused_at_their_first_wrong_byte() {
        assert!(matches!(parse(b"P!"), Err(EnvelopeError::Magic(_))));
        assert!(matches!(parse(&[0x28, 0xB5, 0x2F, 0xFD]), Err(EnvelopeError::Magic(_))));
        assert_eq!(parse(b""), Ok(Parsed::NeedMore { len: FRAME_HEADER + FIXED }));
    }

    #[test]
    fn absurd_lengths_are_refused_before_memory_is_taken() {
        let mut header = write(b"{}").unwrap();
        header[FRAME_HEADER + 8..FRAME_HEADER + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(parse(&header), Err(EnvelopeError::Length { .. })));
        assert_eq!(write(&vec![b' '; MAX_JSON + 1]), Err(EnvelopeError::TooLong(MAX_JSON + 1)));
    }

    proptest! {
        #[test]
        fn any_json_comes_back(json in vec(any::<u8>(), 0..2000)) {
            let header = write(&json).unwrap();
            prop_assert_eq!(parse(&header).unwrap(), Parsed::Whole { json: &json, len: header.len() });
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..100)) {
            let mut near = write(b"{}").unwrap();
            near.truncate(8);
            near.extend_from_slice(&bytes);
            for bytes in [near, bytes] {
                let whole = matches!(parse(&bytes), Ok(Parsed::Whole { .. }));
                prop_assert!(!whole);
            }
        }
    }
}
