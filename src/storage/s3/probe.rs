//! What a store can do, found out with scratch objects.
//!
//! A conditional put that is ignored (Garage), raced (Ceph with versions, Swift) or unknown must never be taken for
//! one that holds. So one key is put twice, and another by many at once; only a store that refuses the second put, has
//! exactly one winner, and then holds the winner's bytes counts as atomic.

use bytes::Bytes;
use futures_util::future::join_all;
use tracing::debug;

use super::bucket::Bucket;
use super::failure::Failure;
use crate::codec::digest::sha256 as digest;
use crate::storage::{ObjectKey, PutIfAbsent, PutOutcome, StorageErrorKind, StorageResult};

/// Folder of scratch objects: no cluster's name has a dot.
const SCRATCH: &str = "pgvault.probe";
/// How many put one key at the same time.
const RACERS: usize = 12;

/// What one store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Whether put-if-absent holds.
    pub(super) put_if_absent: PutIfAbsent,
    /// Whether `If-None-Match` may be sent at all.
    pub(super) conditions: bool,
    /// Whether `x-amz-checksum-sha256` may be sent.
    pub(super) sha256: bool,
}

impl Abilities {
    const ALL: [Self; 4] =
        [Self::sending(true, true), Self::sending(true, false), Self::sending(false, true), Self::NONE];
    const NONE: Self = Self::sending(false, false);

    const fn sending(conditions: bool, sha256: bool) -> Self {
        Self { put_if_absent: PutIfAbsent::Unreliable, conditions, sha256 }
    }
}

/// Finds out what the store can do. Needs the right to put and get; scratch objects stay where deleting is not allowed.
pub(super) async fn probe(bucket: &Bucket) -> StorageResult<Abilities> {
    let twice = scratch_key();
    let raced = scratch_key();
    let found = find(bucket, &twice, &raced).await;
    if let Err(error) = bucket.delete(&[twice.clone(), raced]).await {
        debug!(cause = %error.message, "scratch objects stay");
    }
    let abilities = found.map_err(|failure| bucket.error("open", twice.as_str(), failure))?;
    debug!(location = %bucket.location(), ?abilities, "what this store can do");
    Ok(abilities)
}

async fn find(bucket: &Bucket, twice: &ObjectKey, raced: &ObjectKey) -> Result<Abilities, Failure> {
    let mut abilities = first_put(bucket, twice).await?;
    if abilities.conditions
        && refuses_second_put(bucket, twice, abilities).await?
        && race(bucket, raced, abilities).await?
    {
        abilities.put_if_absent = PutIfAbsent::Atomic;
    }
    Ok(abilities)
}

/// Puts an object with as many headers as the store takes.
async fn first_put(bucket: &Bucket, key: &ObjectKey) -> Result<Abilities, Failure> {
    let mut last = None;
    for abilities in Abilities::ALL {
        match put(bucket, key, "first", abilities).await {
            Ok(_) => return Ok(abilities),
            // Headers that a service does not know make it answer 400 or 501, in many words.
            Err(failure) if failure.status == Some(400) || failure.is_not_implemented() => last = Some(failure),
            Err(failure) => return Err(failure),
        }
        if last.as_ref().is_some_and(|failure: &Failure| failure.kind == StorageErrorKind::Denied) {
            break;
        }
    }
    Err(last.unwrap_or_else(|| Failure::found(StorageErrorKind::Other, "no put was tried")))
}

async fn refuses_second_put(bucket: &Bucket, key: &ObjectKey, abilities: Abilities) -> Result<bool, Failure> {
    let refused = match put(bucket, key, "second", abilities).await {
        Ok(outcome) => outcome == PutOutcome::AlreadyExists,
        Err(failure) if failure.is_not_implemented() => false,
        Err(failure) => return Err(failure),
    };
    Ok(refused && read(bucket, key).await? == "first")
}

/// Whether exactly one of many wins, and the object is the winner's.
async fn race(bucket: &Bucket, key: &ObjectKey, abilities: Abilities) -> Result<bool, Failure> {
    let racers = (0..RACERS).map(|racer| async move {
        let text = format!("racer {racer}");
        let won = match put(bucket, key, &text, abilities).await {
            Ok(outcome) => outcome == PutOutcome::Created,
            // 409: the store noticed the race and wants it repeated; no winner.
            Err(failure) if failure.status == Some(409) => false,
            Err(failure) => return Err(failure),
        };
        Ok((text, won))
    });
    let outcomes = join_all(racers).await.into_iter().collect::<Result<Vec<_>, Failure>>()?;
    let winners: Vec<&str> = outcomes.iter().filter(|(_, won)| *won).map(|(text, _)| text.as_str()).collect();
    match winners.as_slice() {
        [winner] => Ok(read(bucket, key).await? == *winner),
        _ => Ok(false),
    }
}

async fn put(bucket: &Bucket, key: &ObjectKey, text: &str, abilities: Abilities) -> Result<PutOutcome, Failure> {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    let sha256 = digest(&bytes);
    Ok(bucket.put_bytes(key, bytes, sha256, abilities).await?.0)
}

async fn read(bucket: &Bucket, key: &ObjectKey) -> Result<Bytes, Failure> {
    bucket.get(key).await.map_err(|error| Failure::found(error.kind, error.message))
}

/// Whether a key or folder is of scratch objects, which no listing shows.
pub(super) fn is_scratch(key: &str) -> bool {
    key.strip_prefix(SCRATCH).is_some_and(|rest| rest.starts_with('/'))
}

/// A key that nobody else uses.
fn scratch_key() -> ObjectKey {
    ObjectKey::new(format!("{SCRATCH}/{:032x}", rand::random::<u128>())).expect("hexadecimal digits are a key")
}
