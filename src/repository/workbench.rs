//! Compressors and buffers that are used again from one piece of WAL to the next.
//!
//! Made anew, each costs the system fresh pages, which it fills with zeros first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{CompressError, Compression, Compressor};

/// How many are kept while nobody uses them, each a few megabytes: more than that are needed for moments only.
const KEPT: usize = 2;

/// All of one repository. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Workbenches {
    compression: Compression,
    idle: Arc<Mutex<Vec<Workbench>>>,
}

/// What encoding one piece of WAL needs.
#[derive(Debug)]
pub(super) struct Workbench {
    pub(super) compressor: Compressor,
    /// Plaintext of one frame; holds whatever it held last.
    pub(super) plain: Vec<u8>,
}

impl Workbenches {
    /// None yet, for this compression.
    pub(super) fn new(compression: Compression) -> Self {
        Self { compression, idle: Arc::default() }
    }

    /// One for the caller alone.
    pub(super) fn take(&self) -> Result<Workbench, CompressError> {
        match self.idle().pop() {
            Some(workbench) => Ok(workbench),
            None => Ok(Workbench { compressor: Compressor::new(self.compression)?, plain: Vec::new() }),
        }
    }

    /// The caller is done with it.
    pub(super) fn give_back(&self, workbench: Workbench) {
        let mut idle = self.idle();
        if idle.len() < KEPT {
            idle.push(workbench);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Workbench>> {
        // Nothing panics while the lock is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Workbenches};
    use crate::codec::Compression;

    #[test]
    fn what_is_given_back_is_used_again_and_few_are_kept() {
        let benches = Workbenches::new(Compression::default());
        let mut all: Vec<_> = (0..KEPT + 3).map(|_| benches.take().unwrap()).collect();
        for (index, bench) in all.iter_mut().enumerate() {
            bench.plain = vec![0; index + 1];
        }
        all.into_iter().for_each(|bench| benches.clone().give_back(bench));
        let lengths: Vec<_> = (0..KEPT + 1).map(|_| benches.take().unwrap().plain.len()).collect();
        assert_eq!(lengths, [2, 1, 0]);
    }
}
