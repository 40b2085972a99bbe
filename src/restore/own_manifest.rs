//! The `backup_manifest` of a restored cluster whose backup was read incrementally, or from the data directory.
//!
//! The server's own describes the incremental files that it sent; none of them is in the restored directory. Of what it did
//! not send it has none. So one is written from the file table, in PostgreSQL's form (`backup_manifest.c`), as `pg_combinebackup` does.

use std::io::{self, BufWriter, Seek, Write};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use wal::SystemIdentifier;

use crate::durable::{PRIVATE_FILE, TempFile};
use crate::error::{Error, ErrorCode, Result};
use crate::repository::LineageRepository;
use crate::repository::file_table::{EntryKind, TableEntry};
use crate::repository::manifest::Manifest;

use super::copy::read_part;

/// The manifest, in a scratch file that is read from its start.
pub(super) async fn compose(lineage: &LineageRepository, manifest: &Manifest) -> Result<TempFile> {
    let scratch =
        |error: io::Error| Error::new(ErrorCode::Unclassified, format!("cannot compose backup_manifest: {error}"));
    let dir = &lineage.repository().options().scratch_dir;
    let temp = TempFile::in_dir(dir, PRIVATE_FILE).map_err(scratch)?;
    let mut out = Summed { inner: BufWriter::new(temp.file().try_clone().map_err(scratch)?), hasher: Sha256::new() };
    let head = head(manifest.postgres_version / 10_000, manifest.system_identifier);
    out.write_all(head.as_bytes()).map_err(scratch)?;
    let mut separator = "\n";
    for part in &manifest.parts {
        for entry in read_part(lineage, manifest, part).await? {
            if let Some(line) = line(&entry) {
                write!(out, "{separator}{line}").map_err(scratch)?;
                separator = ",\n";
            }
        }
    }
    let (timeline, start, stop) = (manifest.timeline, manifest.start_lsn, manifest.stop_lsn);
    write!(
        out,
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\" }}\n],\n"
    )
    .map_err(scratch)?;
    let Summed { mut inner, hasher } = out;
    writeln!(inner, "\"Manifest-Checksum\": \"{}\"}}", hex::encode(hasher.finalize())).map_err(scratch)?;
    inner.flush().map_err(scratch)?;
    temp.file().try_clone().and_then(|mut file| file.rewind()).map_err(scratch)?;
    Ok(temp)
}

/// Up to the list of files: PostgreSQL 17 and later write version 2 (`InitializeBackupManifest`), which those before refuse.
fn head(major: u32, system: SystemIdentifier) -> String {
    let version = if major >= 17 { 2 } else { 1 };
    let system = if major >= 17 { format!("\"System-Identifier\": {system},\n") } else { String::new() };
    format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n{system}\"Files\": [")
}

/// A file as the manifest names it.
fn line(entry: &TableEntry) -> Option<String> {
    let EntryKind::File(file) = &entry.kind else { return None };
    let path = match entry.path.as_utf8() {
        Some(path) => format!("\"Path\": {}", serde_json::Value::from(path)),
        None => format!("\"Encoded-Path\": \"{}\"", hex::encode(entry.path.as_bytes())),
    };
    let modified: DateTime<Utc> = DateTime::from_timestamp(entry.mtime, 0).unwrap_or_default();
    Some(format!(
        "{{ {path}, \"Size\": {}, \"Last-Modified\": \"{}\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
        file.size,
        modified.format("%Y-%m-%d %H:%M:%S GMT"),
        // As PostgreSQL prints it: the bytes of the number, least significant first.
        hex::encode(file.crc32c.to_le_bytes())
    ))
}

/// Hashes what passes.
struct Summed<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
