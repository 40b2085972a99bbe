//! Which chunks of files that are there are right already: each is read in place and hashed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use crc32c::crc32c;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use crate::error::Result;
use crate::repository::file_table::{ChunkHash, ChunkRef, EntryKind, TableEntry};

use super::copy::cannot_write;
use super::parallel;
use super::roots::Roots;

/// One thread reads so many chunks of a file in one go: a file of 1 GiB is read by all threads.
const SPAN: usize = 32;

/// CRC-32C of the chunks that are right, by entry and chunk; `None` for those that have to be written.
pub(super) type Checksums = Vec<Vec<Option<u32>>>;

/// Some chunks of one file.
struct Span {
    entry: usize,
    first: usize,
    end: usize,
}

/// Looks at what is there of some entries, `there[i]` bytes of the i-th. Chunks of zeros are made zeros. Returns the bytes
/// that are right, of chunks that are not zeros, and their checksums.
pub(super) fn right_chunks(
    entries: &[TableEntry],
    there: &[u64],
    roots: &Roots,
    chunk_size: u32,
    checksums: &mut Checksums,
) -> Result<u64> {
    let spans = spans(entries, there, chunk_size);
    let found: Mutex<Vec<(usize, usize, u32)>> = Mutex::new(Vec::new());
    let buffer = || vec![0; chunk_size as usize];
    parallel::for_each(parallel::processors(), &spans, buffer, |buffer, span| {
        let entry = &entries[span.entry];
        let right = look(span, entry, there[span.entry], roots, buffer).map_err(|e| cannot_write(&entry.path, &e))?;
        let right = right.into_iter().map(|(index, checksum)| (span.entry, index, checksum));
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(right);
        Ok::<(), crate::error::Error>(())
    })?;
    let mut bytes = 0;
    for (entry, index, checksum) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        checksums[entry][index] = Some(checksum);
        bytes += chunks(&entries[entry]).get(index).map_or(0, |chunk| u64::from(chunk.plain()));
    }
    Ok(bytes)
}

fn chunks(entry: &TableEntry) -> &[ChunkRef] {
    match &entry.kind {
        EntryKind::File(file) => &file.chunks,
        EntryKind::Directory => &[],
    }
}

fn spans(entries: &[TableEntry], there: &[u64], chunk_size: u32) -> Vec<Span> {
    let mut spans = Vec::new();
    for (entry, (table, there)) in entries.iter().zip(there).enumerate() {
        // Nothing of what lies behind was there: no need to look.
        let begun = usize::try_from(there.div_ceil(u64::from(chunk_size))).unwrap_or(usize::MAX);
        let end = chunks(table).len().min(begun);
        spans.extend((0..end).step_by(SPAN).map(|first| Span { entry, first, end: end.min(first + SPAN) }));
    }
    spans
}

fn look(
    span: &Span,
    entry: &TableEntry,
    there: u64,
    roots: &Roots,
    buffer: &mut [u8],
) -> io::Result<Vec<(usize, u32)>> {
    let file = roots.open_file(&entry.path)?;
    if there > buffer.len() as u64 {
        // Advice only: read further ahead.
        fadvise(&file, 0, None, Advice::Sequential)?;
    }
    let mut right = Vec::with_capacity(span.end - span.first);
    for index in span.first..span.end {
        let chunk = &chunks(entry)[index];
        let position = index as u64 * buffer.len() as u64;
        let plain = &mut buffer[..chunk.plain() as usize];
        // Bytes that cannot be read, from a bad block say, are not right: they are written anew.
        let read = file.read_exact_at(plain, position);
        match chunk {
            ChunkRef::Zeros { .. } if read.is_ok() && is_zeros(plain) => {}
            ChunkRef::Zeros { plain: len } => make_zeros(&file, position, *len)?,
            ChunkRef::Stored(stored) if read.is_ok() && ChunkHash::of(plain) == stored.hash => {
                right.push((index, crc32c(plain)));
            }
            ChunkRef::Patched(patched) if read.is_ok() && ChunkHash::of(plain) == patched.patch.hash => {
                right.push((index, crc32c(plain)));
            }
            ChunkRef::Stored(_) | ChunkRef::Patched(_) => {}
        }
    }
    Ok(right)
}

fn is_zeros(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 8192] = [0; 8192];
    bytes.chunks(ZEROS.len()).all(|piece| piece == &ZEROS[..piece.len()])
}

/// A hole where the file system has holes, else zeros.
fn make_zeros(file: &File, position: u64, len: u32) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, hole, position, u64::from(len)) {
        Ok(()) => Ok(()),
        Err(_) => file.write_all_at(&vec![0; len as usize], position),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use recovery::DataPath;

    use super::*;
    use crate::repository::file_table::{FileContent, PatchedChunk, StoredChunk};
    use crate::restore::roots::{Keep, open_root};

    const CHUNK: u32 = 100;

    fn stored(plain: &[u8]) -> StoredChunk {
        StoredChunk { pack: 0, offset: 0, stored: 1, plain: plain.len() as u32, hash: ChunkHash::of(plain) }
    }

    #[test]
    fn chunks_that_are_right_are_found_and_zeros_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(open_root(&dir.path().join("data"), None).unwrap(), None, Keep::Right);
        let (one, two, last) = ([1; 100], [2; 100], [3; 30]);
        let patched = PatchedChunk { patch: stored(&two), base: stored(&one) };
        let zeros = ChunkRef::Zeros { plain: CHUNK };
        let chunks = vec![
            ChunkRef::Stored(stored(&one)),
            zeros,
            ChunkRef::Patched(patched),
            zeros,
            ChunkRef::Stored(stored(&one)),
            ChunkRef::Stored(stored(&last)),
        ];
        let content = FileContent { size: 530, crc32c: 0, chunks };
        let path = DataPath::new(b"file").unwrap();
        let entries = [TableEntry { path: path.clone(), mode: 0o600, mtime: 0, kind: EntryKind::File(content) }];
        let at = dir.path().join("data/file");
        let whole = [&one[..], &[0; 100], &two, &[0; 100], &one, &last].concat();
        let right = [Some(crc32c(&one)), None, Some(crc32c(&two)), None, Some(crc32c(&one)), Some(crc32c(&last))];
        let look = |before: &[u8]| {
            fs::write(&at, before).unwrap();
            let there = roots.take(&path, 530, 0o600).unwrap();
            let mut checksums = vec![vec![None; 6]];
            let bytes = right_chunks(&entries, &[there], &roots, CHUNK, &mut checksums).unwrap();
            assert_eq!(fs::metadata(&at).unwrap().len(), 530);
            (bytes, checksums.remove(0), fs::read(&at).unwrap())
        };
        assert_eq!(look(&whole), (330, right.to_vec(), whole.clone()));
        assert_eq!(look(&[&whole[..], b"more"].concat()), (330, right.to_vec(), whole.clone()));
        let (bytes, checksums, _) = look(&whole[..450]);
        assert_eq!((bytes, &checksums[..4], &checksums[4..]), (200, &right[..4], &[None, None][..]));
        // What should be zeros becomes zeros, what is wrong is left to be written.
        let mut wrong = whole.clone();
        (wrong[150], wrong[250], wrong[520]) = (9, 9, 9);
        let (bytes, checksums, after) = look(&wrong);
        assert_eq!((bytes, checksums), (200, vec![right[0], None, None, None, right[4], None]));
        assert_eq!((after[150], after[250], after[520]), (0, 9, 9));
        assert_eq!(look(b""), (0, vec![None; 6], vec![0; 530]));
    }
}
