//! Stored WAL as bytes: the header, then zstd frames. FORMAT.md 4.1.

use std::fs::{self, File};
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;
use wal::{LongHeader, XactIndex, read_segment_header};

use crate::codec::digest::{Hasher, sha256_reader};
use crate::codec::envelope::FIRST_READ;
use crate::codec::{Compression, Compressor, FrameReader};
use crate::durable::PRIVATE_FILE;
use crate::repository::header::WalPlace;
use crate::repository::objects::READ_SIZE;
use crate::repository::segments::PlainSource;
use crate::repository::{Objects, RepositoryError, RepositoryResult, WalHeader};
use crate::storage::{Body, Sha256};

/// Plaintext of one frame. The format allows more, but a frame and its stored form are in memory at once, for every upload
/// under way, and beyond zstd's window nothing is gained.
const FRAME_PLAIN: u64 = 2 << 20;

/// Space that an object in memory gets at first. It costs nothing until it is written to, and is more than glibc's malloc
/// ever keeps for later (`DEFAULT_MMAP_THRESHOLD_MAX`): smaller buffers would stay with every thread that had one.
const OBJECT_SPACE: usize = 33 << 20;

/// How much plaintext is handed on at a time when reading.
const PIECE: usize = 1 << 20;

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
        // The header's length does not depend on the digest, which is known only after the frames are written.
        let mut header = self.place.header([0; 32], self.postgres_version, self.index.clone());
        let placeholder = header.to_bytes()?;
        out.write_all(&placeholder).map_err(written)?;
        let (digest, first_page) = self.write_frames(out, path)?;
        header.sha256 = digest;
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

    fn write_frames<W: Write>(&self, out: &mut W, path: &Path) -> RepositoryResult<(Sha256, Option<LongHeader>)> {
        let mismatch = |problem: String| RepositoryError::mismatch(&self.place.key, problem);
        let mut plain = self.open_source()?;
        let mut compressor = Compressor::new(self.compression).map_err(|error| mismatch(error.to_string()))?;
        let (mut hasher, mut first_page, mut stored) = (Hasher::new(), None, Vec::new());
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

/// What was read of a stored piece of WAL, once all of it was found right.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    pub(super) header: WalHeader,
    /// Of the stored object.
    pub(super) sha256: Sha256,
    /// Of the stored object.
    pub(super) size: u64,
}

/// Reads the header alone: one ranged read, rarely two. `NotFound` is the store's own word for exactly this key.
pub(super) async fn read_header(objects: &Objects, place: &WalPlace) -> RepositoryResult<WalHeader> {
    Ok(read_beginning(objects, place, FIRST_READ).await?.1)
}

/// The first bytes of the object, `size` of them or as many as the header needs; the header, and its length.
async fn read_beginning(objects: &Objects, place: &WalPlace, size: u64) -> RepositoryResult<(Bytes, WalHeader, usize)> {
    let mut wanted = size;
    loop {
        let beginning = objects.get_range(&place.key, 0, wanted).await?;
        match place.parse(&beginning)? {
            Ok((header, header_len)) => return Ok((beginning, header, header_len)),
            Err(needed) if (beginning.len() as u64) < wanted => return Err(cut_short(place, beginning.len(), needed)),
            Err(needed) => wanted = needed as u64,
        }
    }
}

fn cut_short(place: &WalPlace, found: usize, needed: usize) -> RepositoryError {
    RepositoryError::damaged(&place.key, format!("it ends after {found} bytes, its header needs {needed}"))
}

/// Reads all of a stored piece of WAL into `sink`, by ranges, while earlier ranges are decompressed elsewhere.
///
/// Only when this returns `Ok` is what `sink` got the WAL that was stored: its length and its SHA-256 are right and the
/// header belongs to this place. Memory: a few ranges and a few pieces, whatever the object claims.
pub(super) async fn read_wal(
    objects: &Objects,
    place: &WalPlace,
    sink: &mut (dyn Write + Send),
) -> RepositoryResult<Decoded> {
    let (first, header, header_len) = read_beginning(objects, place, READ_SIZE).await?;
    let (stored_in, stored_out) = mpsc::channel(1);
    let (plain_in, mut plain_out) = mpsc::channel(2);
    let length = place.length;
    let decode = tokio::task::spawn_blocking(move || decode(StoredPieces::new(stored_out), &plain_in, length));
    let download = download(objects, place, first, header_len, stored_in);
    let deliver = async {
        while let Some(piece) = plain_out.recv().await {
            sink.write_all(&piece).map_err(RepositoryError::Sink)?;
        }
        // The decoder sees a closed channel when the sink failed, and ends.
        drop(plain_out);
        Ok::<(), RepositoryError>(())
    };
    let (downloaded, delivered) = tokio::join!(download, deliver);
    let decoded = decode.await.map_err(|error| RepositoryError::damaged(&place.key, error))?;
    // A failed sink or store is why the decoder got too few bytes: it is the error to tell.
    delivered?;
    let (sha256, size) = downloaded?;
    let plain_sha256 = decoded.map_err(|error| RepositoryError::damaged(&place.key, error))?;
    if plain_sha256 != header.sha256 {
        return Err(RepositoryError::damaged(&place.key, "the checksum of its content is wrong"));
    }
    Ok(Decoded { header, sha256, size })
}

/// Hands the stored bytes after the header to the decoder; returns checksum and length of the whole object. `first` are
/// its first bytes, at least `READ_SIZE` unless the object ends before.
async fn download(
    objects: &Objects,
    place: &WalPlace,
    first: Bytes,
    header_len: usize,
    to: mpsc::Sender<Bytes>,
) -> RepositoryResult<(Sha256, u64)> {
    let mut hasher = Hasher::new();
    let mut piece = first;
    let mut size = 0;
    loop {
        hasher.update(&piece);
        let frames = if size == 0 { piece.slice(header_len..) } else { piece.clone() };
        size += piece.len() as u64;
        // A decoder that has ended has said why; the object's own checksum is of no use then.
        if to.send(frames).await.is_err() || (piece.len() as u64) < READ_SIZE {
            return Ok((hasher.finish(), size));
        }
        piece = objects.get_range(&place.key, size, size + READ_SIZE).await?;
    }
}

/// Decompresses to exactly `length` bytes and returns their SHA-256; the reason when that is not what the frames hold.
fn decode(stored: StoredPieces, plain: &mpsc::Sender<Vec<u8>>, length: u64) -> Result<Sha256, String> {
    let damaged = |error: io::Error| format!("not intact zstd frames: {error}");
    let mut frames = FrameReader::new(stored).map_err(damaged)?;
    let mut hasher = Hasher::new();
    let mut found = 0u64;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        frames.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(damaged)?;
        found += piece.len() as u64;
        if found > length {
            return Err(format!("more than {length} bytes of content"));
        }
        if piece.is_empty() {
            break;
        }
        hasher.update(&piece);
        plain.blocking_send(piece).map_err(|_| "the reader went away".to_owned())?;
    }
    if found == length { Ok(hasher.finish()) } else { Err(format!("{found} bytes of content in place of {length}")) }
}

/// The stored bytes as they come, for a reader that blocks.
#[derive(Debug)]
struct StoredPieces {
    from: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl StoredPieces {
    fn new(from: mpsc::Receiver<Bytes>) -> Self {
        Self { from, piece: Bytes::new() }
    }
}

impl Read for StoredPieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for StoredPieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece = self.piece.slice(amount.min(self.piece.len())..);
    }
}
