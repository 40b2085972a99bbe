//! Object keys: the only place that makes them and takes them apart. FORMAT.md section 1.

use std::fmt;
use std::str::FromStr;

use recovery::{BackupId, LineageId};
use wal::{Lsn, SegmentName, TimelineId};

use crate::repository::ClusterName;
use crate::storage::{ObjectKey, Sha256};

#[cfg(test)]
mod tests;

/// Key of the repository's marker.
pub const MARKER: &str = "pgvault-repository.json";

/// Prefix of the key ring.
pub const KEYS_PREFIX: &str = "keys/";

/// Key of the note that a repository was encrypted after it had begun.
pub const ENCRYPTED_SINCE: &str = "pgvault-encrypted.json";

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectName {
    /// `pgvault-repository.json`.
    Marker,
    /// `pgvault-encrypted.json`.
    EncryptedSince,
    /// A generation of the key ring.
    KeyRing(u32),
    /// A pack, shared by the lineages of its cluster.
    Pack(ClusterName, Sha256),
    /// An object of one lineage.
    InLineage(LineageKeys, LineageObject),
}

/// What a key below a lineage names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LineageObject {
    /// `lineage.json`.
    Document,
    /// A timeline history file.
    History(TimelineId),
    /// A complete segment.
    Segment(SegmentName),
    /// Bytes `from` up to `to` of a segment that is not complete yet.
    Tail(TailName),
    /// The claim of a backup's name: written first.
    Begun(BackupId),
    /// A part of a backup's file table.
    FilePart(BackupId, u32, ShortHash),
    /// PostgreSQL's own manifest of a backup.
    PostgresManifest(BackupId, ShortHash),
    /// The manifest: the commit of a backup.
    Manifest(BackupId),
    /// An event in a backup's life.
    Mark(BackupId, u32, MarkKind),
    /// What is known of WAL that was lost.
    Gap(GapName),
    /// Bytes that were refused because `name` already held others.
    Conflict(Sha256, String),
}

/// Which WAL was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GapName {
    /// The timeline.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from: Lsn,
    /// First byte that is there again.
    pub to: Lsn,
}

/// Which part of a segment a tail object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TailName {
    /// The segment.
    pub segment: SegmentName,
    /// First byte.
    pub from: Lsn,
    /// First byte that is not in it.
    pub to: Lsn,
}

/// The first 16 hexadecimal digits of a stored object's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortHash([u8; 8]);

impl ShortHash {
    /// The beginning of this checksum.
    pub fn of(sha256: &Sha256) -> Self {
        let mut short = [0; 8];
        short.copy_from_slice(&sha256[..8]);
        Self(short)
    }
}

impl fmt::Display for ShortHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ShortHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What happened to a backup. `Keep` and `Release` are one group, `Verified` and `Damaged` another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// Retention leaves it alone from here on.
    Keep,
    /// Retention may decide again.
    Release,
    /// All of it was read and found whole.
    Verified,
    /// Reading it found damage.
    Damaged,
}

impl MarkKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Keep, Self::Release, Self::Verified, Self::Damaged];

    /// The word in keys and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Release => "release",
            Self::Verified => "verified",
            Self::Damaged => "damaged",
        }
    }
}

impl fmt::Display for MarkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What can be said of a key that was found in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An object of this format version.
    Known(ObjectName),
    /// An encrypted object: this version must not take it for absent.
    Encrypted(ObjectName),
    /// Nothing of ours: ignored.
    Unknown,
}

