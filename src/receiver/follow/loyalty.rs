//! With whom we stay while another server takes writes as well: kept on disk, so that a restart does not decide what nobody
//! has decided.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use crate::durable;

/// A file with the host of the member that we stay with; absent when there is no conflict.
#[derive(Debug)]
pub(crate) struct Loyalty {
    path: PathBuf,
}

impl Loyalty {
    /// The one that is kept in this folder.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("stays-with") }
    }

    /// Host and port, as [`crate::primary::Host`] prints them.
    pub(super) async fn read(&self) -> Option<String> {
        let path = self.path.clone();
        match off_thread(move || fs::read_to_string(path)).await {
            Ok(host) => Some(host.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.lament(&error);
                None
            }
        }
    }

    /// Keeps it, or that there is nobody any more. Dropped, it is kept all the same.
    pub(super) async fn write(&self, host: Option<String>) {
        let path = self.path.clone();
        let written = off_thread(move || match host {
            Some(host) => durable::replace(&path, host.as_bytes()),
            None => durable::remove_if_there(&path),
        });
        if let Err(error) = written.await {
            self.lament(&error);
        }
    }

    /// Nothing that is stored depends on it: without the file a restart takes the higher timeline, as after any failover.
    fn lament(&self, error: &io::Error) {
        tracing::warn!(path = %self.path.display(), %error, "whom to stay with cannot be kept");
    }
}

/// The receiver's thread reads a socket and waits for no disk.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::Loyalty;

    #[tokio::test]
    async fn it_is_there_after_a_restart_until_the_conflict_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Loyalty::in_dir(dir.path());
        assert_eq!(kept.read().await, None);
        kept.write(None).await;
        kept.write(Some("pg1:5432".to_owned())).await;
        assert_eq!(Loyalty::in_dir(dir.path()).read().await.as_deref(), Some("pg1:5432"));
        kept.write(None).await;
        assert_eq!(kept.read().await, None);
    }
}
