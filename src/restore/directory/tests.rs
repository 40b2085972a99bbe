use std::fs;
use std::path::Path;

use super::{Called, Candidate, Found, MARKER, beside, data, holds_nothing_but_wal};
use crate::error::ErrorCode;
use crate::restore::marker::{Marker, test_marker};

const OURS: &str = "20261120T030000-0001";
const OTHER: &str = "20261120T040000-0002";

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What was found, in a word; the message of a refusal.
fn word(found: crate::error::Result<Candidate>) -> String {
    match found {
        Ok(Candidate { found: Found::Nothing, .. }) => "nothing".to_owned(),
        Ok(Candidate { found: Found::Unfinished(_), .. }) => "unfinished".to_owned(),
        Ok(Candidate { found: Found::Old, .. }) => "old".to_owned(),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::TargetDirectory);
            assert!(!error.help_lines().is_empty());
            error.message().split(": ").nth(1).unwrap_or_default().to_owned()
        }
    }
}

fn control(dir: &Path, system: u64) {
    write(dir, "global/pg_control", system.to_ne_bytes());
}

#[test]
fn a_plain_restore_takes_nothing_but_an_empty_directory_and_its_own_beginning() {
    let wanted = test_marker(OURS);
    let delta = Marker { delta: true, ..wanted.clone() };
    let other = test_marker(OTHER);
    // What the marker says; what becomes of it alone, and with files beside it.
    for (marker, alone, with_files) in [
        (None, "nothing", "it is not empty, it holds \"PG_VERSION\""),
        (Some(String::new()), "nothing", "it is not empty, it holds \"PG_VERSION\""),
        (Some("7000000".to_owned()), "nothing", "it is not empty, it holds \"PG_VERSION\""),
        (Some(wanted.text()), "nothing", "unfinished"),
        (Some(delta.text()), "nothing", "an interrupted recover --delta lies in it"),
        (Some(other.text()), "nothing", "an interrupted restore of another backup lies in it"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = &marker {
            write(dir.path(), MARKER, text);
        }
        assert_eq!(word(data(dir.path(), &wanted, false)), alone, "{marker:?} alone");
        write(dir.path(), "PG_VERSION", "15");
        assert_eq!(word(data(dir.path(), &wanted, false)), with_files, "{marker:?} with files");
    }
}

#[test]
fn a_restore_whose_marker_was_left_is_finished_until_a_server_is_started_on_it() {
    let wanted = test_marker(OURS);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), MARKER, wanted.text());
    write(dir.path(), "backup_label", "START");
    control(dir.path(), wanted.lineage.system_identifier.get());
    assert_eq!(word(data(dir.path(), &wanted, false)), "unfinished");
    write(dir.path(), "postmaster.opts", "postgres");
    let refused = "a restore into it has ended, and a server has been started on it";
    assert_eq!(word(data(dir.path(), &wanted, false)), refused);
    fs::remove_file(dir.path().join("postmaster.opts")).unwrap();
    fs::rename(dir.path().join("backup_label"), dir.path().join("backup_label.old")).unwrap();
    assert_eq!(word(data(dir.path(), &wanted, false)), refused);
}

#[test]
fn a_delta_takes_an_old_directory_of_the_same_system_and_no_other() {
    let wanted = test_marker(OURS);
    let system = wanted.lineage.system_identifier.get();
    let dir = tempfile::tempdir().unwrap();
    let look = || word(data(dir.path(), &wanted, true));
    assert_eq!(look(), "nothing");
    write(dir.path(), "PG_VERSION", "15");
    assert!(look().starts_with("it holds \"PG_VERSION\" but no global/pg_control"), "{}", look());
    control(dir.path(), system);
    assert_eq!(look(), "old");
    control(dir.path(), 5);
    assert_eq!(look(), "it belongs to another cluster", "{}", look());
    // A link to a pg_control of the system is no pg_control of this directory.
    control(&dir.path().join("elsewhere"), system);
    fs::remove_dir_all(dir.path().join("global")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere/global"), dir.path().join("global")).unwrap();
    assert!(look().starts_with("it holds "), "{}", look());
    // Whatever restore of the system it was that did not end.
    for text in [wanted.text(), test_marker(OTHER).text(), Marker { delta: true, ..wanted.clone() }.text()] {
        write(dir.path(), MARKER, text);
        assert_eq!(look(), "unfinished");
    }
    let foreign = Marker { lineage: "5-1".parse().unwrap(), ..wanted.clone() };
    write(dir.path(), MARKER, foreign.text());
    assert!(look().starts_with("it holds "), "{}", look());
}

#[test]
fn what_lies_beside_is_taken_when_a_marker_or_a_link_says_so() {
    let wanted = test_marker(OURS);
    let called = Called { what: "tablespace 1 in", instead: "--tablespace /a=NEW" };
    let dir = tempfile::tempdir().unwrap();
    let look = |linked, delta| word(beside(dir.path(), called, &wanted, linked, delta));
    assert_eq!(look(false, false), "nothing");
    write(dir.path(), "PG_15_202209061/5/1", "x");
    assert_eq!(look(false, true), "it is not empty, it holds \"PG_15_202209061\"");
    assert_eq!(look(true, true), "old");
    write(dir.path(), MARKER, wanted.text());
    assert_eq!((look(false, false), look(false, true)), ("unfinished".to_owned(), "unfinished".to_owned()));
    write(dir.path(), MARKER, test_marker(OTHER).text());
    assert_eq!(look(true, false), "an interrupted restore of another backup lies in it");
    assert_eq!(look(false, true), "unfinished");
}

#[test]
fn a_directory_of_wal_holds_wal_and_nothing_else() {
    let called = Called { what: "WAL directory", instead: "--wal-dir DIR" };
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "000000010000000000000001",
        "000000010000000000000002.partial",
        "000000010000000000000002.00000028.backup",
        "00000002.history",
        "archive_status/000000010000000000000001.done",
        "summaries/0000000100000000010000280000000001000150.summary",
        "xlogtemp.77",
        "RECOVERYXLOG",
        "lost+found/x",
        MARKER,
    ] {
        write(dir.path(), name, "");
        assert!(holds_nothing_but_wal(dir.path(), called).is_ok(), "{name}");
    }
    for name in ["PG_VERSION", "notes.txt", "base/1", "0000000100000000000000G1"] {
        write(dir.path(), name, "");
        assert!(holds_nothing_but_wal(dir.path(), called).is_err(), "{name}");
        let top = dir.path().join(name.split('/').next().unwrap());
        if top.is_dir() { fs::remove_dir_all(top).unwrap() } else { fs::remove_file(top).unwrap() }
    }
}
