//! Reading objects.

use std::ops::Range;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;

use super::bucket::Bucket;
use super::client::time_for;
use super::failure::Failure;
use crate::storage::{ObjectKey, StorageErrorKind, StorageResult};

impl Bucket {
    /// The whole object.
    pub(super) async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        let read = async {
            let output = self.request_object(key, None).await?;
            collect(output).await
        };
        read.await.map_err(|failure| self.error("get", key.as_str(), failure))
    }

    /// Bytes of an object; empty past its end.
    pub(super) async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StorageResult<Bytes> {
        let error = |failure| self.error("get_range", key.as_str(), failure);
        if range.is_empty() {
            let exists = self.head(key).await?.is_some();
            return if exists { Ok(Bytes::new()) } else { Err(error(no_such_object())) };
        }
        let last = if range.end == u64::MAX { String::new() } else { (range.end - 1).to_string() };
        let output = match self.request_object(key, Some(format!("bytes={}-{last}", range.start))).await {
            Ok(output) => output,
            // The object ends before the range starts.
            Err(failure) if failure.status == Some(416) || failure.has_code(&["InvalidRange"]) => {
                return Ok(Bytes::new());
            }
            Err(failure) => return Err(error(failure)),
        };
        let given = output.content_range().map(str::to_owned);
        let bytes = collect(output).await.map_err(error)?;
        within(bytes, &range, given.as_deref()).map_err(error)
    }

    /// Length of an object, or that there is none: said only when the store says exactly that.
    pub(super) async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        let look = async {
            let request = self.client.head_object().bucket(&self.place.bucket).key(self.full(key.as_str()));
            match request.customize().config_override(Self::settings(0)).send().await.map_err(Failure::from) {
                Ok(output) => length(output.content_length()).map(Some),
                Err(failure) if failure.status == Some(404) => self.confirm_absence(key).await,
                Err(failure) => Err(failure),
            }
        };
        look.await.map_err(|failure| self.error("head", key.as_str(), failure))
    }

    /// Whether an object seems to be under the key; for a look before a put, which itself finds out more.
    pub(super) async fn seems_taken(&self, key: &ObjectKey) -> Result<bool, Failure> {
        let request = self.client.head_object().bucket(&self.place.bucket).key(self.full(key.as_str()));
        match request.customize().config_override(Self::settings(0)).send().await.map_err(Failure::from) {
            Ok(_) => Ok(true),
            Err(failure) if failure.status == Some(404) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// An answer to HEAD has no body, so its 404 may mean that the bucket is gone or that a proxy knows no such page. A
    /// GET says which.
    async fn confirm_absence(&self, key: &ObjectKey) -> Result<Option<u64>, Failure> {
        match self.request_object(key, None).await {
            // It was put a moment ago. Its content is not read.
            Ok(output) => length(output.content_length()).map(Some),
            Err(failure) if failure.kind == StorageErrorKind::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn request_object(&self, key: &ObjectKey, range: Option<String>) -> Result<GetObjectOutput, Failure> {
        let request = self.client.get_object().bucket(&self.place.bucket).key(self.full(key.as_str())).set_range(range);
        request.customize().config_override(Self::settings(0)).send().await.map_err(|error| {
            let failure = Failure::from(error);
            // The same words for every store.
            if failure.kind == StorageErrorKind::NotFound { no_such_object() } else { failure }
        })
    }
}

/// Reads the body to its announced end.
async fn collect(output: GetObjectOutput) -> Result<Bytes, Failure> {
    let transient = |message: String| Failure::found(StorageErrorKind::Transient, message);
    let announced = output.content_length();
    let limit = time_for(announced.and_then(|len| u64::try_from(len).ok()).unwrap_or_default());
    let body = tokio::time::timeout(limit, output.body.collect())
        .await
        .map_err(|_| transient(format!("the content did not arrive within {} seconds", limit.as_secs())))?
        .map_err(|error| transient(format!("the content ended early: {error}")))?
        .into_bytes();
    match announced {
        Some(len) if usize::try_from(len) != Ok(body.len()) => {
            Err(transient(format!("{} bytes arrived of {len} announced", body.len())))
        }
        _ => Ok(body),
    }
}

/// What of `bytes` lies in the range that was asked for; `given` is the `Content-Range` that came with them.
fn within(bytes: Bytes, range: &Range<u64>, given: Option<&str>) -> Result<Bytes, Failure> {
    let wanted = range.end - range.start;
    let Some(given) = given else {
        // The store does not know ranges and sent everything.
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        return Ok(bytes.slice(clamp(range.start)..clamp(range.end)));
    };
    let start =
        given.strip_prefix("bytes ").and_then(|rest| rest.split_once('-')).and_then(|(start, _)| start.parse().ok());
    if start == Some(range.start) && bytes.len() as u64 <= wanted {
        return Ok(bytes);
    }
    let message = format!("asked for bytes {}-{}, got {} bytes as \"{given}\"", range.start, range.end, bytes.len());
    Err(Failure::found(StorageErrorKind::Corrupt, message))
}

fn length(announced: Option<i64>) -> Result<u64, Failure> {
    announced
        .and_then(|len| u64::try_from(len).ok())
        .ok_or_else(|| Failure::found(StorageErrorKind::Corrupt, "the store does not tell the object's length"))
}

fn no_such_object() -> Failure {
    Failure::found(StorageErrorKind::NotFound, "no such object")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::within;

    #[test]
    fn a_range_is_what_was_asked_for_or_an_error() {
        let got = |bytes: &'static str, range, given| within(Bytes::from_static(bytes.as_bytes()), &range, given);
        assert_eq!(got("bcd", 1..4, Some("bytes 1-3/9")).unwrap(), "bcd");
        assert_eq!(got("bc", 1..4, Some("bytes 1-2/3")).unwrap(), "bc");
        assert!(got("abc", 1..4, Some("bytes 0-2/9")).is_err());
        assert!(got("bcde", 1..4, Some("bytes 1-4/9")).is_err());
        assert!(got("bcd", 1..4, Some("nonsense")).is_err());
        // Ranges are not known: the whole object came.
        assert_eq!(got("abcdef", 1..4, None).unwrap(), "bcd");
        assert_eq!(got("abcdef", 9..u64::MAX, None).unwrap(), "");
    }
}
