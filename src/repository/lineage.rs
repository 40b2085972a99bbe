//! Lineages: which WAL may be joined. FORMAT.md 3.2, DESIGN section 4.

use futures_util::{StreamExt, TryStreamExt, stream};
use recovery::LineageId;
use wal::{PgTime, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};

use crate::codec::digest::sha256;
use crate::repository::error::{Ancestry, LineageMismatch, MismatchFact};
use crate::repository::layout::{LineageKeys, LineageObject, cluster_prefix};
use crate::repository::{
    ClusterName, ClusterRepository, HeaderCache, LineageInner, LineageRepository, PutNew, RepositoryError,
    RepositoryResult, history, seal_document, unseal_document,
};
use crate::storage::Body;

#[cfg(test)]
mod tests;

const KIND: &str = "lineage";

/// How many small documents are read at once.
const PARALLEL: usize = 8;

/// `lineage.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LineageDocument {
    /// The cluster.
    pub cluster: String,
    /// Its own name.
    pub lineage: LineageId,
    /// The identifier that initdb gave.
    pub system_identifier: SystemIdentifier,
    /// `server_version_num` of the first server seen.
    pub postgres_version: u32,
    /// Size of WAL segments.
    pub segment_size: SegmentSize,
    /// When it began; of a cluster's first lineage, when the cluster itself did.
    pub created_at: PgTime,
    /// The lineage it was branched from by hand.
    pub parent: Option<LineageId>,
}

/// Who a server says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// IDENTIFY_SYSTEM.
    pub system_identifier: SystemIdentifier,
    /// The history of its current timeline (a root on a timeline without history file).
    pub history: TimelineHistory,
    /// `server_version_num`.
    pub postgres_version: u32,
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
}

/// Every lineage of the cluster, oldest first.
pub(super) async fn all(cluster: &ClusterRepository) -> RepositoryResult<Vec<LineageRepository>> {
    let prefix = cluster_prefix(cluster.name());
    let folders = cluster.repository().objects().storage().list_folders(&prefix).await?;
    // Collected, because the compiler cannot see otherwise that the whole is Send.
    let ids: Vec<LineageId> = folders.iter().filter_map(|folder| folder.rsplit('/').next()?.parse().ok()).collect();
    let mut lineages: Vec<LineageRepository> =
        stream::iter(ids).map(|id| open_listed(cluster, id)).buffered(PARALLEL).try_collect().await?;
    lineages.sort_by_key(|lineage| (lineage.document().created_at, lineage.id().number));
    Ok(lineages)
}

/// A lineage of which something is listed: its document was written first, so its absence is damage.
async fn open_listed(cluster: &ClusterRepository, id: LineageId) -> RepositoryResult<LineageRepository> {
    open(cluster, id).await.map_err(|error| match error {
        RepositoryError::NotFound(_) => {
            let key = LineageKeys::new(cluster.name().clone(), id).key(&LineageObject::Document);
            RepositoryError::damaged(&key, "it is not there, but other objects of the lineage are")
        }
        other => other,
    })
}

/// One lineage by its name.
pub(super) async fn open(cluster: &ClusterRepository, id: LineageId) -> RepositoryResult<LineageRepository> {
    let keys = LineageKeys::new(cluster.name().clone(), id);
    let key = keys.key(&LineageObject::Document);
    let bytes = cluster.repository().objects().get(&key).await?;
    let document: LineageDocument = unseal_document(&key, KIND, &bytes)?;
    let fits = document.cluster == cluster.name().as_str()
        && document.lineage == id
        && document.system_identifier == id.system_identifier;
    if !fits {
        return Err(RepositoryError::damaged(
            &key,
            format!("it describes {} of {}", document.lineage, document.cluster),
        ));
    }
    Ok(handle(cluster, keys, document))
}

fn handle(cluster: &ClusterRepository, keys: LineageKeys, document: LineageDocument) -> LineageRepository {
    let headers = HeaderCache::new(cluster.repository(), &keys);
    let repository = cluster.repository().clone();
    let histories = history::KnownHistories::default();
    LineageRepository { inner: std::sync::Arc::new(LineageInner { repository, keys, document, histories, headers }) }
}

