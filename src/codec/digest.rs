//! SHA-256 of stored bytes and its hexadecimal form, and CRC-32C of zeros.

use std::io::{self, Read};

use sha2::{Digest, Sha256 as Sha256Hasher};

use crate::storage::Sha256;

/// How much is read at a time.
const BUFFER: usize = 256 * 1024;

/// SHA-256 of bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256Hasher);

impl Hasher {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything taken.
    pub fn finish(self) -> Sha256 {
        self.0.finalize().into()
    }
}

/// SHA-256 of bytes in memory.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256Hasher::digest(bytes).into()
}

/// CRC-32C of so many zeros.
pub fn crc32c_of_zeros(mut len: usize) -> u32 {
    const ZEROS: &[u8] = &[0; 8192];
    let mut crc = 0;
    while len > 0 {
        let step = len.min(ZEROS.len());
        crc = crc32c::crc32c_append(crc, &ZEROS[..step]);
        len -= step;
    }
    crc
}

/// SHA-256 and length of everything that a reader gives.
pub fn sha256_reader(mut reader: impl Read) -> io::Result<(Sha256, u64)> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut len = 0u64;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), len)),
            Ok(n) => {
                hasher.update(buffer.get(..n).ok_or(io::ErrorKind::InvalidData)?);
                len += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lower-case hexadecimal digits, as the format writes hashes.
pub fn to_hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// A SHA-256 from exactly 64 lower-case hexadecimal digits; `None` for anything else.
pub fn from_hex(text: &str) -> Option<Sha256> {
    let mut digest = [0; 32];
    // Upper case would give one object two names.
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    hex::decode_to_slice(text, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::{Hasher, from_hex, sha256, sha256_reader, to_hex};

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_digest_is_that_of_the_standard() {
        assert_eq!(to_hex(&sha256(b"abc")), ABC);
    }

    #[test]
    fn pieces_and_readers_give_the_digest_of_the_whole() {
        let bytes: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
        let mut hasher = Hasher::new();
        bytes.chunks(999).for_each(|piece| hasher.update(piece));
        assert_eq!(hasher.finish(), sha256(&bytes));
        assert_eq!(sha256_reader(bytes.as_slice()).unwrap(), (sha256(&bytes), 700_000));
    }

    #[test]
    fn hex_is_read_only_in_the_form_in_which_it_is_written() {
        assert_eq!(from_hex(ABC), Some(sha256(b"abc")));
        for bad in ["", "ba", &ABC.to_uppercase(), &format!("{ABC}00"), &ABC.replace('a', "g")] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}
