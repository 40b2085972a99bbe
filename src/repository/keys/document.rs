//! `keys/<generation>.json`: reading the ring, beginning it, adding to it. FORMAT.md 7.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wal::PgTime;
use zeroize::{Zeroize, Zeroizing};

use super::ring::Known;
use super::wrap::{Unopened, unwrap, wrap};
use super::{EncryptionOptions, Identity, KeyError, KeyRing, Recipient, new_data_key};
use crate::codec::encryption::{DataKey, Generation};
use crate::codec::sealed::{ENCRYPTION, seal_with_features};
use crate::repository::layout::{KEYS_PREFIX, ObjectName, Parsed};
use crate::repository::{Objects, PutNew, RepositoryError, RepositoryResult, unseal_document};
use crate::storage::{Body, ObjectKey, PutIfAbsent};

const KIND: &str = "key-ring";

/// How long two writers may be apart that make the same generation, on a store that ignores conditions.
const SETTLE: Duration = Duration::from_secs(5);

/// A generation as it is stored.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct KeyRingDocument {
    /// Which one.
    pub generation: Generation,
    /// When it was made.
    pub created_at: PgTime,
    /// Whom it is wrapped for; for people, the age file decides.
    pub recipients: Vec<String>,
    /// The age file, base64.
    wrapped: String,
}

