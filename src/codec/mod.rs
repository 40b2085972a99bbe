//! Bytes to bytes: compression, encryption, the header in front of stored WAL, sealed documents, digests.
//!
//! Nothing here knows keys, stores or PostgreSQL. Everything that reads takes bytes from outside for hostile: lengths
//! are bounded before memory is taken, and no claim inside the bytes is believed.

pub mod compression;
pub mod content_hash;
pub mod difference;
pub mod digest;
pub mod encryption;
pub mod envelope;
mod raw_frame;
pub mod sealed;

pub use compression::{
    CompressError, Compression, Compressor, DecompressError, Decompressor, FrameReader, SizedFrame, compress_frame,
    decompress, decompress_bounded, sized_frames,
};
pub use content_hash::{ContentHash, ContentHasher};
pub use sealed::{FORMAT_VERSION, SealedError, seal, seal_with_features, unseal};
