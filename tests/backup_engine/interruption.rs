//! Does a backup that was interrupted leave nothing to select, and its work to the next?

use std::sync::Arc;
use std::time::Duration;

use pgvault::backup::{BackupPhase, BackupRequest};
use pgvault::error::{Error, ErrorCode};
use pgvault::primary::MaxRate;
use pgvault::repository::manifest::Manifest;
use pgvault::storage::memory::MemoryStorage;
use tokio::task::JoinHandle;

use super::{Bench, code, fast, noise, put_file};
use crate::support::LIMIT;
use crate::support::pg::{PgNode, major, test_dir};

/// A server with so much that does not compress that several packs are full long before the end.
fn heavy_node(base: &std::path::Path) -> PgNode {
    let node = PgNode::start_new(base, "primary", major(15));
    put_file(&node, b"ballast", &noise(11, 75 << 20));
    node
}

/// A backup that the server sends at this rate, so that it can be caught in the middle.
fn slow(bytes_per_second: u64) -> BackupRequest {
    BackupRequest { max_rate: Some(MaxRate::from_bytes_per_second(bytes_per_second)), ..fast() }
}

fn spawn(bench: &Arc<Bench>, request: BackupRequest) -> JoinHandle<Result<Manifest, Error>> {
    let bench = Arc::clone(bench);
    tokio::spawn(async move { bench.take(&request).await })
}

async fn until_a_pack_is_stored(bench: &Bench) {
    let mut progress = bench.progress.subscribe();
    let stored = progress.wait_for(|progress| progress.new_bytes > 0);
    tokio::time::timeout(LIMIT, stored).await.unwrap().unwrap();
}

/// The next backup uses the packs that are there.
async fn next_uses_the_packs(bench: &Bench) {
    assert_eq!(bench.selectable().await, 0);
    let orphans = bench.packs().await;
    assert!(!orphans.is_empty());
    let next = bench.backup().await;
    let used: Vec<String> = next.packs.iter().map(|pack| format!("main/packs/{}", hex::encode(pack.sha256))).collect();
    for pack in orphans {
        assert!(used.contains(&pack.to_string()), "{pack} is not used");
    }
    // The first packs have 8 MiB; one is there at least.
    assert!(next.new_bytes < next.stored_bytes - (7 << 20), "{} of {}", next.new_bytes, next.stored_bytes);
    assert_eq!(bench.selectable().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_backup_cannot_be_selected_and_its_packs_are_used() {
    let dir = test_dir();
    let node = heavy_node(dir.path());
    let bench = Arc::new(Bench::in_memory(&node).await);
    let running = spawn(&bench, slow(16 << 20));
    until_a_pack_is_stored(&bench).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    next_uses_the_packs(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_says_so_and_leaves_the_server() {
    let dir = test_dir();
    let node = heavy_node(dir.path());
    let bench = Arc::new(Bench::in_memory(&node).await);
    let running = spawn(&bench, slow(16 << 20));
    until_a_pack_is_stored(&bench).await;
    bench.cancel.cancel();
    assert_eq!(code(running.await.unwrap()), ErrorCode::Interrupted);
    let walsenders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    let gone = async {
        while node.sql(walsenders) != "0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    let storage = Arc::clone(bench.storage());
    next_uses_the_packs(&Bench::new(&node, storage).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_leaves_nothing_to_select() {
    let dir = test_dir();
    let mut node = heavy_node(dir.path());
    let bench = Arc::new(Bench::in_memory(&node).await);
    let running = spawn(&bench, slow(16 << 20));
    until_a_pack_is_stored(&bench).await;
    node.stop("immediate", LIMIT);
    let result = running.await.unwrap();
    assert_eq!(code(result), ErrorCode::PostgresFailed);
    node.start();
    next_uses_the_packs(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_promoted_midway_voids_the_backup() {
    let dir = test_dir();
    let mut node = PgNode::start_new(dir.path(), "primary", major(15));
    put_file(&node, b"ballast", &noise(12, 40 << 20));
    let mut standby = node.make_standby(dir.path(), "standby");
    standby.start();
    // A standby needs a checkpoint record to restart from.
    node.sql("CHECKPOINT");
    let bench = Arc::new(Bench::new(&standby, Arc::new(MemoryStorage::new())).await);
    let whole = bench.backup().await;
    assert!(whole.from_standby);
    let running = spawn(&bench, slow(6 << 20));
    let mut progress = bench.progress.subscribe();
    let copying = progress.wait_for(|p| p.id.as_ref() != Some(&whole.id) && p.phase == BackupPhase::Copy);
    tokio::time::timeout(LIMIT, copying).await.unwrap().unwrap();
    standby.promote();
    assert_eq!(code(running.await.unwrap()), ErrorCode::PostgresFailed);
    assert_eq!(bench.selectable().await, 1, "only the one before");
    node.stop("immediate", LIMIT);
}
