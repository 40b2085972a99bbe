//! `serve`.

use std::sync::Arc;

use super::Ended;
use super::context::{Context, no_cluster};
use super::logging;
use crate::daemon::serve::serve;

pub(super) async fn run(context: &Context) -> Ended {
    let config = context.config()?;
    if config.clusters.is_empty() {
        return Err(no_cluster());
    }
    logging::start(&config.log, context.output.color)?;
    serve(config, context.flags(), context.variables.clone(), Arc::clone(&context.clock)).await?;
    Ok(0)
}
