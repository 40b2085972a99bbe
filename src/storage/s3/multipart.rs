//! Storing a file that is too large for one request.
//!
//! Parts are read in order and sent a few at a time. Nothing is visible under the key before the last step, which is
//! conditional like a small put; whatever happens before it, the upload is taken back, also when the caller goes away.

use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::retry::RetryConfig;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tracing::debug;

use super::bucket::Bucket;
use super::failure::Failure;
use super::probe::Abilities;
use super::put::put_outcome;
use crate::codec::digest::Hasher;
use crate::storage::{ObjectKey, PutOutcome, Sha256, StorageErrorKind};

const MIB: u64 = 1024 * 1024;
/// Larger files are sent in parts.
pub(super) const THRESHOLD: u64 = 64 * MIB;
/// The smallest part; grows with the file, since S3 takes 10,000 parts at most.
const PART: u64 = 16 * MIB;
const MAX_PARTS: u64 = 9_000;
/// How many parts are under way, and in memory, at a time.
const AT_A_TIME: usize = 3;
/// How often a part is tried, so that one bad answer does not cost the whole upload.
const ATTEMPTS: u32 = 4;
/// How much is read back at a time.
const READ_BACK: u64 = 8 * MIB;

/// Length of the parts of a file, except the last.
fn part_len(len: u64) -> u64 {
    PART.max(len.div_ceil(MAX_PARTS).div_ceil(MIB) * MIB)
}

impl Bucket {
    /// Stores a file of this length in parts.
    pub(super) async fn put_parts(
        &self,
        key: &ObjectKey,
        path: &Path,
        len: u64,
        sha256: Sha256,
        abilities: Abilities,
    ) -> Result<PutOutcome, Failure> {
        if self.seems_taken(key).await? {
            return Ok(PutOutcome::AlreadyExists);
        }
        let mut upload = self.start_upload(key).await?;
        let parts = self.send_parts(&upload, path, len, sha256).await?;
        let outcome = self.complete(&upload, parts, abilities).await?;
        upload.complete = outcome == PutOutcome::Created;
        Ok(outcome)
    }

