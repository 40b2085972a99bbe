//! Reads the bytes of batches whose chunks come from files, no faster than allowed.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::cut::{Batch, CutChunk, Item};
use super::error::CopyError;
use super::opened::OpenedFile;
use super::progress::ProgressSender;
use crate::primary::MaxRate;

/// Reads batches.
#[derive(Debug)]
pub(super) struct Reader {
    pace: Option<Pace>,
    progress: ProgressSender,
}

impl Reader {
    /// At most `max_rate` in all.
    pub(super) fn new(max_rate: Option<MaxRate>, progress: ProgressSender) -> Self {
        Self { pace: max_rate.map(Pace::new), progress }
    }

    /// Waits until a batch may be read, and has the kernel begin with that: when its turn comes, its bytes are in memory. So
    /// several batches are read at once, and whoever works on them need not wait for a disk.
    pub(super) async fn begin(&self, batch: &Batch) {
        if batch.to_read == 0 {
            return;
        }
        if let Some(pace) = &self.pace {
            pace.wait(batch.to_read).await;
        }
        for (file, cut) in to_read(&batch.items) {
            file.begin_to_read(cut.position, cut.bytes.len());
        }
    }

    /// Reads what is to be read of a batch, on a thread that may wait.
    pub(super) fn fill(&self, mut batch: Batch) -> Result<Batch, CopyError> {
        let Batch { bytes, items, to_read: len } = &mut batch;
        for (file, cut) in to_read(items) {
            if bytes.len() != cut.bytes.start {
                return Err(CopyError::OutOfTurn("a chunk that does not lie behind the one before"));
            }
            file.append(cut.position, cut.bytes.len(), bytes)?;
        }
        // Whoever looks is told of it by something else that has changed.
        self.progress.send_if_modified(|progress| {
            progress.read_bytes += *len as u64;
            false
        });
        Ok(batch)
    }
}

/// The chunks whose bytes are still in files.
fn to_read(items: &[Item]) -> impl Iterator<Item = (&OpenedFile, &CutChunk)> {
    items.iter().filter_map(|item| match item {
        Item::Chunk(cut) => cut.from.as_ref().map(|from| (&*from.0, cut)),
        _ => None,
    })
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