impl ObjectName {
    /// The key under which the object lies.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Marker => key(MARKER.to_owned()),
            Self::EncryptedSince => key(ENCRYPTED_SINCE.to_owned()),
            Self::KeyRing(generation) => key(format!("keys/{generation}.json")),
            Self::Pack(cluster, sha256) => key(format!("{}{}", packs_prefix(cluster), hex::encode(sha256))),
            Self::InLineage(keys, object) => keys.key(object),
        }
    }

    /// The name that an encrypted object is bound to (FORMAT 7.2): its key, with `*` for the digits that are made of the stored
    /// bytes. Those are known only after the object is encrypted, and prove the bytes themselves.
    pub fn bound(key: &ObjectKey) -> String {
        let Parsed::Known(name) = Self::parse(key.as_str()) else { return key.to_string() };
        let digits = match &name {
            Self::Pack(_, sha256) => hex::encode(sha256),
            Self::InLineage(_, LineageObject::FilePart(_, _, hash)) => hash.to_string(),
            Self::InLineage(_, LineageObject::PostgresManifest(_, hash)) => hash.to_string(),
            Self::InLineage(_, LineageObject::Conflict(sha256, _)) => hex::encode(sha256),
            _ => return key.to_string(),
        };
        match &name {
            // The name that follows may hold such digits, too.
            Self::InLineage(_, LineageObject::Conflict(..)) => key.as_str().replacen(&digits, "*", 1),
            _ => match key.as_str().rsplit_once(&digits) {
                Some((before, behind)) => format!("{before}*{behind}"),
                None => key.to_string(),
            },
        }
    }

    /// Takes a key apart. Only the one spelling that [`ObjectName::key`] writes is known.
    pub fn parse(text: &str) -> Parsed {
        if ObjectKey::new(text).is_err() {
            return Parsed::Unknown;
        }
        let (plain, wrap): (&str, fn(Self) -> Parsed) = match text.strip_suffix(".enc") {
            Some(plain) => (plain, Parsed::Encrypted),
            None => (text, Parsed::Known),
        };
        match Self::parse_plain(plain) {
            Some(name) if name.key().as_str() == plain => wrap(name),
            _ => Parsed::Unknown,
        }
    }

    fn parse_plain(text: &str) -> Option<Self> {
        if text == MARKER {
            return Some(Self::Marker);
        }
        if text == ENCRYPTED_SINCE {
            return Some(Self::EncryptedSince);
        }
        let (first, rest) = text.split_once('/')?;
        if first == "keys" {
            return Some(Self::KeyRing(rest.strip_suffix(".json")?.parse().ok()?));
        }
        let cluster = ClusterName::new(first).ok()?;
        let (second, rest) = rest.split_once('/')?;
        if second == "packs" {
            return Some(Self::Pack(cluster, sha256(rest)?));
        }
        let keys = LineageKeys::new(cluster, second.parse().ok()?);
        Some(Self::InLineage(keys, LineageObject::parse(rest)?))
    }
}

/// Prefix of all packs of a cluster.
pub fn packs_prefix(cluster: &ClusterName) -> String {
    format!("{cluster}/packs/")
}

/// Prefix of everything of a cluster.
pub fn cluster_prefix(cluster: &ClusterName) -> String {
    format!("{cluster}/")
}

/// The keys of one lineage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LineageKeys {
    cluster: ClusterName,
    lineage: LineageId,
}

impl LineageKeys {
    /// Keys below `<cluster>/<lineage>/`.
    pub fn new(cluster: ClusterName, lineage: LineageId) -> Self {
        Self { cluster, lineage }
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The lineage.
    pub fn lineage(&self) -> LineageId {
        self.lineage
    }

    /// Prefix of everything of the lineage.
    pub fn prefix(&self) -> String {
        format!("{}/{}/", self.cluster, self.lineage)
    }

    /// Prefix of all WAL and all histories.
    pub fn wal_prefix(&self) -> String {
        format!("{}wal/", self.prefix())
    }

    /// Prefix of the tail objects of one segment.
    pub fn tail_prefix(&self, segment: SegmentName) -> String {
        format!("{}{}/", self.prefix(), tail_folder(segment))
    }

    /// Prefix of what is known of lost WAL.
    pub fn gaps_prefix(&self) -> String {
        format!("{}gaps/", self.prefix())
    }

    /// Prefix of refused bytes.
    pub fn conflict_prefix(&self) -> String {
        format!("{}conflict/", self.prefix())
    }

    /// Prefix of all backups.
    pub fn backups_prefix(&self) -> String {
        format!("{}backups/", self.prefix())
    }

    /// Prefix of one backup.
    pub fn backup_prefix(&self, backup: &BackupId) -> String {
        format!("{}{backup}/", self.backups_prefix())
    }

    /// The key under which the object lies.
    pub fn key(&self, object: &LineageObject) -> ObjectKey {
        key(format!("{}{object}", self.prefix()))
    }

    /// Where bytes go that were refused because `refused` holds others: `<name>` is the refused key below its lineage,
    /// with `_` for `/`.
    pub fn conflict_key(&self, sha256: &Sha256, refused: &ObjectKey) -> ObjectKey {
        let prefix = self.prefix();
        let name = refused.as_str().strip_prefix(&prefix).unwrap_or(refused.as_str()).replace('/', "_");
        self.key(&LineageObject::Conflict(*sha256, name))
    }
}

impl fmt::Display for LineageObject {
    /// The key below the lineage's prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("lineage.json"),
            Self::History(timeline) => write!(f, "wal/{}/{}", timeline.hex(), timeline.history_file_name()),
            Self::Segment(name) => write!(f, "{}.zst", segment_path(*name)),
            Self::Tail(TailName { segment, from, to }) => {
                write!(f, "{}/{}-{}.zst", tail_folder(*segment), from.to_sortable(), to.to_sortable())
            }
            Self::Begun(backup) => write!(f, "backups/{backup}/begun"),
            Self::FilePart(backup, part, hash) => write!(f, "backups/{backup}/files/{part:05}-{hash}.zst"),
            Self::PostgresManifest(backup, hash) => write!(f, "backups/{backup}/backup_manifest-{hash}.zst"),
            Self::Manifest(backup) => write!(f, "backups/{backup}/manifest"),
            Self::Mark(backup, number, what) => write!(f, "backups/{backup}/marks/{number:05}-{what}"),
            Self::Gap(GapName { timeline, from, to }) => {
                write!(f, "gaps/{}-{}-{}.json", timeline.hex(), from.to_sortable(), to.to_sortable())
            }
            Self::Conflict(sha256, name) => write!(f, "conflict/{}-{name}", hex::encode(sha256)),
        }
    }
}

