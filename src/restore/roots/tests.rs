use super::*;
use std::fs;

fn roots(dir: &Path, keep: Keep) -> Roots {
    Roots::new(open_root(&dir.join("data"), None).unwrap(), None, keep)
}

fn path(text: &str) -> DataPath {
    DataPath::new(text.as_bytes()).unwrap()
}

#[test]
fn a_link_never_leads_outside() {
    let dir = tempfile::tempdir().unwrap();
    let roots = roots(dir.path(), Keep::New);
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, dir.path().join("data/base")).unwrap();
    std::os::unix::fs::symlink(outside.join("target"), dir.path().join("data/file")).unwrap();
    assert!(roots.take(&path("base/1"), 0, 0o600).is_err());
    assert!(roots.take(&path("base/5/1"), 0, 0o600).is_err());
    assert!(roots.make_directory(&path("base/5"), 0o700).is_err());
    assert!(roots.take(&path("file"), 0, 0o600).is_err());
    assert!(roots.open_file(&path("file")).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn the_same_file_twice_is_refused_and_a_repeated_restore_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = roots(dir.path(), Keep::New);
    first.take(&path("base/5/1"), 10, 0o640).unwrap();
    assert!(first.take(&path("base/5/1"), 10, 0o640).is_err());
    let again = roots(dir.path(), Keep::Nothing);
    fs::write(dir.path().join("data/base/5/1"), "old content, longer").unwrap();
    again.take(&path("base/5/1"), 10, 0o640).unwrap();
    assert_eq!(fs::read(dir.path().join("data/base/5/1")).unwrap(), [0; 10]);
}

#[test]
fn files_are_taken_over_unless_they_have_another_name_too() {
    let dir = tempfile::tempdir().unwrap();
    let roots = roots(dir.path(), Keep::Right);
    let at = |name: &str| dir.path().join("data").join(name);
    for (before, size, there, after) in [("abc", 5, 3, "abc\0\0"), ("abcdef", 4, 4, "abcd"), ("", 2, 0, "\0\0")] {
        fs::write(at("1"), before).unwrap();
        assert_eq!(roots.take(&path("1"), size, 0o640).unwrap(), there);
        assert_eq!(fs::read_to_string(at("1")).unwrap(), after);
        assert_eq!(rustix::fs::stat(at("1")).unwrap().st_mode & 0o7777, 0o640);
    }
    assert_eq!(roots.take(&path("2"), 3, 0o600).unwrap(), 0);
    // A copy that somebody made of the old directory keeps what it had.
    fs::write(at("3"), "precious").unwrap();
    fs::hard_link(at("3"), dir.path().join("copy")).unwrap();
    assert_eq!(roots.take(&path("3"), 8, 0o600).unwrap(), 0);
    assert_eq!(fs::read(at("3")).unwrap(), [0; 8]);
    assert_eq!(fs::read_to_string(dir.path().join("copy")).unwrap(), "precious");
    rustix::fs::mknodat(rustix::fs::CWD, at("4"), rustix::fs::FileType::Fifo, mode_of(0o600), 0).unwrap();
    assert_eq!(roots.take(&path("4"), 1, 0o600).unwrap(), 0);
    assert!(fs::metadata(at("4")).unwrap().is_file());
}

#[test]
fn tablespaces_and_wal_lie_where_they_were_opened() {
    let dir = tempfile::tempdir().unwrap();
    let mut roots = roots(dir.path(), Keep::New);
    roots.set_wal(open_root(&dir.path().join("wal"), None).unwrap());
    roots.add_tablespace(16400, open_root(&dir.path().join("ts"), None).unwrap());
    roots.link("pg_wal", &dir.path().join("wal")).unwrap();
    roots.link("pg_tblspc/16400", &dir.path().join("ts")).unwrap();
    roots.take(&path("pg_wal/archive_status/x"), 0, 0o600).unwrap();
    roots.take(&path("pg_tblspc/16400/PG_15/5/1"), 3, 0o600).unwrap();
    roots.take(&path("pg_tblspc/16401/PG_15/5/1"), 3, 0o600).unwrap();
    roots.make_directory(&path("pg_tblspc/16400"), 0o700).unwrap();
    assert!(roots.take(&path("pg_tblspc/16400"), 0, 0o600).is_err());
    assert!(dir.path().join("wal/archive_status/x").exists());
    assert!(dir.path().join("ts/PG_15/5/1").exists());
    assert!(dir.path().join("data/pg_tblspc/16401/PG_15/5/1").exists(), "a tablespace in place");
    assert_eq!(fs::read_link(dir.path().join("data/pg_tblspc/16400")).unwrap(), dir.path().join("ts"));
}

#[test]
fn pg_control_has_its_name_only_when_published() {
    let dir = tempfile::tempdir().unwrap();
    let roots = roots(dir.path(), Keep::New);
    let control = path("global/pg_control");
    roots.take(&control, 4, 0o600).unwrap();
    roots.open_file(&control).unwrap();
    assert!(!dir.path().join("data/global/pg_control").exists());
    roots.publish_pg_control().unwrap();
    assert!(dir.path().join("data/global/pg_control").exists());
    assert_eq!(fs::read_dir(dir.path().join("data/global")).unwrap().count(), 1);
    roots.unpublish_pg_control().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("data/global")).unwrap().count(), 0);
}
