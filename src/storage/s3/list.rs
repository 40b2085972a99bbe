//! Listings, page by page.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use super::bucket::Bucket;
use super::failure::Failure;
use crate::storage::key::check_prefix;
use crate::storage::{ObjectInfo, ObjectKey, StorageErrorKind, StorageResult};

/// The most that S3 gives at a time.
const PAGE: usize = 1000;

/// Where the next page of a listing starts.
#[derive(Clone, Debug)]
enum From {
    After(Option<String>),
    Token(String),
}

impl Bucket {
    /// Objects below `prefix` and after `after`, in key order.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> StorageResult<Vec<ObjectInfo>> {
        self.objects(prefix, after, limit.unwrap_or(usize::MAX))
            .await
            .map_err(|failure| self.error("list", prefix, failure))
    }

    /// Names of the folders right below `prefix`.
    pub(super) async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.folders(prefix).await.map_err(|failure| self.error("list_folders", prefix, failure))
    }

    async fn objects(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectInfo>, Failure> {
        check_prefix(prefix).map_err(|error| Failure::found(StorageErrorKind::Other, error.to_string()))?;
        let mut found: Vec<ObjectInfo> = Vec::new();
        let mut from = Some(From::After(after.map(|after| self.full(after))));
        while let Some(at) = from.take().filter(|_| found.len() < limit) {
            let page = self.page(prefix, &at, None, limit - found.len()).await?;
            for object in page.contents() {
                // What has no key of ours, or lies elsewhere, is not ours.
                let key = object.key().and_then(|key| key.strip_prefix(&self.place.prefix));
                let Some(key) = key.filter(|key| key.starts_with(prefix)).and_then(|key| ObjectKey::new(key).ok()) else {
                    continue;
                };
                let size = object.size().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| corrupt(format!("the listing has no size for {key}")))?;
                // Some stores do not know where to start.
                if after.is_none_or(|after| key.as_str() > after) {
                    found.push(ObjectInfo { key, size });
                }
            }
            from = next(&page, &at)?;
        }
        if !found.is_sorted_by(|a, b| a.key < b.key) {
            // Sorting repairs a whole listing; of a part nobody knows what it leaves out.
            if from.is_some() {
                return Err(corrupt("the store does not list in key order".to_owned()));
            }
            found.sort_by(|a, b| a.key.cmp(&b.key));
            found.dedup();
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        check_prefix(prefix).map_err(|error| Failure::found(StorageErrorKind::Other, error.to_string()))?;
        let full = self.full(prefix);
        let mut folders = Vec::new();
        let mut from = Some(From::After(None));
        while let Some(at) = from {
            let page = self.page(prefix, &at, Some("/"), PAGE).await?;
            let names = page.common_prefixes().iter().filter_map(|common| common.prefix());
            let names = names.filter_map(|name| name.strip_prefix(&full)?.strip_suffix('/'));
            folders.extend(names.filter(|name| ObjectKey::new(*name).is_ok()).map(str::to_owned));
            from = next(&page, &at)?;
        }
        folders.sort();
        folders.dedup();
        Ok(folders)
    }

    async fn page(
        &self,
        prefix: &str,
        from: &From,
        delimiter: Option<&str>,
        most: usize,
    ) -> Result<ListObjectsV2Output, Failure> {
        let most = i32::try_from(most.min(PAGE)).unwrap_or(i32::MAX);
        let mut request = self
            .client
            .list_objects_v2()
            .bucket(&self.place.bucket)
            .prefix(self.full(prefix))
            .set_delimiter(delimiter.map(str::to_owned))
            .max_keys(most);
        request = match from.clone() {
            From::After(after) => request.set_start_after(after),
            From::Token(token) => request.continuation_token(token),
        };
        request.customize().config_override(Self::settings(0)).send().await.map_err(Failure::from)
    }
}

/// Where to go on, or `None` at the end. A listing that says it goes on and does not say where would end early in
/// silence, and one that goes in a circle never.
fn next(page: &ListObjectsV2Output, at: &From) -> Result<Option<From>, Failure> {
    if page.is_truncated() != Some(true) {
        return Ok(None);
    }
    match page.next_continuation_token() {
        None | Some("") => Err(corrupt("the listing was cut short and does not tell where it goes on".to_owned())),
        Some(token) if matches!(at, From::Token(last) if last == token) => {
            Err(corrupt("the listing goes in a circle".to_owned()))
        }
        Some(token) => Ok(Some(From::Token(token.to_owned()))),
    }
}

fn corrupt(message: String) -> Failure {
    Failure::found(StorageErrorKind::Corrupt, message)
}
