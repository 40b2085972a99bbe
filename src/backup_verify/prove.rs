//! The chunks of one pack, proven out of its bytes.

use std::io;

use bytes::Bytes;

use crate::codec::Decompressor;
use crate::codec::difference::xor;
use crate::repository::chunk_reader::{PackRead, WantedChunk, open_frame};
use crate::repository::file_table::{ChunkHash, StoredChunk};

use super::scratch::Proofs;

/// What lies in memory of packs.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The pack, its first byte that is held, the bytes.
    pub(super) ranges: Vec<(u32, u64, Bytes)>,
}

impl Held {
    fn frame(&self, chunk: &StoredChunk) -> Option<&[u8]> {
        let of_pack = self.ranges.iter().filter(|(pack, ..)| *pack == chunk.pack);
        of_pack.filter_map(|(_, start, bytes)| part(bytes, *start, chunk)).next()
    }
}

fn part<'a>(bytes: &'a [u8], start: u64, chunk: &StoredChunk) -> Option<&'a [u8]> {
    let from = usize::try_from(u64::from(chunk.offset).checked_sub(start)?).ok()?;
    bytes.get(from..from.checked_add(chunk.stored as usize)?)
}

/// A chunk that is not what the file table says, and the pack to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadChunk {
    pub(super) pack: u32,
    pub(super) what: String,
}

/// Proves the chunks of a read and enters their CRC-32C; returns those that are wrong. CPU bound.
pub(super) fn prove(read: &PackRead, held: &Held, chunk_size: u32, proofs: &Proofs) -> io::Result<Vec<BadChunk>> {
    let mut prover = Prover::new()?;
    let mut bad = Vec::new();
    let mut last: Option<(StoredChunk, Option<StoredChunk>, u32)> = None;
    for wanted in &read.chunks {
        // The same chunk for another file lies right behind.
        let known = last.filter(|(chunk, patch, _)| (*chunk, *patch) == (wanted.chunk, wanted.patch));
        let sum = match known {
            Some((.., sum)) => sum,
            None => match prover.prove(wanted, held, chunk_size) {
                Ok(()) => crc32c::crc32c(&prover.plain),
                Err(wrong) => {
                    bad.push(wrong);
                    continue;
                }
            },
        };
        last = Some((wanted.chunk, wanted.patch, sum));
        proofs.enter(wanted.entry, sum)?;
    }
    Ok(bad)
}

struct Prover {
    decompressor: Decompressor,
    plain: Vec<u8>,
    base: Vec<u8>,
}

impl Prover {
    fn new() -> io::Result<Self> {
        let decompressor = Decompressor::new().map_err(io::Error::other)?;
        Ok(Self { decompressor, plain: Vec::new(), base: Vec::new() })
    }

    /// Leaves the chunk's plaintext in `self.plain`, proven.
    fn prove(&mut self, wanted: &WantedChunk, held: &Held, limit: u32) -> Result<(), BadChunk> {
        let wrong = |chunk: &StoredChunk, what: String| BadChunk {
            pack: chunk.pack,
            what: format!("{} bytes at {}: {what}", chunk.stored, chunk.offset),
        };
        let Some(patch) = &wanted.patch else {
            let frame = held.frame(&wanted.chunk);
            return open_frame(&mut self.decompressor, frame, &wanted.chunk, limit, &mut self.plain)
                .and_then(|()| is_right(&self.plain, &wanted.chunk))
                .map_err(|what| wrong(&wanted.chunk, what));
        };
        open_frame(&mut self.decompressor, held.frame(&wanted.chunk), &wanted.chunk, limit, &mut self.base)
            .and_then(|()| is_right(&self.base, &wanted.chunk))
            .map_err(|what| wrong(&wanted.chunk, format!("beneath a page patch: {what}")))?;
        open_frame(&mut self.decompressor, held.frame(patch), patch, limit, &mut self.plain)
            .map_err(|what| wrong(patch, format!("a page patch: {what}")))?;
        xor(&mut self.plain, &self.base);
        is_right(&self.plain, patch).map_err(|what| wrong(patch, format!("a page patch: {what}")))
    }
}

fn is_right(plain: &[u8], chunk: &StoredChunk) -> Result<(), String> {
    let found = ChunkHash::of(plain);
    if found == chunk.hash { Ok(()) } else { Err(format!("its BLAKE3 is {found}, the file table says {}", chunk.hash)) }
}