/// What is wrapped. Secret.
#[derive(serde::Serialize, serde::Deserialize)]
struct Content {
    began_unencrypted: bool,
    keys: Vec<WrappedKey>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct WrappedKey {
    generation: Generation,
    key: String,
}

impl Drop for WrappedKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// One generation, for people.
#[derive(Clone, Debug)]
pub struct GenerationInfo {
    /// What is stored.
    pub document: KeyRingDocument,
    /// Whether one of the configured identities opens it.
    pub opens: bool,
}

/// The key ring of a repository; none when it has none.
///
/// Every generation that the identity opens is compared with the newest: a forged one, whose data key somebody else knows,
/// cannot have the keys of those before it.
pub(in crate::repository) async fn open(
    objects: &Objects,
    options: &EncryptionOptions,
) -> RepositoryResult<Option<KeyRing>> {
    let generations = generations(objects).await?;
    let Some(&newest) = generations.last() else { return Ok(None) };
    let identities = options.identities()?;
    let Some(source) = &options.identity else { return Err(KeyError::NoIdentity { newest }.into()) };
    let document = read(objects, newest).await?;
    let known = match unlock(&document, &identities)? {
        Some(known) => known,
        None => {
            let named_by = source.named_by.clone();
            return Err(KeyError::WrongIdentity { named_by, newest, recipients: document.recipients }.into());
        }
    };
    for &older in generations.iter().filter(|generation| **generation < newest) {
        // One that is damaged or gone is of no use to anybody: the newest has its keys.
        let Ok(document) = read(objects, older).await else { continue };
        if let Ok(Some(before)) = unlock(&document, &identities)
            && !known.continues(&before)
        {
            let what = format!("its keys are not those of generation {older}");
            return Err(RepositoryError::damaged(&ring_key(newest), what));
        }
    }
    Ok(Some(KeyRing::new(identities, known)))
}

/// Looks for a generation that this process does not know yet; whether there was one.
pub(in crate::repository) async fn refresh(objects: &Objects, ring: &KeyRing) -> RepositoryResult<bool> {
    let known = ring.known();
    let newest = generations(objects).await?.last().copied();
    let Some(newest) = newest.filter(|newest| !known.keys.contains_key(newest)) else { return Ok(false) };
    let Some(found) = unlock(&read(objects, newest).await?, ring.identities())? else { return Ok(false) };
    if !found.continues(&known) {
        return Err(RepositoryError::damaged(&ring_key(newest), "its keys are not those that were known before"));
    }
    ring.learn(found);
    Ok(true)
}

/// Makes the first generation. Of several that do so at once one wins, and the others open the winner's.
pub(in crate::repository) async fn create(
    objects: &Objects,
    options: &EncryptionOptions,
    began_unencrypted: bool,
    now: PgTime,
) -> RepositoryResult<KeyRing> {
    let keys = BTreeMap::from([(Generation::FIRST, new_data_key())]);
    put(objects, options, Known { keys, began_unencrypted }, now).await?;
    open(objects, options).await?.ok_or_else(|| RepositoryError::NotFound(ring_key(Generation::FIRST).to_string()))
}

/// Adds a generation with a new data key for all new objects, and the keys of all before it, for the recipients that are
/// configured now.
pub async fn rotate(objects: &Objects, options: &EncryptionOptions, now: PgTime) -> RepositoryResult<Generation> {
    let ring = open(objects, options).await?.ok_or(KeyError::NoKeyRing)?;
    let mut known = ring.known();
    let next = known.newest().and_then(|(newest, _)| newest.next()).ok_or(KeyError::NoKeyRing)?;
    known.keys.insert(next, new_data_key());
    match put(objects, options, known, now).await? {
        PutNew::Created => Ok(next),
        PutNew::Taken => Err(RepositoryError::mismatch(ring_key(next), "somebody else rotates at this moment")),
    }
}

/// Every generation that is stored, oldest first.
pub async fn list(objects: &Objects, options: &EncryptionOptions) -> RepositoryResult<Vec<GenerationInfo>> {
    let identities = options.identities()?;
    let mut found = Vec::new();
    for generation in generations(objects).await? {
        let document = read(objects, generation).await?;
        let opens = unlock(&document, &identities)?.is_some();
        found.push(GenerationInfo { document, opens });
    }
    Ok(found)
}

/// Stores the newest generation of `known`, once it is proven that the configured identity opens it: what nobody here
/// could read again is not begun.
async fn put(objects: &Objects, options: &EncryptionOptions, known: Known, now: PgTime) -> RepositoryResult<PutNew> {
    let (generation, _) = known.newest().ok_or(KeyError::NoKeyRing)?;
    let key = ring_key(generation);
    let failed = |what: String| RepositoryError::mismatch(&key, what);
    if options.recipients.is_empty() {
        return Err(KeyError::NoRecipients.into());
    }
    let Some(source) = &options.identity else { return Err(KeyError::NoIdentity { newest: generation }.into()) };
    let recipients: Vec<String> = options.recipients.iter().map(Recipient::to_string).collect();
    let wrapped_keys = known
        .keys
        .iter()
        .map(|(generation, key)| WrappedKey { generation: *generation, key: hex::encode(key.expose()) });
    let content = Content { began_unencrypted: known.began_unencrypted, keys: wrapped_keys.collect() };
    let plain = Zeroizing::new(serde_json::to_vec(&content).map_err(|error| failed(error.to_string()))?);
    let wrapped = STANDARD.encode(wrap(&plain, &options.recipients).map_err(failed)?);
    let document = KeyRingDocument { generation, created_at: now, recipients, wrapped };
    if unlock(&document, &options.identities()?)? != Some(known) {
        let named_by = source.named_by.clone();
        let recipients = document.recipients;
        return Err(KeyError::WrongIdentity { named_by, newest: generation, recipients }.into());
    }
    let sealed = seal_with_features(KIND, &[ENCRYPTION], &document).map_err(|error| failed(error.to_string()))?;
    let digest = crate::codec::digest::sha256(&sealed);
    let put = objects.put_in_the_clear(&key, Body::Bytes(sealed.into()), digest).await?;
    if put == PutNew::Taken || objects.storage().capabilities().put_if_absent == PutIfAbsent::Atomic {
        return Ok(put);
    }
    // Where the store keeps nobody apart, another writer may have looked before ours was there and put its own after we read
    // ours back. A key that was overwritten is lost with all that it encrypted: so nothing is, until that is over.
    tokio::time::sleep(SETTLE).await;
    Ok(if objects.stored_sha256(&key).await?.0 == digest { PutNew::Created } else { PutNew::Taken })
}

/// What a document holds; none when it is for others.
fn unlock(document: &KeyRingDocument, identities: &[Identity]) -> RepositoryResult<Option<Known>> {
    let key = ring_key(document.generation);
    let damaged = |what: String| RepositoryError::damaged(&key, what);
    let wrapped = STANDARD.decode(&document.wrapped).map_err(|error| damaged(error.to_string()))?;
    let plain = match unwrap(&wrapped, identities) {
        Ok(plain) => plain,
        Err(Unopened::ForOthers) => return Ok(None),
        Err(Unopened::Damaged(what)) => return Err(damaged(what)),
    };
    // The error of serde may quote what it found: it is not told.
    let content: Content =
        serde_json::from_slice(&plain).map_err(|_| damaged("what it wraps cannot be read".to_owned()))?;
    let mut keys = BTreeMap::new();
    for WrappedKey { generation, key } in &content.keys {
        let mut bits = Zeroizing::new([0; 32]);
        hex::decode_to_slice(key, &mut bits[..]).map_err(|_| damaged("a key in it is not 32 bytes".to_owned()))?;
        keys.insert(*generation, DataKey::new(bits));
    }
    let whole = (1..=document.generation.get()).map(Generation::new).all(|n| n.is_some_and(|n| keys.contains_key(&n)));
    if whole && keys.len() as u64 == u64::from(document.generation.get()) {
        Ok(Some(Known { keys, began_unencrypted: content.began_unencrypted }))
    } else {
        Err(damaged(format!("it does not have the keys of generations 1 to {}", document.generation)))
    }
}

async fn read(objects: &Objects, generation: Generation) -> RepositoryResult<KeyRingDocument> {
    let key = ring_key(generation);
    let document: KeyRingDocument = unseal_document(&key, KIND, &objects.get(&key).await?)?;
    if document.generation == generation {
        Ok(document)
    } else {
        Err(RepositoryError::damaged(&key, format!("it is generation {}", document.generation)))
    }
}

/// The generations that are stored, in order.
async fn generations(objects: &Objects) -> RepositoryResult<Vec<Generation>> {
    let listed = objects.storage().list(KEYS_PREFIX, None, None).await?;
    let generation = |key: &ObjectKey| match ObjectName::parse(key.as_str()) {
        Parsed::Known(ObjectName::KeyRing(number)) => Generation::new(number),
        _ => None,
    };
    let mut found: Vec<Generation> = listed.iter().filter_map(|object| generation(&object.key)).collect();
    found.sort_unstable();
    Ok(found)
}

fn ring_key(generation: Generation) -> ObjectKey {
    ObjectName::KeyRing(generation.get()).key()
}
