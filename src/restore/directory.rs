//! May this directory be written to?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use recovery::{BackupId, LineageId};
use rustix::process::{Pid, test_kill_process};

use crate::error::{Error, ErrorCode, Result};

/// Tells that a restore into this directory has not ended. PostgreSQL ignores it.
pub(super) const MARKER: &str = ".pgvault-restore";

/// What a mount point brings along.
const HARMLESS: [&str; 2] = ["lost+found", MARKER];

/// A directory that is about to be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Absolute; a link to a directory is followed once, here.
    pub(super) path: PathBuf,
    /// Whether it is there.
    pub(super) exists: bool,
    /// Whether an interrupted restore of the same backup left it: its files are written again.
    pub(super) resumed: bool,
}

/// What the marker says.
pub(super) fn marker_text(lineage: LineageId, backup: &BackupId) -> String {
    format!("{lineage} {backup}\nA restore by pgvault has not ended here. Run it again, or remove this directory.\n")
}

/// Refuses a directory that holds anything but an interrupted restore of the same backup, and one that cannot be made.
///
/// `what` is how the directory is called in messages, `instead` how to name another one.
pub(super) fn check(path: &Path, marker: &str, what: &str, instead: &str) -> Result<Candidate> {
    let refuse = |problem: String| {
        Error::new(ErrorCode::TargetDirectory, format!("{what} {}: {problem}", path.display()))
            .help(format!("choose an empty or new directory: {instead}"))
    };
    if !path.is_absolute() {
        return Err(refuse("the path is not absolute".to_owned()));
    }
    let path = match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => fs::canonicalize(path).map_err(|error| refuse(error.to_string()))?,
        Ok(_) => return Err(refuse("it is not a directory".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(path, refuse),
        Err(error) => return Err(refuse(error.to_string())),
    };
    if let Some(pid) = running_server(&path) {
        let message = format!("{what} {}: a server runs in it (pid {pid})", path.display());
        return Err(Error::new(ErrorCode::TargetDirectory, message)
            .because("a running server is never restored over")
            .help("stop it, and restore into another directory"));
    }
    let entries = fs::read_dir(&path).and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect());
    let entries: Vec<_> = entries.map_err(|error: io::Error| refuse(error.to_string()))?;
    let has_files = entries.iter().any(|name| !HARMLESS.iter().any(|harmless| name == harmless));
    let resumed = match fs::read_to_string(path.join(MARKER)) {
        Ok(text) if text == marker => !path.join("global/pg_control").exists(),
        // A restore ended while it wrote its marker, before anything else: the directory is as good as empty.
        Ok(text) if !has_files && marker.starts_with(&text) => false,
        Ok(_) => return Err(refuse("an interrupted restore of another backup lies in it".to_owned())),
        Err(_) => false,
    };
    if has_files && !resumed {
        let first = entries.iter().find(|name| !HARMLESS.iter().any(|harmless| name == harmless));
        let first = first.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(refuse(format!("it is not empty, it holds \"{first}\"")));
    }
    Ok(Candidate { path, exists: true, resumed })
}

fn missing(path: &Path, refuse: impl Fn(String) -> Error) -> Result<Candidate> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(refuse("it is a link that leads nowhere".to_owned()));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(refuse("it cannot be made".to_owned()));
    };
    let parent = fs::canonicalize(parent)
        .map_err(|error| refuse(format!("the directory it shall lie in, {}: {error}", parent.display())))?;
    if !parent.is_dir() {
        return Err(refuse(format!("{} is not a directory", parent.display())));
    }
    Ok(Candidate { path: parent.join(name), exists: false, resumed: false })
}

/// The pid of a server that runs in the directory: the first line of `postmaster.pid`, if that process lives. Whoever we
/// may not signal lives, too.
fn running_server(directory: &Path) -> Option<i32> {
    let text = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    let number: i32 = text.lines().next()?.trim().parse().ok()?;
    // A standalone backend writes its pid negated (miscinit.c).
    let pid = Pid::from_raw(number.checked_abs()?)?;
    match test_kill_process(pid) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Some(number),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{MARKER, check};
    use crate::error::ErrorCode;

    #[test]
    fn only_the_marker_of_this_restore_or_the_beginning_of_it_lets_us_in() {
        let dir = tempfile::tempdir().unwrap();
        let look = || check(dir.path(), "lineage backup\n", "data directory", "--to DIR").map(|found| found.resumed);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(!look().unwrap(), "empty");
        for (marker, alone, with_files) in [
            ("lineage backup\n", Some(true), Some(true)),
            ("", Some(false), None),
            ("lineage ba", Some(false), None),
            ("lineage other\n", None, None),
        ] {
            write(MARKER, marker);
            assert_eq!(look().ok(), alone, "{marker:?} alone");
            write("PG_VERSION", "15");
            assert_eq!(look().ok(), with_files, "{marker:?} with files");
            fs::remove_file(dir.path().join("PG_VERSION")).unwrap();
        }
        write("PG_VERSION", "15");
        assert_eq!(look().unwrap_err().code(), ErrorCode::TargetDirectory);
    }
}
