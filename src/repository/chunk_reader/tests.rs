use crate::repository::file_table::{CHUNK_SIZE, ChunkHash, FileContent, PatchedChunk};
use crate::repository::pack::{PackBuilder, PackedChunk};
use crate::storage::Body;
use crate::storage::memory::MemoryStorage;

use super::*;

struct Backup {
    reader: ChunkReader,
    storage: Arc<dyn Storage>,
    entries: Vec<TableEntry>,
    contents: Vec<Vec<u8>>,
}

/// Two packs; the second file shares a chunk with the first, the third has zeros in the middle.
async fn sample(damage: impl FnOnce(&mut Vec<u8>)) -> Backup {
    let size = CHUNK_SIZE as usize;
    let noise =
        |seed: usize, len: usize| (0..len).map(|i| ((i * 31 + i / 251 * seed) % 253 + 1) as u8).collect::<Vec<u8>>();
    let pieces = [noise(1, size), noise(2, size), noise(3, 700), noise(4, size)];
    let mut builders = [PackBuilder::new(), PackBuilder::new()];
    let refs: Vec<ChunkRef> = [0, 0, 1, 1]
        .into_iter()
        .zip(&pieces)
        .map(|(pack, plain)| {
            let frame = zstd::bulk::compress(plain, 1).unwrap();
            let packed = builders[pack].push(&frame, u32::try_from(plain.len()).unwrap(), ChunkHash::of(plain));
            let (pack, hash) = (u32::try_from(pack).unwrap(), packed.hash);
            ChunkRef::Stored(StoredChunk {
                pack,
                offset: packed.offset,
                stored: packed.stored,
                plain: packed.plain,
                hash,
            })
        })
        .collect();
    let contents = vec![
        [&*pieces[0], &pieces[1], &pieces[2]].concat(),
        [&*pieces[0], &pieces[2]].concat(),
        [&*pieces[3], &vec![0; size], &pieces[2]].concat(),
        vec![],
    ];
    let zeros = ChunkRef::Zeros { plain: CHUNK_SIZE };
    let chunks = [vec![refs[0], refs[1], refs[2]], vec![refs[0], refs[2]], vec![refs[3], zeros, refs[2]], vec![]];
    let entries = contents
        .iter()
        .zip(chunks)
        .enumerate()
        .map(|(at, (content, chunks))| TableEntry {
            path: DataPath::new(format!("base/5/{at}").as_bytes()).unwrap(),
            mode: 0o600,
            mtime: 0,
            kind: EntryKind::File(FileContent { size: content.len() as u64, crc32c: crc32c::crc32c(content), chunks }),
        })
        .collect();
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let mut keys = Vec::new();
    let mut damage = Some(damage);
    for builder in builders {
        let pack = builder.finish();
        let key = ObjectKey::new(format!("main/packs/{}", hex::encode(pack.sha256))).unwrap();
        let mut bytes = pack.bytes.to_vec();
        if let Some(damage) = damage.take() {
            damage(&mut bytes);
        }
        let sha256 = crate::codec::digest::sha256(&bytes);
        storage.put_new(&key, Body::Bytes(bytes.into()), sha256).await.unwrap();
        keys.push(key);
    }
    Backup { reader: ChunkReader::new(Arc::clone(&storage), keys, CHUNK_SIZE), storage, entries, contents }
}

async fn read(backup: &Backup, entry: usize) -> Result<Vec<u8>, ChunkError> {
    let mut content = vec![0xee; backup.contents[entry].len()];
    backup
        .reader
        .read_file(&backup.entries[entry], |position, plain| {
            let position = usize::try_from(position).unwrap();
            content[position..position + plain.len()].copy_from_slice(plain);
            Ok(())
        })
        .await?;
    Ok(content)
}

#[tokio::test]
async fn files_come_back_byte_for_byte() {
    let backup = sample(|_| ()).await;
    for (entry, content) in backup.contents.iter().enumerate() {
        assert!(read(&backup, entry).await.unwrap() == *content, "file {entry}");
    }
}

