//! The manifest of a backup (FORMAT 5.1): written last, it is the commit.

use std::collections::BTreeMap;

use recovery::{Backup, BackupId, BackupKind, BackupStatus, LineageId};
use serde::{Deserialize, Serialize};
use wal::{Coverage, Lsn, PgTime, SegmentSize, SystemIdentifier, TimelineId};

pub use recovery::FileSource;

use crate::codec::sealed::{PAGE_PATCH, SealedError, seal_with_features, unseal};
use crate::repository::file_table::TableFacts;
use crate::storage::Sha256;

mod hex_text;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::manifest as test_manifest;

/// The kind of the sealed document.
const KIND: &str = "backup";

/// The largest chunk that is read: what one read may take of memory.
const MAX_CHUNK_SIZE: u32 = 64 << 20;

/// A committed backup: everything that a restore needs to know besides the file table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub id: BackupId,
    /// The cluster's name in the configuration.
    pub cluster: String,
    /// The lineage.
    pub lineage: LineageId,
    /// The cluster's system identifier.
    pub system_identifier: SystemIdentifier,
    /// `server_version_num`.
    pub postgres_version: u32,
    /// Size of its WAL segments.
    pub segment_size: SegmentSize,
    /// The timeline it was taken on, from start to stop.
    pub timeline: TimelineId,
    /// Where replay starts.
    pub start_lsn: Lsn,
    /// Where the restored cluster becomes consistent.
    pub stop_lsn: Lsn,
    /// When it started, by pgvault's clock.
    pub started_at: PgTime,
    /// When its copy was complete, by pgvault's clock.
    pub stopped_at: PgTime,
    /// How it was read from the server.
    pub backup_kind: BackupKind,
    /// From where the files were read.
    pub source: FileSource,
    /// Whether the server was a standby.
    pub from_standby: bool,
    /// The label in `backup_label`.
    pub label: String,
    /// What people wrote on it.
    pub annotations: BTreeMap<String, String>,
    /// Tablespaces outside the data directory. (Those inside it are ordinary directories of the file table.)
    pub tablespaces: Vec<TablespacePath>,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Whether the cluster has data checksums; `None` when it was not known.
    pub data_checksums: Option<bool>,
    /// Files with pages whose checksum failed.
    pub damaged_files: Vec<DamagedFile>,
    /// Server settings that a hot standby must not go below, those that are known.
    pub server_settings: BTreeMap<String, i64>,
    /// Number of files.
    pub files: u64,
    /// Number of directories.
    pub directories: u64,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Bytes that this backup added to the repository.
    pub new_bytes: u64,
    /// Compressed bytes of all chunks that it refers to, each counted once.
    pub stored_bytes: u64,
    /// How many of its chunks are stored as the difference to another (page patches).
    #[serde(default)]
    pub patched_chunks: u64,
    /// The parts of the file table, in order.
    pub parts: Vec<PartRef>,
    /// PostgreSQL's own manifest; `None` when the source has none.
    pub postgres_manifest: Option<StoredObject>,
    /// Every pack that any of its chunks lies in; chunks name packs by their index here.
    pub packs: Vec<PackRef>,
}

/// A tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TablespaceText", into = "TablespaceText")]
pub struct TablespacePath {
    /// Its oid: the name of the link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lay on the server, as bytes.
    pub path: Vec<u8>,
}

/// A file with damaged pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedFile {
    /// Its path in the file table.
    pub path: String,
    /// How many pages failed.
    pub pages: u64,
}

/// One part of the file table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRef {
    /// Its key below the backup's folder.
    pub name: String,
    /// SHA-256 of the stored object.
    #[serde(with = "hex_text")]
    pub sha256: Sha256,
    /// Length of the stored object.
    pub size: u64,
    /// How many entries it has.
    pub entries: u64,
}

/// An object of the backup's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Its key below the backup's folder.
    pub name: String,
    /// SHA-256 of the stored object.
    #[serde(with = "hex_text")]
    pub sha256: Sha256,
    /// Length of the stored object.
    pub size: u64,
}

/// A pack that chunks of the backup lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// SHA-256 of its bytes, and its name.
    #[serde(with = "hex_text")]
    pub sha256: Sha256,
    /// Its length.
    pub size: u64,
}

