//! Stored WAL as bytes: the header, then zstd frames. FORMAT.md 4.1.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use wal::{LongHeader, XactIndex, read_segment_header};

use crate::codec::digest::sha256_reader;
use crate::codec::{Compression, Compressor, ContentHash, ContentHasher};
use crate::durable::PRIVATE_FILE;
use crate::repository::header::WalPlace;
use crate::repository::segments::PlainSource;
use crate::repository::{RepositoryError, RepositoryResult, WalHeader};
use crate::storage::{Body, Sha256};

/// Plaintext of one frame. The format allows more, but a frame and its stored form are in memory at once, for every upload
/// under way, and beyond zstd's window nothing is gained.
pub(super) const FRAME_PLAIN: u64 = 2 << 20;

/// Space that an object in memory gets at first. It costs nothing until it is written to, and is more than glibc's malloc
/// ever keeps for later (`DEFAULT_MMAP_THRESHOLD_MAX`): smaller buffers would stay with every thread that had one.
const OBJECT_SPACE: usize = 33 << 20;

/// First bytes of a segment: its long page header.
const LONG_HEADER: usize = 40;

/// WAL in stored form, ready to be put.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) header: WalHeader,
    /// What the first page says, when the piece starts with one.
    pub(super) first_page: Option<LongHeader>,
    pub(super) body: Body,
    pub(super) sha256: Sha256,
    /// Removes the file under `body` when it is done with.
    _scratch: Option<ScratchFile>,
}

/// What to encode, and how.
#[derive(Debug)]
pub(super) struct EncodeJob {
    pub(super) place: WalPlace,
    pub(super) source: PlainSource,
    pub(super) postgres_version: u32,
    pub(super) index: XactIndex,
    pub(super) compression: Compression,
    pub(super) scratch_dir: PathBuf,
    /// Objects with more plaintext than this are built in a file there, so that memory stays bounded.
    pub(super) max_in_memory: u64,
}

impl EncodeJob {
    /// Compresses and hashes, on a thread where that may take its time.
    pub(super) async fn run(self) -> RepositoryResult<Encoded> {
        let what = self.place.key.to_string();
        match tokio::task::spawn_blocking(move || self.encode()).await {
            Ok(encoded) => encoded,
            Err(error) => Err(RepositoryError::mismatch(what, format!("compressing failed: {error}"))),
        }
    }

    fn encode(self) -> RepositoryResult<Encoded> {
        if self.place.length <= self.max_in_memory {
            let mut out = Cursor::new(Vec::with_capacity(OBJECT_SPACE));
            let (header, first_page, sha256) = self.write_to(&mut out, Path::new("memory"))?;
            let body = Body::Bytes(Bytes::from(out.into_inner()));
            return Ok(Encoded { header, first_page, body, sha256, _scratch: None });
        }
        let name = self.place.key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        let (scratch, mut out) = ScratchFile::create(&self.scratch_dir, &name)?;
        let (header, first_page, sha256) = self.write_to(&mut out, &scratch.0)?;
        let len = out.metadata().map_err(|source| io_error(&scratch.0, source))?.len();
        let body = Body::File { path: scratch.0.clone(), len };
        Ok(Encoded { header, first_page, body, sha256, _scratch: Some(scratch) })
    }

    /// Writes the stored form to `out`, and reads it back for its checksum.
    fn write_to<W: Read + Write + Seek>(
        &self,
        out: &mut W,
        path: &Path,
    ) -> RepositoryResult<(WalHeader, Option<LongHeader>, Sha256)> {
        let written = |source| io_error(path, source);
        // The header's length does not depend on the hash, which is known only after the frames are written.
        let mut header = self.place.header(ContentHash::UNKNOWN, self.postgres_version, self.index.clone());
        let placeholder = header.to_bytes()?;
        out.write_all(&placeholder).map_err(written)?;
        let (hash, first_page) = self.write_frames(out, path)?;
        header.blake3 = hash;
        let bytes = header.to_bytes()?;
        if bytes.len() != placeholder.len() {
            return Err(RepositoryError::mismatch(&self.place.key, "the header changed its length"));
        }
        out.seek(SeekFrom::Start(0)).map_err(written)?;
        out.write_all(&bytes).map_err(written)?;
        out.seek(SeekFrom::Start(0)).map_err(written)?;
        let (sha256, _) = sha256_reader(out).map_err(written)?;
        Ok((header, first_page, sha256))
    }

    fn write_frames<W: Write>(&self, out: &mut W, path: &Path) -> RepositoryResult<(ContentHash, Option<LongHeader>)> {
        let mismatch = |problem: String| RepositoryError::mismatch(&self.place.key, problem);
        let mut plain = self.open_source()?;
        let mut compressor = Compressor::new(self.compression).map_err(|error| mismatch(error.to_string()))?;
        let (mut hasher, mut first_page, mut stored) = (ContentHasher::new(), None, Vec::new());
        let mut left = self.place.length;
        let mut frame = Vec::with_capacity(usize::try_from(left.min(FRAME_PLAIN)).unwrap_or_default());
        while left > 0 {
            frame.clear();
            let wanted = left.min(FRAME_PLAIN);
            plain.by_ref().take(wanted).read_to_end(&mut frame).map_err(|source| self.source_error(source))?;
            if frame.len() as u64 != wanted {
                let found = self.place.length - left + frame.len() as u64;
                return Err(mismatch(format!("{found} bytes in place of {}", self.place.length)));
            }
            if left == self.place.length && self.place.starts_segment() && frame.len() >= LONG_HEADER {
                first_page = Some(read_segment_header(&frame).map_err(|error| mismatch(error.to_string()))?);
            }
            hasher.update(&frame);
            stored.clear();
            compressor.append_frame(&frame, &mut stored).map_err(|error| mismatch(error.to_string()))?;
            out.write_all(&stored).map_err(|source| io_error(path, source))?;
            left -= wanted;
        }
        let mut beyond = [0];
        if plain.read(&mut beyond).map_err(|source| self.source_error(source))? > 0 {
            return Err(mismatch(format!("more than {} bytes", self.place.length)));
        }
        Ok((hasher.finish(), first_page))
    }

    fn open_source(&self) -> RepositoryResult<Box<dyn Read + '_>> {
        match &self.source {
            PlainSource::Bytes(bytes) => Ok(Box::new(bytes.as_ref())),
            PlainSource::File(path) => Ok(Box::new(File::open(path).map_err(|source| io_error(path, source))?)),
        }
    }

    fn source_error(&self, source: io::Error) -> RepositoryError {
        match &self.source {
            PlainSource::Bytes(_) => io_error(Path::new("memory"), source),
            PlainSource::File(path) => io_error(path, source),
        }
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> RepositoryError {
    RepositoryError::Io { path: path.to_owned(), source }
}

/// A local file that is removed when it is dropped. It needs to survive nothing: after a crash the WAL is still where it
/// came from.
#[derive(Debug)]
pub(super) struct ScratchFile(PathBuf);

impl ScratchFile {
    /// A new file for reading and writing.
    pub(super) fn create(dir: &Path, name: &str) -> RepositoryResult<(Self, File)> {
        for attempt in 0..1000 {
            let path = dir.join(format!("pgvault-{name}.{attempt}.tmp"));
            match File::options().read(true).write(true).create_new(true).mode(PRIVATE_FILE).open(&path) {
                Ok(file) => return Ok((Self(path), file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error(&path, error)),
            }
        }
        Err(io_error(dir, io::Error::other(format!("too many left-over files pgvault-{name}.*.tmp"))))
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "scratch file not removed");
        }
    }
}
