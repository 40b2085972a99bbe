//! Is a chunk that changed in few pages stored as little, and always given back whole?

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use pgvault::backup::{BackupRequest, ReadKind};
use pgvault::error::ErrorCode;
use pgvault::primary::MaxRate;
use pgvault::repository::file_table::{ChunkRef, EntryKind, FileContent};
use pgvault::repository::manifest::Manifest;
use pgvault::storage::faulty::{Fault, Faulty, Operation, Rule};
use pgvault::storage::memory::MemoryStorage;
use pgvault::storage::{ObjectKey, StorageErrorKind};

use super::{Bench, fast, noise, put_file};
use crate::support::generations::{STEPS, begin, step};
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir, without_checksums};

/// PostgreSQL's own judge of a backup: every file is there, with the checksum that the server gave it, and no other.
async fn is_exact(bench: &Bench, node: &PgNode, manifest: &Manifest, dir: &Path) {
    let restored = dir.join("restored");
    bench.write_out(manifest, &restored).await;
    give_to_server_user(&restored);
    let verified = node.tool("pg_verifybackup").arg("-n").arg(&restored).output().unwrap();
    assert!(verified.status.success(), "{}: {}", manifest.id, String::from_utf8_lossy(&verified.stderr));
    fs::remove_dir_all(restored).unwrap();
}

/// Deletes a backup and every pack that none of the others names, as expiry would; how many those were.
async fn expire(bench: &Bench, gone: &Manifest, others: &[&Manifest]) -> usize {
    let needed: BTreeSet<_> = others.iter().flat_map(|manifest| &manifest.packs).map(|pack| pack.sha256).collect();
    let prefix = bench.lineage.keys().backup_prefix(&gone.id);
    let own = bench.storage().list(&prefix, None, None).await.unwrap();
    let mut keys: Vec<ObjectKey> = own.into_iter().map(|object| object.key).collect();
    let exclusive = gone.packs.iter().filter(|pack| !needed.contains(&pack.sha256));
    let packs: Vec<ObjectKey> = exclusive
        .map(|pack| pgvault::repository::chunk_index::pack_key(bench.lineage.cluster(), &pack.sha256))
        .collect();
    keys.extend(packs.iter().cloned());
    bench.storage().delete(&keys).await.unwrap();
    packs.len()
}

