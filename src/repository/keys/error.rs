//! Why encrypted objects cannot be read or written.

use crate::codec::encryption::Generation;

/// What is wrong with keys. Names files, recipients and generations; never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The repository is encrypted and nobody said with what it is to be read.
    #[error("the repository is encrypted (key generation {newest}), and no identity is configured")]
    NoIdentity {
        /// The newest generation.
        newest: Generation,
    },
    /// What is configured opens none of it.
    #[error(
        "{named_by} does not open the repository's key ring: generation {newest} is for {}",
        recipients.join(", ")
    )]
    WrongIdentity {
        /// Where the identity was said.
        named_by: String,
        /// The newest generation.
        newest: Generation,
        /// Whom it is for.
        recipients: Vec<String>,
    },
    /// The text is no age identity file.
    #[error("{named_by} holds no age identity: {what}")]
    NotAnIdentity {
        /// Where it was said.
        named_by: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An object is encrypted with a key that the key ring does not have.
    #[error("it is encrypted with the key of generation {generation}, and {}", have.as_ref().map_or_else(
        || "the repository has no key ring (keys/*.json)".to_owned(),
        |newest| format!("the key ring ends with generation {newest}")
    ))]
    UnknownGeneration {
        /// What the object claims.
        generation: Generation,
        /// The newest generation that is known.
        have: Option<Generation>,
    },
    /// Encryption is configured and there is no key ring yet.
    #[error("encryption is configured, and the repository has no key ring: nothing is stored in the clear")]
    NoKeyRing,
    /// The repository was encrypted, and its key ring is gone.
    #[error("the repository says that it is encrypted, and its key ring (keys/*.json) is gone")]
    KeyRingGone,
    /// No recipients where keys are to be made.
    #[error("no recipients are configured: repository.encryption is empty")]
    NoRecipients,
}
