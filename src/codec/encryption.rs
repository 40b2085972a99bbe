//! Encrypted objects: AES-256-GCM in numbered blocks, any of which can be read alone (`docs/FORMAT.md` section 7).
//!
//! ```text
//! object = block*      block = "PGVENC1\n" | u32 generation | u32 flags | salt (32) | ciphertext | tag (16)
//! ```
//! Every block but the last holds 65536 bytes of plaintext, so a range of plaintext is a range of blocks. Every block tells
//! key and salt, so a range needs no second request. The last block says that it is the last: an object that was cut is
//! noticed.
//!
//! **Why a nonce never meets its key twice with other bytes.** The salt is the HMAC-SHA-256 of the object's name and of the
//! SHA-256 of its plaintext, under a key that only encrypts salts; the object's key is derived from the data key and the
//! salt (HKDF), and the nonce is the block's number. So two objects share key and nonces only when they have one name and one
//! content, and then they are the same object, byte for byte. No random number is involved that could be drawn twice; what is
//! stored again after a lost answer is what was stored before; and to who has no key a salt says nothing.
//!
//! **What a tag proves**: generation, last or not, salt (all of the header), the object's name and the block's number. The
//! name is that of the key, with the digits that are made of the stored bytes taken out ([`crate::repository::layout`]).

mod blocks;
mod key;

#[cfg(test)]
mod tests;

pub use blocks::{BlockRange, Opened, claimed_generation, encrypt, encrypt_into, is_encrypted, open_blocks, plain_len};
pub use key::{DataKey, Generation};

/// First bytes of every block.
pub const MAGIC: &[u8; 8] = b"PGVENC1\n";
/// Plaintext of a whole block.
pub const PLAIN_BLOCK: u64 = 64 * 1024;
/// Magic, generation, flags, salt.
pub const HEADER: usize = 48;
const TAG: usize = 16;
/// Stored bytes of a whole block.
pub const STORED_BLOCK: u64 = PLAIN_BLOCK + (HEADER + TAG) as u64;
const SALT: usize = 32;
/// The flag of the last block.
const LAST: u32 = 1;

/// Stored bytes are not what was encrypted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// They do not begin with the header of a block.
    #[error("it is not an encrypted object")]
    NotEncrypted,
    /// They end where no object ends.
    #[error("its encrypted blocks were cut short")]
    CutShort,
    /// Blocks of several objects, or something behind the last one.
    #[error("block {0} does not belong behind the one before it")]
    Foreign(u64),
    /// The key does not open it: damaged, moved from elsewhere, or encrypted under another key.
    #[error(
        "block {block} cannot be opened with the key of generation {generation}: damaged, not this object's, or another key"
    )]
    Unopened {
        /// The block, from 0.
        block: u64,
        /// The key's generation.
        generation: Generation,
    },
    /// The library failed; it never does for keys and lengths as they are used here.
    #[error("the cipher failed")]
    Cipher,
}
