//! How much memory objects may take that are being made and stored.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted.
const UNIT: u64 = 64 << 10;

/// A share of memory for objects under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ObjectMemory {
    units: Arc<Semaphore>,
    all: u32,
}

/// A part of it, until it is dropped.
#[derive(Debug)]
pub(super) struct MemoryShare {
    permit: Option<OwnedSemaphorePermit>,
}

impl ObjectMemory {
    /// So many bytes in all.
    pub(super) fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Self { units: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Waits for room for an object of up to so many bytes; one that is larger than all there is gets all. Those who wait
    /// are served in order, so that none waits for ever.
    pub(super) async fn share(&self, bytes: u64) -> MemoryShare {
        let units = self.units_of(bytes);
        // The semaphore is never closed; if it were, nothing would be counted any more.
        MemoryShare { permit: Arc::clone(&self.units).acquire_many_owned(units).await.ok() }
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.all)
    }
}

impl MemoryShare {
    /// The object has turned out to need only so many bytes.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let Some(permit) = &mut self.permit else { return };
        let needed = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        drop(permit.split(permit.num_permits().saturating_sub(needed)));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn objects_wait_for_those_before_them_and_only_for_what_these_need() {
        let memory = ObjectMemory::new(10 * UNIT);
        let mut first = memory.share(8 * UNIT).await;
        let mut waiting = Box::pin(memory.share(8 * UNIT));
        assert!(waiting.as_mut().now_or_never().is_none());
        first.shrink_to(2 * UNIT);
        let second = waiting.await;
        assert!(memory.share(1).now_or_never().is_none());
        drop((first, second));
        assert!(memory.share(1000 * UNIT).now_or_never().is_some(), "larger than all there is");
        assert!(memory.share(10 * UNIT).now_or_never().is_some(), "given back");
    }
}