#[tokio::test]
async fn chunks_of_many_files_are_read_with_few_requests() {
    let backup = sample(|_| ()).await;
    let reads = plan(wanted_chunks(&backup.entries));
    assert_eq!(reads.iter().map(|read| read.pack).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(reads.iter().map(|read| read.chunks.len()).sum::<usize>(), 7);
    let mut contents: Vec<Vec<u8>> = backup.contents.iter().map(|content| vec![0; content.len()]).collect();
    let mut unpacker = Unpacker::new();
    for read in reads {
        let bytes = backup.reader.fetch(&read, &backup.entries).await.unwrap();
        let mut write = |entry: usize, position: u64, plain: &[u8]| {
            let position = usize::try_from(position).unwrap();
            contents[entry][position..position + plain.len()].copy_from_slice(plain);
            Ok(())
        };
        unpacker.unpack(&backup.reader, &read, &bytes, &backup.entries, &mut write).unwrap();
    }
    assert!(contents == backup.contents);
    assert_eq!(zero_chunks(&backup.entries).collect::<Vec<_>>(), [(2, 1, CHUNK_SIZE)]);
}

#[tokio::test]
async fn a_flipped_bit_names_pack_chunk_and_file() {
    let backup = sample(|pack| pack[100] ^= 1).await;
    match read(&backup, 0).await.unwrap_err() {
        ChunkError::Damaged { pack, offset: 0, file, index: 0, .. } => {
            assert_eq!(pack, backup.reader.packs[0]);
            assert_eq!(file, backup.entries[0].path);
        }
        error => panic!("{error}"),
    }
    assert!(read(&backup, 2).await.is_ok());
}

#[tokio::test]
async fn another_chunk_in_its_place_is_damage() {
    let mut backup = sample(|_| ()).await;
    let EntryKind::File(file) = &mut backup.entries[0].kind else { panic!() };
    let (ChunkRef::Stored(first), ChunkRef::Stored(second)) = (file.chunks[0], file.chunks[1]) else { panic!() };
    file.chunks[0] = ChunkRef::Stored(StoredChunk { hash: first.hash, ..second });
    let error = read(&backup, 0).await.unwrap_err();
    assert!(matches!(error, ChunkError::Damaged { .. }) && error.to_string().contains("BLAKE3"), "{error}");
}

#[tokio::test]
async fn a_pack_cut_short_or_gone_is_damage() {
    let backup = sample(|pack| pack.truncate(50)).await;
    let error = read(&backup, 0).await.unwrap_err();
    assert!(error.to_string().contains("the pack ends before it"), "{error}");
    backup.storage.delete(&backup.reader.packs).await.unwrap();
    assert!(matches!(read(&backup, 2).await.unwrap_err(), ChunkError::MissingPack { .. }));
}

#[test]
fn reads_join_what_is_near_and_stay_bounded() {
    let wanted = |pack, offset, stored| WantedChunk {
        entry: 0,
        index: 0,
        chunk: StoredChunk { pack, offset, stored, plain: CHUNK_SIZE, hash: ChunkHash([0; 32]) },
        patch: None,
    };
    let ranges = |wanted| plan(wanted).into_iter().map(|read| (read.pack, read.range)).collect::<Vec<_>>();
    assert_eq!(ranges(vec![wanted(0, 1000, 500), wanted(0, 0, 1000)]), [(0, 0..1500)]);
    assert_eq!(ranges(vec![wanted(0, 0, 10), wanted(0, 1 << 20, 10)]), [(0, 0..10), (0, 1 << 20..(1 << 20) + 10)]);
    assert_eq!(ranges(vec![wanted(1, 0, 10), wanted(0, 0, 10)]), [(0, 0..10), (1, 0..10)]);
    assert_eq!(ranges(vec![wanted(0, 0, u32::MAX), wanted(0, 5, 10)]), [(0, 0..u64::from(u32::MAX))]);
    let many: Vec<_> = (0..64).map(|i| wanted(0, i << 19, 1 << 19)).collect();
    let reads = ranges(many);
    assert_eq!(reads.len(), 4);
    assert!(reads.iter().all(|(_, range)| range.end - range.start <= 8 << 20));
}

/// A file whose first chunk is a patch over a longer one, and whose second is that chunk itself; base and difference lie in
/// packs of their own, and either may be damaged.
async fn patched(damage: impl Fn(usize, &mut Vec<u8>)) -> Backup {
    let base: Vec<u8> = (0..CHUNK_SIZE).map(|i| (i % 251) as u8).collect();
    let mut content = base[..700_000].to_vec();
    content[8192..8200].copy_from_slice(b"changed!");
    let mut difference = content.clone();
    crate::codec::difference::xor(&mut difference, &base);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let mut keys = Vec::new();
    let mut refs = Vec::new();
    for (number, plain) in [&base, &difference].into_iter().enumerate() {
        let mut builder = PackBuilder::new();
        let frame = zstd::bulk::compress(plain, 1).unwrap();
        let packed = builder.push(&frame, u32::try_from(plain.len()).unwrap(), ChunkHash::of(plain));
        let (pack, finished) = (u32::try_from(number).unwrap(), builder.finish());
        let PackedChunk { offset, stored, plain, hash } = packed;
        refs.push(StoredChunk { pack, offset, stored, plain, hash });
        let mut bytes = finished.bytes.to_vec();
        damage(number, &mut bytes);
        let key = ObjectKey::new(format!("main/packs/{}", hex::encode(finished.sha256))).unwrap();
        let sha256 = crate::codec::digest::sha256(&bytes);
        storage.put_new(&key, Body::Bytes(bytes.into()), sha256).await.unwrap();
        keys.push(key);
    }
    let patch = StoredChunk { hash: ChunkHash::of(&content), ..refs[1] };
    let entry = |name: &str, content: &[u8], chunk| TableEntry {
        path: DataPath::new(name.as_bytes()).unwrap(),
        mode: 0o600,
        mtime: 0,
        kind: EntryKind::File(FileContent {
            size: content.len() as u64,
            crc32c: crc32c::crc32c(content),
            chunks: vec![chunk],
        }),
    };
    let entries = vec![
        entry("base/5/new", &content, ChunkRef::Patched(PatchedChunk { patch, base: refs[0] })),
        entry("base/5/old", &base, ChunkRef::Stored(refs[0])),
    ];
    let reader = ChunkReader::new(Arc::clone(&storage), keys, CHUNK_SIZE);
    Backup { reader, storage, entries, contents: vec![content, base] }
}

#[tokio::test]
async fn a_patch_and_the_chunk_beneath_make_the_content() {
    let backup = patched(|_, _| ()).await;
    for (entry, content) in backup.contents.iter().enumerate() {
        assert!(read(&backup, entry).await.unwrap() == *content, "file {entry}");
    }
    let reads = plan(wanted_chunks(&backup.entries));
    assert_eq!(reads.len(), 1, "base and patched chunk come with one read");
    assert_eq!(reads[0].patches.len(), 1);
}

#[tokio::test]
async fn damage_names_the_patch_or_the_chunk_beneath() {
    for damaged in [0, 1] {
        // Another valid frame of the same length in its place: nothing but the hash can tell.
        let backup = patched(|number, bytes| {
            if number == damaged {
                let plain = vec![number as u8 + 1; if number == 0 { CHUNK_SIZE as usize } else { 700_000 }];
                *bytes = zstd::bulk::compress(&plain, 1).unwrap();
                bytes.resize(8 << 10, 0);
            }
        });
        let mut backup = backup.await;
        let EntryKind::File(file) = &mut backup.entries[0].kind else { panic!() };
        let ChunkRef::Patched(PatchedChunk { patch, base }) = &mut file.chunks[0] else { panic!() };
        let frame_len = |plain: &[u8]| u32::try_from(zstd::bulk::compress(plain, 1).unwrap().len()).unwrap();
        match damaged {
            0 => base.stored = frame_len(&vec![1; CHUNK_SIZE as usize]),
            _ => patch.stored = frame_len(&vec![2; 700_000]),
        }
        match read(&backup, 0).await.unwrap_err() {
            ChunkError::Damaged { pack, file, what, .. } => {
                assert_eq!(pack, backup.reader.packs[damaged], "{what}");
                assert_eq!(file, backup.entries[0].path);
                assert!(what.contains("page patch"), "{what}");
            }
            error => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_in_either_is_damage() {
    for damaged in [0, 1] {
        let backup = patched(|number, bytes| bytes[20] ^= u8::from(number == damaged)).await;
        match read(&backup, 0).await.unwrap_err() {
            ChunkError::Damaged { pack, .. } => assert_eq!(pack, backup.reader.packs[damaged]),
            error => panic!("{error}"),
        }
    }
}
