//! `check --deep`: proof that WAL comes through, from the primary to the repository and back.

use std::sync::Arc;
use std::time::Duration;

use wal::{SegmentName, SegmentNumber, WalReader};

use super::check::{CheckStatus, Finding};
use super::stored;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, sql};
use crate::repository::{ClusterRepository, LineageRepository};

const NAME: &str = "deep";
/// How long a segment may take from the switch to the repository.
const PATIENCE: Duration = Duration::from_secs(90);

/// Switches WAL, waits until the segment is stored, fetches it back and reads every record of it.
pub async fn check(connect: &ConnectOptions, cluster: &ClusterRepository, clock: &Arc<dyn Clock>) -> Finding {
    match run(connect, cluster, clock).await {
        Ok(message) => Finding::new(NAME, CheckStatus::Ok, message),
        Err(error) => Finding {
            name: NAME,
            // REPLICATION and pg_monitor are all that pgvault asks for; switching WAL takes a right of its own.
            status: if error.code() == ErrorCode::NoReplicationRight {
                CheckStatus::Skipped
            } else {
                CheckStatus::Failed
            },
            message: std::iter::once(error.message())
                .chain(error.causes().iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join(": "),
            fix: error.help_lines().first().cloned(),
        },
    }
}

async fn run(connect: &ConnectOptions, cluster: &ClusterRepository, clock: &Arc<dyn Clock>) -> Result<String> {
    let start = clock.instant();
    let session = sql::connect(connect).await.map_err(|error| error.explain("cannot switch WAL"))?;
    // A restore point, so that there is something to switch: an idle server would not leave its segment.
    session
        .create_restore_point("pgvault_check")
        .await
        .map_err(|error| error.explain("cannot write a restore point"))?;
    let end = session.switch_wal().await.map_err(|error| error.explain("cannot switch WAL"))?.ok_or_else(|| {
        Error::new(ErrorCode::NoReplicationRight, "the role may not switch WAL").help(format!(
            "GRANT EXECUTE ON FUNCTION pg_switch_wal(), pg_create_restore_point(text) TO \"{}\";",
            connect.conninfo.user()
        ))
    })?;
    let lineage = stored::newest_lineage(cluster).await?;
    let timeline = newest_timeline(&lineage).await?;
    let size = lineage.segment_size();
    let name = SegmentName::new(timeline, SegmentNumber::containing_end(end, size), size);
    while lineage.segment_header(name).await?.is_none() {
        if clock.instant().saturating_duration_since(start) > PATIENCE {
            return Err(Error::new(
                ErrorCode::Unclassified,
                format!("segment {name} is not in the repository after {} s", PATIENCE.as_secs()),
            )
            .help("see what holds it up: pgvault status"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let arrived = clock.instant().saturating_duration_since(start);
    let mut bytes = Vec::new();
    lineage.fetch_segment(name, &mut bytes).await?;
    read_through(&lineage, name, &bytes)?;
    Ok(format!(
        "segment {name} was stored {:.1} s after the switch, fetched back and read record by record",
        arrived.as_secs_f64()
    ))
}

async fn newest_timeline(lineage: &LineageRepository) -> Result<wal::TimelineId> {
    let catalog = lineage.catalog().await?;
    recovery::live_timeline(&catalog).ok_or_else(|| Error::new(ErrorCode::NotFound, "no WAL is stored yet"))
}

/// The stored checksum was right; this proves that it is WAL of the place that the name says.
fn read_through(lineage: &LineageRepository, name: SegmentName, bytes: &[u8]) -> Result<()> {
    let damaged = |error: &dyn std::fmt::Display| {
        Error::new(ErrorCode::Damaged, format!("segment {name} cannot be read")).because(error)
    };
    let size = lineage.segment_size();
    let number = name.number(size).ok_or_else(|| damaged(&"its name does not fit the segment size"))?;
    let mut reader = WalReader::new(size, number.start(size));
    reader.push(bytes, &mut |_| {}).map_err(|error| damaged(&error))
}
