//! Asks the server again for a segment that the spool's disk has damaged.

use super::contact::{Contact, contact};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, PgError, StreamEvent};
use crate::spool::{Spool, SpoolError};
use crate::wal_pipeline::WalSettings;
use wal::SegmentName;

/// Replaces a complete segment of the spool by what a server still has of it: the members are asked in turn. Its records are
/// for the caller to check.
pub(crate) async fn refetch(settings: &WalSettings, spool: &Spool, name: SegmentName) -> Result<()> {
    // Without the slot, which the stream of new WAL uses: a server has the segment still, or it has not.
    let application_name = format!("{}_again", settings.application_name);
    let options = ConnectOptions::new(settings.conninfo.clone(), application_name);
    let mut last = None;
    for host in 0..settings.conninfo.hosts().len() {
        match from_member(&ConnectOptions { host: Some(host), ..options.clone() }, spool, name).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorCode::NoPrimary, doing(name))))
}

fn doing(name: SegmentName) -> String {
    format!("cannot receive segment {name} again")
}

/// The same from one member. Until it has sent all of it nothing has changed.
async fn from_member(options: &ConnectOptions, spool: &Spool, name: SegmentName) -> Result<()> {
    let explain = |error: PgError| error.explain(doing(name));
    let start = spool.start_of(name);
    let met = contact(options).await.map_err(explain)?;
    check(&met, spool, name)?;
    let mut stream = met.connection.start_replication(None, start, name.timeline()).await.map_err(explain)?;
    let mut replacement = blocking({
        let spool = spool.clone();
        move || spool.replace(name)
    })
    .await?;
    let mut position = start;
    loop {
        match stream.next().await.map_err(explain)? {
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
                return Err(explain(unexpected));
            }
        }
    }
    drop(stream);
    Ok(blocking(move || replacement.finish()).await?)
}

/// Whether the member is on the segment's timeline or descends from it.
fn check(met: &Contact, spool: &Spool, name: SegmentName) -> Result<()> {
    if met.system_identifier != spool.system_identifier() {
        return Err(Error::new(ErrorCode::ForeignCluster, doing(name)).because("the server is another cluster"));
    }
    if !met.position.history.includes(name.timeline()) {
        let said = format!("the server's timeline {} does not descend from it", met.position.history.timeline());
        return Err(Error::new(ErrorCode::TimelineConflict, doing(name)).because(said));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, SpoolError> + Send + 'static,
) -> std::result::Result<T, SpoolError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string())))
}
