//! Does a backup store only what is new?

use std::fs;

use pgvault::backup::BackupRequest;
use pgvault::repository::file_table::{ChunkRef, EntryKind};

use super::{Bench, fast, noise, put_file};
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_backup_stores_only_what_changed() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    put_file(&node, b"ballast", &noise(3, 40 << 20));
    node.sql("CREATE TABLE t (a int primary key, b text)");
    node.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 50000) g");
    let mut bench = Bench::in_directory(&node, &dir.path().join("repository")).await;
    bench.index_file = Some(dir.path().join("chunks.redb"));

    let first = bench.backup().await;
    assert!(first.packs.len() >= 2, "{:?}", first.packs);
    assert!(first.new_bytes > 40 << 20 && first.new_bytes < first.size_bytes);

    node.sql("UPDATE t SET b = 'changed' WHERE a = 25000");
    let second = bench.backup().await;
    assert!(second.new_bytes < 3 << 20, "{} new bytes of {}", second.new_bytes, second.size_bytes);
    assert!(second.packs.iter().filter(|pack| first.packs.contains(pack)).count() >= 2);
    assert!(second.stored_bytes >= first.stored_bytes - (1 << 20));
    assert_ne!(first.id, second.id);

    // Both are whole, and neither needs the other's manifest.
    for manifest in [&first, &second] {
        let restored = dir.path().join(manifest.id.as_str());
        bench.write_out(manifest, &restored).await;
        give_to_server_user(&restored);
        let verified = node.tool("pg_verifybackup").arg("-n").arg(&restored).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
        fs::remove_dir_all(restored).unwrap();
    }

    // Without its index it reads the packs' own tables, and shares as much.
    bench.index_file = None;
    let third = bench.backup().await;
    assert!(third.new_bytes < 3 << 20, "{} new bytes", third.new_bytes);
    assert_eq!(bench.selectable().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_chunks_within_one_backup_are_stored_once_and_zeros_not_at_all() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let content = [noise(5, 3 << 20), vec![0; 5 << 20]].concat();
    for name in ["one", "two", "three"] {
        put_file(&node, name.as_bytes(), &content);
    }
    let bench = Bench::in_memory(&node).await;
    let manifest = bench.backup().await;
    let table = bench.table(&manifest).await;
    let chunks = |name: &str| -> Vec<ChunkRef> {
        let entry = table.iter().find(|entry| entry.path.as_bytes() == name.as_bytes()).unwrap();
        let EntryKind::File(file) = &entry.kind else { panic!() };
        file.chunks.clone()
    };
    assert_eq!(chunks("one"), chunks("two"));
    assert_eq!(chunks("one"), chunks("three"));
    assert_eq!(chunks("one")[3..], [ChunkRef::Zeros { plain: 1 << 20 }; 5]);
    assert!(manifest.new_bytes < 12 << 20, "{}", manifest.new_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn label_and_annotations_are_kept() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let bench = Bench::in_memory(&node).await;
    let annotations = [("why".to_owned(), "before the upgrade".to_owned())].into();
    let request = BackupRequest { label: Some("it's \"the\" label".to_owned()), annotations, ..fast() };
    let manifest = bench.take(&request).await.unwrap();
    assert_eq!(manifest.annotations["why"], "before the upgrade");
    // Since 18 a new cluster has them.
    assert_eq!(manifest.data_checksums, Some(node.major >= 18));
    let restored = dir.path().join("restored");
    bench.write_out(&manifest, &restored).await;
    let label = fs::read_to_string(restored.join("backup_label")).unwrap();
    assert!(label.contains("LABEL: it's \"the\" label\n"), "{label}");
}
