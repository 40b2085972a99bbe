//! `serve`.

use std::sync::Arc;

use super::Ended;
use super::args::Serve;
use super::context::{Context, no_cluster};
use super::logging;
use crate::daemon::serve::serve;

pub(super) async fn run(context: &Context, args: &Serve) -> Ended {
    let config = context.config()?;
    if config.clusters.is_empty() {
        return Err(no_cluster());
    }
    let reopen_log = logging::start(&config.log, context.output.color)?;
    let new_lineage = args.new_lineage.clone();
    serve(config, context.flags(), context.variables.clone(), new_lineage, Arc::clone(&context.clock), reopen_log)
        .await?;
    Ok(0)
}
