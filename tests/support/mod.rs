//! What whole-program tests share: real PostgreSQL servers, S3 servers, workloads and oracles.

#![allow(dead_code, reason = "not every helper is used by every test")]
#![allow(unreachable_pub, reason = "helpers are public to all tests of this one binary")]
#![allow(missing_docs, reason = "fields that say all by their name")]

use std::time::Duration;

/// How long anything may take that should happen, on a machine that others keep busy. Only a failure ever waits so long.
pub const LIMIT: Duration = Duration::from_secs(300);

pub mod attacked;
pub mod exact;
pub mod fake_s3;
pub mod filler;
pub mod follow_timer;
pub mod fuzz_targets;
pub mod generations;
pub mod injected;
pub mod ledger;
pub mod members;
pub mod mutate;
pub mod oracle;
pub mod page;
pub mod patroni;
pub mod pg;
pub mod pgvault;
pub mod plain_restore;
pub mod power_loss;
pub mod proxy;
pub mod receivewal;
pub mod repmgr;
pub mod restored;
pub mod s3;
pub mod scene;
pub mod small_disk;
pub mod stored_wal;
pub mod survivor;
pub mod tap;
pub mod tree;
pub mod truth;
pub mod two_backups;
pub mod vault;
pub mod wal_truth;
pub mod waldump;
