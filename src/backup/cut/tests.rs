use super::*;
use crate::codec::Compression;

const SIZE: usize = CHUNK_SIZE as usize;

fn head(path: &str) -> EntryHead {
    EntryHead { path: DataPath::new(path.as_bytes()).unwrap(), mode: 0o600, mtime: 0 }
}

/// Cuts files given in pieces of `piece` bytes; returns the items with the bytes of the chunks.
async fn cut(files: &[(&str, Vec<u8>)], piece: usize) -> Vec<(Item, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let pool = BufferPool::new(2);
    let give_back = pool.give_back();
    let (out, mut batches) = mpsc::channel(1);
    let check = ManifestCheck::new(dir.path(), Compression::None).unwrap();
    let mut cutter = Cutter::new(pool, out, Some(check), None);
    let collect = tokio::spawn(async move {
        let mut items = Vec::new();
        while let Some(batch) = batches.recv().await {
            assert!(batch.bytes.len() <= SIZE && batch.items.len() <= MAX_ITEMS);
            for item in batch.items {
                let bytes = match &item {
                    Item::Chunk(chunk) => batch.bytes[chunk.bytes.clone()].to_vec(),
                    _ => Vec::new(),
                };
                items.push((item, bytes));
            }
            give_back.put(batch.bytes);
        }
        items
    });
    for (path, content) in files {
        cutter.begin_file(head(path), content.len() as u64).await.unwrap();
        for piece in content.chunks(piece) {
            cutter.data(piece).await.unwrap();
        }
    }
    let (totals, _) = cutter.finish().await.unwrap();
    assert_eq!(totals.files, files.len() as u64);
    assert_eq!(totals.bytes, files.iter().map(|(_, content)| content.len() as u64).sum::<u64>());
    collect.await.unwrap()
}

fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7 + i / 255 + seed) % 256) as u8).collect()
}

#[tokio::test]
async fn chunks_start_at_multiples_of_their_size_whatever_the_pieces() {
    let files = [
        ("empty", vec![]),
        ("small", noise(1, 100)),
        ("base/5/16384.1", noise(2, 2 * SIZE + 5)),
        ("exact", noise(3, SIZE)),
        ("other", noise(4, SIZE - 1)),
        ("last", vec![]),
    ];
    for piece in [1000, 32 * 1024, SIZE + 1, 10 * SIZE] {
        let items = cut(&files, piece).await;
        let mut found: Vec<(String, Vec<u8>, u32)> = Vec::new();
        for (item, bytes) in items {
            match item {
                Item::Directory(_) | Item::Same(_) => panic!(),
                Item::File(head, _) => found.push((head.path.to_string(), Vec::new(), 0)),
                Item::FileEnd(FileSum::Known(crc32c)) => found.last_mut().unwrap().2 = crc32c,
                Item::FileEnd(_) => panic!(),
                Item::Chunk(chunk) => {
                    let (path, content, _) = found.last_mut().unwrap();
                    assert_eq!(chunk.position, content.len() as u64);
                    assert_eq!(chunk.position % SIZE as u64, 0);
                    assert_eq!(chunk.segment, (path == "base/5/16384.1").then_some(1));
                    content.extend(bytes);
                }
            }
        }
        assert_eq!(found.len(), files.len());
        for ((path, content), (found_path, found_content, crc32c)) in files.iter().zip(found) {
            assert_eq!(*path, found_path);
            assert!(*content == found_content, "{path}");
            assert_eq!(crc32c, crc32c::crc32c(content));
        }
    }
}

#[tokio::test]
async fn many_small_files_share_a_batch() {
    let names: Vec<String> = (0..1000).map(|number| format!("f{number}")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), noise(9, 300))).collect();
    assert_eq!(cut(&files, 300).await.len(), 3000);
}

#[tokio::test]
async fn a_source_waits_while_all_buffers_are_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (out, mut batches) = mpsc::channel(8);
    let pool = BufferPool::new(2);
    let give_back = pool.give_back();
    let mut cutter = Cutter::new(pool, out, Some(ManifestCheck::new(dir.path(), Compression::None).unwrap()), None);
    cutter.begin_file(head("big"), 3 * SIZE as u64).await.unwrap();
    cutter.data(&vec![1; 2 * SIZE]).await.unwrap();
    let third = vec![1; SIZE];
    let mut waiting = Box::pin(cutter.data(&third));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    let first = batches.recv().await.unwrap();
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    give_back.put(first.bytes);
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_file_that_does_not_end_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (out, _batches) = mpsc::channel(8);
    let mut cutter =
        Cutter::new(BufferPool::new(2), out, Some(ManifestCheck::new(dir.path(), Compression::None).unwrap()), None);
    assert!(matches!(cutter.data(b"x").await, Err(CopyError::OutOfTurn(_))));
    cutter.begin_file(head("a"), 10).await.unwrap();
    cutter.data(b"short").await.unwrap();
    assert!(matches!(cutter.begin_file(head("b"), 1).await, Err(CopyError::OutOfTurn(_))));
    assert!(matches!(cutter.finish().await, Err(CopyError::OutOfTurn(_))));
}

use crate::backup::reference::{OldFile, PlacedChunk};
use crate::repository::file_table::ChunkHash;
use crate::repository::manifest::PackRef;

const PAGE: usize = 8192;

fn old_chunk(number: u32, plain: u32) -> OldChunk {
    let pack = PackRef { sha256: [9; 32], size: 1 << 20 };
    OldChunk::Whole(PlacedChunk { pack, offset: number, stored: 9, plain, hash: ChunkHash([7; 32]) })
}

