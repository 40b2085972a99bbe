//! One cluster's pipeline from its start to its stop.

use tokio_util::sync::CancellationToken;

use super::WalParts;
use crate::error::{Error, ErrorCode, Result};

/// One cluster's way of the WAL.
#[derive(Debug)]
pub struct WalPipeline;

impl WalPipeline {
    /// Receives, keeps and stores WAL until `shutdown` is cancelled; then ends the stream cleanly, ships the tail and
    /// stores what it can within `settings.drain`. Trouble with the server, the spool or the repository is told through
    /// the board and tried again for ever.
    ///
    /// Dropping the future ends everything at once, as a crash would; nothing that was acknowledged is lost.
    ///
    /// # Errors
    /// When the pipeline cannot work at all and trying again cannot help.
    pub async fn run(parts: WalParts, shutdown: CancellationToken) -> Result<()> {
        let _ = (parts, shutdown);
        Err(Error::new(ErrorCode::NotAvailable, "streaming is not available in this version"))
    }
}
