//! A base backup as recovery sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::NaiveDateTime;
use wal::{Lsn, PgTime, SystemIdentifier, TimelineId};

use crate::RecoveryTarget;

/// Name of a backup: its UTC start and four random digits, `20261119T020512-3f2a`. Sorts by start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// The name of a backup that starts at `started_at`; `random` keeps two that start in the same second apart.
    pub fn new(started_at: PgTime, random: u16) -> Self {
        Self(format!("{}-{random:04x}", started_at.to_datetime().format("%Y%m%dT%H%M%S")))
    }

    /// When it started, to the second; `None` when the digits are no date.
    pub fn started_at(&self) -> Option<PgTime> {
        let text = self.0.split_once('-').map_or(self.0.as_str(), |(time, _)| time);
        let time = NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%S").ok()?;
        Some(PgTime::from(time.and_utc()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not the name of a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a backup: expected a name such as 20261119T020512-3f2a")]
pub struct ParseBackupIdError(String);

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, ParseBackupIdError> {
        let shape = "ddddddddTdddddd-xxxx";
        let fits = text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, want)| match want {
                b'd' => byte.is_ascii_digit(),
                b'x' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
                literal => byte == literal,
            });
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseBackupIdError(text.to_owned())) }
    }
}

impl serde::Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How a backup was read from the server. Restoring needs nothing but the backup itself, whatever its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every file was read.
    Full,
    /// Only what changed since another backup was read: pages of the stream (PostgreSQL 17 and later), files of a data
    /// directory.
    Incremental,
}

/// From where the files of a backup were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSource {
    /// BASE_BACKUP over the replication protocol.
    Stream,
    /// The data directory itself.
    Files,
}

/// Where a backup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupStatus {
    /// Being copied right now.
    Running,
    /// Copied and committed, but WAL up to its stop LSN is not all in the repository: not usable yet.
    WaitingForWal,
    /// Usable.
    Ok,
    /// Started and never committed: never selectable.
    Failed,
}

/// A tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its oid: the name of the link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lay on the server, as the server spelled it.
    pub path: String,
}

/// A committed backup of which nothing is known but its name and its marks, because its manifest cannot be read. It is never
/// chosen, and nothing that it may refer to is ever free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableBackup {
    /// Its name.
    pub id: BackupId,
    /// Pinned by hand.
    pub keep: bool,
    /// What is wrong with its manifest, the object named.
    pub reason: String,
}

impl UnreadableBackup {
    /// Whether a recovery to `target` might start from it, as far as its name tells.
    pub(crate) fn may_lead_to(&self, target: &RecoveryTarget) -> bool {
        match (target, self.id.started_at()) {
            (RecoveryTarget::Time(time), Some(started_at)) => started_at <= *time,
            _ => true,
        }
    }
}

/// A base backup: what recovery, retention and people need to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its name.
    pub id: BackupId,
    /// Where it stands.
    pub status: BackupStatus,
    /// How it was read.
    pub kind: BackupKind,
    /// From where its files were read.
    pub source: FileSource,
    /// The cluster's system identifier.
    pub system_identifier: SystemIdentifier,
    /// `server_version_num` of the server it was taken from, 150018 for 15.18.
    pub postgres_version: u32,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where replay starts: WAL from here on is needed.
    pub start_lsn: Lsn,
    /// Where the restored cluster becomes consistent: moments from here on can be recovered.
    pub stop_lsn: Lsn,
    /// When it started, by pgvault's clock.
    pub started_at: PgTime,
    /// When it ended, by pgvault's clock.
    pub stopped_at: PgTime,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Compressed bytes of everything it refers to, shared or not.
    pub stored_bytes: u64,
    /// Bytes that it added to the repository.
    pub new_bytes: u64,
    /// Number of its files.
    pub files: u64,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Pinned by hand: retention leaves it alone.
    pub keep: bool,
    /// Whether page checksums failed, or a verification found damage: never the reason to expire a clean one.
    pub damaged: bool,
    /// What people wrote on it.
    pub annotations: BTreeMap<String, String>,
    /// Server settings that a hot standby must not go below (`max_connections`, …), those that are known.
    pub server_settings: BTreeMap<String, i64>,
}
