//! The server's manifest, byte for byte, compressed into a local file on its way to the repository.

use std::io::Write;
use std::path::Path;

use crate::backup::error::CopyError;
use crate::codec::digest::Hasher;
use crate::codec::{Compression, compress_frame};
use crate::durable::{PRIVATE_FILE, TempFile};
use crate::storage::{Body, Sha256};

/// Bytes of the manifest in one zstd frame.
const FRAME: usize = 4 << 20;

/// Takes the manifest as it comes.
#[derive(Debug)]
pub(super) struct ManifestKeeper {
    temp: TempFile,
    compression: Compression,
    frame: Vec<u8>,
    hasher: Hasher,
    len: u64,
}

/// The whole manifest, compressed.
#[derive(Debug)]
pub(in crate::backup) struct KeptManifest {
    temp: TempFile,
    /// SHA-256 of the compressed bytes.
    pub(in crate::backup) sha256: Sha256,
    /// How many they are.
    pub(in crate::backup) len: u64,
}

impl KeptManifest {
    /// What is to be stored. The file is removed with `self`.
    pub(in crate::backup) fn body(&self) -> Body {
        Body::File { path: self.temp.path().to_path_buf(), len: self.len }
    }
}

impl ManifestKeeper {
    pub(super) fn new(dir: &Path, compression: Compression) -> Result<Self, CopyError> {
        let temp = TempFile::in_dir(dir, PRIVATE_FILE).map_err(CopyError::Scratch)?;
        Ok(Self { temp, compression, frame: Vec::new(), hasher: Hasher::new(), len: 0 })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        self.frame.extend_from_slice(bytes);
        if self.frame.len() >= FRAME { self.write_frame() } else { Ok(()) }
    }

    pub(super) fn finish(mut self) -> Result<KeptManifest, CopyError> {
        self.write_frame()?;
        Ok(KeptManifest { temp: self.temp, sha256: self.hasher.finish(), len: self.len })
    }

    fn write_frame(&mut self) -> Result<(), CopyError> {
        if !self.frame.is_empty() {
            let stored = compress_frame(&self.frame, self.compression)?;
            self.temp.file_mut().write_all(&stored).map_err(CopyError::Scratch)?;
            self.hasher.update(&stored);
            self.len += stored.len() as u64;
            self.frame.clear();
        }
        Ok(())
    }
}
