//! With whom we stay while another server takes writes as well: kept on disk, so that a restart does not decide what nobody
//! has decided.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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

    /// Host and port, as [`crate::primary::Host`] prints them. Blocks on disk.
    pub(super) fn read(&self) -> Option<String> {
        match fs::read_to_string(&self.path) {
            Ok(host) => Some(host.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.lament(&error);
                None
            }
        }
    }

    /// Keeps it, or that there is nobody any more. Blocks on disk.
    pub(super) fn write(&self, host: Option<&str>) {
        let written = match host {
            Some(host) => durable::replace(&self.path, host.as_bytes()),
            None => durable::remove_if_there(&self.path),
        };
        if let Err(error) = written {
            self.lament(&error);
        }
    }

    /// Nothing that is stored depends on it: without the file a restart takes the higher timeline, as after any failover.
    fn lament(&self, error: &io::Error) {
        tracing::warn!(path = %self.path.display(), %error, "whom to stay with cannot be kept");
    }
}

#[cfg(test)]
mod tests {
    use super::Loyalty;

    #[test]
    fn it_is_there_after_a_restart_until_the_conflict_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Loyalty::in_dir(dir.path());
        assert_eq!(kept.read(), None);
        kept.write(None);
        kept.write(Some("pg1:5432"));
        assert_eq!(Loyalty::in_dir(dir.path()).read().as_deref(), Some("pg1:5432"));
        kept.write(None);
        assert_eq!(kept.read(), None);
    }
}
