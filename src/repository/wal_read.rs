//! Reading stored WAL back. FORMAT.md 4.1.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::codec::digest::Hasher;
use crate::codec::envelope::FIRST_READ;
use crate::codec::{ContentHash, ContentHasher, DecompressError, Decompressor, FrameReader, SizedFrame, sized_frames};
use crate::repository::header::WalPlace;
use crate::repository::objects::READ_SIZE;
use crate::repository::wal_object::FRAME_PLAIN;
use crate::repository::{Objects, RepositoryError, RepositoryResult, WalHeader};
use crate::storage::Sha256;

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
/// Only when this returns `Ok` is what `sink` got the WAL that was stored: its length and its BLAKE3 are right and the
/// header belongs to this place. Memory: a few ranges and a few pieces, whatever the object claims.
pub(super) async fn read_wal(
    objects: &Objects,
    place: &WalPlace,
    sink: &mut (dyn Write + Send),
) -> RepositoryResult<Decoded> {
    let (first, header, header_len) = read_beginning(objects, place, READ_SIZE).await?;
    let (stored_in, stored_out) = mpsc::channel(1);
    let (plain_in, mut plain_out) = mpsc::channel::<Vec<u8>>(2);
    let length = place.length;
    let decode = tokio::task::spawn_blocking(move || {
        let mut hand_on = |plain: &[u8]| {
            plain_in.blocking_send(plain.to_vec()).map_err(|_| Undecoded::Sink(io::ErrorKind::BrokenPipe.into()))
        };
        decode(StoredPieces::new(stored_out), &mut hand_on, length)
    });
    let download = download(objects, place, first, header_len, stored_in, Some(Hasher::new()));
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
    check_content(place, &header, decoded)?;
    Ok(Decoded { header, sha256: sha256.unwrap_or_default(), size })
}

/// The same into an empty file, and faster; returns the header and the stored length. The file is not synced.
///
/// What is decompressed is hashed and goes from one buffer straight into the file, on a thread that may wait for both. The
/// stored object's own checksum is left out: the content has one. As [`read_wal`], only `Ok` says that the file is right.
pub(super) async fn read_wal_to_file(
    objects: &Objects,
    place: &WalPlace,
    file: &File,
) -> RepositoryResult<(WalHeader, u64)> {
    let (first, header, header_len) = read_beginning(objects, place, READ_SIZE).await?;
    let length = place.length;
    if (first.len() as u64) < READ_SIZE {
        let size = first.len() as u64;
        let (frames, file) = (first.slice(header_len..), file.try_clone().map_err(RepositoryError::Sink)?);
        let decode = tokio::task::spawn_blocking(move || decode_sized(&frames, file, length));
        if let Some(decoded) = decode.await.map_err(|error| RepositoryError::damaged(&place.key, error))?.transpose() {
            check_content(place, &header, decoded)?;
            return Ok((header, size));
        }
    }
    let mut file = file.try_clone().map_err(RepositoryError::Sink)?;
    let (stored_in, stored_out) = mpsc::channel(1);
    let decode = tokio::task::spawn_blocking(move || {
        decode(StoredPieces::new(stored_out), &mut |plain| file.write_all(plain).map_err(Undecoded::Sink), length)
    });
    let downloaded = download(objects, place, first, header_len, stored_in, None).await;
    let decoded = decode.await.map_err(|error| RepositoryError::damaged(&place.key, error))?;
    let decoded = match decoded {
        Err(Undecoded::Sink(error)) => return Err(RepositoryError::Sink(error)),
        decoded => decoded,
    };
    let (_, size) = downloaded?;
    check_content(place, &header, decoded)?;
    Ok((header, size))
}

