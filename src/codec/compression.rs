//! zstd, bounded on the way back.
//!
//! Every frame written here declares its content size and carries its checksum. Reading never takes more memory than
//! the caller allows, whatever a frame claims about itself.

use std::fmt;
use std::io::{self, BufRead, Cursor, Read};
use std::ops::Range;
use std::str::FromStr;

use zstd::zstd_safe::{CParameter, DParameter, compress_bound, find_frame_compressed_size, get_frame_content_size};

use super::raw_frame;

/// The window that `zstd -d` accepts without being asked; no frame of ours needs more.
const MAX_WINDOW_LOG: u32 = 27;

/// How stored bytes are compressed (`compression` in the configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// zstd with this level, -7 to 19.
    Zstd(i32),
    /// zstd frames of raw blocks: the same form, nothing compressed.
    None,
}

impl Default for Compression {
    /// Level 1: on WAL and indexes it has the ratio of level 3 at twice the speed.
    fn default() -> Self {
        Self::Zstd(1)
    }
}

/// The text does not name a compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no compression: \"none\", or \"zstd:LEVEL\" with a level from -7 to 19")]
pub struct ParseCompressionError(String);

impl FromStr for Compression {
    type Err = ParseCompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseCompressionError(text.to_owned());
        match text {
            "none" => Ok(Self::None),
            "zstd" => Ok(Self::default()),
            _ => {
                let level = text.strip_prefix("zstd:").ok_or_else(bad)?.parse().map_err(|_| bad())?;
                // Level 0 means "the default" to zstd, which is not what anybody means by 0.
                if (-7..=19).contains(&level) && level != 0 { Ok(Self::Zstd(level)) } else { Err(bad()) }
            }
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// zstd could not compress: it found no memory.
#[derive(Clone, Debug, thiserror::Error)]
#[error("compressing {plain_len} bytes: {reason}")]
pub struct CompressError {
    plain_len: usize,
    reason: String,
}

impl CompressError {
    /// No context could be made.
    pub fn context(reason: impl fmt::Display) -> Self {
        Self { plain_len: 0, reason: reason.to_string() }
    }
}

/// Stored bytes are not what they must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// They should hold more than the caller is willing to take.
    #[error("{claimed} bytes of content, more than the {limit} allowed here")]
    TooLarge {
        /// What they hold or should hold, at least.
        claimed: u64,
        /// What the caller allows.
        limit: u64,
    },
    /// They hold fewer or more bytes than they should.
    #[error("{found} bytes of content in place of {expected}")]
    WrongLength {
        /// What they should hold.
        expected: u64,
        /// What they hold.
        found: u64,
    },
    /// They are no whole zstd frames, or a frame's checksum is wrong.
    #[error("not intact zstd frames: {0}")]
    Damaged(String),
}

/// Compresses, one frame at a time, with a context that is used again.
pub struct Compressor {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("raw", &self.zstd.is_none()).finish()
    }
}

impl Compressor {
    /// A compressor with a context of its own, about a megabyte at the default level.
    pub fn new(compression: Compression) -> Result<Self, CompressError> {
        let Compression::Zstd(level) = compression else { return Ok(Self { zstd: None }) };
        let context = || {
            let mut zstd = zstd::bulk::Compressor::new(level)?;
            zstd.set_parameter(CParameter::ContentSizeFlag(true))?;
            zstd.set_parameter(CParameter::ChecksumFlag(true))?;
            Ok(zstd)
        };
        let zstd = context().map_err(|error: io::Error| CompressError { plain_len: 0, reason: error.to_string() })?;
        Ok(Self { zstd: Some(zstd) })
    }

