//! Each file as a whole, once its chunks were looked at.

use std::io;

use crc32c::crc32c_combine;

use crate::codec::digest::crc32c_of_zeros;
use crate::repository::file_table::{ChunkRef, EntryKind, FileContent, TableEntry};
use crate::repository::manifest::Manifest;

use super::BackupReport;
use super::scratch::ProofReader;
use super::server_manifest::ServerManifest;

/// What every restored cluster needs.
const NEEDED: [&str; 2] = ["global/pg_control", "backup_label"];

/// So many files that are wrong as a whole are named.
const NAMED: usize = 20;

/// Goes through the file table in its order.
#[derive(Debug)]
pub(super) struct FileCheck {
    proofs: ProofReader,
    server: Option<ServerManifest>,
    files: u64,
    proven: u64,
    directories: u64,
    bytes: u64,
    needed: Vec<&'static str>,
    not_proven: Vec<recovery::DataPath>,
    not_proven_count: u64,
    wrong: Vec<String>,
    wrong_count: u64,
}

impl FileCheck {
    pub(super) fn new(proofs: ProofReader, server: Option<ServerManifest>) -> Self {
        Self {
            proofs,
            server,
            files: 0,
            proven: 0,
            directories: 0,
            bytes: 0,
            needed: NEEDED.to_vec(),
            not_proven: Vec::new(),
            not_proven_count: 0,
            wrong: Vec::new(),
            wrong_count: 0,
        }
    }

    /// The next entry of the table.
    pub(super) fn entry(&mut self, entry: &TableEntry) -> io::Result<()> {
        let EntryKind::File(file) = &entry.kind else {
            self.directories += 1;
            return Ok(());
        };
        self.files += 1;
        self.bytes = self.bytes.saturating_add(file.size);
        self.needed.retain(|needed| needed.as_bytes() != entry.path.as_bytes());
        match self.checksum(file)? {
            Some(found) if found == file.crc32c => self.proven += 1,
            Some(found) => {
                let (path, said) = (&entry.path, file.crc32c);
                self.is_wrong(format!("\"{path}\" has CRC-32C {found:08x}, the file table says {said:08x}"));
            }
            None => {
                self.not_proven_count += 1;
                if self.not_proven.len() < super::NAMED_FILES {
                    self.not_proven.push(entry.path.clone());
                }
            }
        }
        if let Some(server) = &mut self.server {
            server.compare(&entry.path, file.size, file.crc32c);
        }
        Ok(())
    }

    /// CRC-32C of a file from those of its chunks; `None` when one of them was not proven.
    fn checksum(&mut self, file: &FileContent) -> io::Result<Option<u32>> {
        let mut whole = Some(0);
        for chunk in &file.chunks {
            let proof = self.proofs.next()?;
            let plain = chunk.plain() as usize;
            let sum = if let ChunkRef::Zeros { .. } = chunk { Some(crc32c_of_zeros(plain)) } else { proof };
            whole = whole.zip(sum).map(|(crc, sum)| crc32c_combine(crc, sum, plain));
        }
        Ok(whole)
    }

    fn is_wrong(&mut self, what: String) {
        self.wrong_count += 1;
        if self.wrong.len() < NAMED {
            self.wrong.push(what);
        }
    }

    /// The end of the table: what it comes to. `manifest` is given when every part of it could be read.
    pub(super) fn finish(
        self,
        manifest: Option<&Manifest>,
        manifest_key: &str,
        table_key: &str,
        server_key: &str,
        report: &mut BackupReport,
    ) {
        report.files = self.proven;
        self.not_proven.iter().for_each(|path| report.damaged_file(path));
        report.damaged_files = self.not_proven_count + self.wrong_count;
        for what in self.wrong {
            report.problem(table_key, what);
        }
        // What is missing or counted wrong is known only of a table that was read to its end.
        let Some(manifest) = manifest else { return };
        for path in self.needed {
            report.problem(table_key, format!("the file table has no {path}"));
        }
        let counted = (self.files, self.directories, self.bytes);
        let said = (manifest.files, manifest.directories, manifest.size_bytes);
        if counted != said {
            let what = format!(
                "it says {} files, {} directories and {} bytes; the file table has {}, {} and {}",
                said.0, said.1, said.2, counted.0, counted.1, counted.2
            );
            report.problem(manifest_key, what);
        }
        for what in self.server.map(ServerManifest::finish).unwrap_or_default() {
            report.problem(server_key, what);
        }
    }
}
