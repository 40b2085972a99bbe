//! Is there room?

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorCode, Result};

use super::plan::Place;

/// What will be written, by directory, to the file systems that they lie on; refused when one of them has too little.
pub(super) fn check(wanted: &[(PathBuf, u64)]) -> Result<Vec<Place>> {
    let mut places: Vec<(u64, Place)> = Vec::new();
    for (path, needs_bytes) in wanted {
        let existing = existing_ancestor(path)?;
        let meta = fs::metadata(existing).map_err(|error| unreadable(path, &error))?;
        match places.iter_mut().find(|(device, _)| *device == meta.dev()) {
            Some((_, place)) => place.needs_bytes = place.needs_bytes.saturating_add(*needs_bytes),
            None => {
                let free_bytes = free_bytes(existing).map_err(|error| unreadable(path, &error))?;
                places.push((meta.dev(), Place { path: path.clone(), needs_bytes: *needs_bytes, free_bytes }));
            }
        }
    }
    let places: Vec<Place> = places.into_iter().map(|(_, place)| place).collect();
    match places.iter().find(|place| place.needs_bytes > place.free_bytes) {
        None => Ok(places),
        Some(full) => Err(Error::new(
            ErrorCode::NoSpace,
            format!(
                "not enough space in {}: needs {} bytes, {} are free",
                full.path.display(),
                full.needs_bytes,
                full.free_bytes
            ),
        )
        .help("put WAL elsewhere: --wal-dir DIR")
        .help("put a tablespace elsewhere: --tablespace OLD=NEW")),
    }
}

fn existing_ancestor(path: &Path) -> Result<&Path> {
    path.ancestors()
        .find(|path| path.is_dir())
        .ok_or_else(|| Error::new(ErrorCode::TargetDirectory, format!("{} cannot be made", path.display())))
}

/// Bytes that an ordinary user can still write.
fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let facts = rustix::fs::statvfs(path)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::TargetDirectory, format!("cannot look at {}: {error}", path.display()))
}
