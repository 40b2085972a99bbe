//! A process that lives as long as a recovery and fetches ahead of it.
//!
//! ```text
//! PostgreSQL -> wal fetch: connects, asks       prefetcher: warm connections, the next segments on their way
//!               <- found NAME                   <pg_wal>/.pgvault-prefetch/<key>/NAME, verified and synced
//!               renames NAME to %p, exits       fetches the next ones
//! ```
//!
//! Recovery is as fast as the slower of replay and restore_command, one after the other. A rename costs it nothing, a
//! copy or a download does; so the work is done in parallel to the replay, in the folder that `%p` lies in (a rename does
//! not cross file systems), and `wal fetch` is a short life of a process without runtime, configuration or connections.
//!
//! What makes it safe:
//! - **Only a prefetcher that answers is believed.** Nothing is ever taken from the folder because it lies there: what a
//!   killed prefetcher left is removed by the next. Half-made files have other names, and nobody says theirs.
//! - **It decides nothing of its own.** Its answers are those of the same attempt that `wal fetch` makes by itself, made when
//!   it is asked: "absent" and histories are never remembered, tails never fetched ahead. Where it has trouble, or dies,
//!   or does not answer, `wal fetch` goes to the repository itself, with its patience and its exit codes.
//! - **It serves one server and one way.** The folder is named by a key of the command line (cluster, branch, target),
//!   configuration and program; it ends with the server that started it, with the recovery, or when nobody asks.
//! - **`wal fetch` renames, not the prefetcher:** only while the process lives that PostgreSQL waits for.

mod client;
mod life;
mod place;
mod protocol;
mod server;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use client::{Reply, ask};
pub use life::Life;
pub use place::{Claim, PrefetchPlace};
pub use server::{Parts, PrefetchRequest, serve};

/// How a prefetcher works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefetchLimits {
    /// How many bytes of segments are fetched ahead, at most; one segment at least, unless this is nothing.
    pub bytes: u64,
    /// How many segments are fetched at the same time.
    pub parallel: usize,
    /// Bytes that must stay free on the file system, besides what is fetched ahead.
    pub reserve_bytes: u64,
    /// It ends when nobody asked for so long.
    pub idle: Duration,
    /// An opened repository is looked at anew after so long.
    pub reopen: Duration,
}

impl Default for PrefetchLimits {
    /// 16 segments of the usual size; more than the pause between two questions of a standby at the end of the WAL
    /// (`wal_retrieve_retry_interval`).
    fn default() -> Self {
        Self {
            bytes: 256 << 20,
            parallel: 4,
            reserve_bytes: 256 << 20,
            idle: Duration::from_secs(30),
            reopen: Duration::from_secs(300),
        }
    }
}