/// Decompresses frames of our size into a file and returns the hash of their content; `None`, with nothing written, when
/// they are not such frames.
fn decode_sized(stored: &[u8], mut file: File, length: u64) -> Result<Option<ContentHash>, Undecoded> {
    let limit = usize::try_from(FRAME_PLAIN).unwrap_or(1 << 20);
    let Some(frames) = sized_frames(stored, limit) else { return Ok(None) };
    let found: u64 = frames.iter().map(|frame| frame.plain_len as u64).sum();
    if found != length {
        return Err(Undecoded::Stored(format!("{found} bytes of content in place of {length}")));
    }
    let failed = |error: DecompressError| Undecoded::Stored(error.to_string());
    let mut decompressor = Decompressor::new().map_err(failed)?;
    let mut buffer = vec![0; frames.iter().map(|frame| frame.plain_len).max().unwrap_or_default()];
    let mut hasher = ContentHasher::new();
    for SizedFrame { stored: range, plain_len } in frames {
        let stored = stored.get(range).unwrap_or_default();
        let plain = buffer.get_mut(..plain_len).unwrap_or_default();
        decompressor.decompress_to(stored, plain).map_err(failed)?;
        hasher.update(plain);
        file.write_all(plain).map_err(Undecoded::Sink)?;
    }
    Ok(Some(hasher.finish()))
}

fn check_content(
    place: &WalPlace,
    header: &WalHeader,
    decoded: Result<ContentHash, Undecoded>,
) -> RepositoryResult<()> {
    match decoded {
        Ok(hash) if hash == header.blake3 => Ok(()),
        Ok(_) => Err(RepositoryError::damaged(&place.key, "the checksum of its content is wrong")),
        Err(Undecoded::Stored(what)) => Err(RepositoryError::damaged(&place.key, what)),
        Err(Undecoded::Sink(error)) => Err(RepositoryError::Sink(error)),
    }
}

/// Hands the stored bytes after the header to the decoder; returns length and, where it is wanted, the checksum of the
/// whole object. `first` are its first bytes, at least `READ_SIZE` unless the object ends before.
async fn download(
    objects: &Objects,
    place: &WalPlace,
    first: Bytes,
    header_len: usize,
    to: mpsc::Sender<Bytes>,
    mut hasher: Option<Hasher>,
) -> RepositoryResult<(Option<Sha256>, u64)> {
    let mut piece = first;
    let mut size = 0;
    loop {
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece);
        }
        let frames = if size == 0 { piece.slice(header_len..) } else { piece.clone() };
        size += piece.len() as u64;
        // A decoder that has ended has said why; the object's own checksum is of no use then.
        if to.send(frames).await.is_err() || (piece.len() as u64) < READ_SIZE {
            return Ok((hasher.map(Hasher::finish), size));
        }
        piece = objects.get_range(&place.key, size, size + READ_SIZE).await?;
    }
}

/// Why stored bytes did not become plaintext somewhere.
#[derive(Debug)]
enum Undecoded {
    /// They are not what they must be.
    Stored(String),
    /// Whoever wanted them could not take them.
    Sink(io::Error),
}

/// Decompresses to exactly `length` bytes, handed on piece by piece, and returns their hash.
///
/// The buffer holds one of our frames: zstd then decompresses straight into it, without a window in between.
fn decode(
    stored: StoredPieces,
    hand_on: &mut dyn FnMut(&[u8]) -> Result<(), Undecoded>,
    length: u64,
) -> Result<ContentHash, Undecoded> {
    let damaged = |error: io::Error| Undecoded::Stored(format!("not intact zstd frames: {error}"));
    let mut frames = FrameReader::new(stored).map_err(damaged)?;
    let mut hasher = ContentHasher::new();
    let mut found = 0u64;
    let mut buffer = vec![0; usize::try_from(FRAME_PLAIN).unwrap_or(1 << 20)];
    loop {
        let count = frames.read(&mut buffer).map_err(damaged)?;
        let piece = buffer.get(..count).unwrap_or_default();
        found += count as u64;
        if found > length {
            return Err(Undecoded::Stored(format!("more than {length} bytes of content")));
        }
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        hand_on(piece)?;
    }
    if found == length {
        Ok(hasher.finish())
    } else {
        Err(Undecoded::Stored(format!("{found} bytes of content in place of {length}")))
    }
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
