use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::fs::stat;

use super::*;
use crate::repository::manifest::test_manifest;

fn instance() -> Instance {
    Instance { system_identifier: SystemIdentifier::new(7), pid: 100, started_at: 1_700_000_000, boot: "b".to_owned() }
}

#[test]
fn every_way_to_change_a_file_changes_its_trace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("16384");
    fs::write(&path, [1; 8192]).unwrap();
    let look = || Trace::of(b"base/5/16384", &stat(&path).unwrap());
    // Of writes within a tick of the clock nothing is said: files that young are not noted.
    let settle = || std::thread::sleep(std::time::Duration::from_millis(20));
    let mut seen = vec![look()];
    let mut is_new = |what: &str| {
        let trace = look();
        assert!(!seen.contains(&trace), "{what}");
        seen.push(trace);
        settle();
    };
    settle();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[2], 100).unwrap();
    is_new("a byte in place");
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[3], 100).unwrap();
    file.set_modified(mtime).unwrap();
    is_new("a byte in place and the mtime set back");
    file.set_len(4096).unwrap();
    file.set_len(8192).unwrap();
    is_new("truncated and extended to the same size");
    let other = dir.path().join("other");
    let mut copy = File::create(&other).unwrap();
    copy.write_all(&fs::read(&path).unwrap()).unwrap();
    copy.set_modified(mtime).unwrap();
    fs::rename(&other, &path).unwrap();
    is_new("a copy with the same times in its place");
    assert_ne!(look(), Trace::of(b"base/5/16385", &stat(&path).unwrap()));
    assert_eq!(look(), look());
}

#[test]
fn a_file_has_settled_only_when_both_of_its_times_are_older() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, [1]).unwrap();
    let now = DateTime::<Utc>::from(fs::metadata(&path).unwrap().modified().unwrap());
    assert!(settled(&stat(&path).unwrap(), now + TimeDelta::seconds(1)));
    assert!(!settled(&stat(&path).unwrap(), now));
    // mtime can be set back, ctime cannot.
    File::options().write(true).open(&path).unwrap().set_modified((now - TimeDelta::hours(1)).into()).unwrap();
    assert!(!settled(&stat(&path).unwrap(), now - TimeDelta::minutes(1)));
    File::options().write(true).open(&path).unwrap().set_modified((now + TimeDelta::hours(1)).into()).unwrap();
    assert!(!settled(&stat(&path).unwrap(), now + TimeDelta::minutes(1)));
}

#[test]
fn what_was_noted_is_read_again_only_whole_and_for_the_very_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("main.noted");
    let manifest = test_manifest();
    let traces: Vec<Trace> = (0..100).rev().map(|at| Trace([at; TRACE])).collect();
    let noted = Noted::new(&manifest, instance(), None, traces);
    assert_eq!(Noted::load(&file), None);
    noted.save(&file).unwrap();
    assert_eq!(Noted::load(&file).as_ref(), Some(&noted));
    assert!(noted.is_of(&manifest) && noted.contains(&Trace([7; TRACE])) && !noted.contains(&Trace([200; TRACE])));
    let mut other = manifest.clone();
    other.parts[0].sha256[0] ^= 1;
    assert!(!noted.is_of(&other));
    let bytes = fs::read(&file).unwrap();
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&file, &damaged).unwrap();
        assert_eq!(Noted::load(&file), None, "byte {at}");
    }
    for len in [0, 10, 31, 32, bytes.len() - TRACE] {
        fs::write(&file, &bytes[..len]).unwrap();
        assert_eq!(Noted::load(&file), None, "{len} bytes");
    }
}

#[test]
fn every_seventh_backup_and_one_a_week_reads_everything() {
    let manifest = test_manifest();
    let begun = manifest.started_at.to_datetime();
    let mut noted = Noted::new(&manifest, instance(), None, Vec::new());
    for _ in 0..6 {
        assert_eq!(noted.is_due(begun + TimeDelta::days(6)), None);
        noted = Noted::new(&manifest, instance(), Some(&noted), Vec::new());
    }
    assert!(noted.is_due(begun + TimeDelta::hours(1)).is_some());
    let fresh = Noted::new(&manifest, instance(), None, Vec::new());
    assert_eq!(fresh.is_due(begun + TimeDelta::hours(167)), None);
    assert!(fresh.is_due(begun + TimeDelta::days(7)).is_some());
    assert!(fresh.is_due(begun - TimeDelta::hours(1)).is_some(), "the clock went back");
}
