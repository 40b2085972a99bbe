//! Storing an object under a free key.
//!
//! Where the store keeps the promise of a conditional put, that is all there is. Where it does not
//! ([`PutIfAbsent::Unreliable`]) we look before, put, and look again after: what is found then is ours, or the key is
//! reported as taken. Two writers that pass the first look together can still replace one another's object; whoever
//! looks last finds what stays. So callers use names that carry the content or its writer, and compare.

use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};

use super::bucket::Bucket;
use super::failure::Failure;
use super::multipart::THRESHOLD;
use super::probe::Abilities;
use super::signing::KnownSha256;
use crate::codec::digest::sha256 as digest;
use crate::storage::{Body, ObjectKey, PutIfAbsent, PutOutcome, Sha256, StorageErrorKind, StorageResult};

impl Bucket {
    /// Stores a body under a free key.
    pub(super) async fn put_new(
        &self,
        key: &ObjectKey,
        body: Body,
        sha256: Sha256,
        abilities: Abilities,
    ) -> StorageResult<PutOutcome> {
        let unreliable = abilities.put_if_absent == PutIfAbsent::Unreliable;
        let put = async {
            if unreliable && self.seems_taken(key).await? {
                return Ok(PutOutcome::AlreadyExists);
            }
            match body {
                Body::File { path, len } if len > THRESHOLD => {
                    let outcome = self.put_parts(key, &path, len, sha256, abilities).await?;
                    self.confirm(key, outcome, len, unreliable.then_some(sha256), None).await
                }
                body => {
                    let bytes = whole(body, sha256).await?;
                    let (outcome, etag) = self.put_bytes(key, bytes.clone(), sha256, abilities).await?;
                    // Content of which a checksum was sent is what arrived, whoever says so with an ETag.
                    let said_so = etag.is_some();
                    if outcome == PutOutcome::AlreadyExists || (said_so && !unreliable) {
                        return Ok(outcome);
                    }
                    let md5 = hex::encode(Md5::digest(&bytes));
                    self.confirm(key, outcome, bytes.len() as u64, unreliable.then_some(sha256), Some(&md5)).await
                }
            }
        };
        put.await.map_err(|failure| self.error("put", key.as_str(), failure))
    }

    /// One request; with the ETag that the store gave the object.
    pub(super) async fn put_bytes(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        sha256: Sha256,
        abilities: Abilities,
    ) -> Result<(PutOutcome, Option<String>), Failure> {
        let len = bytes.len() as u64;
        let request = self
            .client
            .put_object()
            .bucket(&self.place.bucket)
            .key(self.full(key.as_str()))
            .body(ByteStream::from(bytes))
            .set_storage_class(self.storage_class.clone())
            .set_if_none_match(abilities.conditions.then(|| "*".to_owned()))
            .set_checksum_sha256(abilities.sha256.then(|| STANDARD.encode(sha256)));
        let request = request.customize().config_override(Self::settings(len)).interceptor(KnownSha256(sha256));
        let sent = request.send().await.map_err(Failure::from);
        put_outcome(sent.map(|output: PutObjectOutput| output.e_tag))
    }

    /// Looks at what lies under the key now. `Created` stays only if it has this length and, where `compare` is given,
    /// this content: proven by an ETag that is the content's MD5, else by reading it back.
    async fn confirm(
        &self,
        key: &ObjectKey,
        outcome: PutOutcome,
        len: u64,
        compare: Option<Sha256>,
        md5: Option<&str>,
    ) -> Result<PutOutcome, Failure> {
        if outcome == PutOutcome::AlreadyExists {
            return Ok(outcome);
        }
        let request = self.client.head_object().bucket(&self.place.bucket).key(self.full(key.as_str()));
        let found = match request.customize().config_override(Self::settings(0)).send().await.map_err(Failure::from) {
            Ok(found) => found,
            Err(failure) if failure.status == Some(404) => {
                let message = "the store accepted the object and does not have it";
                return Err(Failure::found(StorageErrorKind::Transient, message));
            }
            Err(failure) => return Err(failure),
        };
        let same_length = found.content_length().and_then(|len| u64::try_from(len).ok()) == Some(len);
        let etag = found.e_tag().map(|etag| etag.trim_matches('"'));
        let same = match compare {
            _ if !same_length => false,
            None => true,
            Some(_) if md5.is_some() && etag == md5 => true,
            Some(sha256) => self.read_back(key, len).await? == sha256,
        };
        match (same, compare) {
            (true, _) => Ok(PutOutcome::Created),
            // Another writer's object lies there.
            (false, Some(_)) => Ok(PutOutcome::AlreadyExists),
            (false, None) => {
                let message = format!("{len} bytes were stored, {:?} are there", found.content_length());
                Err(Failure::found(StorageErrorKind::Corrupt, message))
            }
        }
    }
}

/// What the answer to a conditional request means.
pub(super) fn put_outcome(sent: Result<Option<String>, Failure>) -> Result<(PutOutcome, Option<String>), Failure> {
    match sent {
        Ok(etag) => Ok((PutOutcome::Created, etag.filter(|etag| !etag.is_empty()))),
        Err(failure) if failure.status == Some(412) || failure.has_code(&["PreconditionFailed"]) => {
            Ok((PutOutcome::AlreadyExists, None))
        }
        Err(failure) => Err(failure),
    }
}

/// The body in memory; a file is read and must be what its checksum says.
async fn whole(body: Body, sha256: Sha256) -> Result<Bytes, Failure> {
    let (path, len) = match body {
        Body::Bytes(bytes) => return Ok(bytes),
        Body::File { path, len } => (path, len),
    };
    let bytes = tokio::fs::read(&path).await.map_err(|error| {
        let message = format!("the file to store, {}, cannot be read: {error}", path.display());
        Failure::found(StorageErrorKind::Other, message)
    })?;
    if bytes.len() as u64 == len && digest(&bytes) == sha256 {
        return Ok(Bytes::from(bytes));
    }
    let message = format!("the file to store, {}, is not the {len} bytes that its checksum says", path.display());
    Err(Failure::found(StorageErrorKind::Corrupt, message))
}
