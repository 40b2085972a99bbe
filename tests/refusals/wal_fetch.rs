//! The exit codes of `wal fetch`: 0, 1 and 255 and nothing between.

use std::fs;
use std::path::Path;

use wal::{SegmentName, SegmentSize};

use super::targets::{commit_between, lose, segment_of, stored, two_backups_far_apart};
use crate::support::scene::Scene;

/// Runs it; the exit code, and whether something was written.
fn fetch(scene: &Scene, cluster: &str, file: &str) -> (i32, bool) {
    let to = scene.installed.state.join("RECOVERYXLOG");
    if to.exists() {
        fs::remove_file(&to).unwrap();
    }
    let output = scene.installed.run(["wal", "fetch", "--patience", "1s", cluster, file, to.to_str().unwrap()]);
    let leftovers = fs::read_dir(&scene.installed.state)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("RECOVERYXLOG."));
    assert_eq!(leftovers.count(), 0, "{file}: a part lies beside the destination");
    (output.status.code().unwrap(), to.exists())
}

#[test]
fn wal_fetch_tells_found_absent_and_everything_else_apart() {
    let (scene, backups, oracle) = two_backups_far_apart();
    let segment = segment_of(&scene, commit_between(&oracle, &backups).lsn);
    let name = segment.to_string();
    assert_eq!(fetch(&scene, "main", &name), (0, true));
    let fetched = fs::read(scene.installed.state.join("RECOVERYXLOG")).unwrap();
    assert_eq!(fetched, fs::read(scene.path().join("reference").join(&name)).unwrap(), "as pg_receivewal has it");

    let size = SegmentSize::new(scene.setting.segment_size).unwrap();
    let far = SegmentName::new(segment.timeline(), wal::SegmentNumber::containing("5/0".parse().unwrap(), size), size);
    for absent in [&far.to_string(), "00000002.history", "00000009.history", "000000020000000000000005"] {
        assert_eq!(fetch(&scene, "main", absent), (1, false), "{absent}");
    }
    assert_eq!(fetch(&scene, "mian", &name), (255, false), "an unknown cluster");
    assert_eq!(fetch(&scene, "main", "no-wal-name"), (255, false), "no name of a file of WAL");

    let object = stored(&scene, segment);
    let right = fs::read(&object).unwrap();
    flip(&object, right.len() - 20);
    assert_eq!(fetch(&scene, "main", &name), (255, false), "damaged");
    fs::write(&object, &right[..right.len() / 2]).unwrap();
    assert_eq!(fetch(&scene, "main", &name), (255, false), "cut");
    fs::remove_file(&object).unwrap();
    fs::write(&object, &right).unwrap();
    assert_eq!(fetch(&scene, "main", &name), (0, true));

    lose(&scene, segment);
    assert_eq!(fetch(&scene, "main", &name), (255, false), "a hole: later segments are there");
    fs::rename(&scene.installed.repository, scene.path().join("elsewhere")).unwrap();
    for file in [&name, "00000002.history", &far.to_string()] {
        assert_eq!(fetch(&scene, "main", file), (255, false), "no repository: {file}");
    }
}

/// Changes one byte of a stored object.
pub(super) fn flip(object: &Path, at: usize) {
    let mut bytes = fs::read(object).unwrap();
    bytes[at] ^= 1;
    // Objects are read-only.
    fs::remove_file(object).unwrap();
    fs::write(object, bytes).unwrap();
}
