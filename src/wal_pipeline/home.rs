//! Which lineage a cluster's WAL belongs to, as our own stores know it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use recovery::{LineageId, LostWal};
use wal::{Gap, Lsn, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId};

use super::GapRecord;
use crate::durable;
use crate::error::{Error, ErrorCode, Result};
use crate::repository::{ClusterRepository, LineageRepository, RepositoryResult};
use crate::spool::{Held, Spool, SpoolError};

/// Name of the file that says which lineage a spool folder belongs to, so that WAL can be received while the repository is
/// away.
const IDENTITY: &str = "identity.json";

/// A lineage's fixed facts.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Home {
    /// The lineage.
    pub lineage: LineageId,
    /// Its cluster's number.
    pub system_identifier: SystemIdentifier,
    /// Size of its segments.
    pub segment_size: SegmentSize,
    /// `server_version_num` of the first server seen.
    pub postgres_version: u32,
}

impl Home {
    /// As the repository knows it.
    pub(super) fn of(lineage: &LineageRepository) -> Self {
        Self {
            lineage: lineage.id(),
            system_identifier: lineage.system_identifier(),
            segment_size: lineage.segment_size(),
            postgres_version: lineage.document().postgres_version,
        }
    }

    /// As the spool knows it: of several lineages, the one begun last. Blocks on disk.
    pub(super) fn in_spool(cluster_dir: &Path) -> Result<Option<Self>> {
        Self::newest_in_spool(cluster_dir, |_| true)
    }

    /// Of the lineages in the spool of a cluster that are `wanted`, the one begun last. Blocks on disk.
    pub fn newest_in_spool(cluster_dir: &Path, wanted: impl Fn(&Self) -> bool) -> Result<Option<Self>> {
        let failed = |path: &Path, error: &dyn std::error::Error| {
            Error::new(ErrorCode::Spool, format!("the spool in {} cannot be read: {error}", path.display()))
        };
        let entries = match fs::read_dir(cluster_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(|error| failed(cluster_dir, &error))?,
        };
        let mut newest: Option<(std::time::SystemTime, Self)> = None;
        for entry in entries {
            let path = entry.map_err(|error| failed(cluster_dir, &error))?.path().join(IDENTITY);
            let (text, made) = match fs::read(&path).and_then(|text| Ok((text, fs::metadata(&path)?.modified()?))) {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                read => read.map_err(|error| failed(&path, &error))?,
            };
            let home = serde_json::from_slice(&text).map_err(|error| failed(&path, &error))?;
            if !wanted(&home) {
                continue;
            }
            if newest.as_ref().is_none_or(|(newest, _)| made > *newest) {
                newest = Some((made, home));
            }
        }
        Ok(newest.map(|(_, home)| home))
    }

    /// Its spool folder.
    pub fn dir(&self, cluster_dir: &Path) -> PathBuf {
        cluster_dir.join(self.lineage.to_string())
    }

    /// Writes the identity into the spool folder, unless it is there. Blocks on disk.
    pub(super) fn keep(&self, cluster_dir: &Path) -> std::result::Result<(), SpoolError> {
        let dir = self.dir(cluster_dir);
        let path = dir.join(IDENTITY);
        let io = |source| SpoolError::Io { path: path.clone(), source };
        durable::create_dir_all(&dir, durable::PRIVATE_DIR).map_err(io)?;
        if path.exists() {
            return Ok(());
        }
        self.write(&path)
    }

    /// Makes this the lineage begun last, as far as the spool knows. Blocks on disk.
    pub(super) fn become_newest(&self, cluster_dir: &Path) -> Result<()> {
        let before = Self::in_spool(cluster_dir)?;
        if before.as_ref() == Some(self) {
            return Ok(());
        }
        if let Some(before) = before {
            let dir = before.dir(cluster_dir);
            tracing::warn!(lineage = %before.lineage, dir = %dir.display(), "WAL that still waits there is not stored any more");
        }
        self.keep(cluster_dir)?;
        Ok(self.write(&self.dir(cluster_dir).join(IDENTITY))?)
    }

