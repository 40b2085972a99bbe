use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;

use super::{
    TempFile, Written, create_dir_all, dir_sync_is_supported, link_new, rename, rename_new, replace, write_new,
};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_file_has_its_content_and_mode_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    assert_eq!(write_new(&path, b"one", 0o640).unwrap(), Written::Created);
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert_eq!(mode(&path), 0o640);
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn an_existing_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, b"old").unwrap();
    assert_eq!(write_new(&path, b"new", 0o600).unwrap(), Written::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn of_many_writers_exactly_one_creates_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let barrier = Barrier::new(16);
    let outcomes: Vec<Written> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16u8)
            .map(|i| {
                let (path, barrier) = (&path, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    write_new(path, &[i; 1000], 0o600).unwrap()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let winners: Vec<u8> = (0..16).filter(|&i| outcomes[usize::from(i)] == Written::Created).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(fs::read(&path).unwrap(), [winners[0]; 1000]);
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn file_systems_without_noreplace_get_the_same_by_link() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, b"1").unwrap();
    assert_eq!(link_new(&from, &to).unwrap(), Written::Created);
    assert_eq!(names(dir.path()), ["to"]);
    fs::write(&from, b"2").unwrap();
    assert_eq!(link_new(&from, &to).unwrap(), Written::AlreadyExists);
    assert_eq!(fs::read(&to).unwrap(), b"1");
    // The answer to a link that succeeded got lost: the file has two names.
    fs::remove_file(&to).unwrap();
    fs::hard_link(&from, &to).unwrap();
    assert_eq!(link_new(&from, &to).unwrap(), Written::Created);
    assert_eq!(names(dir.path()), ["to"]);
}

#[test]
fn a_file_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    replace(&path, b"old").unwrap();
    replace(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn a_rename_replaces_only_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, b"1").unwrap();
    fs::write(&to, b"2").unwrap();
    assert_eq!(rename_new(&from, &to).unwrap(), Written::AlreadyExists);
    assert_eq!((fs::read(&from).unwrap(), fs::read(&to).unwrap()), (b"1".to_vec(), b"2".to_vec()));
    rename(&from, &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"1");
    assert_eq!(rename_new(&to, &from).unwrap(), Written::Created);
    assert_eq!(names(dir.path()), ["from"]);
}

#[test]
fn directories_get_their_mode_all_the_way_down() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a/b/c");
    create_dir_all(&deep, 0o750).unwrap();
    create_dir_all(&deep, 0o700).unwrap();
    assert_eq!((mode(&dir.path().join("a")), mode(&deep)), (0o750, 0o750));
    fs::write(dir.path().join("file"), b"").unwrap();
    assert!(create_dir_all(&dir.path().join("file/x"), 0o700).is_err());
    assert!(dir_sync_is_supported(&deep).unwrap());
}

#[test]
fn an_unpublished_temporary_file_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut temp = TempFile::in_dir(dir.path(), 0o600).unwrap();
    temp.file_mut().write_all(b"x").unwrap();
    assert!(names(dir.path())[0].starts_with('.'));
    drop(temp);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_temporary_file_is_abandoned_only_when_nobody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let temp = TempFile::in_dir(dir.path(), 0o600).unwrap();
    assert!(!TempFile::is_abandoned(temp.path()).unwrap());
    let leftover = dir.path().join(".tmp-0011223344556677");
    fs::write(&leftover, b"").unwrap();
    assert!(TempFile::is_abandoned(&leftover).unwrap());
    fs::write(dir.path().join("data"), b"").unwrap();
    assert!(!TempFile::is_abandoned(&dir.path().join("data")).unwrap());
}
