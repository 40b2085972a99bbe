//! May this directory be written to, and what lies in it?

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open, openat};
use wal::{SegmentName, SystemIdentifier};

use crate::error::{Error, ErrorCode, Result};

use super::marker::{FoundMarker, MARKER, Marker, NEXT_MARKER};
use super::server::{self, Server};

/// What a mount point brings along, and what a restore writes first.
const HARMLESS: [&str; 3] = ["lost+found", MARKER, NEXT_MARKER];

/// What a server that has begun to recover no longer has; and what it has left once it has been started.
const BACKUP_LABEL: &str = "backup_label";
const TRACES_OF_A_SERVER: [&str; 2] = ["postmaster.opts", "postmaster.pid"];

/// What lies in a directory that a restore may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or no directory yet.
    Nothing,
    /// What an interrupted restore left. What of it is right is kept, unless a sync has failed in it.
    Unfinished(Marker),
    /// An old data directory of the same system, or what belongs to one: `--delta`.
    Old,
}

/// A directory that is about to be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Absolute; a link to a directory is followed once, here.
    pub(super) path: PathBuf,
    /// What lies in it.
    pub(super) found: Found,
}

/// How a directory is called in messages, and how another one is named instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called<'a> {
    pub(super) what: &'a str,
    pub(super) instead: &'a str,
}

/// The data directory of every restore.
const DATA: Called<'static> = Called { what: "data directory", instead: "--to DIR" };

/// Refuses a data directory that this restore may not take.
///
/// A plain restore takes an empty one, and one that an interrupted restore of the same backup left; `delta` also an old
/// one of the same system, and whatever an interrupted restore of that system left.
pub(super) fn data(path: &Path, wanted: &Marker, delta: bool) -> Result<Candidate> {
    let Some(seen) = look(path, DATA)? else { return missing(path, DATA) };
    if let Some(server) = server::of_data_directory(&seen.path) {
        return Err(runs(DATA, path, &server));
    }
    let refuse = |problem: String| refused(DATA, path, problem);
    let control = system_identifier_in(&seen.path);
    let system = wanted.lineage.system_identifier;
    let found = match (&seen.marker, &seen.first_file, control) {
        (FoundMarker::None | FoundMarker::Torn, None, _) => Found::Nothing,
        (FoundMarker::Whole(_), None, _) => Found::Nothing,
        (FoundMarker::Whole(marker), _, None) if delta && marker.lineage.system_identifier == system => {
            Found::Unfinished(marker.clone())
        }
        (_, Some(_), Some(found)) if delta && found == system => Found::Old,
        (_, Some(_), Some(found)) if delta => {
            return Err(refuse(format!(
                "it belongs to another cluster: its system identifier is {found}, that of the backup is {system}"
            )));
        }
        (_, Some(first), None) if delta => {
            return Err(refuse(format!(
                "it holds \"{first}\" but no global/pg_control that tells of which cluster it is"
            ))
            .help("take away what lies in it, if it is of no worth"));
        }
        (FoundMarker::Whole(marker), ..) if same_restore(marker, wanted) => {
            if control.is_some() && was_started(&seen.path) {
                return Err(refuse("a restore into it has ended, and a server has been started on it".to_owned()));
            }
            Found::Unfinished(marker.clone())
        }
        (FoundMarker::Whole(marker), ..) if marker.delta => {
            return Err(refuse("an interrupted recover --delta lies in it".to_owned())
                .help("finish it: add --delta to this command"));
        }
        (FoundMarker::Whole(_) | FoundMarker::Foreign, ..) => {
            return Err(refuse("an interrupted restore of another backup lies in it".to_owned())
                .help("keep what is right of it: add --delta to this command"));
        }
        (_, Some(first), found) => {
            let error = refuse(format!("it is not empty, it holds \"{first}\""));
            return Err(match found {
                Some(found) if found == system => {
                    error.help("restore over this old data directory of the cluster: add --delta to this command")
                }
                _ => error,
            });
        }
    };
    Ok(Candidate { path: seen.path, found })
}

/// Refuses a directory for a tablespace or for WAL. `linked`: the data directory, old or unfinished itself, has a link in
/// the right place that leads here, so what lies here belongs to it.
pub(super) fn beside(path: &Path, called: Called<'_>, wanted: &Marker, linked: bool, delta: bool) -> Result<Candidate> {
    let Some(seen) = look(path, called)? else { return missing(path, called) };
    let Some(first) = &seen.first_file else { return Ok(Candidate { path: seen.path, found: Found::Nothing }) };
    let refuse = |problem: String| refused(called, path, problem);
    let found = match &seen.marker {
        FoundMarker::Whole(marker) if same_restore(marker, wanted) => Found::Unfinished(marker.clone()),
        FoundMarker::Whole(marker) if delta && marker.lineage.system_identifier == wanted.lineage.system_identifier => {
            Found::Unfinished(marker.clone())
        }
        FoundMarker::Whole(_) | FoundMarker::Foreign => {
            return Err(refuse("an interrupted restore of another backup lies in it".to_owned()));
        }
        FoundMarker::None | FoundMarker::Torn if linked && delta => Found::Old,
        // Its marker was taken away already; that of the data directory goes last.
        FoundMarker::None | FoundMarker::Torn if linked => Found::Unfinished(wanted.clone()),
        FoundMarker::None | FoundMarker::Torn => {
            return Err(refuse(format!("it is not empty, it holds \"{first}\"")));
        }
    };
    if let Some(server) = server::of_linked_directory(&seen.path) {
        return Err(runs(called, path, &server));
    }
    Ok(Candidate { path: seen.path, found })
}

