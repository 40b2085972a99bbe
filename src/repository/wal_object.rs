//! Stored WAL as bytes: the header, then zstd frames. FORMAT.md 4.1.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use wal::{LongHeader, XactIndex, read_segment_header};

use crate::codec::digest::{sha256, sha256_reader};
use crate::codec::{CompressError, Compressor, ContentHash, ContentHasher};
use crate::durable::PRIVATE_FILE;
use crate::repository::header::WalPlace;
use crate::repository::segments::PlainSource;
use crate::repository::workbench::{Workbench, Workbenches};
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
    pub(super) workbenches: Workbenches,
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
        let mut workbench = self.workbenches.take().map_err(|error| self.mismatch(&error))?;
        let encoded = if self.place.length <= self.max_in_memory {
            self.in_memory(&mut workbench)
        } else {
            self.in_file(&mut workbench)
        };
        self.workbenches.give_back(workbench);
        encoded
    }

    fn in_memory(&self, workbench: &mut Workbench) -> RepositoryResult<Encoded> {
        let mut out = Vec::with_capacity(OBJECT_SPACE);
        let mut head = Head::new(self)?;
        out.extend_from_slice(&head.placeholder);
        // Compressed straight to where it stays.
        let (hash, first_page) = self.each_frame(workbench, |compressor, plain| {
            compressor.append_frame(plain, &mut out)?;
            Ok(())
        })?;
        let bytes = head.finish(self, hash)?;
        out[..bytes.len()].copy_from_slice(&bytes);
        let sha256 = sha256(&out);
        Ok(Encoded { header: head.header, first_page, body: Body::Bytes(out.into()), sha256, _scratch: None })
    }

    /// Written to a file, and read back for its checksum.
    fn in_file(&self, workbench: &mut Workbench) -> RepositoryResult<Encoded> {
        let name = self.place.key.as_str().rsplit('/').next().unwrap_or_default();
        let (scratch, mut out) = ScratchFile::create(&self.scratch_dir, name)?;
        let written = |source| io_error(&scratch.0, source);
        let mut head = Head::new(self)?;
        out.write_all(&head.placeholder).map_err(written)?;
        let mut stored = Vec::new();
        let (hash, first_page) = self.each_frame(workbench, |compressor, plain| {
            stored.clear();
            compressor.append_frame(plain, &mut stored)?;
            out.write_all(&stored).map_err(|source| EncodeError::Out(written(source)))
        })?;
        let bytes = head.finish(self, hash)?;
        out.rewind().map_err(written)?;
        out.write_all(&bytes).map_err(written)?;
        out.rewind().map_err(written)?;
        let (sha256, len) = sha256_reader(&mut out).map_err(written)?;
        let body = Body::File { path: scratch.0.clone(), len };
        Ok(Encoded { header: head.header, first_page, body, sha256, _scratch: Some(scratch) })
    }

    /// Hands the plaintext to `on_frame`, frame by frame; returns its hash and what its first page says.
    fn each_frame(
        &self,
        workbench: &mut Workbench,
        mut on_frame: impl FnMut(&mut Compressor, &[u8]) -> Result<(), EncodeError>,
    ) -> RepositoryResult<(ContentHash, Option<LongHeader>)> {
        let Workbench { compressor, plain: frame } = workbench;
        let mut plain = self.open_source()?;
        let (mut hasher, mut first_page) = (ContentHasher::new(), None);
        let mut left = self.place.length;
        while left > 0 {
            let wanted = left.min(FRAME_PLAIN);
            frame.resize(usize::try_from(wanted).unwrap_or_default(), 0);
            let found = fill(plain.as_mut(), frame).map_err(|source| self.source_error(source))? as u64;
            if found < wanted {
                let found = self.place.length - left + found;
                return Err(self.mismatch(&format!("{found} bytes in place of {}", self.place.length)));
            }
            if left == self.place.length && self.place.starts_segment() && frame.len() >= LONG_HEADER {
                first_page = Some(read_segment_header(frame).map_err(|error| self.mismatch(&error))?);
            }
            hasher.update(frame);
            on_frame(compressor, frame).map_err(|error| match error {
                EncodeError::Compress(error) => self.mismatch(&error),
                EncodeError::Out(error) => error,
            })?;
            left -= wanted;
        }
        let mut beyond = [0];
        if plain.read(&mut beyond).map_err(|source| self.source_error(source))? > 0 {
            return Err(self.mismatch(&format!("more than {} bytes", self.place.length)));
        }
        Ok((hasher.finish(), first_page))
    }

    fn mismatch(&self, problem: &dyn std::fmt::Display) -> RepositoryError {
        RepositoryError::mismatch(&self.place.key, problem)
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

/// Why a frame did not come to where it belongs.
enum EncodeError {
    Compress(CompressError),
    Out(RepositoryError),
}

impl From<CompressError> for EncodeError {
    fn from(error: CompressError) -> Self {
        Self::Compress(error)
    }
}

/// The header, whose place is kept until the hash of what follows is known: its length does not depend on that.
struct Head {
    header: WalHeader,
    placeholder: Vec<u8>,
}

impl Head {
    fn new(job: &EncodeJob) -> RepositoryResult<Self> {
        let header = job.place.header(ContentHash::UNKNOWN, job.postgres_version, job.index.clone());
        let placeholder = header.to_bytes()?;
        Ok(Self { header, placeholder })
    }

    /// The header as it is to be stored, as long as the placeholder.
    fn finish(&mut self, job: &EncodeJob, hash: ContentHash) -> RepositoryResult<Vec<u8>> {
        self.header.blake3 = hash;
        let bytes = self.header.to_bytes()?;
        if bytes.len() == self.placeholder.len() {
            Ok(bytes)
        } else {
            Err(job.mismatch(&"the header changed its length"))
        }
    }
}

/// Reads until the buffer is full or there is no more; how much of it is filled.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match reader.read(room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
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
