//! Does memory stay what it is, however much and however many files there are?

use std::fs;

use super::{Bench, noise};
use crate::support::pg::{PgNode, give_to_server_user, major, test_dir};

/// Peak memory of this process, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Run it alone, in its own process: `cargo test --test suite backup_engine::weight -- --ignored`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes 2 GiB, and the peak is of the whole process"]
async fn two_gibibytes_and_thirty_thousand_files_take_less_than_200_mib() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", major(15));
    let many = node.data.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..30_000_u64 {
        fs::write(many.join(number.to_string()), noise(number, 2000)).unwrap();
    }
    let block = noise(1, 1 << 20);
    for file in 0..19_u64 {
        let mut content = Vec::with_capacity(100 << 20);
        for number in 0..100_u64 {
            let mut chunk = block.clone();
            chunk[..8].copy_from_slice(&(file * 1000 + number).to_le_bytes());
            content.extend(chunk);
        }
        fs::write(node.data.join(format!("ballast {file}")), content).unwrap();
    }
    give_to_server_user(&node.data);
    let mut bench = Bench::in_directory(&node, &dir.path().join("repository")).await;
    bench.index_file = Some(dir.path().join("chunks.redb"));
    let before = peak();
    let manifest = bench.backup().await;
    let after = peak();
    println!(
        "{} bytes in {} files: peak {} MiB before, {} MiB after",
        manifest.size_bytes,
        manifest.files,
        before >> 20,
        after >> 20
    );
    assert!(manifest.size_bytes > 1900 << 20 && manifest.files > 30_000);
    // What made the files counts as well (100 MiB), so this is an upper bound.
    assert!(after < 200 << 20, "{} MiB", after >> 20);
}
