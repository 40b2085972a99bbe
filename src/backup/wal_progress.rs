//! Waiting until the WAL that a backup needs is in the repository.

use std::time::Duration;

use async_trait::async_trait;
use wal::{Coverage, WalRange};

use crate::error::{Error, ErrorCode, Result};
use crate::repository::LineageRepository;

/// Who knows when WAL is in the repository. The daemon implements it with its pipeline; without one, see [`PollRepository`].
#[async_trait]
pub trait WalProgress: Send + Sync {
    /// Returns when all of `range` is stored, tails included.
    async fn wait_until_stored(&self, range: WalRange) -> Result<()>;
}

/// Looks into the repository again and again.
#[derive(Debug)]
pub struct PollRepository {
    /// Where to look.
    pub repository: LineageRepository,
    /// How long to wait between two looks.
    pub interval: Duration,
    /// How long to wait in all.
    pub deadline: Duration,
}

impl PollRepository {
    /// Looks every two seconds, for ten minutes.
    pub fn new(repository: LineageRepository) -> Self {
        Self { repository, interval: Duration::from_secs(2), deadline: Duration::from_secs(600) }
    }

    async fn wait(&self, range: WalRange) -> Result<()> {
        loop {
            let coverage = self.repository.catalog().await?.coverage;
            if covers(&coverage, range) {
                return Ok(());
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

#[async_trait]
impl WalProgress for PollRepository {
    async fn wait_until_stored(&self, range: WalRange) -> Result<()> {
        match tokio::time::timeout(self.deadline, self.wait(range)).await {
            Ok(result) => result,
            Err(_) => Err(wal_is_missing(range, self.deadline)),
        }
    }
}

/// Whether all of `range` is there.
pub fn covers(coverage: &Coverage, range: WalRange) -> bool {
    coverage.contiguous_end(range.timeline, range.start).is_some_and(|end| end >= range.end)
}

fn wal_is_missing(range: WalRange, waited: Duration) -> Error {
    let WalRange { timeline, start, end } = range;
    let message = format!(
        "the backup is committed, but WAL from {start} to {end} on timeline {timeline} is not all in the repository after {} s",
        waited.as_secs()
    );
    Error::new(ErrorCode::WalLost, message)
        .because("it stays listed as waiting_for_wal and becomes usable when the WAL arrives")
        .help("stream WAL: pgvault serve; see what is missing: pgvault wal gaps")
}