/// Refuses a directory of old WAL that holds anything else: all that lies in it will be removed.
pub(super) fn holds_nothing_but_wal(path: &Path, called: Called<'_>) -> Result<()> {
    let entries = names(path).map_err(|error| refused(called, path, error.to_string()))?;
    match entries.iter().map(|name| name.to_string_lossy()).find(|name| !may_lie_in_pg_wal(name)) {
        None => Ok(()),
        Some(other) => Err(refused(called, path, format!("it holds \"{other}\", which is not WAL"))),
    }
}

fn may_lie_in_pg_wal(name: &str) -> bool {
    let base = name.split('.').next().unwrap_or_default();
    let is_history = base.len() == 8 && base.bytes().all(|b| b.is_ascii_hexdigit()) && name.ends_with(".history");
    HARMLESS.contains(&name)
        || ["archive_status", "summaries", "RECOVERYXLOG", "RECOVERYHISTORY", ".pgvault-prefetch"].contains(&name)
        || name.starts_with("xlogtemp.")
        || is_history
        || base.parse::<SegmentName>().is_ok()
}

/// Whether two restores are the same one. Only its target, which files do not depend on, may have changed.
fn same_restore(marker: &Marker, wanted: &Marker) -> bool {
    !marker.delta && (marker.lineage, &marker.backup) == (wanted.lineage, &wanted.backup)
}

/// Whether a server was started on a directory that a restore had published.
fn was_started(path: &Path) -> bool {
    let has = |name: &str| fs::symlink_metadata(path.join(name)).is_ok();
    !has(BACKUP_LABEL) || TRACES_OF_A_SERVER.iter().any(|name| has(name))
}

/// What `global/pg_control` says first (`ControlFileData` in pg_control.h). No link is followed: it would tell of another
/// directory.
fn system_identifier_in(path: &Path) -> Option<SystemIdentifier> {
    let directory = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let data = open(path, directory, Mode::empty()).ok()?;
    let global = openat(data.as_fd(), "global", directory, Mode::empty()).ok()?;
    let file = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let control = openat(global.as_fd(), "pg_control", file, Mode::empty()).ok()?;
    let mut bytes = [0; 8];
    fs::File::from(control).read_exact(&mut bytes).ok()?;
    Some(SystemIdentifier::new(u64::from_ne_bytes(bytes)))
}

/// A directory that is there.
struct Seen {
    path: PathBuf,
    marker: FoundMarker,
    /// One of the files that are not harmless.
    first_file: Option<String>,
}

/// Looks at a directory; `None` when there is none.
fn look(path: &Path, called: Called<'_>) -> Result<Option<Seen>> {
    let refuse = |problem: String| refused(called, path, problem);
    if !path.is_absolute() {
        return Err(refuse("the path is not absolute".to_owned()));
    }
    let path = match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => fs::canonicalize(path).map_err(|error| refuse(error.to_string()))?,
        Ok(_) => return Err(refuse("it is not a directory".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(error.to_string())),
    };
    let entries = names(&path).map_err(|error| refuse(error.to_string()))?;
    let first = entries.iter().find(|name| !HARMLESS.iter().any(|harmless| name == harmless));
    let first_file = first.map(|name| name.to_string_lossy().into_owned());
    let marker = Marker::read(&path).map_err(|error| refuse(error.to_string()))?;
    Ok(Some(Seen { path, marker, first_file }))
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

fn missing(path: &Path, called: Called<'_>) -> Result<Candidate> {
    let refuse = |problem: String| Err(refused(called, path, problem));
    if fs::symlink_metadata(path).is_ok() {
        return refuse("it is a link that leads nowhere".to_owned());
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return refuse("it cannot be made".to_owned());
    };
    let parent = match fs::canonicalize(parent) {
        Ok(parent) if parent.is_dir() => parent,
        Ok(parent) => return refuse(format!("{} is not a directory", parent.display())),
        Err(error) => return refuse(format!("the directory it shall lie in, {}: {error}", parent.display())),
    };
    Ok(Candidate { path: parent.join(name), found: Found::Nothing })
}

fn refused(called: Called<'_>, path: &Path, problem: String) -> Error {
    Error::new(ErrorCode::TargetDirectory, format!("{} {}: {problem}", called.what, path.display()))
        .help(format!("choose an empty or new directory: {}", called.instead))
}

fn runs(called: Called<'_>, path: &Path, server: &Server) -> Error {
    let message = format!("{} {}: a server runs in it ({server})", called.what, path.display());
    Error::new(ErrorCode::TargetDirectory, message)
        .because("a running server is never restored over")
        .help("stop it, or restore into another directory")
        .help("if that is another server, and its postmaster.pid was left by a crash or copied, remove that file")
}

#[cfg(test)]
mod tests;