    fn write(&self, path: &Path) -> std::result::Result<(), SpoolError> {
        let io = |source| SpoolError::Io { path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        durable::replace(path, &text).map_err(io)
    }
}

/// What the repository holds already.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredEnds {
    /// Timeline and end of its newest WAL, tails included.
    pub(super) newest: Option<(TimelineId, Lsn)>,
    /// Up to where every segment is stored.
    pub(super) archived: Option<Lsn>,
    /// Losses that were recorded by whoever stored before us, and were not made good since.
    pub(super) lost: Vec<GapRecord>,
}

/// Copies the stored histories into the spool and tells where the stored WAL ends.
pub(super) async fn look(repository: &LineageRepository, spool: &Spool) -> Result<StoredEnds> {
    let catalog = repository.catalog().await?;
    for &timeline in catalog.histories.keys() {
        if let Some(bytes) = repository.history_bytes(timeline).await? {
            // A difference is found, and refused, when the spool's is stored.
            let spool = spool.clone();
            let keep = move || spool.keep_history(timeline, &bytes);
            tokio::task::spawn_blocking(keep).await.map_err(|error| SpoolError::Helper(error.to_string()))??;
        }
    }
    let newest = catalog.coverage.timelines().max().and_then(|timeline| {
        let end = catalog.coverage.ranges(timeline).map(|range| range.end).max()?;
        Some((timeline, end))
    });
    let size = spool.segment_size();
    let archived = newest.map(|(_, end)| archived(SegmentNumber::containing(end, size).start(size), spool));
    let missing = |gap: &Gap| {
        let end = catalog.coverage.contiguous_end(gap.timeline, gap.start);
        end.is_none_or(|end| end < gap.end)
    };
    let lost = catalog.lost.iter().filter(|lost| missing(&lost.gap));
    let lost = lost
        .map(|LostWal { gap, reason, found_at }| GapRecord {
            timeline: gap.timeline,
            from: gap.start,
            to: gap.end,
            reason: reason.clone(),
            at: found_at.map_or(DateTime::UNIX_EPOCH, |at| at.to_datetime()),
        })
        .collect();
    Ok(StoredEnds { newest, archived, lost })
}

/// Where what counts as archived ends, when the stored segments end at `stored`: they are stored side by side, so one that
/// the spool still has may be missing between them.
fn archived(stored: Lsn, spool: &Spool) -> Lsn {
    let waiting = spool.held().into_iter().filter(|(_, held)| *held == Held::Complete);
    waiting.map(|(name, _)| spool.start_of(name)).min().map_or(stored, |first| first.min(stored))
}

/// The lineage in the repository: the one we know, or the newest.
pub(super) async fn open_lineage(
    cluster: &ClusterRepository,
    known: Option<&Home>,
) -> RepositoryResult<Option<LineageRepository>> {
    match known {
        Some(home) => match cluster.lineage(home.lineage).await {
            Ok(lineage) => Ok(Some(lineage)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        },
        None => cluster.newest_lineage().await,
    }
}

#[cfg(test)]
mod tests {
    use wal::{SegmentName, SegmentSize, SystemIdentifier};

    use super::*;
    use crate::spool::SpoolOptions;

    #[test]
    fn what_the_spool_still_has_does_not_count_as_archived() {
        const SIZE: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(SIZE).unwrap();
        let (dir, system_identifier) = (dir.path().join("spool"), SystemIdentifier::new(7));
        let spool = Spool::open(SpoolOptions { dir, segment_size, system_identifier, max_size: None }).unwrap();
        let name = |number| SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), segment_size);
        let lsn = |number| Lsn::new(number * SIZE);
        assert_eq!(archived(lsn(5), &spool), lsn(5));
        // The open segment and what follows it are no whole ones.
        let mut open = spool.create(name(7)).unwrap();
        open.activate(None);
        open.write(&[1; 100]).unwrap();
        assert_eq!(archived(lsn(5), &spool), lsn(5));
        for number in [3, 6] {
            let mut file = spool.create(name(number)).unwrap();
            file.activate(None);
            file.write(&vec![1; 1 << 20]).unwrap();
            file.complete().unwrap().publish().unwrap();
        }
        assert_eq!(archived(lsn(5), &spool), lsn(3), "4 was stored before 3, and then we were killed");
        assert_eq!(archived(lsn(2), &spool), lsn(2));
    }
}
