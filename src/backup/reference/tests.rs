use bytes::Bytes;

use super::*;
use crate::codec::digest::sha256;
use crate::repository::file_table::{FileContent, PartWriter};

fn entry(path: &str, chunks: Vec<ChunkRef>) -> TableEntry {
    let size = chunks.iter().map(|chunk| u64::from(chunk.plain())).sum();
    let kind = EntryKind::File(FileContent { size, crc32c: 5, chunks });
    TableEntry { path: DataPath::new(path.as_bytes()).unwrap(), mode: 0o600, mtime: 0, kind }
}

fn stored(pack: u32, plain: u32) -> StoredChunk {
    StoredChunk { pack, offset: 10, stored: 20, plain, hash: ChunkHash([7; 32]) }
}

#[test]
fn files_are_found_with_their_packs_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let packs = vec![PackRef { sha256: [1; 32], size: 100 }, PackRef { sha256: [2; 32], size: 200 }];
    let entries = [
        entry("base/5/1", vec![ChunkRef::Stored(stored(1, CHUNK_SIZE)), ChunkRef::Zeros { plain: 8192 }]),
        entry("base/5/2", vec![ChunkRef::Patched(PatchedChunk { patch: stored(1, 99), base: stored(0, 100) })]),
        entry("unwanted", vec![]),
    ];
    let mut writer = PartWriter::default();
    assert!(entries.iter().all(|entry| writer.push(entry).is_none()));
    let part = Bytes::from(zstd::encode_all(writer.finish().unwrap().plain.as_slice(), 1).unwrap());
    let facts = TableFacts { chunk_size: CHUNK_SIZE, packs: 2 };
    let digest = sha256(&part);
    let reader = PartReader::new(part, digest, 3, facts).unwrap();
    let mut writer = ReferenceWriter::new(dir.path()).unwrap();
    writer.add(reader, |entry| entry.path.as_bytes().starts_with(b"base")).unwrap();
    let id = "20261119T020512-3f2a".parse().unwrap();
    let reference = writer.finish(id, packs.clone(), facts).unwrap();

    let find = |path: &str| reference.find(&DataPath::new(path.as_bytes()).unwrap()).unwrap();
    let first = find("base/5/1").unwrap();
    assert_eq!((first.size, first.crc32c), (u64::from(CHUNK_SIZE) + 8192, 5));
    let OldChunk::Whole(chunk) = first.chunks[0] else { panic!() };
    assert_eq!((chunk.pack, first.chunks[0].base()), (packs[1], Some(chunk)));
    assert_eq!(first.chunks[1], OldChunk::Zeros { plain: 8192 });
    assert_eq!((first.chunks[1].hash(), first.chunks[1].base()), (None, None));
    let second = find("base/5/2").unwrap();
    assert_eq!(second.chunks[0].base().unwrap().pack, packs[0], "the whole chunk, not the patch");
    assert_eq!(second.chunks[0].plain(), 99);
    assert!(find("unwanted").is_none() && find("base/5/3").is_none());
}
