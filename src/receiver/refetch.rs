//! Asks the server again for a segment that the spool's disk has damaged.

use super::contact::{Contact, contact};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, PgError, StreamEvent};
use crate::spool::{Spool, SpoolError};
use crate::wal_pipeline::WalSettings;
use wal::SegmentName;

/// Replaces a complete segment of the spool by what the server still has of it. Its records are for the caller to check.
pub(crate) async fn refetch(settings: &WalSettings, spool: &Spool, name: SegmentName) -> Result<()> {
    let doing = || format!("cannot receive segment {name} again");
    let start = spool.start_of(name);
    let met = whoever_has_it(settings, spool, name, &doing).await?;
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

/// Of several members the first that is on the segment's timeline or descends from it.
async fn whoever_has_it(
    settings: &WalSettings,
    spool: &Spool,
    name: SegmentName,
    doing: &impl Fn() -> String,
) -> Result<Contact> {
    // Without the slot, which the stream of new WAL uses: a server has the segment still, or it has not.
    let application_name = format!("{}_again", settings.application_name);
    let options = ConnectOptions::new(settings.conninfo.clone(), application_name);
    let mut last = None;
    for host in 0..settings.conninfo.hosts().len() {
        let met = match contact(&ConnectOptions { host: Some(host), ..options.clone() }).await {
            Ok(met) => met,
            Err(error) => {
                last = Some(error.explain(doing()));
                continue;
            }
        };
        if met.system_identifier != spool.system_identifier() {
            last = Some(Error::new(ErrorCode::ForeignCluster, doing()).because("the server is another cluster"));
        } else if !met.position.history.includes(name.timeline()) {
            let said = format!("the server's timeline {} does not descend from it", met.position.history.timeline());
            last = Some(Error::new(ErrorCode::TimelineConflict, doing()).because(said));
        } else {
            return Ok(met);
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorCode::NoPrimary, doing())))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, SpoolError> + Send + 'static,
) -> std::result::Result<T, SpoolError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string())))
}
