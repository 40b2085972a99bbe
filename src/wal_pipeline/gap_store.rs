//! The ledger's gaps on disk: recorded before anything goes on beyond them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wal::{Lsn, PgTime, TimelineId, WalRange};

use super::{GapRecord, Ledger, StatusBoard};
use crate::durable;
use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::receiver::Backoff;
use crate::repository::{GapDocument, LineageRepository, RepositoryResult};

/// A ledger whose gaps survive a restart. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct GapStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    ledger: Mutex<Kept>,
    board: StatusBoard,
    recorded: Notify,
}

#[derive(Debug)]
struct Kept {
    ledger: Ledger,
    /// What it knows is not on disk: writing it has failed.
    unwritten: bool,
}

/// Which WAL a record is of.
type Range = (TimelineId, Lsn, Lsn);

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
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                ledger: Mutex::new(Kept { ledger: Ledger::with_gaps(gaps), unwritten: false }),
                board,
                recorded: Notify::new(),
            }),
        })
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
        self.inner.recorded.notify_one();
        Ok(())
    }

    /// Puts every record into the repository as well, so that the reason outlives this machine. Goes on until `drain` is
    /// cancelled, and tries once more then.
    ///
    /// Nothing waits for this: what is missing shows by itself in what is stored. The record only says why.
    pub(crate) async fn keep_stored(&self, lineage: &LineageRepository, drain: CancellationToken) {
        let mut stored = BTreeSet::new();
        let mut backoff = Backoff::default();
        loop {
            let last_time = drain.is_cancelled();
            let failed = match self.store_missing(lineage, &mut stored).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::warn!(%error, "the record of a gap is not in the repository yet");
                    Some(backoff.pause(rand::random()))
                }
            };
            if last_time {
                return;
            }
            let again = async {
                match failed {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.inner.recorded.notified() => {}
                () = again => {}
                () = drain.cancelled() => {}
            }
        }
    }

    async fn store_missing(&self, lineage: &LineageRepository, stored: &mut BTreeSet<Range>) -> RepositoryResult<()> {
        let gaps = self.kept().ledger.gaps().to_vec();
        for gap in gaps {
            let range = (gap.timeline, gap.from, gap.to);
            if !stored.contains(&range) {
                let document = GapDocument {
                    timeline: gap.timeline,
                    from_lsn: gap.from,
                    to_lsn: gap.to,
                    reason: gap.reason,
                    found_at: PgTime::from(gap.at),
                };
                lineage.put_gap(&document).await?;
                stored.insert(range);
            }
        }
        Ok(())
    }

    /// Notes WAL that is there. Blocks on disk when that closes a gap.
    pub(crate) fn prove(&self, range: WalRange) -> Result<()> {
        self.change(|ledger| ledger.prove(range))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Ledger) -> bool) -> Result<()> {
        // The ledger is changed in memory first. A failed write is an error, and whoever comes next writes it: nobody goes
        // on beyond a gap that is known here only.
        let mut kept = self.kept();
        kept.unwritten |= change(&mut kept.ledger);
        if !kept.unwritten {
            return Ok(());
        }
        let gaps = kept.ledger.gaps().to_vec();
        let text = serde_json::to_vec_pretty(&gaps).map_err(|error| failed(&self.inner.path, &error))?;
        durable::replace(&self.inner.path, &text).map_err(|error| failed(&self.inner.path, &error))?;
        kept.unwritten = false;
        drop(kept);
        self.inner.board.update(|status| status.gaps = gaps);
        Ok(())
    }
}

fn failed(path: &std::path::Path, error: &dyn std::error::Error) -> Error {
    Error::new(ErrorCode::Spool, format!("the record of gaps in {} cannot be kept: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use wal::{Lsn, TimelineId};

    use super::*;

    #[test]
    fn a_gap_that_could_not_be_written_is_written_by_whoever_comes_next() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("cluster");
        let store = GapStore::open(place.clone(), StatusBoard::new()).unwrap();
        let gap = |from| GapRecord {
            timeline: TimelineId::FIRST,
            from: Lsn::new(from),
            to: Lsn::new(from + 10),
            reason: "removed".to_owned(),
            at: DateTime::<Utc>::UNIX_EPOCH,
        };
        fs::remove_dir(&place).unwrap();
        store.record(vec![gap(100)]).unwrap_err();
        // The same gap again is nothing new in memory, and has to be written all the same.
        store.record(vec![gap(100)]).unwrap_err();
        fs::create_dir(&place).unwrap();
        store.record(vec![gap(100)]).unwrap();
        let board = StatusBoard::new();
        GapStore::open(place, board.clone()).unwrap();
        assert_eq!(board.read(|status| status.gaps.len()), 1);
    }
}
