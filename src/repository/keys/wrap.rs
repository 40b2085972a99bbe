//! age: identities, recipients, wrapping.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use age::secrecy::ExposeSecret as _;
use age::x25519;
use age::{DecryptError, Decryptor, Encryptor};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{IdentitySource, KeyError};

/// The largest key ring that is unwrapped: millions of generations.
const MAX_PLAIN: u64 = 1 << 20;

/// Somebody for whom data keys are wrapped: `age1…`. Public.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(x25519::Recipient);

impl FromStr for Recipient {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What opens what was wrapped for its recipient. Secret.
#[derive(Clone)]
pub struct Identity(x25519::Identity);

impl Identity {
    /// Every identity of an age identity file: one a line, comments begin with `#`.
    pub(super) fn all_of(source: &IdentitySource) -> Result<Vec<Self>, KeyError> {
        let wrong = |what| KeyError::NotAnIdentity { named_by: source.named_by.clone(), what };
        let lines = source.text.expose_secret().lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parse = |line: &str| line.parse().map(Self).map_err(|_| wrong("a line is not AGE-SECRET-KEY-1…"));
        let identities = lines.map(parse).collect::<Result<Vec<_>, _>>()?;
        if identities.is_empty() { Err(wrong("it is empty")) } else { Ok(identities) }
    }

    /// Its recipient.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// `AGE-SECRET-KEY-1…`, to be written into a file and nowhere else.
    pub fn secret(&self) -> SecretString {
        SecretString::from(self.0.to_string().expose_secret().to_owned())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(*** of {})", self.recipient())
    }
}

/// A new identity, from the system's random numbers.
pub fn new_identity() -> Identity {
    Identity(x25519::Identity::generate())
}

/// An age file of `plain` for these recipients, at least one.
pub(super) fn wrap(plain: &[u8], recipients: &[Recipient]) -> Result<Vec<u8>, String> {
    let all = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(all).map_err(|error| error.to_string())?;
    let mut wrapped = Vec::new();
    let written = encryptor.wrap_output(&mut wrapped).and_then(|mut writer| {
        writer.write_all(plain)?;
        writer.finish()
    });
    written.map_err(|error| error.to_string())?;
    Ok(wrapped)
}

/// Why an age file could not be opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// It is for others.
    ForOthers,
    /// It is not what was wrapped.
    Damaged(String),
}

/// What was wrapped, for one of these identities.
pub(super) fn unwrap(wrapped: &[u8], identities: &[Identity]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
    let damaged = |error: &dyn fmt::Display| Unopened::Damaged(error.to_string());
    let decryptor = Decryptor::new_buffered(wrapped).map_err(|error| damaged(&error))?;
    let all = identities.iter().map(|identity| &identity.0 as &dyn age::Identity);
    let reader = decryptor.decrypt(all).map_err(|error| match error {
        DecryptError::NoMatchingKeys => Unopened::ForOthers,
        error => damaged(&error),
    })?;
    // Space for all of it at once: what a growing buffer leaves behind is not overwritten.
    let mut plain = Zeroizing::new(Vec::with_capacity(wrapped.len()));
    reader.take(MAX_PLAIN).read_to_end(&mut plain).map_err(|error| damaged(&error))?;
    Ok(plain)
}
