//! Blocks: making them, opening them, and which of them hold a range.

use std::io::{self, Read, Write};
use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::{DataKey, EncryptionError, Generation, HEADER, LAST, MAGIC, PLAIN_BLOCK, SALT, STORED_BLOCK, TAG};
use crate::storage::Sha256;

/// Whether bytes begin as an encrypted object or one of its blocks does.
pub fn is_encrypted(stored: &[u8]) -> bool {
    stored.starts_with(MAGIC)
}

/// The generation that the first block claims; not proven before it is opened.
pub fn claimed_generation(stored: &[u8]) -> Option<Generation> {
    Header::parse(stored).map(|header| header.generation)
}

/// Length of the plaintext of an encrypted object of this length; none when no object has it.
pub fn plain_len(stored: u64) -> Option<u64> {
    let (whole, rest) = (stored / STORED_BLOCK, stored % STORED_BLOCK);
    let overhead = (HEADER + TAG) as u64;
    match rest {
        0 if whole > 0 => Some(whole * PLAIN_BLOCK),
        // Only an empty object has an empty block.
        rest if rest > overhead || (rest == overhead && whole == 0) => Some(whole * PLAIN_BLOCK + rest - overhead),
        _ => None,
    }
}

/// The blocks that hold a range of plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// Number of the first one.
    pub first: u64,
    /// Where they lie in the stored object; the last one may end earlier.
    pub stored: Range<u64>,
    /// How many bytes of the first block's plaintext come before the range.
    pub skip: u64,
}

impl BlockRange {
    /// Those that hold `plain`, which is not empty.
    pub fn of(plain: &Range<u64>) -> Self {
        let (first, behind) = (plain.start / PLAIN_BLOCK, plain.end.div_ceil(PLAIN_BLOCK));
        let stored = first.saturating_mul(STORED_BLOCK)..behind.saturating_mul(STORED_BLOCK);
        Self { first, stored, skip: plain.start % PLAIN_BLOCK }
    }
}

/// The encrypted form of `plain`, whose SHA-256 the caller has.
pub fn encrypt(
    key: &DataKey,
    generation: Generation,
    name: &str,
    plain: &[u8],
    plain_sha256: &Sha256,
) -> Result<Vec<u8>, EncryptionError> {
    let blocks = (plain.len() as u64).div_ceil(PLAIN_BLOCK).max(1);
    let overhead = usize::try_from(blocks).unwrap_or_default().saturating_mul(HEADER + TAG);
    let mut out = Vec::with_capacity(plain.len().saturating_add(overhead));
    let cipher = ObjectCipher::new(key, generation, name, plain_sha256)?;
    let mut number = 0;
    let mut rest = plain;
    loop {
        let (block, behind) = rest.split_at(rest.len().min(block_len()));
        cipher.append(number, block, behind.is_empty(), &mut out)?;
        if behind.is_empty() {
            return Ok(out);
        }
        (rest, number) = (behind, number + 1);
    }
}

/// The same from a reader into a writer, with one block in memory. `len` is how many bytes the reader gives, and
/// `plain_sha256` their SHA-256: that it is so must be checked by the caller before what was written is used.
pub fn encrypt_into(
    (key, generation, name): (&DataKey, Generation, &str),
    (plain, len, plain_sha256): (&mut dyn Read, u64, &Sha256),
    out: &mut dyn Write,
) -> io::Result<()> {
    let failed = io::Error::other::<EncryptionError>;
    let cipher = ObjectCipher::new(key, generation, name, plain_sha256).map_err(failed)?;
    let mut block = vec![0; block_len()];
    let mut stored = Vec::with_capacity(block_len() + HEADER + TAG);
    let (mut left, mut number) = (len, 0);
    loop {
        let now = left.min(PLAIN_BLOCK);
        let part = block.get_mut(..usize::try_from(now).unwrap_or_default()).unwrap_or_default();
        plain.read_exact(part)?;
        left -= now;
        stored.clear();
        cipher.append(number, part, left == 0, &mut stored).map_err(failed)?;
        out.write_all(&stored)?;
        if left == 0 {
            return Ok(());
        }
        number += 1;
    }
}

