//! Where chunks lie and what was found of them, in files: memory does not grow with the backup.
//!
//! Chunks are numbered in the order of the file table. Where each lies is written into one of a few buckets, by its pack;
//! what was found of it, under its number, into the list of proofs, which is read again in the order of the table.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::durable::{PRIVATE_FILE, TempFile};
use crate::repository::chunk_reader::WantedChunk;
use crate::repository::file_table::{ChunkHash, ChunkRef, EntryKind, PatchedChunk, StoredChunk, TableEntry};

/// At most so many files hold where chunks lie.
const BUCKETS: usize = 64;

/// Length of a proof: CRC-32C, and whether there is one.
const PROOF: usize = 8;

/// Everything that is written down.
#[derive(Debug)]
pub(super) struct Scratch {
    buckets: Vec<Bucket>,
    packs: usize,
    chunks: u64,
    proofs: Proofs,
}

#[derive(Debug)]
struct Bucket {
    temp: TempFile,
    writer: BufWriter<File>,
    chunks: u64,
}

/// What was found of each chunk. Threads write side by side, each its own places.
#[derive(Debug)]
pub(super) struct Proofs {
    temp: TempFile,
}

impl Scratch {
    /// Files in `dir`, for chunks of this many packs. They go with `self`.
    pub(super) fn new(dir: &Path, packs: usize) -> io::Result<Self> {
        let bucket = || {
            let temp = TempFile::in_dir(dir, PRIVATE_FILE)?;
            let writer = BufWriter::new(temp.file().try_clone()?);
            Ok::<_, io::Error>(Bucket { temp, writer, chunks: 0 })
        };
        let buckets = (0..packs.min(BUCKETS)).map(|_| bucket()).collect::<io::Result<_>>()?;
        Ok(Self { buckets, packs, chunks: 0, proofs: Proofs { temp: TempFile::in_dir(dir, PRIVATE_FILE)? } })
    }

    /// Numbers the chunks of the next entry of the table and writes down where they lie.
    pub(super) fn add(&mut self, entry: &TableEntry) -> io::Result<()> {
        let EntryKind::File(file) = &entry.kind else { return Ok(()) };
        for (index, chunk) in (0..).zip(&file.chunks) {
            let (chunk, patch) = match *chunk {
                ChunkRef::Zeros { .. } => (None, None),
                ChunkRef::Stored(chunk) => (Some(chunk), None),
                ChunkRef::Patched(PatchedChunk { patch, base }) => (Some(base), Some(patch)),
            };
            if let Some(chunk) = chunk {
                let at = self.bucket_of(chunk.pack);
                let bucket = &mut self.buckets[at];
                write_place(&mut bucket.writer, self.chunks, index, &chunk, patch.as_ref())?;
                bucket.chunks += 1;
            }
            self.chunks += 1;
        }
        Ok(())
    }

    fn bucket_of(&self, pack: u32) -> usize {
        // The file table was read with this number of packs; of none, there is no chunk.
        pack as usize * self.buckets.len() / self.packs
    }

    /// The packs whose chunks lie in each bucket, by bucket.
    pub(super) fn packs_by_bucket(&self) -> Vec<Vec<u32>> {
        let mut packs = vec![Vec::new(); self.buckets.len()];
        for pack in 0..u32::try_from(self.packs).unwrap_or(u32::MAX) {
            packs[self.bucket_of(pack)].push(pack);
        }
        packs
    }

    /// The chunks of a bucket; `entry` is the number of the chunk.
    pub(super) fn places(&mut self, bucket: usize) -> io::Result<Vec<WantedChunk>> {
        let bucket = &mut self.buckets[bucket];
        bucket.writer.flush()?;
        let mut file = bucket.temp.file().try_clone()?;
        file.rewind()?;
        let mut reader = BufReader::new(file);
        (0..bucket.chunks).map(|_| read_place(&mut reader)).collect()
    }

    pub(super) fn proofs(&self) -> &Proofs {
        &self.proofs
    }
}

impl Proofs {
    /// The chunk of this number was proven, and has this CRC-32C.
    pub(super) fn enter(&self, chunk: usize, crc32c: u32) -> io::Result<()> {
        let mut proof = [0; PROOF];
        proof[..4].copy_from_slice(&crc32c.to_le_bytes());
        proof[4] = 1;
        self.temp.file().write_all_at(&proof, chunk as u64 * PROOF as u64)
    }

    /// The proofs in the order of the table.
    pub(super) fn in_order(&self) -> io::Result<ProofReader> {
        let mut file = self.temp.file().try_clone()?;
        file.rewind()?;
        Ok(ProofReader(BufReader::new(file)))
    }
}

/// Reads proofs one after another.
#[derive(Debug)]
pub(super) struct ProofReader(BufReader<File>);

impl ProofReader {
    /// CRC-32C of the next chunk; `None` when it was not proven.
    pub(super) fn next(&mut self) -> io::Result<Option<u32>> {
        let mut proof = [0; PROOF];
        match self.0.read_exact(&mut proof) {
            Ok(()) => {}
            // Nothing was proven from here on.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let [a, b, c, d, proven, ..] = proof;
        Ok((proven == 1).then(|| u32::from_le_bytes([a, b, c, d])))
    }
}

fn write_place(
    out: &mut impl Write,
    number: u64,
    index: u32,
    chunk: &StoredChunk,
    patch: Option<&StoredChunk>,
) -> io::Result<()> {
    out.write_all(&number.to_le_bytes())?;
    out.write_all(&index.to_le_bytes())?;
    out.write_all(&[u8::from(patch.is_some())])?;
    for chunk in [Some(chunk), patch].into_iter().flatten() {
        for field in [chunk.pack, chunk.offset, chunk.stored, chunk.plain] {
            out.write_all(&field.to_le_bytes())?;
        }
        out.write_all(&chunk.hash.0)?;
    }
    Ok(())
}

fn read_place(reader: &mut impl Read) -> io::Result<WantedChunk> {
    let number = u64::from_le_bytes(array(reader)?);
    let index = u32::from_le_bytes(array(reader)?);
    let [patched] = array(reader)?;
    let mut stored = || {
        let mut field = || Ok::<_, io::Error>(u32::from_le_bytes(array(reader)?));
        let (pack, offset, stored, plain) = (field()?, field()?, field()?, field()?);
        Ok::<_, io::Error>(StoredChunk { pack, offset, stored, plain, hash: ChunkHash(array(reader)?) })
    };
    let chunk = stored()?;
    let patch = if patched == 1 { Some(stored()?) } else { None };
    Ok(WantedChunk { entry: usize::try_from(number).map_err(io::Error::other)?, index, chunk, patch })
}

fn array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}