impl LineageObject {
    fn parse(text: &str) -> Option<Self> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            ["lineage.json"] => Some(Self::Document),
            ["wal", timeline, file] if file.ends_with(".history") => {
                Some(Self::History(TimelineId::from_hex(timeline).ok()?))
            }
            ["wal", _, _, file] => Some(Self::Segment(file.strip_suffix(".zst")?.parse().ok()?)),
            ["wal", _, _, folder, file] => {
                let segment = folder.strip_suffix(".tail")?.parse().ok()?;
                let (from, to) = file.strip_suffix(".zst")?.split_once('-')?;
                let (from, to) = (Lsn::from_sortable(from).ok()?, Lsn::from_sortable(to).ok()?);
                (from < to).then_some(Self::Tail(TailName { segment, from, to }))
            }
            ["backups", backup, "begun"] => Some(Self::Begun(backup.parse().ok()?)),
            ["backups", backup, "manifest"] => Some(Self::Manifest(backup.parse().ok()?)),
            ["backups", backup, "marks", file] => {
                let (number, what) = file.split_once('-')?;
                let what = MarkKind::ALL.into_iter().find(|kind| kind.as_str() == what)?;
                Some(Self::Mark(backup.parse().ok()?, number.parse().ok()?, what))
            }
            ["backups", backup, "files", file] => {
                let (part, hash) = file.strip_suffix(".zst")?.split_once('-')?;
                Some(Self::FilePart(backup.parse().ok()?, part.parse().ok()?, short_hash(hash)?))
            }
            ["backups", backup, file] => {
                let hash = file.strip_prefix("backup_manifest-")?.strip_suffix(".zst")?;
                Some(Self::PostgresManifest(backup.parse().ok()?, short_hash(hash)?))
            }
            ["gaps", file] => {
                let mut words = file.strip_suffix(".json")?.split('-');
                let timeline = TimelineId::from_hex(words.next()?).ok()?;
                let (from, to) = (Lsn::from_sortable(words.next()?).ok()?, Lsn::from_sortable(words.next()?).ok()?);
                (from < to && words.next().is_none()).then_some(Self::Gap(GapName { timeline, from, to }))
            }
            ["conflict", file] => {
                let (hash, name) = file.split_once('-')?;
                Some(Self::Conflict(sha256(hash)?, name.to_owned()))
            }
            _ => None,
        }
    }
}

fn segment_path(name: SegmentName) -> String {
    format!("wal/{}/{:08X}/{name}", name.timeline().hex(), name.log())
}

fn tail_folder(segment: SegmentName) -> String {
    format!("{}.tail", segment_path(segment))
}

fn key(text: String) -> ObjectKey {
    ObjectKey::new(text).expect("made of checked names in the allowed characters, far below the longest key")
}

fn sha256(text: &str) -> Option<Sha256> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

fn short_hash(text: &str) -> Option<ShortHash> {
    let mut bytes = [0; 8];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(ShortHash(bytes))
}

impl FromStr for ShortHash {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}
