//! PostgreSQL's own manifest beside the file table.
//!
//! Both name files in the order in which the server sent them, so they are walked side by side, and only what differs in
//! order is remembered.

use std::collections::{HashMap, VecDeque};
use std::io::Read;

use bytes::{Buf, Bytes};
use recovery::pg_manifest::{FileChecksum, ManifestFile, PgManifestReader};
use recovery::{BackupKind, DataPath};

use crate::codec::FrameReader;

/// How much is decompressed at a time.
const PIECE: usize = 64 << 10;

/// So much of what is wrong is told.
const TOLD: usize = 20;

/// A reader of the manifest, and what differs so far.
pub(super) struct ServerManifest {
    plain: FrameReader<bytes::buf::Reader<Bytes>>,
    reader: PgManifestReader,
    ready: VecDeque<ManifestFile>,
    ended: bool,
    /// An incremental backup's describes what the server sent, not the files of the table.
    names_the_files: bool,
    unnamed: HashMap<DataPath, (u64, u32)>,
    unsent: HashMap<DataPath, ManifestFile>,
    wrong: Vec<String>,
}

impl std::fmt::Debug for ServerManifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerManifest").field("wrong", &self.wrong).finish_non_exhaustive()
    }
}

impl ServerManifest {
    /// A reader of the stored object.
    pub(super) fn open(stored: Bytes, kind: BackupKind) -> Result<Self, String> {
        let plain = FrameReader::new(stored.reader()).map_err(|error| error.to_string())?;
        Ok(Self {
            plain,
            reader: PgManifestReader::new(),
            ready: VecDeque::new(),
            ended: false,
            names_the_files: kind == BackupKind::Full,
            unnamed: HashMap::new(),
            unsent: HashMap::new(),
            wrong: Vec::new(),
        })
    }

    /// The next file of the table.
    pub(super) fn compare(&mut self, path: &DataPath, size: u64, crc32c: u32) {
        if !self.names_the_files {
            return;
        }
        if let Some(named) = self.unsent.remove(path) {
            return self.agree(&named, size, crc32c);
        }
        match self.next() {
            Some(named) if named.path == *path => return self.agree(&named, size, crc32c),
            Some(named) => match self.unnamed.remove(&named.path) {
                Some((size, crc32c)) => self.agree(&named, size, crc32c),
                None => drop(self.unsent.insert(named.path.clone(), named)),
            },
            None => {}
        }
        if self.unnamed.insert(path.clone(), (size, crc32c)).is_some() {
            self.tell(format!("the file table has \"{path}\" twice"));
        }
    }

    /// Reads the rest; returns everything that is wrong.
    pub(super) fn finish(mut self) -> Vec<String> {
        while let Some(named) = self.next() {
            match self.unnamed.remove(&named.path) {
                _ if !self.names_the_files => {}
                Some((size, crc32c)) => self.agree(&named, size, crc32c),
                None => drop(self.unsent.insert(named.path.clone(), named)),
            }
        }
        let missing = self.unsent.keys().map(|path| format!("it names \"{path}\", the file table does not"));
        let unnamed = self.unnamed.keys().map(|path| format!("it does not name \"{path}\", the file table does"));
        let differ: Vec<String> = missing.chain(unnamed).take(TOLD).collect();
        let end = self.reader.finish().err().map(|error| error.to_string());
        self.wrong.into_iter().chain(differ).chain(end).collect()
    }

    /// The next file that it names; what cannot be read ends it.
    fn next(&mut self) -> Option<ManifestFile> {
        let mut piece = [0; PIECE];
        while self.ready.is_empty() && !self.ended {
            let read = self.plain.read(&mut piece).map_err(|error| error.to_string());
            let taken = read.and_then(|count| {
                self.ended = count == 0;
                let ready = &mut self.ready;
                self.reader.push(&piece[..count], &mut |file| ready.push_back(file)).map_err(|error| error.to_string())
            });
            if let Err(what) = taken {
                self.ended = true;
                self.tell(what);
            }
        }
        self.ready.pop_front()
    }

    fn agree(&mut self, named: &ManifestFile, size: u64, crc32c: u32) {
        let path = &named.path;
        if named.size != size {
            self.tell(format!("it says {} bytes for \"{path}\", the file table {size}", named.size));
        } else if let Some(FileChecksum::Crc32c(stated)) = named.checksum
            && stated != crc32c
        {
            self.tell(format!("it says CRC-32C {stated:08x} for \"{path}\", the file table {crc32c:08x}"));
        }
    }

    fn tell(&mut self, what: String) {
        if self.wrong.len() < TOLD {
            self.wrong.push(what);
        }
    }
}
