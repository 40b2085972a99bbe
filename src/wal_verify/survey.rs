//! What a listing shows, read so that damage of one small object does not hide the rest.

use std::collections::{BTreeMap, BTreeSet};

use recovery::{Backup, Catalog};
use wal::{Coverage, Lsn, SegmentName, TimelineHistory, TimelineId, WalRange};

use super::Problem;
use crate::repository::layout::{LineageObject, TailName};
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};
use crate::storage::ObjectKey;

/// Everything that is listed of a lineage's WAL.
#[derive(Debug)]
pub(super) struct Survey {
    /// Whole segments.
    pub(super) segments: BTreeSet<SegmentName>,
    /// Incomplete segments, and where the pieces that join from their start end.
    pub(super) tails: BTreeMap<SegmentName, Lsn>,
    /// As recovery sees it, without what is damaged.
    pub(super) catalog: Catalog,
}

impl Survey {
    /// Lists the lineage, and reads its histories, its manifests and its records of lost WAL.
    pub(super) async fn of(lineage: &LineageRepository, problems: &mut Vec<Problem>) -> RepositoryResult<Self> {
        let inventory = lineage.survey().await?;
        let size = lineage.segment_size();
        let mut coverage = Coverage::new();
        for name in inventory.segments.keys() {
            let Some(number) = name.number(size) else { continue };
            coverage.insert(WalRange { timeline: name.timeline(), start: number.start(size), end: number.end(size) });
        }
        let mut tails = BTreeMap::new();
        let mut pieces: BTreeMap<SegmentName, Vec<TailName>> = BTreeMap::new();
        for tail in inventory.tails.keys().filter(|tail| !inventory.segments.contains_key(&tail.segment)) {
            // Those that do not join their segment's start count as stored too: what is missing is a hole before them.
            coverage.insert(WalRange { timeline: tail.segment.timeline(), start: tail.from, end: tail.to });
            pieces.entry(tail.segment).or_default().push(*tail);
        }
        for (segment, mut pieces) in pieces {
            let Some(number) = segment.number(size) else { continue };
            pieces.sort_unstable();
            let start = number.start(size);
            let end = pieces.iter().fold(start, |end, piece| if piece.from <= end { end.max(piece.to) } else { end });
            if end > start {
                tails.insert(segment, end);
            }
        }
        let mut catalog = Catalog {
            cluster: lineage.cluster().to_string(),
            lineage: lineage.id(),
            segment_size: size,
            backups: Vec::new(),
            unreadable: Vec::new(),
            coverage,
            tails: Vec::new(),
            histories: BTreeMap::new(),
            lost: lineage.lost_wal_of(&inventory).await?,
        };
        for &timeline in &inventory.histories {
            let key = lineage.keys().key(&LineageObject::History(timeline));
            if let Some(history) = readable(lineage.history(timeline).await, &key, problems)? {
                catalog.histories.insert(timeline, history);
            }
        }
        for (id, _) in inventory.backups.iter().filter(|(_, objects)| objects.committed) {
            let key = lineage.keys().key(&LineageObject::Manifest(id.clone()));
            if let Some(manifest) = readable(lineage.manifest(id).await, &key, problems)? {
                catalog.backups.push(manifest.to_backup(&catalog.coverage));
            }
        }
        histories(lineage, &catalog, &inventory.histories, problems);
        Ok(Self { segments: inventory.segments.keys().copied().collect(), tails, catalog })
    }

    /// The oldest position that a backup needs; `None` without backups.
    pub(super) fn oldest_needed(&self) -> Option<Lsn> {
        self.catalog.backups.iter().map(|backup: &Backup| backup.start_lsn).min()
    }
}

/// Damage is a problem of that object; anything else ends the verification.
fn readable<T>(read: RepositoryResult<T>, key: &ObjectKey, problems: &mut Vec<Problem>) -> RepositoryResult<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(
            error @ (RepositoryError::Damaged { .. } | RepositoryError::TooNew { .. } | RepositoryError::NotFound(_)),
        ) => {
            problems.push(Problem {
                timeline: None,
                from_lsn: None,
                to_lsn: None,
                object: key.to_string(),
                what: error.to_string(),
            });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Every timeline but the first needs its history file, and all of them must tell one story.
fn histories(lineage: &LineageRepository, catalog: &Catalog, listed: &[TimelineId], problems: &mut Vec<Problem>) {
    let mut add = |timeline: TimelineId, from_lsn: Option<Lsn>, what: String| {
        let object = lineage.keys().key(&LineageObject::History(timeline)).to_string();
        problems.push(Problem { timeline: Some(timeline), from_lsn, to_lsn: None, object, what });
    };
    for timeline in catalog.timelines() {
        if catalog.lacks_history(timeline) && !listed.contains(&timeline) {
            let first = catalog.coverage.ranges(timeline).next().map(|range| range.start);
            let what =
                format!("the history file is missing: nothing on timeline {timeline} can be recovered without it");
            add(timeline, first, what);
        }
    }
    for (&timeline, history) in &catalog.histories {
        for (index, entry) in history.entries().iter().enumerate() {
            let Some(own) = catalog.histories.get(&entry.parent) else { continue };
            if !same_ancestry(own, history, index) {
                let what =
                    format!("it tells another history of timeline {} than that timeline's own file", entry.parent);
                add(timeline, Some(entry.switch_point), what);
            }
        }
    }
}

fn same_ancestry(own: &TimelineHistory, told: &TimelineHistory, before: usize) -> bool {
    let positions = |history: &TimelineHistory, count: usize| -> Vec<(TimelineId, Lsn)> {
        history.entries().iter().take(count).map(|entry| (entry.parent, entry.switch_point)).collect()
    };
    positions(own, usize::MAX) == positions(told, before)
}
