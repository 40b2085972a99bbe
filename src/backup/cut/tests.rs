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
    let mut cutter = Cutter::new(pool, out, check);
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
                Item::Directory(_) => panic!(),
                Item::File(head, _) => found.push((head.path.to_string(), Vec::new(), 0)),
                Item::Chunk(chunk) => {
                    let (path, content, _) = found.last_mut().unwrap();
                    assert_eq!(chunk.position, content.len() as u64);
                    assert_eq!(chunk.position % SIZE as u64, 0);
                    assert_eq!(chunk.segment, (path == "base/5/16384.1").then_some(1));
                    content.extend(bytes);
                }
                Item::FileEnd(crc32c) => found.last_mut().unwrap().2 = crc32c,
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
    let mut cutter = Cutter::new(pool, out, ManifestCheck::new(dir.path(), Compression::None).unwrap());
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
    let mut cutter = Cutter::new(BufferPool::new(2), out, ManifestCheck::new(dir.path(), Compression::None).unwrap());
    assert!(matches!(cutter.data(b"x").await, Err(CopyError::OutOfTurn(_))));
    cutter.begin_file(head("a"), 10).await.unwrap();
    cutter.data(b"short").await.unwrap();
    assert!(matches!(cutter.begin_file(head("b"), 1).await, Err(CopyError::OutOfTurn(_))));
    assert!(matches!(cutter.finish().await, Err(CopyError::OutOfTurn(_))));
}
