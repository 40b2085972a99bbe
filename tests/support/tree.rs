//! A directory as it is: every name, byte, permission, owner, time and link in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What lies in a directory, by path below it.
pub type Tree = BTreeMap<Vec<u8>, String>;

/// Reads a directory. Links are not followed; where they lead is told, `places` written as their names.
pub fn tree(dir: &Path, places: &[(&str, &Path)]) -> Tree {
    let mut found = Tree::new();
    walk(dir, dir, places, &mut found);
    found
}

/// The paths of all files below a directory, in order.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn walk(root: &Path, dir: &Path, places: &[(&str, &Path)], found: &mut Tree) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_symlink() {
            format!("link to {}", named(&fs::read_link(&path).unwrap(), places))
        } else if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_file() {
            let mut bytes = fs::read(&path).unwrap();
            // The places that a restore has chosen stand in it; so its length and time are its own, too.
            if path.ends_with("tablespace_map") {
                bytes = named(Path::new(std::ffi::OsStr::from_bytes(&bytes)), places).into_bytes();
            }
            let of_settings = path.ends_with("postgresql.auto.conf") || path.extension().is_some_and(|e| e == "signal");
            let changed = path.ends_with("tablespace_map") || path.ends_with("backup_manifest") || of_settings;
            let time = if changed { 0 } else { meta.mtime() };
            format!("file of {} bytes, {}, changed {time}", bytes.len(), blake3::hash(&bytes))
        } else {
            format!("something else: fifo {}, socket {}", kind.is_fifo(), kind.is_socket())
        };
        let mode = meta.mode() & 0o7777;
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        found.insert(name, format!("{what}, mode {mode:o}, owner {}:{}", meta.uid(), meta.gid()));
        if kind.is_dir() {
            walk(root, &path, places, found);
        }
    }
}

fn named(path: &Path, places: &[(&str, &Path)]) -> String {
    let mut text = path.to_str().unwrap().to_owned();
    for (name, place) in places {
        text = text.replace(fs::canonicalize(place).unwrap_or_else(|_| PathBuf::from(place)).to_str().unwrap(), name);
    }
    text
}

/// Panics unless both hold the same.
#[track_caller]
pub fn assert_same(found: &Tree, expected: &Tree, what: &str) {
    let differs = |path: &&Vec<u8>| found.get(*path) != expected.get(*path);
    let paths = found.keys().chain(expected.keys()).collect::<std::collections::BTreeSet<_>>();
    let differences: Vec<String> = paths
        .into_iter()
        .filter(differs)
        .take(20)
        .map(|path| format!("{}: {:?} instead of {:?}", path.escape_ascii(), found.get(path), expected.get(path)))
        .collect();
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
