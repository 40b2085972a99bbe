//! Asks the server again for a segment that the spool's disk has damaged.

use super::contact::contact;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, PgError, StreamEvent};
use crate::spool::{Spool, SpoolError};
use crate::wal_pipeline::WalSettings;
use wal::SegmentName;

/// Replaces a complete segment of the spool by what the server still has of it. Its records are for the caller to check.
pub(crate) async fn refetch(settings: &WalSettings, spool: &Spool, name: SegmentName) -> Result<()> {
    let doing = || format!("cannot receive segment {name} again");
    let start = spool.start_of(name);
    // Without the slot, which the stream of new WAL uses: the server has the segment still, or it has not.
    let application_name = format!("{}_again", settings.application_name);
    let met = contact(&ConnectOptions::new(settings.conninfo.clone(), application_name))
        .await
        .map_err(|error| error.explain(doing()))?;
    if met.system_identifier != spool.system_identifier() {
        return Err(Error::new(ErrorCode::ForeignCluster, doing()).because("the server is another cluster"));
    }
    let mut stream =
        met.connection.start_replication(None, start, name.timeline()).await.map_err(|error| error.explain(doing()))?;
    let mut replacement = blocking({
        let spool = spool.clone();
        move || spool.replace(name)
    })
    .await?;
    let mut position = start;
    loop {
        match stream.next().await.map_err(|error| error.explain(doing()))? {
            StreamEvent::Wal { start, data, .. } if start == position => {
                position = position.saturating_add(data.len() as u64);
                // Rare enough to write in place.
                if replacement.write(data)? {
                    break;
                }
            }
            StreamEvent::Keepalive { .. } => {}
            other => {
                let unexpected = PgError::Protocol(format!("{other:?}").chars().take(80).collect());
                return Err(unexpected.explain(doing()));
            }
        }
    }
    drop(stream);
    Ok(blocking(move || replacement.finish()).await?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, SpoolError> + Send + 'static,
) -> std::result::Result<T, SpoolError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string())))
}
