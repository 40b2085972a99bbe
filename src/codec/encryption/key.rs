//! Data keys, and what is derived from them.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use zeroize::Zeroizing;

use super::{EncryptionError, SALT};
use crate::storage::Sha256;

/// Which key of the key ring, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(NonZeroU32);

impl Generation {
    /// The first one.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The generation with this number; there is no 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The one that follows.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The secret of one generation: 256 random bits. Shows in no output; its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct DataKey(Arc<Zeroizing<[u8; 32]>>);

impl DataKey {
    /// The key with these bits.
    pub fn new(bits: Zeroizing<[u8; 32]>) -> Self {
        Self(Arc::new(bits))
    }

    /// Its bits, to be wrapped for somebody.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The salt of an object. See the module's proof.
    pub(super) fn salt(&self, name: &str, plain_sha256: &Sha256) -> Result<[u8; SALT], EncryptionError> {
        let mac = hmac::Key::new(HMAC_SHA256, &*self.derive(&[], b"pgvault salt 1")?);
        let mut context = hmac::Context::with_key(&mac);
        // Fixed length first, so that no two pairs are the same bytes.
        context.update(plain_sha256);
        context.update(name.as_bytes());
        context.sign().as_ref().try_into().map_err(|_| EncryptionError::Cipher)
    }

    /// The key of the object with this salt.
    pub(super) fn object_key(&self, salt: &[u8; SALT]) -> Result<LessSafeKey, EncryptionError> {
        let bits = self.derive(salt, b"pgvault object 1")?;
        let key = UnboundKey::new(&AES_256_GCM, &*bits).map_err(|_| EncryptionError::Cipher)?;
        Ok(LessSafeKey::new(key))
    }

    fn derive(&self, salt: &[u8], purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, EncryptionError> {
        let mut bits = Zeroizing::new([0; 32]);
        Salt::new(HKDF_SHA256, salt)
            .extract(&**self.0)
            .expand(&[purpose], Bits256)
            .and_then(|derived| derived.fill(&mut *bits))
            .map_err(|_| EncryptionError::Cipher)?;
        Ok(bits)
    }
}

struct Bits256;

impl KeyType for Bits256 {
    fn len(&self) -> usize {
        32
    }
}

impl PartialEq for DataKey {
    /// In a time that tells nothing.
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.expose(), other.expose()).is_ok()
    }
}

impl Eq for DataKey {}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(***)")
    }
}
