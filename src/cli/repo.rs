//! `repo init|check`.

use std::sync::Arc;

use serde_json::json;

use super::Ended;
use super::context::Context;
use super::source;
use crate::daemon::{open, probe};
use crate::storage::PutIfAbsent;
use crate::storage::metered::NoMeter;

/// Makes the repository where there is none.
pub(super) async fn init(context: &Context) -> Ended {
    let config = context.config()?;
    let repository = open::repository(&config, &context.clock, Arc::new(NoMeter), open::Missing::Create).await?;
    let marker = repository.marker();
    if context.output.json {
        context.output.document(&json!({ "repository": repository.location(), "id": marker.id }));
    } else {
        context.output.text(&format!("repository {} is ready, id {}", repository.location(), marker.id.as_str()));
    }
    Ok(0)
}

/// Writes, reads, lists and compares.
pub(super) async fn check(context: &Context) -> Ended {
    let config = context.config()?;
    let repository = source::repository(context, &config).await?;
    let probe = probe::repository(&repository, &context.clock).await?;
    let atomic = probe.put_if_absent == PutIfAbsent::Atomic;
    let clusters = repository.clusters().await?;
    if context.output.json {
        let clusters: Vec<String> = clusters.iter().map(ToString::to_string).collect();
        context.output.document(&json!({
            "repository": repository.location(), "ok": true, "put_if_absent": atomic, "may_delete": probe.may_delete,
            "milliseconds": probe.took.as_millis(), "clusters": clusters,
        }));
        return Ok(0);
    }
    let output = &context.output;
    output.text(&format!("{}  ok, {} ms", repository.location(), probe.took.as_millis()));
    output.text(if atomic {
        "  keeps two writers apart (put-if-absent)"
    } else {
        "  put-if-absent is not dependable here: names that cannot collide and reading back are relied on"
    });
    output.text(if probe.may_delete { "  this writer may delete" } else { "  this writer may not delete" });
    let names: Vec<String> = clusters.iter().map(ToString::to_string).collect();
    output.text(&format!("  clusters: {}", if names.is_empty() { "none yet".to_owned() } else { names.join(", ") }));
    Ok(0)
}