    /// Appends one frame that holds `plain`; returns its length.
    pub fn append_frame(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<usize, CompressError> {
        let start = out.len();
        match &mut self.zstd {
            None => raw_frame::append(plain, out),
            Some(zstd) => {
                out.reserve(compress_bound(plain.len()));
                let mut tail = Cursor::new(&mut *out);
                tail.set_position(start as u64);
                zstd.compress_to_buffer(plain, &mut tail)
                    .map_err(|error| CompressError { plain_len: plain.len(), reason: error.to_string() })?;
            }
        }
        Ok(out.len() - start)
    }

    /// One frame that holds `plain`.
    pub fn frame(&mut self, plain: &[u8]) -> Result<Vec<u8>, CompressError> {
        let mut out = Vec::new();
        self.append_frame(plain, &mut out)?;
        Ok(out)
    }
}

/// One frame that holds `plain`, with a context made for it.
pub fn compress_frame(plain: &[u8], compression: Compression) -> Result<Vec<u8>, CompressError> {
    Compressor::new(compression)?.frame(plain)
}

/// Decompresses whole frames whose content length is known, with a context that is used again.
pub struct Decompressor(zstd::bulk::Decompressor<'static>);

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// A decompressor with a context of its own, some hundred kilobytes.
    pub fn new() -> Result<Self, DecompressError> {
        zstd::bulk::Decompressor::new().map(Self).map_err(|error| DecompressError::Damaged(error.to_string()))
    }

    /// Fills `plain` with the content of `stored`: one frame or several, skippable ones skipped. Content that is
    /// shorter or longer than `plain` is an error, and nothing beyond `plain` is ever written.
    pub fn decompress_to(&mut self, stored: &[u8], plain: &mut [u8]) -> Result<(), DecompressError> {
        let found =
            self.0.decompress_to_buffer(stored, plain).map_err(|error| DecompressError::Damaged(error.to_string()))?;
        if found == plain.len() {
            Ok(())
        } else {
            Err(DecompressError::WrongLength { expected: plain.len() as u64, found: found as u64 })
        }
    }
}

/// The content of `stored` (one frame or several), which must be exactly `plain_len` bytes, at most `limit`.
///
/// `plain_len` usually comes from a document inside the repository; `limit` is what the caller knows to be reasonable.
pub fn decompress(stored: &[u8], plain_len: u64, limit: u64) -> Result<Vec<u8>, DecompressError> {
    let too_large = DecompressError::TooLarge { claimed: plain_len, limit };
    if plain_len > limit {
        return Err(too_large);
    }
    let mut plain = vec![0; usize::try_from(plain_len).map_err(|_| too_large)?];
    Decompressor::new()?.decompress_to(stored, &mut plain)?;
    Ok(plain)
}

/// The content of `stored` (one frame or several), whatever its length up to `limit` bytes. Grows as it reads.
pub fn decompress_bounded(stored: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
    let damaged = |error: io::Error| DecompressError::Damaged(error.to_string());
    let mut plain = Vec::new();
    let mut reader = FrameReader::new(stored).map_err(damaged)?.take(limit.saturating_add(1));
    reader.read_to_end(&mut plain).map_err(damaged)?;
    let found = plain.len() as u64;
    if found > limit { Err(DecompressError::TooLarge { claimed: found, limit }) } else { Ok(plain) }
}

/// Magic number of a frame with content.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// A frame among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizedFrame {
    /// Where it lies in the stored bytes.
    pub stored: Range<usize>,
    /// Bytes of content.
    pub plain_len: usize,
}

/// The frames of `stored`, when every one of them is whole and tells its length, at most `limit` bytes: each can then be
/// decompressed straight to where its content is wanted. `None` when that is not so.
pub fn sized_frames(stored: &[u8], limit: usize) -> Option<Vec<SizedFrame>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < stored.len() {
        let rest = stored.get(at..)?;
        if !rest.starts_with(&FRAME_MAGIC) {
            return None;
        }
        let plain_len = usize::try_from(get_frame_content_size(rest).ok()??).ok()?;
        if plain_len == 0 || plain_len > limit {
            return None;
        }
        let end = at.checked_add(find_frame_compressed_size(rest).ok()?)?;
        frames.push(SizedFrame { stored: at..end, plain_len });
        at = end;
    }
    Some(frames)
}

/// Reads the content of concatenated frames as one stream, skippable frames skipped; a frame cut short is
/// `UnexpectedEof`. Takes at most 128 MiB of memory, whatever a frame asks for. The caller bounds how much it reads.
pub struct FrameReader<R: BufRead>(zstd::stream::read::Decoder<'static, R>);

impl<R: BufRead> fmt::Debug for FrameReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameReader")
    }
}

impl<R: BufRead> FrameReader<R> {
    /// A reader of the frames that `stored` gives.
    pub fn new(stored: R) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(stored)?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self(decoder))
    }
}

impl<R: BufRead> Read for FrameReader<R> {
    fn read(&mut self, plain: &mut [u8]) -> io::Result<usize> {
        self.0.read(plain)
    }
}

#[cfg(test)]
mod tests;
