use std::fs;
use std::path::Path;

use super::*;
use crate::error::ErrorCode;
use crate::repository::file_table::{ChunkHash, StoredChunk};
use crate::restore::roots::{Keep, open_root};

const CHUNK: usize = 100;

fn stored(plain: usize) -> ChunkRef {
    let plain = u32::try_from(plain).unwrap();
    ChunkRef::Stored(StoredChunk { pack: 0, offset: 0, stored: 1, plain, hash: ChunkHash([0; 32]) })
}

/// A file in chunks; those that are zeros are not stored.
fn entry(path: &str, content: &[u8]) -> TableEntry {
    let chunk = |bytes: &[u8]| match bytes.iter().all(|&byte| byte == 0) {
        true => ChunkRef::Zeros { plain: bytes.len() as u32 },
        false => stored(bytes.len()),
    };
    let chunks = content.chunks(CHUNK).map(chunk).collect();
    let content = FileContent { size: content.len() as u64, crc32c: crc32c(content), chunks };
    let path = DataPath::new(path.as_bytes()).unwrap();
    TableEntry { path, mode: 0o640, mtime: 1_700_000_000, kind: EntryKind::File(content) }
}

fn part(files: &[(&str, Vec<u8>)]) -> Part {
    let entries: Vec<TableEntry> = files.iter().map(|(path, content)| entry(path, content)).collect();
    let right = entries.iter().map(|entry| vec![None; content(entry).unwrap().chunks.len()]).collect();
    Part::new(entries, right, false)
}

fn roots(dir: &Path) -> Roots {
    Roots::new(open_root(&dir.join("data"), None).unwrap(), None, Keep::New)
}

/// A read that brings these chunks: file and number.
fn read_of(chunks: &[(usize, u32)]) -> PackRead {
    let ChunkRef::Stored(chunk) = stored(1) else { unreachable!("it is stored") };
    let chunks = chunks.iter().map(|&(entry, index)| WantedChunk { entry, index, chunk, patch: None }).collect();
    PackRead { pack: 0, range: 0..1, chunks, patches: Vec::new() }
}

/// Writes what a read brings; how many files are complete by it.
fn write(part: &Part, roots: &Roots, files: &[(&str, Vec<u8>)], chunks: &[(usize, u32)]) -> Result<u64> {
    let read = read_of(chunks);
    let mut writer = Writer::new(part, roots, CHUNK as u32, &read);
    for &(file, index) in chunks {
        let from = index as usize * CHUNK;
        let plain = files[file].1.chunks(CHUNK).nth(index as usize).unwrap();
        if writer.write(file, from as u64, plain).is_err() {
            return Err(writer.failed.unwrap());
        }
    }
    Ok(writer.finished)
}

#[test]
fn files_are_made_with_their_first_chunk_and_finished_with_their_last() {
    let dir = tempfile::tempdir().unwrap();
    let roots = roots(dir.path());
    let small = |seed: u8| vec![seed; 60];
    let large: Vec<u8> = [[1; CHUNK], [0; CHUNK], [3; CHUNK], [4; CHUNK]].concat();
    let mut files = vec![("base/1", large.clone()), ("base/2", large[..350].to_vec()), ("other/3", small(3))];
    let names: Vec<String> = (0..2 * MADE_AT_ONCE).map(|number| format!("base/small{number}")).collect();
    files.extend(names.iter().map(|name| (name.as_str(), small(7))));
    files.extend([("base/empty", vec![]), ("base/zeros", vec![0; 250])]);
    let part = part(&files);
    let without = part.without_chunks();
    assert_eq!(without, [files.len() - 2, files.len() - 1]);
    part.complete(&without, &roots).unwrap();
    // Chunks of two files take turns, and one of each comes with another read; small files lie between them.
    let turns = [(0, 3), (1, 3), (3, 0), (2, 0), (0, 0), (1, 0)];
    assert_eq!(write(&part, &roots, &files, &turns).unwrap(), 2);
    let path = |name: &str| dir.path().join("data").join(name);
    assert_ne!(fs::metadata(path("base/1")).unwrap().len(), 0, "it has its length from the beginning");
    let rest: Vec<(usize, u32)> = (4..3 + names.len()).map(|file| (file, 0)).chain([(1, 2), (0, 2)]).collect();
    assert_eq!(write(&part, &roots, &files, &rest).unwrap(), part.files() - 2 - 2);
    for (name, content) in &files {
        assert!(fs::read(path(name)).unwrap() == *content, "{name}");
        let found = rustix::fs::stat(path(name)).unwrap();
        assert_eq!((found.st_mode & 0o7777, found.st_mtime), (0o640, 1_700_000_000), "{name}");
    }
}

#[test]
fn a_file_that_is_not_what_the_table_says_as_a_whole_fails_the_restore() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = vec![("base/1", vec![1; 150]), ("base/2", vec![2; 50])];
    let part = part(&files);
    files[0].1[120] = 9;
    let error = write(&part, &roots(dir.path()), &files, &[(0, 0), (0, 1)]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Damaged);
    assert!(error.to_string().contains("base/1"), "{error}");
}

#[test]
fn the_same_file_twice_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![("base/1", vec![1; 50]), ("base/2", vec![2; 50]), ("base/1", vec![3; 50])];
    let error = write(&part(&files), &roots(dir.path()), &files, &[(0, 0), (1, 0), (2, 0)]).unwrap_err();
    assert!(error.to_string().contains("base/1"), "{error}");
}

#[test]
fn checksums_of_chunks_make_that_of_the_file() {
    let bytes: Vec<u8> = [vec![7; 100_000], vec![0; 100_000], (0..=255).collect()].concat();
    let chunks = vec![stored(100_000), ChunkRef::Zeros { plain: 100_000 }, stored(256)];
    let file = FileContent { size: bytes.len() as u64, crc32c: 0, chunks };
    let parts = [Some(crc32c(&bytes[..100_000])), None, Some(crc32c(&bytes[200_000..]))];
    assert_eq!(checksum_of(&file, &parts), Some(crc32c(&bytes)));
    assert_eq!(checksum_of(&file, &[parts[0], None, None]), None, "one was not written");
    assert_eq!(checksum_of(&FileContent { size: 0, crc32c: 0, chunks: Vec::new() }, &[]), Some(crc32c(b"")));
}