/// Cuts a file that had `old_pages` pages and has `pages` now, of which `blocks` come; the items without their head and
/// end, and the end.
async fn rebuild(old_pages: u32, pages: u32, blocks: &[u32], piece: usize) -> (Vec<(Item, Vec<u8>)>, FileSum) {
    let dir = tempfile::tempdir().unwrap();
    let pool = BufferPool::new(2);
    let give_back = pool.give_back();
    let (out, mut batches) = mpsc::channel(1);
    let check = ManifestCheck::new(dir.path(), Compression::None).unwrap();
    let mut cutter = Cutter::new(pool, out, Some(check), None);
    let collect = tokio::spawn(async move {
        let mut items = Vec::new();
        while let Some(batch) = batches.recv().await {
            assert!(batch.bytes.len() <= SIZE);
            for item in batch.items {
                let bytes = match &item {
                    Item::Chunk(chunk) => batch.bytes[chunk.bytes.clone()].to_vec(),
                    _ => Vec::new(),
                };
                items.push((item, bytes));
            }
            give_back.put(batch.bytes);
        }
        items
    });
    let chunks = (0..old_pages.div_ceil(128)).map(|chunk| old_chunk(chunk, 8192 * (old_pages - chunk * 128).min(128)));
    let old = OldFile { size: u64::from(old_pages) * 8192, crc32c: 5, chunks: chunks.collect() };
    let file = Rebuilt { old, size: u64::from(pages) * 8192, page_size: 8192, blocks: blocks.to_vec() };
    cutter.begin_rebuilt(head("base/5/7"), file).await.unwrap();
    let content: Vec<u8> = blocks.iter().flat_map(|&block| vec![u8::try_from(block % 251).unwrap(); PAGE]).collect();
    for piece in content.chunks(piece) {
        cutter.pages(piece).await.unwrap();
    }
    cutter.end_rebuilt(&DataPath::new(b"base/5/INCREMENTAL.7").unwrap(), 12, 6).await.unwrap();
    let (totals, _) = cutter.finish().await.unwrap();
    assert_eq!((totals.files, totals.bytes), (1, u64::from(pages) * 8192));
    let mut items = collect.await.unwrap();
    let Some((Item::FileEnd(sum), _)) = items.pop() else { panic!() };
    assert!(matches!(items.remove(0).0, Item::File(_, size) if size == u64::from(pages) * 8192));
    (items, sum)
}

#[tokio::test]
async fn of_a_file_whose_pages_come_the_chunks_without_any_stay() {
    for piece in [100, PAGE, 10 * SIZE] {
        let (items, sum) = rebuild(400, 400, &[0, 5, 130, 255, 399], piece).await;
        assert_eq!(sum, FileSum::Changed { crc32c: 5, size: 400 * 8192 });
        let shape: Vec<_> = items
            .iter()
            .map(|(item, bytes)| match item {
                Item::Same(old) => (old.base().unwrap().offset, old.plain(), None),
                Item::Chunk(CutChunk { position, old: Some(old), pages: Some(pages), segment: Some(0), .. }) => {
                    assert_eq!(bytes.len(), pages.numbers.len() * PAGE);
                    for (page, number) in bytes.chunks(PAGE).zip(&pages.numbers) {
                        let block = *position / 8192 + u64::from(*number);
                        assert!(page.iter().all(|&byte| u64::from(byte) == block % 251));
                    }
                    (old.base().unwrap().offset, pages.plain, Some(pages.numbers.clone()))
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let full = 1 << 20;
        assert_eq!(
            shape,
            [
                (0, full, Some(vec![0, 5])),
                (1, full, Some(vec![2, 127])),
                (2, full, None),
                (3, 16 * 8192, Some(vec![15]))
            ]
        );
    }
}

#[tokio::test]
async fn a_file_that_grew_has_zeros_where_nothing_comes() {
    let (items, sum) = rebuild(10, 300, &[299], PAGE).await;
    assert_eq!(sum, FileSum::Changed { crc32c: 5, size: 10 * 8192 });
    let shape: Vec<_> = items
        .iter()
        .map(|(item, _)| match item {
            Item::Chunk(CutChunk { old, pages: Some(pages), .. }) => {
                (old.is_some(), pages.plain, pages.numbers.clone())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let full = 1 << 20;
    assert_eq!(shape, [(true, full, vec![]), (false, full, vec![]), (false, 44 * 8192, vec![43])]);
}

#[tokio::test]
async fn every_chunk_of_a_file_that_shrank_is_read() {
    let (items, sum) = rebuild(400, 200, &[3], PAGE).await;
    assert_eq!(sum, FileSum::OfChunks);
    assert_eq!(items.len(), 2);
    assert!(items.iter().all(|(item, _)| matches!(item, Item::Chunk(CutChunk { old: Some(_), pages: Some(_), .. }))));
    // To nothing, and nothing at all.
    assert_eq!(rebuild(400, 0, &[], PAGE).await.0.len(), 0);
    assert_eq!(rebuild(0, 0, &[], PAGE).await.0.len(), 0);
}

#[tokio::test]
async fn pages_that_nobody_announced_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (out, _batches) = mpsc::channel(4);
    let mut cutter =
        Cutter::new(BufferPool::new(2), out, Some(ManifestCheck::new(dir.path(), Compression::None).unwrap()), None);
    assert!(matches!(cutter.pages(&[1]).await, Err(CopyError::OutOfTurn(_))));
    let old = OldFile { size: 0, crc32c: 0, chunks: Vec::new() };
    let file = Rebuilt { old, size: 8192, page_size: 8192, blocks: vec![0] };
    cutter.begin_rebuilt(head("base/5/7"), file).await.unwrap();
    let path = DataPath::new(b"base/5/INCREMENTAL.7").unwrap();
    assert!(matches!(cutter.end_rebuilt(&path, 12, 6).await, Err(CopyError::OutOfTurn(_))), "its page did not come");
}
