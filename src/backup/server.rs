//! The server that is backed up: whether it is the right one, and what a backup must know of it.

use std::collections::BTreeMap;

use wal::{PgTime, TimelineHistory, TimelineId};

use super::choose::ServerState;
use super::error::CopyError;
use super::pages::PageFacts;
use super::request::BackupDeps;
use crate::error::{Error, ErrorCode};
use crate::primary::{PgError, ReplicationConnection};
use crate::repository::{ClusterIdentity, RepositoryError};

/// Settings that a hot standby must not go below (`CheckRequiredParameterValues` in xlogrecovery.c).
const STANDBY_SETTINGS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// What a backup must know of its server.
#[derive(Debug)]
pub(super) struct ServerFacts {
    pub(super) postgres_version: u32,
    pub(super) from_standby: bool,
    pub(super) data_checksums: Option<bool>,
    /// How to verify page checksums; `None` when there are none, or the server does not tell its sizes.
    pub(super) pages: Option<PageFacts>,
    /// Its sizes, with checksums or without.
    pub(super) sizes: Option<PageFacts>,
    pub(super) settings: BTreeMap<String, i64>,
}

/// Connects for BASE_BACKUP, and refuses a server whose history is not that of the lineage: a backup of another cluster, or of a branch
/// that the lineage does not know, must never lie among its backups.
pub(super) async fn connect(
    deps: &BackupDeps<'_>,
    doing: &str,
) -> Result<(ReplicationConnection, ServerFacts, ServerState), Error> {
    let explain = |error: PgError| error.explain(doing);
    let mut connection = ReplicationConnection::connect(deps.server).await.map_err(explain)?;
    let system = connection.identify_system().await.map_err(explain)?;
    let history = history(&mut connection, system.timeline).await.map_err(|error| error.explain(doing))?;
    let identity = ClusterIdentity {
        system_identifier: system.system_identifier,
        history: history
            .as_ref()
            .map_or_else(|| TimelineHistory::root(system.timeline), |(history, _)| history.clone()),
        postgres_version: connection.server_version().number(),
        segment_size: connection.wal_segment_size().await.map_err(explain)?,
    };
    check_lineage(deps, &identity).await?;
    if let Some((_, bytes)) = &history {
        // Without its history nobody finds the way from a backup to its timeline.
        deps.repository.put_history(system.timeline, bytes).await?;
    }
    let facts = describe(&mut connection).await.map_err(explain)?;
    let state = ServerState {
        major: connection.server_version().major(),
        timeline: system.timeline,
        flush_lsn: system.flush_lsn,
    };
    Ok((connection, facts, state))
}

async fn check_lineage(deps: &BackupDeps<'_>, identity: &ClusterIdentity) -> Result<(), Error> {
    let repository = deps.repository;
    let cluster = repository.repository().cluster(repository.cluster());
    let belongs_to = cluster.lineage_for(identity, false, PgTime::from(deps.clock.now())).await?;
    if belongs_to.id() == repository.id() {
        return Ok(());
    }
    let message = format!(
        "the server belongs to lineage {}, and the backup would go to lineage {}",
        belongs_to.id(),
        repository.id()
    );
    Err(Error::new(ErrorCode::ForeignCluster, message).help("see what is stored of the cluster: pgvault status"))
}

/// The server's account of its timeline; `None` on one that has no history file (the first).
async fn history(
    connection: &mut ReplicationConnection,
    timeline: TimelineId,
) -> Result<Option<(TimelineHistory, bytes::Bytes)>, CopyError> {
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let (_, bytes) = connection.timeline_history(timeline).await?;
    let history = TimelineHistory::parse(timeline, &bytes)
        .map_err(|error| RepositoryError::mismatch(timeline.history_file_name(), error))?;
    Ok(Some((history, bytes)))
}

async fn describe(connection: &mut ReplicationConnection) -> Result<ServerFacts, PgError> {
    let data_checksums = known(connection.show("data_checksums").await)?.map(|text| text == "on");
    let block_size = known(connection.show("block_size").await)?.and_then(|text| bytes_of(&text));
    let segment_size = known(connection.show("segment_size").await)?.and_then(|text| bytes_of(&text));
    let mut settings = BTreeMap::new();
    for name in STANDBY_SETTINGS {
        let value = known(connection.show(name).await)?.and_then(|text| text.parse().ok());
        settings.extend(value.map(|value| (name.to_owned(), value)));
    }
    let sizes = block_size.zip(segment_size).and_then(|(block, segment)| PageFacts::new(block, segment));
    Ok(ServerFacts {
        postgres_version: connection.server_version().number(),
        from_standby: connection.in_recovery().await?,
        data_checksums,
        pages: sizes.filter(|_| data_checksums == Some(true)),
        sizes,
        settings,
    })
}

/// A setting that the server does not have, or does not show us, is not known; anything else is an error.
fn known(shown: Result<String, PgError>) -> Result<Option<String>, PgError> {
    match shown {
        Ok(text) => Ok(Some(text)),
        Err(PgError::Server(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `8192`, `1GB`: a size as SHOW prints it, in bytes.
fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let unit: u64 = match text.get(digits.len()..)? {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn sizes_are_read_as_show_prints_them() {
        let cases = [("8192", Some(8192)), ("1GB", Some(1 << 30)), ("512MB", Some(512 << 20)), ("8kB", Some(8192))];
        for (text, bytes) in cases {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
        for text in ["", "GB", "-1", "1 GB", "9999999999TB"] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
    }
}
