//! `wal list|gaps|switch`.

use serde_json::{Value, json};

use super::Ended;
use super::args::OfCluster;
use super::context::Context;
use super::source;
use crate::daemon::open;
use crate::daemon::stored;
use crate::error::{Error, ErrorCode};
use crate::primary::sql;

/// What is stored, by timeline.
pub(super) async fn list(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let catalog = lineage.catalog().await?;
    let mut ranges = Vec::new();
    for timeline in catalog.coverage.timelines() {
        for range in catalog.coverage.ranges(timeline) {
            let tail = catalog.tails.iter().any(|tail| tail.timeline == timeline && tail.end == range.end);
            ranges.push(json!({ "timeline": timeline, "from_lsn": range.start, "to_lsn": range.end, "bytes": range.end.bytes_since(range.start), "ends_in_tail": tail }));
        }
    }
    let document = json!({ "cluster": cluster.name, "lineage": catalog.lineage, "segment_size": catalog.segment_size.bytes(), "ranges": ranges });
    if context.output.json {
        context.output.document(&document);
        return Ok(0);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows = ranges.iter().map(|range| {
        let size = super::output::bytes(range["bytes"].as_u64().unwrap_or_default());
        let tail = if range["ends_in_tail"] == true { "the open segment's tail" } else { "a whole segment" };
        vec![text(&range["timeline"]), text(&range["from_lsn"]), text(&range["to_lsn"]), size, tail.to_owned()]
    });
    context.output.table(&["TIMELINE", "FROM", "TO", "SIZE", "ENDS WITH"], rows.collect());
    Ok(0)
}

/// What is missing between what is stored.
pub(super) async fn gaps(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let stored = stored::read(&lineage, context.clock.now()).await?;
    let document = crate::daemon::window::document(&stored);
    let gaps = super::window::to_value(&document.gaps)?;
    if context.output.json {
        context.output.document(&json!({ "cluster": cluster.name, "lineage": document.lineage, "gaps": gaps }));
        return Ok(0);
    }
    if document.gaps.is_empty() {
        context.output.text("no gap");
        return Ok(0);
    }
    let rows = document.gaps.iter().map(|gap| {
        vec![gap.timeline.to_string(), gap.from_lsn.to_string(), gap.to_lsn.to_string(), gap.reason.clone()]
    });
    context.output.table(&["TIMELINE", "FROM", "TO", "WHY"], rows.collect());
    Ok(0)
}

/// Makes the primary finish its segment.
pub(super) async fn switch(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let doing = format!("cannot switch WAL of {}", cluster.name);
    let options = open::connect_options(&config, &cluster)?;
    let session = sql::connect(&options).await.map_err(|error| error.explain(doing.clone()))?;
    let lsn = session.switch_wal().await.map_err(|error| error.explain(doing.clone()))?.ok_or_else(|| {
        Error::new(ErrorCode::NoReplicationRight, doing).because("the role may not call pg_switch_wal()").help(format!(
            "on the primary: GRANT EXECUTE ON FUNCTION pg_switch_wal() TO \"{}\";",
            options.conninfo.user()
        ))
    })?;
    if context.output.json {
        context.output.document(&json!({ "cluster": cluster.name, "lsn": lsn }));
    } else {
        context.output.text(&format!("switched at {lsn}"));
    }
    Ok(0)
}
