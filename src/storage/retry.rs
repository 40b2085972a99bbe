//! Repeats requests that failed for a reason that may pass.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use crate::codec::digest::Hasher;

use super::{
    Body, Capabilities, Level, ObjectInfo, ObjectKey, PutOutcome, Sha256, Storage, StorageErrorKind, StorageResult,
};

/// How often and how long a request is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// At most so many attempts, the first one included.
    pub attempts: u32,
    /// The longest wait before the second attempt; it doubles with each one.
    pub first_delay: Duration,
    /// The longest wait before any attempt.
    pub max_delay: Duration,
    /// No attempt starts later than this after the first one. An attempt that runs is bounded by the store itself.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    /// Six attempts within a minute: rides out a restart of the store, and lets whoever waits know soon.
    fn default() -> Self {
        Self {
            attempts: 6,
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            deadline: Duration::from_secs(60),
        }
    }
}

/// How much of an object is read back at a time.
const READ_BACK: u64 = 8 * 1024 * 1024;

/// A store whose requests are repeated while they fail with [`StorageErrorKind::Transient`].
///
/// Every operation may be repeated: reading changes nothing, deleting twice is deleting, and a put of a key that is
/// taken writes nothing. Only the *answer* of a repeated put needs care: when an attempt failed and the next one finds
/// the key taken, it may be our own object whose answer was lost. Then the object is read back, and if it is ours, byte
/// for byte, the put is what it was: `Created`. An object of the same bytes by another writer makes no difference.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Storage>,
    policy: RetryPolicy,
    random: AtomicU64,
}

impl Retry {
    /// Repeats requests to `inner`; `seed` starts the random numbers that spread the attempts.
    pub fn new(inner: Arc<dyn Storage>, policy: RetryPolicy, seed: u64) -> Self {
        Self { inner, policy, random: AtomicU64::new(seed) }
    }

    /// Runs `request` until it succeeds, fails for good, or the policy says stop. `request` learns how many attempts
    /// failed before.
    pub(super) async fn repeat<T, F>(&self, mut request: impl FnMut(u32) -> F) -> StorageResult<T>
    where
        F: Future<Output = StorageResult<T>>,
    {
        let start = Instant::now();
        let mut failed = 0;
        loop {
            let error = match request(failed).await {
                Err(error) if error.kind == StorageErrorKind::Transient => error,
                outcome => return outcome,
            };
            failed += 1;
            let delay = self.delay(failed);
            if failed >= self.policy.attempts || start.elapsed() + delay > self.policy.deadline {
                return Err(error);
            }
            debug!(operation = error.operation, key = %error.key, attempt = failed, cause = %error.message, "will repeat");
            tokio::time::sleep(delay).await;
        }
    }

    /// How long to wait after so many failures: between half and all of a time that doubles.
    fn delay(&self, failed: u32) -> Duration {
        let longest =
            self.policy.first_delay.saturating_mul(1 << failed.saturating_sub(1).min(16)).min(self.policy.max_delay);
        // splitmix64: evenly spread numbers from a counter, good enough to keep clients from marching in step.
        let mut x = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let fraction = (x >> 40) as f64 / (1u64 << 24) as f64;
        longest.mul_f64(0.5 + fraction / 2.0)
    }

    /// Whether the object under `key` is exactly this long and has this checksum. Read in pieces, for objects larger
    /// than memory.
    async fn holds(&self, key: &ObjectKey, len: u64, sha256: Sha256) -> StorageResult<bool> {
        if self.inner.head(key).await? != Some(len) {
            return Ok(false);
        }
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < len {
            let piece = self.inner.get_range(key, at..len.min(at + READ_BACK)).await?;
            if piece.is_empty() {
                return Ok(false);
            }
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        Ok(hasher.finish() == sha256)
    }
}

#[async_trait]
impl Storage for Retry {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        let len = body.len();
        self.repeat(|failed| {
            let body = body.clone();
            async move {
                let outcome = self.inner.put_new(key, body, sha256).await?;
                let perhaps_ours = failed > 0 && outcome == PutOutcome::AlreadyExists;
                Ok(if perhaps_ours && self.holds(key, len, sha256).await? { PutOutcome::Created } else { outcome })
            }
        })
        .await
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.repeat(|_| self.inner.get(key)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        self.repeat(|_| self.inner.get_range(key, range.clone())).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        self.repeat(|_| self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.repeat(|_| self.inner.list(prefix, after, limit)).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.repeat(|_| self.inner.list_folders(prefix)).await
    }

    async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        self.repeat(|_| self.inner.list_level(prefix)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        self.repeat(|_| self.inner.delete(keys)).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[cfg(test)]
mod tests;
