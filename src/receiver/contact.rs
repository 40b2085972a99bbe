//! First words with a server: who it is, which history it tells, how patient it is.

use bytes::Bytes;
use wal::{SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};

use super::cadence::Cadence;
use super::start::ServerPosition;
use crate::primary::{ConnectOptions, HostName, IdentifySystem, PgError, ReplicationConnection};
use crate::repository::ClusterIdentity;

/// A server that answered.
#[derive(Debug)]
pub(crate) struct Contact {
    /// The connection, ready for commands.
    pub(crate) connection: ReplicationConnection,
    /// Host and port as given.
    pub(crate) host: (String, u16),
    /// Number of the cluster.
    pub(crate) system_identifier: SystemIdentifier,
    /// `server_version_num`
    pub(crate) version: u32,
    /// Whether it is a standby.
    pub(crate) in_recovery: bool,
    /// Size of its segments.
    pub(crate) segment_size: SegmentSize,
    /// Its timeline's ancestry and where its WAL ends.
    pub(crate) position: ServerPosition,
    /// The history files of its timeline and of every ancestor that it still has.
    pub(crate) history_files: Vec<(TimelineId, Bytes)>,
    /// How often to report and how long to wait.
    pub(crate) cadence: Cadence,
}

/// Connects and asks.
pub(crate) async fn contact(options: &ConnectOptions) -> Result<Contact, PgError> {
    let mut connection = ReplicationConnection::connect(options).await?;
    let (identity, in_recovery) = who(&mut connection).await?;
    let segment_size = connection.wal_segment_size().await?;
    let cadence = Cadence::from_setting(&connection.show("wal_sender_timeout").await?);
    let (history, history_files) = histories(&mut connection, identity.timeline).await?;
    let host = connection.host();
    let name = match &host.name {
        HostName::Tcp(name) => name.clone(),
        HostName::Unix(directory) => directory.display().to_string(),
    };
    Ok(Contact {
        host: (name, host.port),
        system_identifier: identity.system_identifier,
        version: connection.server_version().number(),
        in_recovery,
        segment_size,
        position: ServerPosition { history, end: identity.flush_lsn },
        history_files,
        cadence,
        connection,
    })
}

/// Who the server is, and whether it is a standby: both of the same moment, since a promotion may come between.
async fn who(connection: &mut ReplicationConnection) -> Result<(IdentifySystem, bool), PgError> {
    let before = connection.in_recovery().await?;
    let identity = connection.identify_system().await?;
    let after = connection.in_recovery().await?;
    if before == after {
        return Ok((identity, after));
    }
    // Recovery ends once.
    Ok((connection.identify_system().await?, after))
}

/// The history of the server's timeline and the files of its ancestors. An ancestor's own file may be gone from the
/// server; what it says stands in its descendants' as well.
async fn histories(
    connection: &mut ReplicationConnection,
    timeline: TimelineId,
) -> Result<(TimelineHistory, Vec<(TimelineId, Bytes)>), PgError> {
    if timeline == TimelineId::FIRST {
        return Ok((TimelineHistory::root(timeline), Vec::new()));
    }
    let (_, bytes) = connection.timeline_history(timeline).await?;
    let history = TimelineHistory::parse(timeline, &bytes).map_err(|error| PgError::Protocol(error.to_string()))?;
    let mut files = vec![(timeline, bytes)];
    for ancestor in history.entries().iter().map(|entry| entry.parent).filter(|&parent| parent > TimelineId::FIRST) {
        match connection.timeline_history(ancestor).await {
            Ok((_, bytes)) => files.push((ancestor, bytes)),
            Err(error) if error.is_wal_removed() => {}
            Err(error) => return Err(error),
        }
    }
    files.sort_by_key(|&(timeline, _)| timeline);
    Ok((history, files))
}

impl Contact {
    /// Asks again over the same connection. The history is asked for only when the timeline is another one: it never changes.
    pub(crate) async fn look_again(&mut self) -> Result<(), PgError> {
        let (identity, in_recovery) = who(&mut self.connection).await?;
        if identity.timeline != self.position.history.timeline() {
            (self.position.history, self.history_files) = histories(&mut self.connection, identity.timeline).await?;
        }
        self.position.end = identity.flush_lsn;
        self.system_identifier = identity.system_identifier;
        self.in_recovery = in_recovery;
        Ok(())
    }

    /// What the repository wants to know before it opens a lineage.
    pub(crate) fn identity(&self) -> ClusterIdentity {
        ClusterIdentity {
            system_identifier: self.system_identifier,
            history: self.position.history.clone(),
            postgres_version: self.version,
            segment_size: self.segment_size,
        }
    }
}