async fn every_generation_comes_back_exactly(major: u32, initdb: &[&str]) {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", major, initdb, &[("autovacuum", "off")]);
    node.start();
    begin(&node);
    let mut bench = Bench::in_directory(&node, &dir.path().join("repository")).await;
    bench.index_file = Some(dir.path().join("chunks.redb"));
    let mut backups = vec![bench.backup().await];
    assert_eq!(backups[0].patched_chunks, 0);
    for generation in 1..=STEPS {
        step(&node, generation);
        let manifest = bench.backup().await;
        println!("generation {generation}: {} patches, {} new bytes", manifest.patched_chunks, manifest.new_bytes);
        assert!(manifest.patched_chunks > 0, "generation {generation}");
        is_exact(&bench, &node, &manifest, dir.path()).await;
        backups.push(manifest);
    }
    let [first, second, .., last] = &backups[..] else { panic!() };
    assert!(second.new_bytes * 10 < first.new_bytes, "{} after {}", second.new_bytes, first.new_bytes);
    assert!(last.new_bytes * 10 < first.new_bytes, "{} after {}", last.new_bytes, first.new_bytes);
    assert_eq!(last.damaged_files, []);

    // Whatever an older backup had for itself is not needed: the others are whole without it.
    let mut left: Vec<&Manifest> = backups.iter().collect();
    while left.len() > 1 {
        let gone = left.remove(0);
        expire(&bench, gone, &left).await;
        for manifest in &left {
            is_exact(&bench, &node, manifest, dir.path()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_generation_comes_back_exactly_whatever_expired() {
    every_generation_comes_back_exactly(major(15), &["--data-checksums"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_generation_comes_back_exactly_without_page_checksums() {
    let major = major(14);
    every_generation_comes_back_exactly(major, without_checksums(major)).await;
}

fn content<'a>(table: &'a [pgvault::repository::file_table::TableEntry], path: &str) -> &'a FileContent {
    let entry = table.iter().find(|entry| entry.path.as_bytes() == path.as_bytes()).unwrap();
    let EntryKind::File(file) = &entry.kind else { panic!() };
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_lies_over_a_whole_chunk_and_never_over_a_patch() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let mut content_now = noise(1, 3 << 20);
    let bench = Bench::in_memory(&node).await;
    put_file(&node, path.as_bytes(), &content_now);
    let first = bench.backup().await;
    let base_of = |chunk: &ChunkRef| match chunk {
        ChunkRef::Patched(patched) => patched.base.hash,
        other => panic!("{other:?}"),
    };
    let whole: Vec<_> = content(&bench.table(&first).await, path).chunks.clone();
    let ChunkRef::Stored(original) = whole[0] else { panic!() };

    // Page after page of the first chunk becomes another: the difference grows.
    let mut patched = 0;
    for (generation, page) in (0..128_usize).step_by(8).enumerate() {
        let fresh = noise(100 + generation as u64, 8 * 8192);
        content_now[page * 8192..(page + 8) * 8192].copy_from_slice(&fresh);
        put_file(&node, path.as_bytes(), &content_now);
        let manifest = bench.backup().await;
        let table = bench.table(&manifest).await;
        let file = content(&table, path);
        assert_eq!(file.crc32c, crc32c::crc32c(&content_now));
        assert_eq!(manifest.patched_chunks, u64::from(matches!(file.chunks[0], ChunkRef::Patched(_))));
        assert!(matches!(file.chunks[1], ChunkRef::Stored(_)), "what did not change stays as it is");
        if !matches!(file.chunks[0], ChunkRef::Patched(_)) {
            break;
        }
        assert_eq!(base_of(&file.chunks[0]), original.hash, "always over the whole chunk");
        patched += 1;
        // Once more, unchanged: the same patch again, nothing new.
        let again = bench.backup().await;
        let chunks = content(&bench.table(&again).await, path).chunks.clone();
        assert_eq!(base_of(&chunks[0]), original.hash);
        assert!(again.new_bytes < 1 << 20, "{}", again.new_bytes);
    }
    // When half of it is another, it is stored whole.
    assert!((7..=8).contains(&patched), "{patched} of 16 steps");
    put_file(&node, path.as_bytes(), &{
        content_now[0] ^= 1;
        content_now
    });
    let manifest = bench.backup().await;
    let table = bench.table(&manifest).await;
    assert_ne!(base_of(&content(&table, path).chunks[0]), original.hash, "the new whole chunk is what counts now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grows_or_shrinks_within_a_chunk_is_patched_too() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let bench = Bench::in_directory(&node, &dir.path().join("repository")).await;
    let content_now = noise(1, 800 << 10);
    put_file(&node, path.as_bytes(), &content_now[..600 << 10]);
    bench.backup().await;
    for len in [800_usize << 10, 500 << 10] {
        put_file(&node, path.as_bytes(), &content_now[..len]);
        let manifest = bench.backup().await;
        let table = bench.table(&manifest).await;
        assert!(matches!(content(&table, path).chunks[0], ChunkRef::Patched(_)), "{len}");
        is_exact(&bench, &node, &manifest, dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backup_on_demand_has_no_patches() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let mut content_now = noise(1, 1 << 20);
    let bench = Bench::in_memory(&node).await;
    for _ in 0..2 {
        put_file(&node, path.as_bytes(), &content_now);
        let full = bench.take(&BackupRequest { kind: ReadKind::Full, ..fast() }).await.unwrap();
        assert_eq!(full.patched_chunks, 0);
        content_now[7] = content_now[7].wrapping_add(1);
    }
    put_file(&node, path.as_bytes(), &content_now);
    assert!(bench.backup().await.patched_chunks > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_chunk_that_is_damaged_is_found_and_not_built_upon() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let mut content_now = noise(1, 1 << 20);
    let repository = dir.path().join("repository");
    let bench = Bench::in_directory(&node, &repository).await;
    put_file(&node, path.as_bytes(), &content_now);
    let first = bench.backup().await;
    let ChunkRef::Stored(chunk) = content(&bench.table(&first).await, path).chunks[0] else { panic!() };
    let pack = &first.packs[chunk.pack as usize];
    let key = pgvault::repository::chunk_index::pack_key(bench.lineage.cluster(), &pack.sha256);
    let file = repository.join(key.as_str());
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[chunk.offset as usize + chunk.stored as usize / 2] ^= 1;
    fs::write(&file, &bad).unwrap();

    // The second backup does not need what is damaged.
    content_now[5000] ^= 1;
    put_file(&node, path.as_bytes(), &content_now);
    let second = bench.backup().await;
    assert!(matches!(content(&bench.table(&second).await, path).chunks[0], ChunkRef::Stored(_)));
    is_exact(&bench, &node, &second, dir.path()).await;

    // With the chunk in order again, the third is a patch; then it is damaged, and says so.
    content_now[6000] ^= 1;
    put_file(&node, path.as_bytes(), &content_now);
    let third = bench.backup().await;
    let table = bench.table(&third).await;
    let ChunkRef::Patched(patched) = content(&table, path).chunks[0] else { panic!() };
    let entry = table.iter().find(|entry| entry.path.as_bytes() == path.as_bytes()).unwrap();
    for (what, chunk) in [("patch", patched.patch), ("base", patched.base)] {
        let pack = &third.packs[chunk.pack as usize];
        let key = pgvault::repository::chunk_index::pack_key(bench.lineage.cluster(), &pack.sha256);
        let file = repository.join(key.as_str());
        let good = fs::read(&file).unwrap();
        for at in [chunk.offset, chunk.offset + chunk.stored / 2, chunk.offset + chunk.stored - 1] {
            let mut bad = good.clone();
            bad[at as usize] ^= 8;
            fs::write(&file, &bad).unwrap();
            let error = bench.reader(&third).read_file(entry, |_, _| Ok(())).await.unwrap_err().to_string();
            assert!(error.contains(key.as_str()) && error.contains(path), "{what}: {error}");
        }
        fs::remove_file(&file).unwrap();
        let error = bench.reader(&third).read_file(entry, |_, _| Ok(())).await.unwrap_err().to_string();
        assert!(error.contains(key.as_str()) && error.contains("not in the repository"), "{what}: {error}");
        fs::write(&file, &good).unwrap();
    }
    is_exact(&bench, &node, &third, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_a_patch_needs_keeps_the_backup_from_existing_when_it_is_gone() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let mut content_now = noise(1, 1 << 20);
    let bench = Bench::in_memory(&node).await;
    put_file(&node, path.as_bytes(), &content_now);
    bench.backup().await;
    let packs = bench.packs().await;
    content_now[5000] ^= 1;
    put_file(&node, path.as_bytes(), &content_now);
    // Expiry that knows nothing of the running backup takes them at the last moment.
    let storage = Arc::clone(bench.storage());
    let mut progress = bench.progress.subscribe();
    let vandal = tokio::spawn(async move {
        progress.wait_for(|progress| progress.phase == pgvault::backup::BackupPhase::Copy).await.unwrap();
        progress.wait_for(|progress| progress.done_bytes > 20 << 20).await.unwrap();
        storage.delete(&packs).await.unwrap();
    });
    put_file(&node, b"ballast", &noise(12, 30 << 20));
    // So slow that it is not over before they are.
    let slow = BackupRequest { max_rate: Some(MaxRate::from_bytes_per_second(16 << 20)), ..fast() };
    let error = bench.take(&slow).await.unwrap_err();
    vandal.await.unwrap();
    assert_eq!(error.code(), ErrorCode::Damaged, "{error}");
    assert_eq!(bench.selectable().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_of_an_interrupted_backup_are_used_by_the_next() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let mut content_now = noise(1, 40 << 20);
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let bench = Bench::new(&node, faulty.clone()).await;
    put_file(&node, path.as_bytes(), &content_now);
    bench.backup().await;
    // 100 KiB of difference in each of 40 chunks: 4 MiB.
    for chunk in 0..40_usize {
        content_now[chunk << 20..(chunk << 20) + (100 << 10)].copy_from_slice(&noise(2 + chunk as u64, 100 << 10));
    }
    put_file(&node, path.as_bytes(), &content_now);
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Denied)).on(Operation::Put).key("/manifest"));
    bench.take(&fast()).await.unwrap_err();
    faulty.heal();
    assert_eq!(bench.selectable().await, 1);
    let manifest = bench.backup().await;
    assert_eq!(manifest.patched_chunks, 40);
    assert!(manifest.new_bytes < 2 << 20, "{}", manifest.new_bytes);
    is_exact(&bench, &node, &manifest, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nothing_can_be_read_back_chunks_are_stored_whole() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let path = "base/1/16777216";
    let mut content_now = noise(1, 4 << 20);
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let mut bench = Bench::new(&node, faulty.clone()).await;
    bench.index_file = Some(dir.path().join("chunks.redb"));
    put_file(&node, path.as_bytes(), &content_now);
    bench.backup().await;
    content_now[5000] ^= 1;
    put_file(&node, path.as_bytes(), &content_now);
    faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Other)).on(Operation::GetRange).key("/packs/"));
    let manifest = bench.backup().await;
    faulty.heal();
    assert_eq!(manifest.patched_chunks, 0);
    is_exact(&bench, &node, &manifest, dir.path()).await;
}
