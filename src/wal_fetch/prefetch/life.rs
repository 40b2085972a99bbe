//! How long a prefetcher is needed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wal_fetch::Asker;

/// How often is looked. A server that has stopped may be rewound soon after: the folder should be gone by then.
const LOOK: Duration = Duration::from_millis(200);

/// A recovery that goes on: its server runs, and the file that made it a recovery is there.
#[derive(Clone, Debug)]
pub struct Life {
    data_directory: PathBuf,
    asker: Asker,
}

impl Life {
    /// The recovery in this directory; none when nothing is being recovered there.
    ///
    /// PostgreSQL removes `recovery.signal` and `standby.signal` when recovery has ended (xlogrecovery.c, xlog.c).
    pub fn in_directory(data_directory: &Path) -> Option<Self> {
        let asker = Asker::in_directory(data_directory);
        let life = Self { data_directory: data_directory.to_owned(), asker };
        (life.asker.is_server() && life.goes_on()).then_some(life)
    }

    /// The server.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// Whether it goes on.
    pub fn goes_on(&self) -> bool {
        let signalled = |name: &str| self.data_directory.join(name).exists();
        (signalled("recovery.signal") || signalled("standby.signal")) && self.asker.still_waits()
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        while self.goes_on() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