    async fn start_upload(&self, key: &ObjectKey) -> Result<Upload, Failure> {
        let key = self.full(key.as_str());
        let request = self.client.create_multipart_upload().bucket(&self.place.bucket).key(&key);
        let request = request.set_storage_class(self.storage_class.clone()).customize();
        let output = request.config_override(Self::settings(0)).send().await?;
        let id = output.upload_id().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| Failure::found(StorageErrorKind::Corrupt, "the store gave no upload id"))?;
        let (client, bucket) = (self.client.clone(), self.place.bucket.clone());
        Ok(Upload { client, bucket, key, id: id.to_owned(), complete: false })
    }

    /// Sends every part, and checks on the way that the file is what its checksum says.
    async fn send_parts(
        &self,
        upload: &Upload,
        path: &Path,
        len: u64,
        sha256: Sha256,
    ) -> Result<Vec<CompletedPart>, Failure> {
        let wrong = |kind, what: String| Failure::found(kind, format!("the file to store, {}, {what}", path.display()));
        let unreadable = |error: std::io::Error| wrong(StorageErrorKind::Other, format!("cannot be read: {error}"));
        let file = File::open(path).await.map_err(unreadable)?;
        let mut source = Source { file, left: len, part: part_len(len), number: 0, hasher: Hasher::new() };
        let mut under_way: FuturesOrdered<BoxFuture<'_, _>> = FuturesOrdered::new();
        let mut parts = Vec::new();
        while let Some((number, bytes)) = source.next().await.map_err(unreadable)? {
            if under_way.len() == AT_A_TIME
                && let Some(part) = under_way.next().await
            {
                parts.push(part?);
            }
            under_way.push_back(Box::pin(self.send_part(upload, number, bytes)));
        }
        while let Some(part) = under_way.next().await {
            parts.push(part?);
        }
        let at_end = source.at_end().await.map_err(unreadable)?;
        if at_end && source.hasher.finish() == sha256 {
            return Ok(parts);
        }
        Err(wrong(StorageErrorKind::Corrupt, format!("is not the {len} bytes that its checksum says")))
    }

    async fn send_part(&self, upload: &Upload, number: i32, bytes: Bytes) -> Result<CompletedPart, Failure> {
        let len = bytes.len() as u64;
        let request = self
            .client
            .upload_part()
            .bucket(&upload.bucket)
            .key(&upload.key)
            .upload_id(&upload.id)
            .part_number(number)
            .body(ByteStream::from(bytes));
        // A part may be sent again whatever became of it: the last one under a number counts, and they are the same.
        let retry = RetryConfig::standard().with_max_attempts(ATTEMPTS);
        let mut timeouts = super::client::timeouts(len).to_builder();
        timeouts.set_operation_timeout(super::client::timeouts(len).operation_timeout().map(|limit| limit * ATTEMPTS));
        let settings = Self::settings(len).retry_config(retry).timeout_config(timeouts.build());
        let output = request.customize().config_override(settings).send().await?;
        let etag = output.e_tag.filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| Failure::found(StorageErrorKind::Transient, "the store gave a part no ETag"))?;
        Ok(CompletedPart::builder().part_number(number).e_tag(etag).build())
    }

    /// Makes the object visible, if the key is still free.
    async fn complete(
        &self,
        upload: &Upload,
        parts: Vec<CompletedPart>,
        abilities: Abilities,
    ) -> Result<PutOutcome, Failure> {
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&upload.bucket)
            .key(&upload.key)
            .upload_id(&upload.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .set_if_none_match(abilities.conditions.then(|| "*".to_owned()));
        // Putting the parts together takes the store a while.
        let sent = request.customize().config_override(Self::settings(THRESHOLD)).send().await.map_err(Failure::from);
        // An error may come with status 200; the SDK reads the body. An answer without ETag is neither.
        let (outcome, etag) = put_outcome(sent.map(|output| output.e_tag))?;
        if outcome == PutOutcome::Created && etag.is_none() {
            let message = "the store neither completed the upload nor refused it";
            return Err(Failure::found(StorageErrorKind::Transient, message));
        }
        Ok(outcome)
    }

    /// SHA-256 of the first `len` bytes of what lies under a key, read in pieces.
    pub(super) async fn read_back(&self, key: &ObjectKey, len: u64) -> Result<Sha256, Failure> {
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < len {
            let piece = self.get_range(key, at..len.min(at + READ_BACK)).await;
            let piece = piece.map_err(|error| Failure::found(error.kind, error.message))?;
            if piece.is_empty() {
                break;
            }
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        Ok(hasher.finish())
    }
}

/// A file that is read part by part.
struct Source {
    file: File,
    left: u64,
    part: u64,
    number: i32,
    hasher: Hasher,
}

impl Source {
    /// The next part with its number, or `None` after the last.
    async fn next(&mut self) -> std::io::Result<Option<(i32, Bytes)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let len = self.left.min(self.part);
        let mut bytes = vec![0; usize::try_from(len).map_err(std::io::Error::other)?];
        self.file.read_exact(&mut bytes).await?;
        self.hasher.update(&bytes);
        self.left -= len;
        self.number += 1;
        Ok(Some((self.number, Bytes::from(bytes))))
    }

    /// Whether nothing is left, in the file as in the plan.
    async fn at_end(&mut self) -> std::io::Result<bool> {
        Ok(self.left == 0 && self.file.read(&mut [0]).await? == 0)
    }
}

/// An upload under way. Dropped before it is complete, it is taken back: parts of it are invisible in listings and paid
/// for all the same.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    complete: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.complete {
            return;
        }
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(&self.id);
        let key = self.key.clone();
        runtime.spawn(async move {
            // If this fails too, the bucket's rule for incomplete uploads takes it away.
            if let Err(error) = request.send().await {
                debug!(%key, %error, "an upload could not be taken back");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PARTS, MIB, THRESHOLD, part_len};

    #[test]
    fn parts_grow_so_that_their_number_stays_allowed() {
        assert_eq!(part_len(THRESHOLD), 16 * MIB);
        for len in [THRESHOLD, 140 * 1024 * MIB, 150 * 1024 * MIB, 5 * 1024 * 1024 * MIB] {
            assert!(len.div_ceil(part_len(len)) <= MAX_PARTS, "{len}");
            assert!(part_len(len) <= 5 * 1024 * MIB, "{len}");
        }
    }
}
