//! When something was last verified and found whole: kept in the state directory, where the daemon and commands meet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::durable;

/// What was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// All stored WAL.
    Wal,
}

impl Kind {
    const fn file(self) -> &'static str {
        match self {
            Self::Wal => "verified-wal",
        }
    }
}

/// Notes a success. Where the state directory cannot be written, as by a command on another machine, nobody is told.
pub fn note(state_dir: &Path, cluster: &str, kind: Kind, now: DateTime<Utc>) {
    let path = path(state_dir, cluster, kind);
    let made = path.parent().map_or(Ok(()), |dir| durable::create_dir_all(dir, durable::PRIVATE_DIR));
    if let Err(error) = made.and_then(|()| durable::replace(&path, now.to_rfc3339().as_bytes())) {
        tracing::info!(path = %path.display(), %error, "that all was well cannot be noted for the daemon");
    }
}

/// When that was; `None` when it never was, as far as is known here.
pub fn last(state_dir: &Path, cluster: &str, kind: Kind) -> Option<DateTime<Utc>> {
    let path = path(state_dir, cluster, kind);
    match fs::read_to_string(&path) {
        Ok(text) => DateTime::parse_from_rfc3339(text.trim()).ok().map(|at| at.to_utc()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "cannot be read");
            None
        }
    }
}

fn path(state_dir: &Path, cluster: &str, kind: Kind) -> PathBuf {
    state_dir.join(cluster).join(kind.file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last(dir.path(), "main", Kind::Wal), None);
        let at = DateTime::from_timestamp_millis(1_790_000_000_123).unwrap();
        note(dir.path(), "main", Kind::Wal, at);
        assert_eq!(last(dir.path(), "main", Kind::Wal), Some(at));
        assert_eq!(last(dir.path(), "other", Kind::Wal), None);
        note(Path::new("/proc/nowhere"), "main", Kind::Wal, at);
    }
}
