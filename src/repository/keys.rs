//! The key ring of an encrypted repository: the data keys, wrapped for people. FORMAT.md 7.
//!
//! `keys/<generation>.json` has the data keys of this generation and of all before it, as an age file for the recipients.
//! It is written once. So the newest one and one identity read everything that was ever stored.

mod document;
mod error;
mod ring;
mod wrap;

#[cfg(test)]
mod tests;

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::codec::encryption::DataKey;

pub use document::{GenerationInfo, KeyRingDocument, list, rotate};
pub(super) use document::{create, open, refresh};
pub use error::KeyError;
pub use ring::KeyRing;
pub use wrap::{Identity, Recipient, new_identity};

/// What the configuration says about encryption.
#[derive(Clone, Debug, Default)]
pub struct EncryptionOptions {
    /// For whom new data keys are wrapped. Not empty: nothing may be stored in the clear.
    pub recipients: Vec<Recipient>,
    /// What opens the key ring; none: nothing encrypted can be read or written.
    pub identity: Option<IdentitySource>,
}

/// An identity and where it was said, for messages.
#[derive(Clone, Debug)]
pub struct IdentitySource {
    /// `/etc/pgvault/identity.txt`, `PGVAULT_IDENTITY`.
    pub named_by: String,
    /// The content of an age identity file.
    pub text: SecretString,
}

impl EncryptionOptions {
    /// The identities, parsed; none when none are configured.
    pub(super) fn identities(&self) -> Result<Vec<Identity>, KeyError> {
        self.identity.as_ref().map_or(Ok(Vec::new()), Identity::all_of)
    }
}

/// A new data key.
fn new_data_key() -> DataKey {
    let mut bits = Zeroizing::new([0; 32]);
    // The system's generator; rand seeds this one from it and asks it again regularly.
    rand::fill(&mut bits[..]);
    DataKey::new(bits)
}
