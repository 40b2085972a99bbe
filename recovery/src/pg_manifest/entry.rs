//! The pieces of a manifest, understood.

use serde::Deserialize;
use wal::{Lsn, TimelineId, WalRange};

use crate::{DataPath, InvalidDataPath};

/// A file that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Where it lies; files of tablespaces are `pg_tblspc/<oid>/…`.
    pub path: DataPath,
    /// Its length in bytes.
    pub size: u64,
    /// Checksum of its content; `None` when the manifest was asked to have none.
    pub checksum: Option<FileChecksum>,
}

/// Checksum of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChecksum {
    /// CRC-32C, as the number that it is. (The manifest has its bytes in memory order: little endian.)
    Crc32c(u32),
    /// SHA-224.
    Sha224([u8; 28]),
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-384.
    Sha384([u8; 48]),
    /// SHA-512.
    Sha512([u8; 64]),
}

/// A member of the outer object.
pub(super) enum Member {
    Version(u64),
    SystemIdentifier(u64),
    Checksum([u8; 32]),
    Other,
}

#[derive(Deserialize)]
struct Members {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: Option<u64>,
    #[serde(rename = "System-Identifier")]
    system_identifier: Option<u64>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: Option<String>,
}

/// Reads `"key":value` of the outer object.
pub(super) fn member(text: &[u8]) -> Result<Member, String> {
    let object = [b"{", text, b"}"].concat();
    let members: Members = serde_json::from_slice(&object).map_err(|error| error.to_string())?;
    Ok(match members {
        Members { version: Some(version), .. } => Member::Version(version),
        Members { system_identifier: Some(number), .. } => Member::SystemIdentifier(number),
        Members { checksum: Some(digits), .. } => Member::Checksum(bytes(&digits)?),
        _ => Member::Other,
    })
}

#[derive(Deserialize)]
struct FileText {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

/// Reads an element of `Files`.
pub(super) fn file(text: &[u8]) -> Result<Result<ManifestFile, InvalidDataPath>, String> {
    let file: FileText = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let path = match (file.path, file.encoded_path) {
        (Some(path), None) => path.into_bytes(),
        (None, Some(digits)) => hex::decode(&digits).map_err(|error| error.to_string())?,
        _ => return Err("a file needs either Path or Encoded-Path".to_owned()),
    };
    let checksum = match (file.algorithm.as_deref(), file.checksum) {
        (None | Some("NONE"), None) => None,
        (Some("CRC32C"), Some(digits)) => Some(FileChecksum::Crc32c(u32::from_le_bytes(bytes(&digits)?))),
        (Some("SHA224"), Some(digits)) => Some(FileChecksum::Sha224(bytes(&digits)?)),
        (Some("SHA256"), Some(digits)) => Some(FileChecksum::Sha256(bytes(&digits)?)),
        (Some("SHA384"), Some(digits)) => Some(FileChecksum::Sha384(bytes(&digits)?)),
        (Some("SHA512"), Some(digits)) => Some(FileChecksum::Sha512(bytes(&digits)?)),
        (algorithm, _) => return Err(format!("the checksum of algorithm {algorithm:?} cannot be read")),
    };
    Ok(DataPath::new(&path).map(|path| ManifestFile { path, size: file.size, checksum }))
}

#[derive(Deserialize)]
struct WalRangeText {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

/// Reads an element of `WAL-Ranges`.
pub(super) fn wal_range(text: &[u8]) -> Result<WalRange, String> {
    let WalRangeText { timeline, start, end } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    Ok(WalRange { timeline, start, end })
}

fn bytes<const N: usize>(digits: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).map_err(|error| format!("checksum \"{digits}\": {error}"))?;
    Ok(bytes)
}