/// The lineage for this server: continued, begun, or refused.
pub(super) async fn find_or_create(
    cluster: &ClusterRepository,
    server: &ClusterIdentity,
    new_lineage: bool,
    now: PgTime,
) -> RepositoryResult<LineageRepository> {
    let lineages = all(cluster).await?;
    let Some(newest) = lineages.last() else {
        // Two daemons may be here at the same moment, and not every store can say who was first: both write the same bytes.
        return create(cluster, server, 1, None, made_at(server.system_identifier)).await;
    };
    let same_system: Vec<&LineageRepository> =
        lineages.iter().filter(|lineage| lineage.system_identifier() == server.system_identifier).collect();
    let newest_number = same_system.iter().map(|lineage| lineage.id().number).max();
    if new_lineage {
        let number = newest_number.map_or(1, |number| number.saturating_add(1));
        // The newest is the one begun last, also where a clock went back.
        let after = PgTime::from_micros(newest.document().created_at.as_micros().saturating_add(1));
        return create(cluster, server, number, Some(newest.id()), now.max(after)).await;
    }
    let Some(candidate) = same_system.into_iter().find(|lineage| Some(lineage.id().number) == newest_number) else {
        let fact = MismatchFact::ForeignSystem { server: server.system_identifier, stored: newest.id() };
        return Err(refuse(cluster.name(), fact));
    };
    match contradiction(candidate, server).await? {
        Some(fact) => Err(refuse(cluster.name(), fact)),
        None => Ok(candidate.clone()),
    }
}

/// When initdb made a cluster: the upper half of the identifier is the time in Unix seconds (`BootStrapXLOG`, xlog.c).
fn made_at(system_identifier: SystemIdentifier) -> PgTime {
    let seconds = i64::try_from(system_identifier.get() >> 32).unwrap_or_default();
    PgTime::from_unix_micros(seconds * 1_000_000)
}

fn refuse(cluster: &ClusterName, fact: MismatchFact) -> RepositoryError {
    RepositoryError::Lineage(Box::new(LineageMismatch { cluster: cluster.clone(), fact }))
}

/// What the server says against what is stored.
///
/// Every timeline of which both speak must have the same ancestry in both, and there must be one: a timeline that is not
/// stored yet forks, in the server's own words, from one that is, and so continues the lineage as a new branch.
async fn contradiction(
    lineage: &LineageRepository,
    server: &ClusterIdentity,
) -> RepositoryResult<Option<MismatchFact>> {
    let stored_lineage = lineage.id();
    let stored_size = lineage.segment_size();
    if stored_size != server.segment_size {
        let server = server.segment_size;
        return Ok(Some(MismatchFact::SegmentSize { stored_lineage, server, stored: stored_size }));
    }
    let mut stored = lineage.histories().await?;
    for timeline in history::stored_timelines(lineage).await? {
        stored.entry(timeline).or_insert_with(|| TimelineHistory::root(timeline));
    }
    let mut common = stored.is_empty();
    for (timeline, told) in ancestries(&server.history) {
        for stored in stored.values().filter_map(|history| ancestry(history, timeline)) {
            common = true;
            if told != stored {
                return Ok(Some(MismatchFact::OtherHistory { stored_lineage, timeline, server: told, stored }));
            }
        }
    }
    let timeline = server.history.timeline();
    Ok((!common).then(|| MismatchFact::NoCommonTimeline {
        stored_lineage,
        timeline,
        stored: stored.into_keys().collect(),
    }))
}

/// Every timeline of the history with its ancestry.
fn ancestries(history: &TimelineHistory) -> impl Iterator<Item = (TimelineId, Ancestry)> + '_ {
    let timelines = history.entries().iter().map(|entry| entry.parent).chain([history.timeline()]);
    timelines.filter_map(|timeline| Some((timeline, ancestry(history, timeline)?)))
}

/// How `history` tells the ancestry of `timeline`; none when it says nothing about it.
fn ancestry(history: &TimelineHistory, timeline: TimelineId) -> Option<Ancestry> {
    let before = history.entries().iter().take_while(|entry| entry.parent != timeline);
    history.includes(timeline).then(|| Ancestry(before.map(|entry| (entry.parent, entry.switch_point)).collect()))
}

/// Begins a lineage. Of two that begin the same one at once, the loser continues the winner's.
async fn create(
    cluster: &ClusterRepository,
    server: &ClusterIdentity,
    number: u32,
    parent: Option<LineageId>,
    now: PgTime,
) -> RepositoryResult<LineageRepository> {
    let id = LineageId { system_identifier: server.system_identifier, number };
    let keys = LineageKeys::new(cluster.name().clone(), id);
    let document = LineageDocument {
        cluster: cluster.name().to_string(),
        lineage: id,
        system_identifier: server.system_identifier,
        postgres_version: server.postgres_version,
        segment_size: server.segment_size,
        created_at: now,
        parent,
    };
    let key = keys.key(&LineageObject::Document);
    let bytes = seal_document(&key, KIND, &document)?;
    let digest = sha256(&bytes);
    match cluster.repository().objects().put_new(&key, Body::Bytes(bytes), digest).await? {
        PutNew::Created => Ok(handle(cluster, keys, document)),
        PutNew::Taken => {
            let winner = open(cluster, id).await?;
            match contradiction(&winner, server).await? {
                Some(fact) => Err(refuse(cluster.name(), fact)),
                None => Ok(winner),
            }
        }
    }
}
