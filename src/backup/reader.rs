//! Reads the bytes of batches whose chunks come from files, several at once and no faster than allowed.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::cut::{Batch, Item};
use super::error::CopyError;
use super::progress::ProgressSender;
use crate::primary::MaxRate;

/// Reads batches.
#[derive(Debug)]
pub(super) struct Reader {
    permits: Semaphore,
    pace: Option<Pace>,
    progress: ProgressSender,
}

impl Reader {
    /// At most `readers` batches at once, and `max_rate` in all.
    pub(super) fn new(readers: usize, max_rate: Option<MaxRate>, progress: ProgressSender) -> Self {
        Self { permits: Semaphore::new(readers.max(1)), pace: max_rate.map(Pace::new), progress }
    }

    /// Reads what is to be read of a batch.
    pub(super) async fn fill(&self, mut batch: Batch) -> Result<Batch, CopyError> {
        let (from, len) = (batch.bytes.len(), batch.to_read);
        if len == 0 {
            return Ok(batch);
        }
        let _permit = self.permits.acquire().await;
        if let Some(pace) = &self.pace {
            pace.wait(len).await;
        }
        let batch = spawn_blocking(move || {
            batch.bytes.resize(from + len, 0);
            let Batch { bytes, items, .. } = &mut batch;
            for item in items {
                if let Item::Chunk(cut) = item
                    && let Some(file) = &cut.from
                {
                    file.0.read(cut.position, &mut bytes[cut.bytes.clone()])?;
                }
            }
            Ok::<_, CopyError>(batch)
        });
        let batch = batch.await??;
        self.progress.send_modify(|progress| progress.read_bytes += len as u64);
        Ok(batch)
    }
}

/// So many bytes a second.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    /// When the next may begin.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(rate: MaxRate) -> Self {
        Self { per_second: f64::from(rate.kib_per_second()) * 1024.0, free_at: Mutex::new(None) }
    }

    /// Waits until these may be read.
    async fn wait(&self, bytes: usize) {
        let begin = self.begin(bytes, Instant::now());
        sleep_until(begin).await;
    }

    /// When they may be. What was not used before is not made up for.
    fn begin(&self, bytes: usize, now: Instant) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.per_second);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(begin + takes);
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_keeps_to_its_pace_whoever_reads() {
        let pace = Pace::new(MaxRate::from_bytes_per_second(1 << 20));
        let now = Instant::now();
        let half = 512 << 10;
        let begins: Vec<u128> = (0..5).map(|_| (pace.begin(half, now) - now).as_millis()).collect();
        assert_eq!(begins, [0, 500, 1000, 1500, 2000]);
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.begin(1 << 20, later), later);
        assert_eq!(pace.begin(1, later), later + Duration::from_secs(1));
    }
}
