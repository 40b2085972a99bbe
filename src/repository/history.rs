//! Timeline history files, byte for byte as PostgreSQL has them. Stored first, kept for ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use wal::{TimelineHistory, TimelineId};

use crate::repository::layout::LineageObject;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};

/// How many histories are read at once.
const PARALLEL: usize = 8;

/// Histories that were read or written by this handle. They never change, so remembering them is safe.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownHistories(Arc<Mutex<BTreeMap<TimelineId, TimelineHistory>>>);

impl KnownHistories {
    fn get(&self, timeline: TimelineId) -> Option<TimelineHistory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&timeline).cloned()
    }

    fn remember(&self, history: &TimelineHistory) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(history.timeline(), history.clone());
    }
}

/// The timelines that have a folder: of which WAL or a history is stored.
pub(super) async fn stored_timelines(lineage: &LineageRepository) -> RepositoryResult<Vec<TimelineId>> {
    let folders = lineage.objects().storage().list_folders(&lineage.keys().wal_prefix()).await?;
    Ok(folders.iter().filter_map(|folder| TimelineId::from_hex(folder.rsplit('/').next()?).ok()).collect())
}

impl LineageRepository {
    /// Stores the history file of `timeline`; `Ok(false)` when it was there already, byte for byte. Other bytes are kept
    /// under `conflict/` and refused.
    pub async fn put_history(&self, timeline: TimelineId, bytes: &[u8]) -> RepositoryResult<bool> {
        let history = TimelineHistory::parse(timeline, bytes)
            .map_err(|error| RepositoryError::mismatch(timeline.history_file_name(), error))?;
        let key = self.keys().key(&LineageObject::History(timeline));
        let created = self.objects().put_same(self.keys(), &key, Bytes::copy_from_slice(bytes)).await?;
        self.inner.histories.remember(&history);
        Ok(created)
    }

    /// The history file of `timeline` as PostgreSQL wrote it; none when the store says that there is none.
    pub async fn history_bytes(&self, timeline: TimelineId) -> RepositoryResult<Option<Bytes>> {
        self.objects().find(&self.keys().key(&LineageObject::History(timeline))).await
    }

    /// The history of `timeline`: the stored one, or a root when none is stored.
    pub async fn history(&self, timeline: TimelineId) -> RepositoryResult<TimelineHistory> {
        Ok(self.stored_history(timeline).await?.unwrap_or_else(|| TimelineHistory::root(timeline)))
    }

    /// Every stored history.
    pub async fn histories(&self) -> RepositoryResult<BTreeMap<TimelineId, TimelineHistory>> {
        let timelines = stored_timelines(self).await?;
        stream::iter(timelines)
            .map(|timeline| async move { Ok((timeline, self.stored_history(timeline).await?)) })
            .buffered(PARALLEL)
            .try_filter_map(|(timeline, history)| async move { Ok(history.map(|history| (timeline, history))) })
            .try_collect()
            .await
    }

    /// The stored history of `timeline`; one that cannot be read is an error, never "none".
    pub(super) async fn stored_history(&self, timeline: TimelineId) -> RepositoryResult<Option<TimelineHistory>> {
        // Timeline 1 has none (`readTimeLineHistory`, timeline.c).
        if timeline == TimelineId::FIRST {
            return Ok(None);
        }
        if let Some(known) = self.inner.histories.get(timeline) {
            return Ok(Some(known));
        }
        let Some(bytes) = self.history_bytes(timeline).await? else { return Ok(None) };
        let key = self.keys().key(&LineageObject::History(timeline));
        let history =
            TimelineHistory::parse(timeline, &bytes).map_err(|error| RepositoryError::damaged(&key, error))?;
        self.inner.histories.remember(&history);
        Ok(Some(history))
    }
}
