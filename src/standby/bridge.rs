//! Does the primary still have the WAL that follows what the repository holds?

use std::time::Duration;

use tokio::time::timeout;
use wal::{Lsn, TimelineHistory};

use super::primary::Primary;
use crate::primary::{ConnectOptions, PgError, ReplicationConnection, StreamEvent};

/// How long a server may take to send the first byte of WAL that it has, or to say that it does not.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the primary has the WAL from `end` on. It is asked for it, which is the only proof, and not read further than the
/// first piece. Where `end` is the end of its WAL as well there is nothing to ask for.
pub(super) async fn joins(options: &ConnectOptions, primary: &Primary, end: Lsn) -> Result<bool, PgError> {
    if end >= primary.flush_lsn {
        return Ok(true);
    }
    match timeout(PATIENCE, first_piece(options, &primary.history, end)).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) if error.is_wal_removed() => Ok(false),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(PgError::Timeout { doing: format!("waiting for WAL from {end}"), limit: PATIENCE }),
    }
}

async fn first_piece(options: &ConnectOptions, history: &TimelineHistory, end: Lsn) -> Result<(), PgError> {
    let connection = ReplicationConnection::connect(options).await?;
    let mut stream = connection.start_replication(None, end, history.timeline_at(end)).await?;
    loop {
        match stream.next().await? {
            StreamEvent::Keepalive { .. } => {}
            // The connection ends with this function, and the server stops sending.
            StreamEvent::Wal { .. }
            | StreamEvent::EndOfTimeline { .. }
            | StreamEvent::Stopped
            | StreamEvent::ServerShutdown => return Ok(()),
        }
    }
}
