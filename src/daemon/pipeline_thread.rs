//! A cluster's WAL pipeline on a thread with a runtime of its own: what the rest of the daemon does cannot delay an answer
//! to the primary.

use std::panic::AssertUnwindSafe;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::cluster::pause;
use crate::error::{Error, ErrorCode, Result};
use crate::wal_pipeline::{WalParts, WalPipeline};

/// Runs the pipeline until it is stopped; when it ends otherwise, says so on the board and starts it again, later and later.
pub(super) async fn keep_running(cluster: String, parts: WalParts, stop: CancellationToken) {
    let mut wait = Duration::from_secs(1);
    while !stop.is_cancelled() {
        let board = parts.board.clone();
        match run(&cluster, parts.clone(), stop.clone()).await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%cluster, error = error.message(), causes = ?error.causes(), "streaming ended");
                board.update(|status| {
                    status.state = crate::wal_pipeline::WalState::Connecting;
                    status.error = Some(error);
                });
            }
        }
        pause(wait, &stop).await;
        wait = (wait * 2).min(Duration::from_secs(60));
    }
}

/// One life of the pipeline.
async fn run(cluster: &str, parts: WalParts, stop: CancellationToken) -> Result<()> {
    let (ended, end) = oneshot::channel();
    let cannot = |error: &dyn std::error::Error| {
        Error::new(ErrorCode::Unclassified, "cannot start a thread for streaming").because(error)
    };
    thread::Builder::new()
        .name(format!("wal-{cluster}"))
        .spawn(move || {
            let result = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    let running = AssertUnwindSafe(|| runtime.block_on(WalPipeline::run(parts, stop)));
                    std::panic::catch_unwind(running).unwrap_or_else(|_| {
                        Err(Error::new(
                            ErrorCode::Unclassified,
                            "internal error: streaming has a fault and starts again",
                        ))
                    })
                }
                Err(error) => {
                    Err(Error::new(ErrorCode::Unclassified, "cannot start a runtime for streaming").because(error))
                }
            };
            // The receiver is gone only when the daemon is.
            drop(ended.send(result));
        })
        .map_err(|error| cannot(&error))?;
    end.await.unwrap_or_else(|error| Err(cannot(&error)))
}
