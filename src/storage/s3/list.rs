//! Listings, page by page.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use futures_util::future::try_join_all;

use super::bucket::Bucket;
use super::failure::Failure;
use super::probe::is_scratch;
use crate::storage::key::check_prefix;
use crate::storage::{Level, ObjectInfo, ObjectKey, StorageErrorKind, StorageResult};

/// How many folders are looked into at a time.
const AT_A_TIME: usize = 8;

/// What a listing names.
enum Entry {
    Object(ObjectInfo),
    /// A prefix that ends in `/`.
    Folder(String),
}

impl Entry {
    fn into_folder(self) -> Option<String> {
        match self {
            Self::Object(_) => None,
            Self::Folder(prefix) => Some(prefix),
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Object(info) => info.key.as_str(),
            Self::Folder(prefix) => prefix,
        }
    }
}

impl Bucket {
    /// Objects below `prefix` and after `after`, in key order.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> StorageResult<Vec<ObjectInfo>> {
        let found = match (after, limit) {
            (None, None) => self.everything(prefix).await,
            _ => self.some(prefix, after, limit.unwrap_or(usize::MAX)).await,
        };
        found.map_err(|failure| self.error("list", prefix, failure))
    }

    /// Names of the folders right below `prefix`.
    pub(super) async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.folders(prefix).await.map_err(|failure| self.error("list_folders", prefix, failure))
    }

    /// What lies right below `prefix`.
    pub(super) async fn list_level(&self, prefix: &str) -> StorageResult<Level> {
        let entries = self.entries(prefix, Some("/")).await;
        let mut level = Level::default();
        for entry in entries.map_err(|failure| self.error("list", prefix, failure))? {
            match entry {
                Entry::Object(info) => level.objects.push(info),
                Entry::Folder(folder) => {
                    let name = folder.strip_prefix(prefix).and_then(|name| name.strip_suffix('/'));
                    level.folders.extend(name.map(str::to_owned));
                }
            }
        }
        Ok(level)
    }

    /// Everything below `prefix`. The order in which a store lists does not matter here: some go folder by folder, so
    /// that `a/1` comes before `a-b/1`.
    async fn everything(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Failure> {
        let mut found = Vec::new();
        for entry in self.entries(prefix, None).await? {
            if let Entry::Object(info) = entry {
                found.push(info);
            }
        }
        Ok(found)
    }

    /// The first `limit` objects after `after`, found folder by folder: from a store that lists in another order, a
    /// listing that starts or ends in the middle would leave out objects in silence.
    async fn some(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectInfo>, Failure> {
        let mut found = Vec::new();
        let mut waiting = vec![Entry::Folder(prefix.to_owned())];
        while let Some(entry) = waiting.pop().filter(|_| found.len() < limit) {
            match entry {
                Entry::Object(info) if after.is_none_or(|after| info.key.as_str() > after) => found.push(info),
                Entry::Object(_) => {}
                Entry::Folder(folder) => {
                    let lies_before = after.is_some_and(|after| after > folder.as_str() && !after.starts_with(&folder));
                    if !lies_before || folder == prefix {
                        let entries = self.entries(&folder, Some("/")).await?;
                        waiting.extend(entries.into_iter().rev());
                    }
                }
            }
        }
        Ok(found)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let entries = self.entries(prefix, Some("/")).await?;
        let all: Vec<String> = entries.into_iter().filter_map(Entry::into_folder).collect();
        let mut folders = Vec::new();
        for some in all.chunks(AT_A_TIME) {
            let real = try_join_all(some.iter().map(|folder| self.holds_object(folder))).await?;
            let real = some.iter().zip(real).filter_map(|(folder, real)| real.then_some(folder));
            folders.extend(real.filter_map(|folder| Some(folder.strip_prefix(prefix)?.strip_suffix('/')?.to_owned())));
        }
        // As names, without the `/` that sorted them as keys.
        folders.sort();
        Ok(folders)
    }

    /// Whether there is an object below a folder. SeaweedFS keeps naming folders whose last object was deleted; at AWS
    /// there are no folders other than those of objects.
    async fn holds_object(&self, folder: &str) -> Result<bool, Failure> {
        if self.is_aws {
            return Ok(true);
        }
        let mut token = None;
        loop {
            let page = self.page(folder, None, token.clone(), Some(1)).await?;
            if !page.contents().is_empty() {
                return Ok(true);
            }
            let next = next(&page, token.as_deref())?;
            if next.is_none() {
                return Ok(false);
            }
            token = next;
        }
    }

    /// All pages of what lies below a prefix (with a delimiter: right below it), sorted as keys, what is not ours left
    /// out.
    async fn entries(&self, prefix: &str, delimiter: Option<&str>) -> Result<Vec<Entry>, Failure> {
        check_prefix(prefix).map_err(|error| Failure::found(StorageErrorKind::Other, error.to_string()))?;
        let mut entries = Vec::new();
        let mut token = None;
        loop {
            let page = self.page(prefix, delimiter, token.clone(), None).await?;
            for object in page.contents() {
                let Some(key) = object.key().and_then(|key| self.ours(key, prefix)) else { continue };
                let Ok(key) = ObjectKey::new(key) else { continue };
                let size = object.size().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| corrupt(format!("the listing has no size for {key}")))?;
                entries.push(Entry::Object(ObjectInfo { key, size }));
            }
            for folder in page.common_prefixes().iter().filter_map(|common| self.ours(common.prefix()?, prefix)) {
                if check_prefix(folder).is_ok() {
                    entries.push(Entry::Folder(folder.to_owned()));
                }
            }
            let next = next(&page, token.as_deref())?;
            if next.is_none() {
                break;
            }
            token = next;
        }
        entries.sort_by(|a, b| a.key().cmp(b.key()));
        entries.dedup_by(|a, b| a.key() == b.key());
        Ok(entries)
    }

    /// A key or folder without the place's prefix, if it lies below `prefix` and is no scratch object.
    fn ours<'a>(&self, full: &'a str, prefix: &str) -> Option<&'a str> {
        let key = full.strip_prefix(&self.place.prefix)?;
        (key.len() > prefix.len() && key.starts_with(prefix) && !is_scratch(key)).then_some(key)
    }

    async fn page(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        token: Option<String>,
        most: Option<i32>,
    ) -> Result<ListObjectsV2Output, Failure> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.place.bucket)
            .prefix(self.full(prefix))
            .set_delimiter(delimiter.map(str::to_owned))
            .set_max_keys(most)
            .set_continuation_token(token);
        request.customize().config_override(Self::settings(0)).send().await.map_err(Failure::from)
    }
}

/// Where to go on, or `None` at the end. A listing that says it goes on and does not say where would end early in
/// silence, and one that goes in a circle never.
fn next(page: &ListObjectsV2Output, last: Option<&str>) -> Result<Option<String>, Failure> {
    if page.is_truncated() != Some(true) {
        return Ok(None);
    }
    match page.next_continuation_token() {
        None | Some("") => Err(corrupt("the listing was cut short and does not tell where it goes on".to_owned())),
        token if token == last => Err(corrupt("the listing goes in a circle".to_owned())),
        token => Ok(token.map(str::to_owned)),
    }
}

fn corrupt(message: String) -> Failure {
    Failure::found(StorageErrorKind::Corrupt, message)
}
