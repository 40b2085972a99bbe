//! The data keys, unwrapped, as this process knows them.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use super::Identity;
use crate::codec::encryption::{DataKey, Generation};

/// The data keys of an encrypted repository. Grows when another writer has made a new generation.
#[derive(Debug)]
pub struct KeyRing {
    identities: Vec<Identity>,
    known: RwLock<Known>,
}

/// What one generation's document opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Never empty.
    pub(super) keys: BTreeMap<Generation, DataKey>,
    /// Whether the repository began without encryption, so that objects may lie in it in the clear.
    pub(super) began_unencrypted: bool,
}

impl Known {
    /// The newest generation and its key.
    pub(super) fn newest(&self) -> Option<(Generation, DataKey)> {
        self.keys.last_key_value().map(|(generation, key)| (*generation, key.clone()))
    }

    /// Whether everything that `older` knows is the same here.
    pub(super) fn continues(&self, older: &Self) -> bool {
        self.began_unencrypted == older.began_unencrypted
            && older.keys.iter().all(|(generation, key)| self.keys.get(generation) == Some(key))
    }
}

impl KeyRing {
    pub(super) fn new(identities: Vec<Identity>, known: Known) -> Self {
        Self { identities, known: RwLock::new(known) }
    }

    /// What opens the ring.
    pub(super) fn identities(&self) -> &[Identity] {
        &self.identities
    }

    pub(super) fn known(&self) -> Known {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn learn(&self, known: Known) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// The generation for new objects, and its key.
    pub fn newest(&self) -> Option<(Generation, DataKey)> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).newest()
    }

    /// The key of a generation, if it is known.
    pub fn key(&self, generation: Generation) -> Option<DataKey> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).keys.get(&generation).cloned()
    }

    /// Whether objects may lie in the clear, from before encryption was turned on.
    pub fn began_unencrypted(&self) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).began_unencrypted
    }
}
