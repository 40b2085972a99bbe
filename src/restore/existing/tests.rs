use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use recovery::DataPath;

use super::{Existing, Known, Survey, Tally, Tree, TreeKind};
use crate::repository::file_table::{EntryKind, FileContent, TableEntry};

fn entry(path: &str, size: Option<u64>) -> TableEntry {
    let kind = match size {
        Some(size) => EntryKind::File(FileContent { size, crc32c: 0, chunks: Vec::new() }),
        None => EntryKind::Directory,
    };
    TableEntry { path: DataPath::new(path.as_bytes()).unwrap(), mode: 0o600, mtime: 0, kind }
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A cluster with a tablespace and WAL outside, and what a backup has of it.
fn survey(dir: &Path) -> Survey {
    let (data, wal, space) = (dir.join("data"), dir.join("wal"), dir.join("a space"));
    let mut known = Known::default();
    for (path, size) in [
        ("PG_VERSION", Some(3)),
        ("base", None),
        ("base/5", None),
        ("base/5/1", Some(100)),
        ("base/5/2", Some(10)),
        ("base/5/new", Some(7)),
        ("pg_tblspc/16400/PG_15_202209061/5/9", Some(4)),
        ("was_file", None),
        ("was_directory", Some(1)),
        ("was_link", Some(1)),
    ] {
        known.add(&entry(path, size));
    }
    known.add_directory(b"pg_wal/archive_status");
    for (name, text) in [
        ("PG_VERSION", "15\n"),
        ("base/5/1", "abc"),
        ("base/5/2", "twenty letters of it"),
        ("base/5/3", "gone"),
        ("base/6/1", "gone"),
        ("pg_replslot/old/state", "gone"),
        ("was_file", "gone"),
        ("was_directory/x/y", "gone"),
        ("lost+found/x", "root's"),
    ] {
        write(data.join(name), text);
    }
    write(wal.join("000000010000000000000001"), "gone");
    write(wal.join("archive_status/000000010000000000000001.done"), "gone");
    write(space.join("PG_15_202209061/5/9"), "nine");
    write(space.join("PG_15_202209061/5/10"), "gone");
    write(space.join("PG_14_202107181/5/9"), "another version");
    write(dir.join("outside/file"), "precious");
    symlink(dir.join("outside"), data.join("base/7")).unwrap();
    symlink(dir.join("outside/file"), data.join("was_link")).unwrap();
    symlink(&wal, data.join("pg_wal")).unwrap();
    fs::create_dir(data.join("pg_tblspc")).unwrap();
    symlink(&space, data.join("pg_tblspc/16400")).unwrap();
    symlink(dir.join("outside"), data.join("pg_tblspc/16401")).unwrap();
    known.add_directory(b"pg_tblspc");
    let links = BTreeMap::from([(b"pg_wal".to_vec(), wal.clone()), (b"pg_tblspc/16400".to_vec(), space.clone())]);
    let tree = |path: &PathBuf, kind| Tree { path: path.clone(), kind };
    let trees = vec![tree(&data, TreeKind::Data), tree(&wal, TreeKind::Wal), tree(&space, TreeKind::Tablespace(16400))];
    Survey { trees, known, links }
}

fn paths(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_the_backup_does_not_have_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let survey = survey(dir.path());
    let before = paths(dir.path());
    let (looked, taken) = survey.look().unwrap();
    assert_eq!(paths(dir.path()), before, "a look changes nothing");
    assert_eq!(looked.compared, Tally { files: 4, bytes: 3 + 3 + 20 + 4 });
    assert_eq!(looked.missing, Tally { files: 3, bytes: 9 });
    assert_eq!(looked.left, [dir.path().join("a space/PG_14_202107181")]);
    assert_eq!(taken.len(), 3);
    assert!(taken.iter().all(|&bytes| bytes > 0), "{taken:?}");

    let removed = survey.remove().unwrap();
    assert_eq!(Existing { missing: looked.missing, ..removed }, looked, "what was shown is what was done");
    // Links count as files.
    assert_eq!(looked.removed.files, 11);
    let expected = [
        "a space",
        "a space/PG_14_202107181",
        "a space/PG_14_202107181/5",
        "a space/PG_14_202107181/5/9",
        "a space/PG_15_202209061",
        "a space/PG_15_202209061/5",
        "a space/PG_15_202209061/5/9",
        "data",
        "data/PG_VERSION",
        "data/base",
        "data/base/5",
        "data/base/5/1",
        "data/base/5/2",
        "data/lost+found",
        "data/lost+found/x",
        "data/pg_tblspc",
        "data/pg_tblspc/16400",
        "data/pg_wal",
        "outside",
        "outside/file",
        "wal",
        "wal/archive_status",
    ];
    assert_eq!(paths(dir.path()), expected);
    assert_eq!(fs::read_to_string(dir.path().join("outside/file")).unwrap(), "precious");
    assert_eq!(survey.remove().unwrap().removed, Tally::default(), "and once is enough");
}

#[test]
fn a_directory_that_is_not_there_holds_nothing() {
    let survey = Survey {
        trees: vec![Tree { path: PathBuf::from("/nowhere/at/all"), kind: TreeKind::Data }],
        ..Survey::default()
    };
    assert_eq!(survey.look().unwrap(), (Existing::default(), vec![0]));
}

#[test]
fn what_goes_away_by_itself_meanwhile_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = (0..2000).map(|n| dir.path().join(format!("data/pg_wal/prefetched {n}"))).collect();
    let survey = survey(dir.path());
    for folder in &folders {
        write(folder.join("segment"), "gone");
    }
    std::thread::scope(|scope| {
        // From the other end, so that the two meet.
        scope.spawn(|| folders.iter().rev().for_each(|folder| drop(fs::remove_dir_all(folder))));
        scope.spawn(|| folders.iter().for_each(|folder| drop(fs::remove_dir_all(folder))));
        survey.remove().unwrap();
    });
    assert!(folders.iter().all(|folder| !folder.exists()));
}