/// Plaintext of opened blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The bytes.
    pub plain: Vec<u8>,
    /// Whether the object ends with them.
    pub is_end: bool,
}

/// Opens blocks of an object, from block `first` on; `key` is that of [`claimed_generation`]. Nothing of it is given before
/// all of it is proven.
pub fn open_blocks(key: &DataKey, name: &str, first: u64, stored: &[u8]) -> Result<Opened, EncryptionError> {
    let header = Header::parse(stored).ok_or(EncryptionError::NotEncrypted)?;
    let cipher =
        ObjectCipher { aead: key.object_key(&header.salt)?, salt: header.salt, generation: header.generation, name };
    let mut opened = Opened { plain: Vec::with_capacity(stored.len()), is_end: false };
    let stored_block = block_len() + HEADER + TAG;
    for (number, block) in (first..).zip(stored.chunks(stored_block)) {
        if opened.is_end {
            return Err(EncryptionError::Foreign(number));
        }
        let header =
            Header::parse(block).ok_or(EncryptionError::Unopened { block: number, generation: cipher.generation })?;
        if header.salt != cipher.salt || header.generation != cipher.generation {
            return Err(EncryptionError::Foreign(number));
        }
        opened.is_end = header.flags & LAST != 0;
        let whole = block.len() == stored_block;
        let empty = block.len() <= HEADER + TAG;
        if !(whole || opened.is_end) || (empty && !(number == 0 && opened.is_end && block.len() == HEADER + TAG)) {
            return Err(EncryptionError::CutShort);
        }
        cipher.open(number, block, &mut opened.plain)?;
    }
    Ok(opened)
}

fn block_len() -> usize {
    usize::try_from(PLAIN_BLOCK).unwrap_or(usize::MAX)
}

struct Header {
    generation: Generation,
    flags: u32,
    salt: [u8; SALT],
}

impl Header {
    fn parse(block: &[u8]) -> Option<Self> {
        let rest = block.strip_prefix(MAGIC)?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<4>()?;
        let salt = *rest.first_chunk::<SALT>()?;
        let generation = Generation::new(u32::from_le_bytes(*generation))?;
        Some(Self { generation, flags: u32::from_le_bytes(*flags), salt })
    }
}

/// The key of one object and what its blocks are bound to.
struct ObjectCipher<'a> {
    aead: LessSafeKey,
    salt: [u8; SALT],
    generation: Generation,
    name: &'a str,
}

impl<'a> ObjectCipher<'a> {
    fn new(key: &DataKey, generation: Generation, name: &'a str, sha256: &Sha256) -> Result<Self, EncryptionError> {
        let salt = key.salt(name, sha256)?;
        Ok(Self { aead: key.object_key(&salt)?, salt, generation, name })
    }

    fn append(&self, number: u64, plain: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), EncryptionError> {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.generation.get().to_le_bytes());
        out.extend_from_slice(&(if last { LAST } else { 0 }).to_le_bytes());
        out.extend_from_slice(&self.salt);
        let aad = self.aad(out.get(start..).unwrap_or_default());
        let body = out.len();
        out.extend_from_slice(plain);
        let in_place = out.get_mut(body..).unwrap_or_default();
        let tag =
            self.aead.seal_in_place_separate_tag(nonce(number), aad, in_place).map_err(|_| EncryptionError::Cipher)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn open(&self, number: u64, block: &[u8], out: &mut Vec<u8>) -> Result<(), EncryptionError> {
        let unopened = EncryptionError::Unopened { block: number, generation: self.generation };
        let (header, body) = block.split_at_checked(HEADER).ok_or(EncryptionError::CutShort)?;
        let (ciphertext, tag) = body.split_last_chunk::<TAG>().ok_or(EncryptionError::CutShort)?;
        let start = out.len();
        out.resize(start + ciphertext.len(), 0);
        let plain = out.get_mut(start..).unwrap_or_default();
        self.aead.open_separate_gather(nonce(number), self.aad(header), ciphertext, tag, plain).map_err(|_| unopened)
    }

    fn aad(&self, header: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([header, self.name.as_bytes()].concat())
    }
}

/// The block's number, most significant byte first.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
