//! zstd frames without compression: raw blocks only, so that `compression = "none"` has the same form as the rest and
//! `zstd -d` reads it (RFC 8878, sections 3.1.1 and 3.1.1.2).

use twox_hash::XxHash64;

/// Magic number of a zstd frame.
const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// Content size in 8 bytes (bits 7-6), window descriptor present (bit 5 clear), content checksum (bit 2).
const DESCRIPTOR: u8 = 0b1100_0100;
/// A window of 128 KiB: exponent 7 over 2^10, mantissa 0. Raw blocks look back at nothing; it only bounds their size.
const WINDOW: u8 = 7 << 3;
/// The largest block that the format allows.
const MAX_BLOCK: usize = 128 * 1024;
/// Magic, descriptor, window, content size.
const HEADER: usize = 4 + 1 + 1 + 8;
const BLOCK_HEADER: usize = 3;
const CHECKSUM: usize = 4;

/// Length of the frame that holds `plain_len` bytes.
pub(super) fn stored_len(plain_len: usize) -> usize {
    HEADER + plain_len.div_ceil(MAX_BLOCK).max(1) * BLOCK_HEADER + plain_len + CHECKSUM
}

/// Appends a frame that holds `plain` as it is.
pub(super) fn append(plain: &[u8], out: &mut Vec<u8>) {
    out.reserve(stored_len(plain.len()));
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[DESCRIPTOR, WINDOW]);
    out.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    let mut rest = plain;
    loop {
        let (block, after) = rest.split_at(rest.len().min(MAX_BLOCK));
        let last = u32::from(after.is_empty());
        // Block header: last block (bit 0), type raw = 0 (bits 2-1), size (21 bits); three bytes, little endian.
        let header = ((block.len() as u32) << 3 | last).to_le_bytes();
        out.extend_from_slice(&header[..BLOCK_HEADER]);
        out.extend_from_slice(block);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let checksum = XxHash64::oneshot(0, plain).to_le_bytes();
    out.extend_from_slice(&checksum[..CHECKSUM]);
}