impl Manifest {
    /// The sealed document.
    pub fn seal(&self) -> Result<Vec<u8>, SealedError> {
        // Named only where it is used: what has no patches, older programs can read.
        let features: &[&str] = if self.patched_chunks > 0 { &[PAGE_PATCH] } else { &[] };
        seal_with_features(KIND, features, self)
    }

    /// Reads a sealed document and refuses what cannot be.
    pub fn unseal(bytes: &[u8]) -> Result<Self, SealedError> {
        let manifest: Self = unseal(bytes, KIND)?;
        manifest.check().map_err(|reason| SealedError::Content { kind: KIND.to_owned(), reason })?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_CHUNK_SIZE).contains(&self.chunk_size) {
            return Err(format!("chunks of {} bytes", self.chunk_size));
        }
        if self.start_lsn >= self.stop_lsn {
            return Err(format!("it starts at {} and stops at {}", self.start_lsn, self.stop_lsn));
        }
        if self.lineage.system_identifier != self.system_identifier {
            return Err(format!("system identifier {} in lineage {}", self.system_identifier, self.lineage));
        }
        Ok(())
    }

    /// What the entries of the file table are checked against.
    pub fn table_facts(&self) -> TableFacts {
        TableFacts { chunk_size: self.chunk_size, packs: self.packs.len() }
    }

    /// The backup as recovery and people see it: usable when `coverage` has its WAL without a gap. Marks are not known
    /// here: `keep` is false, and `damaged` tells only of page checksums.
    pub fn to_backup(&self, coverage: &Coverage) -> Backup {
        let has_wal = coverage.contiguous_end(self.timeline, self.start_lsn).is_some_and(|end| end >= self.stop_lsn);
        Backup {
            id: self.id.clone(),
            status: if has_wal { BackupStatus::Ok } else { BackupStatus::WaitingForWal },
            kind: self.backup_kind,
            source: self.source,
            system_identifier: self.system_identifier,
            postgres_version: self.postgres_version,
            timeline: self.timeline,
            start_lsn: self.start_lsn,
            stop_lsn: self.stop_lsn,
            started_at: self.started_at,
            stopped_at: self.stopped_at,
            size_bytes: self.size_bytes,
            stored_bytes: self.stored_bytes,
            new_bytes: self.new_bytes,
            files: self.files,
            tablespaces: self.tablespaces.iter().map(TablespacePath::to_tablespace).collect(),
            keep: false,
            damaged: !self.damaged_files.is_empty(),
            annotations: self.annotations.clone(),
            server_settings: self.server_settings.clone(),
        }
    }
}

impl TablespacePath {
    fn to_tablespace(&self) -> recovery::Tablespace {
        recovery::Tablespace { oid: self.oid, path: String::from_utf8_lossy(&self.path).into_owned() }
    }
}

/// A tablespace in JSON: `path_hex` in place of `path` when it is not UTF-8.
#[derive(Serialize, Deserialize)]
struct TablespaceText {
    oid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl From<TablespacePath> for TablespaceText {
    fn from(tablespace: TablespacePath) -> Self {
        let TablespacePath { oid, path } = tablespace;
        match String::from_utf8(path) {
            Ok(path) => Self { oid, path: Some(path), path_hex: None },
            Err(odd) => Self { oid, path: None, path_hex: Some(hex::encode(odd.as_bytes())) },
        }
    }
}

impl TryFrom<TablespaceText> for TablespacePath {
    type Error = String;

    fn try_from(text: TablespaceText) -> Result<Self, String> {
        let path = match (text.path, text.path_hex) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(digits)) => hex::decode(digits).map_err(|error| error.to_string())?,
            _ => return Err("a tablespace needs either path or path_hex".to_owned()),
        };
        Ok(Self { oid: text.oid, path })
    }
}

/// Reads hostile bytes as a manifest; must not panic. For fuzzing.
pub fn fuzz_manifest(data: &[u8]) {
    let sealed = Manifest::unseal(data);
    // Behind the checksum lies the JSON: reach it as well.
    let plain = serde_json::from_slice::<Manifest>(data);
    for manifest in [sealed.ok(), plain.ok()].into_iter().flatten() {
        drop(manifest.check());
        drop(manifest.to_backup(&Coverage::new()));
    }
}
