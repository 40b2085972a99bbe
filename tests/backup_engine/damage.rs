//! Is damage seen, and a server that is not ours refused?

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use pgvault::backup::BackupRequest;
use pgvault::error::ErrorCode;

use super::{Bench, code, fast};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, major, test_dir};

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_named_and_the_backup_is_taken() {
    damaged_pages_are_named(major(15), &["--data-checksums"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_named_with_the_checksums_of_postgresql_18() {
    // It makes them without being asked.
    damaged_pages_are_named(18, &[]).await;
}

async fn damaged_pages_are_named(major: u32, initdb: &[&str]) {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", major, initdb, &[("autovacuum", "off")]);
    node.start();
    node.sql("CREATE TABLE t AS SELECT g AS a, md5(g::text) AS b FROM generate_series(1, 20000) g");
    let path = node.sql("SELECT pg_relation_filepath('t')");
    node.sql("CHECKPOINT");
    assert!(node.stop("fast", LIMIT));
    let file = OpenOptions::new().write(true).open(node.data.join(&path)).unwrap();
    for page in [3, 77] {
        file.write_all_at(b"rot", page * 8192 + 4000).unwrap();
    }
    node.start();
    let bench = Bench::in_memory(&node).await;
    let manifest = bench.backup().await;
    assert_eq!(manifest.data_checksums, Some(true));
    let damaged: Vec<(&str, u64)> = manifest.damaged_files.iter().map(|file| (&*file.path, file.pages)).collect();
    assert_eq!(damaged, [(path.as_str(), 2)]);
    assert!(bench.lineage.catalog().await.unwrap().backups[0].damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused_before_anything_is_stored() {
    let dir = test_dir();
    let ours = PgNode::start_new(dir.path(), "ours", major(15));
    let other = PgNode::start_new(dir.path(), "other", major(15));
    let mut bench = Bench::in_memory(&ours).await;
    bench.options = Bench::in_memory(&other).await.options;
    assert_eq!(code(bench.take(&fast()).await), ErrorCode::ForeignCluster);
    let prefix = bench.lineage.keys().backups_prefix();
    assert!(bench.storage().list(&prefix, None, None).await.unwrap().is_empty());
    assert!(bench.packs().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_two_lines_is_refused() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let bench = Bench::in_memory(&node).await;
    for label in ["two\nlines", "", &"x".repeat(1001)] {
        let request = BackupRequest { label: Some(label.to_owned()), ..fast() };
        assert_eq!(code(bench.take(&request).await), ErrorCode::Usage);
    }
}
