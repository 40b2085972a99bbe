//! A file whose chunks are being placed.

use std::array::from_fn;
use std::sync::LazyLock;

use crc32c::crc32c_combine;

use crate::backup::cut::{EntryHead, FileSum};
use crate::backup::work::ChunkSum;
use crate::codec::digest::crc32c_of_zeros;
use crate::repository::file_table::{CHUNK_SIZE, ChunkRef};

/// The file, as far as it has come.
#[derive(Debug)]
pub(super) struct OpenEntry {
    pub(super) head: EntryHead,
    pub(super) size: u64,
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) damaged_pages: u64,
    /// Bytes of the chunks so far, their CRC-32C, and what they change of that of the old file.
    position: u64,
    sum: u32,
    change: u32,
}

impl OpenEntry {
    pub(super) const fn new(head: EntryHead, size: u64) -> Self {
        Self { head, size, chunks: Vec::new(), damaged_pages: 0, position: 0, sum: 0, change: 0 }
    }

    /// The next chunk, and what it adds to the checksum.
    pub(super) fn add(&mut self, placed: ChunkRef, plain: u32, sum: Option<ChunkSum>) {
        self.position += u64::from(plain);
        if let Some(sum) = sum {
            self.sum = behind_chunk(self.sum, plain) ^ sum.content;
            // CRC-32C is linear: bytes that change here change that of the whole by their own difference, moved on by what
            // follows.
            let behind = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX);
            self.change ^= if sum.change == 0 { 0 } else { crc32c_combine(sum.change, 0, behind) };
        }
        self.chunks.push(placed);
    }

    /// The CRC-32C of the whole file.
    pub(super) fn crc32c(&self, sum: FileSum) -> u32 {
        match sum {
            FileSum::Known(crc32c) => crc32c,
            FileSum::OfChunks => self.sum,
            FileSum::Changed { crc32c, size } => {
                let grown = usize::try_from(self.size.saturating_sub(size)).unwrap_or(usize::MAX);
                crc32c_combine(crc32c, crc32c_of_zeros(grown), grown) ^ self.change
            }
        }
    }
}

/// A CRC-32C moved on by so many bytes: what it adds to the one of everything up to there.
fn behind_chunk(sum: u32, plain: u32) -> u32 {
    /// Where each bit of it gets to behind a whole chunk. Nearly all chunks are whole, and to find that out takes longer than
    /// to hash some pages.
    static BITS: LazyLock<[u32; 32]> =
        LazyLock::new(|| from_fn(|bit| crc32c_combine(1 << bit, 0, CHUNK_SIZE as usize)));
    if plain != CHUNK_SIZE {
        return crc32c_combine(sum, 0, plain as usize);
    }
    // It is linear: each bit goes its own way.
    (0..32).filter(|bit| sum & (1 << bit) != 0).fold(0, |moved, bit| moved ^ BITS[bit])
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};
    use proptest::prop_assert_eq;
    use recovery::DataPath;

    use super::*;

    /// The checksum of a file that had `old` and has `new`, from the chunks that are not the same, as workers tell of them.
    fn checksum(old: &[u8], new: &[u8], chunk: usize) -> u32 {
        let head = EntryHead { path: DataPath::new(b"base/5/7").unwrap(), mode: 0, mtime: 0 };
        let size = new.len() as u64;
        let mut entry = OpenEntry::new(head, size);
        let shrank = new.len() < old.len();
        for (at, now) in new.chunks(chunk).enumerate() {
            let mut before = old.get(at * chunk..).unwrap_or_default().to_vec();
            before.resize(now.len(), 0);
            let content = crc32c::crc32c(now);
            let sum = ChunkSum { content, change: content ^ crc32c::crc32c(&before) };
            let same = !shrank && before == now && (at + 1) * chunk <= old.len();
            let plain = u32::try_from(now.len()).unwrap();
            entry.add(ChunkRef::Zeros { plain }, plain, (!same).then_some(sum));
        }
        let sum = FileSum::Changed { crc32c: crc32c::crc32c(old), size: old.len() as u64 };
        entry.crc32c(if shrank { FileSum::OfChunks } else { sum })
    }

    proptest! {
        #[test]
        fn checksums_of_chunks_make_that_of_the_file(
            sum in any::<u32>(),
            content in any::<u32>(),
            plain in proptest::sample::select(vec![1, 8192, CHUNK_SIZE - 1, CHUNK_SIZE]),
        ) {
            prop_assert_eq!(behind_chunk(sum, plain) ^ content, crc32c_combine(sum, content, plain as usize));
        }

        #[test]
        fn the_checksum_of_a_file_follows_from_what_changed(
            mut old in vec(any::<u8>(), 0..300),
            grow in 0..200_usize,
            cut in 0..400_usize,
            changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..5),
        ) {
            let mut new = old.clone();
            new.resize(new.len() + grow, 0);
            for (at, byte) in changes {
                if !new.is_empty() {
                    let at = at.index(new.len());
                    new[at] = byte;
                }
            }
            prop_assert_eq!(checksum(&old, &new, 64), crc32c::crc32c(&new));
            new.truncate(cut);
            prop_assert_eq!(checksum(&old, &new, 64), crc32c::crc32c(&new));
            old.clear();
            prop_assert_eq!(checksum(&old, &new, 64), crc32c::crc32c(&new));
        }
    }
}
