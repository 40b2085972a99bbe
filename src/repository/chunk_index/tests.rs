use std::fs;
use std::sync::Arc;

use super::*;
use crate::repository::pack::{FinishedPack, PackBuilder};
use crate::storage::Body;
use crate::storage::memory::MemoryStorage;

fn pack_of(texts: &[&str]) -> FinishedPack {
    let mut builder = PackBuilder::new();
    for text in texts {
        let frame = zstd::bulk::compress(text.as_bytes(), 1).unwrap();
        builder.push(&frame, u32::try_from(text.len()).unwrap(), hash(text));
    }
    builder.finish()
}

fn hash(text: &str) -> ChunkHash {
    ChunkHash::of(text.as_bytes())
}

fn main_cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

async fn store(objects: &Objects, pack: &FinishedPack) -> PackRef {
    let key = pack_key(&main_cluster(), &pack.sha256);
    objects.put_new(&key, Body::Bytes(pack.bytes.clone()), pack.sha256).await.unwrap();
    PackRef { sha256: pack.sha256, size: pack.bytes.len() as u64 }
}

fn objects() -> Objects {
    Objects::new(Arc::new(MemoryStorage::new()))
}

/// Both kinds of index.
fn indexes(dir: &Path) -> [ChunkIndex; 2] {
    let disk = ChunkIndex::open(&dir.join("chunks.redb"));
    assert!(matches!(disk.chunks, Chunks::Disk(_)));
    [disk, ChunkIndex::in_memory()]
}

#[tokio::test]
async fn packs_that_nobody_told_of_are_read_and_used() {
    let dir = tempfile::tempdir().unwrap();
    for index in indexes(dir.path()) {
        let objects = objects();
        let pack = pack_of(&["one", "two"]);
        let stored = store(&objects, &pack).await;
        let refreshed = index.refresh(&objects, &main_cluster()).await.unwrap();
        assert_eq!(refreshed, Refreshed { packs: 1, read: 1, damaged: 0, gone: 0 });
        let found = index.find(&hash("two")).unwrap();
        let PackedChunk { offset, stored: len, plain, .. } = pack.chunks[1];
        assert_eq!(found, KnownChunk { pack: stored, offset, stored: len, plain });
        assert_eq!(index.find(&hash("three")), None);
        assert_eq!(index.refresh(&objects, &main_cluster()).await.unwrap().read, 0);
    }
}

#[tokio::test]
async fn a_chunk_whose_pack_is_gone_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    for index in indexes(dir.path()) {
        let objects = objects();
        let (gone, kept) = (pack_of(&["one", "both"]), pack_of(&["two"]));
        let gone = store(&objects, &gone).await;
        store(&objects, &kept).await;
        index.refresh(&objects, &main_cluster()).await.unwrap();
        objects.storage().delete(&[pack_key(&main_cluster(), &gone.sha256)]).await.unwrap();
        assert_eq!(index.refresh(&objects, &main_cluster()).await.unwrap().gone, 1);
        assert_eq!(index.find(&hash("one")), None);
        assert!(index.find(&hash("two")).is_some());
    }
}

#[tokio::test]
async fn the_file_remembers_and_its_loss_is_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not/there/yet/chunks.redb");
    let objects = objects();
    let pack = pack_of(&["one"]);
    let stored = store(&objects, &pack).await;
    ChunkIndex::open(&path).add_pack(stored, &pack.chunks);
    let index = ChunkIndex::open(&path);
    assert_eq!(index.find(&hash("one")), None, "nothing was listed yet");
    assert_eq!(index.refresh(&objects, &main_cluster()).await.unwrap().read, 0);
    assert!(index.find(&hash("one")).is_some());
    drop(index);
    for damage in [vec![0x55; 100_000], vec![]] {
        fs::write(&path, damage).unwrap();
        let index = ChunkIndex::open(&path);
        assert!(matches!(index.chunks, Chunks::Disk(_)));
        assert_eq!(index.refresh(&objects, &main_cluster()).await.unwrap().read, 1);
        assert!(index.find(&hash("one")).is_some());
    }
}

#[tokio::test]
async fn a_file_that_another_holds_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chunks.redb");
    let first = ChunkIndex::open(&path);
    let second = ChunkIndex::open(&path);
    assert!(matches!((&first.chunks, &second.chunks), (Chunks::Disk(_), Chunks::Memory(_))));
}

#[tokio::test]
async fn a_pack_with_a_damaged_end_is_not_used() {
    let objects = objects();
    let mut pack = pack_of(&["one"]);
    let mut bytes = pack.bytes.to_vec();
    let len = bytes.len();
    bytes[len - 1] ^= 1;
    pack.sha256 = crate::codec::digest::sha256(&bytes);
    pack.bytes = bytes.into();
    store(&objects, &pack).await;
    let index = ChunkIndex::in_memory();
    assert_eq!(index.refresh(&objects, &main_cluster()).await.unwrap().damaged, 1);
    assert_eq!(index.find(&hash("one")), None);
}

#[tokio::test]
async fn a_long_table_of_contents_takes_a_second_read() {
    let objects = objects();
    let texts: Vec<String> = (0..3000).map(|number| format!("chunk {number}")).collect();
    let pack = pack_of(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    store(&objects, &pack).await;
    let index = ChunkIndex::in_memory();
    index.refresh(&objects, &main_cluster()).await.unwrap();
    assert!(index.find(&hash("chunk 0")).is_some() && index.find(&hash("chunk 2999")).is_some());
}
