//! The ledger's gaps on disk: recorded before anything goes on beyond them.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use wal::WalRange;

use super::{GapRecord, Ledger, StatusBoard};
use crate::durable;
use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;

/// A ledger whose gaps survive a restart. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct GapStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    ledger: Mutex<Ledger>,
    board: StatusBoard,
}

impl GapStore {
    /// Reads the gaps that were recorded before. Blocks on disk.
    pub(crate) fn open(dir: PathBuf, board: StatusBoard) -> Result<Self> {
        let path = dir.join("gaps.json");
        durable::create_dir_all(&dir, durable::PRIVATE_DIR).map_err(|error| failed(&path, &error))?;
        let gaps: Vec<GapRecord> = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(&path, &error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(&path, &error))?,
        };
        board.update(|status| status.gaps.clone_from(&gaps));
        Ok(Self { inner: Arc::new(Inner { path, ledger: Mutex::new(Ledger::with_gaps(gaps)), board }) })
    }

    /// Records missing WAL, durable when this returns. Blocks on disk.
    pub(crate) fn record(&self, gaps: Vec<GapRecord>) -> Result<()> {
        self.change(|ledger| {
            let mut changed = false;
            for gap in gaps {
                changed |= ledger.record(gap);
            }
            changed
        })?;
        fault_point!("ledger.gap_recorded");
        Ok(())
    }

    /// Notes WAL that is there. Blocks on disk when that closes a gap.
    pub(crate) fn prove(&self, range: WalRange) -> Result<()> {
        self.change(|ledger| ledger.prove(range))
    }

    fn change(&self, change: impl FnOnce(&mut Ledger) -> bool) -> Result<()> {
        // The ledger is changed in memory first; a failed write is an error and the same change is tried again.
        let mut ledger = self.inner.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut ledger) {
            return Ok(());
        }
        let gaps = ledger.gaps().to_vec();
        let text = serde_json::to_vec_pretty(&gaps).map_err(|error| failed(&self.inner.path, &error))?;
        durable::replace(&self.inner.path, &text).map_err(|error| failed(&self.inner.path, &error))?;
        drop(ledger);
        self.inner.board.update(|status| status.gaps = gaps);
        Ok(())
    }
}

fn failed(path: &std::path::Path, error: &dyn std::error::Error) -> Error {
    Error::new(ErrorCode::Spool, format!("the record of gaps in {} cannot be kept: {error}", path.display()))
}
