//! `backup keep|release`: a mark that retention goes by.

use serde_json::json;
use wal::PgTime;

use super::Ended;
use super::args::{BackupPin, OfCluster};
use super::backup_verify::find_id;
use super::context::Context;
use super::source;
use crate::repository::layout::MarkKind;
use crate::repository::{MarkDocument, RepositoryError};

pub(super) async fn run(context: &Context, args: &BackupPin, what: MarkKind) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &OfCluster::default())?;
    let lineage = source::lineage(context, &config, &cluster).await?;
    let id = find_id(&lineage.listed_backups().await?, &args.id)?;
    // What is pinned must exist: a mark alone is no backup. One whose manifest cannot be read can be pinned and unpinned.
    match lineage.manifest(&id).await {
        Ok(_) | Err(RepositoryError::Damaged { .. } | RepositoryError::TooNew { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let at = PgTime::from(context.clock.now());
    let document = MarkDocument { what, at, by: "cli".to_owned(), note: args.note.clone() };
    lineage.put_mark(&id, &document).await?;
    source::refresh(&config, &cluster.name).await;
    let keep = what == MarkKind::Keep;
    if context.output.json {
        context.output.document(&json!({ "type": "result", "cluster": cluster.name, "id": id, "keep": keep }));
    } else {
        let said = if keep { "is kept until it is released" } else { "is left to retention" };
        context.output.text(&format!("{id} {said}"));
    }
    Ok(0)
}
