//! Headers of stored WAL, remembered on local disk so that searching needs no request twice.
//!
//! One append-only file of JSON lines per timeline and 4-GiB log: `<dir>/<repository id>/<cluster>/<lineage>/<tli>-<log>.jsonl`.
//! Headers of tails are remembered in memory only, until their segment is complete: there may be one every second.
//! It is a cache: whatever is missing, cut short or unreadable in it is read from the repository again, and a header that
//! turns out to differ from the stored one makes it forget everything.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable::PRIVATE_FILE;
use crate::repository::layout::LineageKeys;
use crate::repository::{Repository, WalHeader, WalKind};
use crate::storage::ObjectKey;

#[cfg(test)]
mod tests;

/// How many files' headers are held in memory: at 16-MiB segments a file has 256 of some 500 bytes.
const FILES_IN_MEMORY: usize = 64;

/// The remembered headers of one lineage. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HeaderCache {
    files: Arc<Mutex<Files>>,
}

#[derive(Debug)]
struct Files {
    /// None: remember only in memory.
    dir: Option<PathBuf>,
    loaded: BTreeMap<String, Loaded>,
    uses: u64,
}

#[derive(Debug, Default)]
struct Loaded {
    headers: BTreeMap<String, WalHeader>,
    last_use: u64,
}

#[derive(serde::Serialize)]
struct LineOut<'a> {
    key: &'a str,
    header: &'a WalHeader,
}

#[derive(serde::Deserialize)]
struct LineIn {
    key: String,
    header: WalHeader,
}

impl HeaderCache {
    /// The cache for one lineage, in the directory that the repository's options name.
    pub(super) fn new(repository: &Repository, keys: &LineageKeys) -> Self {
        let dir = repository.options().header_cache_dir.as_ref().map(|dir| {
            dir.join(repository.marker().id.as_str()).join(keys.cluster().as_str()).join(keys.lineage().to_string())
        });
        Self { files: Arc::new(Mutex::new(Files { dir, loaded: BTreeMap::new(), uses: 0 })) }
    }

    /// The header of the object under `key`, if it is remembered.
    pub(super) fn get(&self, key: &ObjectKey, group: &str) -> Option<WalHeader> {
        self.lock().file(group).headers.get(key.as_str()).cloned()
    }

    /// Remembers a header. A cache that cannot be written is no error: the header will be read again.
    pub(super) fn remember(&self, key: &ObjectKey, header: &WalHeader) {
        let group = group(header.segment);
        let mut files = self.lock();
        let headers = &mut files.file(&group).headers;
        if headers.insert(key.as_str().to_owned(), header.clone()).as_ref() == Some(header) {
            return;
        }
        if header.kind == WalKind::Tail {
            return;
        }
        headers.retain(|_, other| other.kind == WalKind::Segment || other.segment != header.segment);
        if let Some(dir) = files.dir.clone()
            && let Err(error) = append(&dir, &group, key, header)
        {
            tracing::debug!(dir = %dir.display(), %error, "header cache not written");
        }
    }

    /// Forgets everything: something in it was not true.
    pub(super) fn forget(&self) {
        let mut files = self.lock();
        files.loaded.clear();
        if let Some(dir) = &files.dir
            && let Err(error) = fs::remove_dir_all(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), %error, "header cache not removed");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file that remembers the headers of this segment and its tails.
pub(super) fn group(segment: wal::SegmentName) -> String {
    format!("{}-{:08X}", segment.timeline().hex(), segment.log())
}

impl Files {
    fn file(&mut self, group: &str) -> &mut Loaded {
        self.uses += 1;
        if !self.loaded.contains_key(group) {
            if self.loaded.len() >= FILES_IN_MEMORY {
                let oldest = self.loaded.iter().min_by_key(|(_, file)| file.last_use).map(|(name, _)| name.clone());
                oldest.map(|name| self.loaded.remove(&name));
            }
            let headers = self.dir.as_deref().map(|dir| load(dir, group)).unwrap_or_default();
            self.loaded.insert(group.to_owned(), Loaded { headers, last_use: 0 });
        }
        let file = self.loaded.entry(group.to_owned()).or_default();
        file.last_use = self.uses;
        file
    }
}

fn path_of(dir: &Path, group: &str) -> PathBuf {
    dir.join(format!("{group}.jsonl"))
}

/// What the file remembers; lines that cannot be read (the last one after a crash) are as good as missing.
fn load(dir: &Path, group: &str) -> BTreeMap<String, WalHeader> {
    let text = fs::read(path_of(dir, group)).unwrap_or_default();
    let lines = text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<LineIn>(line).ok());
    lines.map(|line| (line.key, line.header)).collect()
}

fn append(dir: &Path, group: &str, key: &ObjectKey, header: &WalHeader) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, &LineOut { key: key.as_str(), header })?;
    // One write, and a newline in front of it: a line that a crash cut short does not take the next one with it.
    File::options().append(true).create(true).mode(PRIVATE_FILE).open(path_of(dir, group))?.write_all(&line)
}
