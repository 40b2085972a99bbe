//! Is a restored directory byte for byte what PostgreSQL's own tools have of the same server?

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use recovery::{Backup, RecoveryTarget};

use super::pg::PgNode;
use super::restored::Scene;

/// Every regular file below `dir`, by its path.
pub fn files_below(dir: &Path) -> BTreeMap<Vec<u8>, PathBuf> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<Vec<u8>, PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), path);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

/// What pg_basebackup gets of a server on which nothing happens.
pub fn oracle(node: &PgNode, to: &Path) -> BTreeMap<Vec<u8>, PathBuf> {
    let mut command = node.tool("pg_basebackup");
    let output = command.args(["-N", "-c", "fast", "-X", "none", "-D"]).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    files_below(to)
}

/// The files that a second backup of an idle server has in common with the first: those of relations.
fn is_of_relation(name: &[u8]) -> bool {
    (name.starts_with(b"base/") || name.starts_with(b"global/") && name != b"global/pg_control")
        && !name.ends_with(b"pg_internal.init")
}

/// Restores without settings, has PostgreSQL's own tool look at it, and compares it byte for byte.
pub fn is_exact(scene: &Scene, node: &PgNode, backup: &Backup, oracle: &BTreeMap<Vec<u8>, PathBuf>, name: &str) {
    let to = scene.dir.join(name);
    let mut request = scene.request(&to, RecoveryTarget::Latest);
    request.recovery.backup = Some(backup.id.clone());
    request.config = None;
    let plan = scene.plan(&request).unwrap_or_else(|error| panic!("{error}"));
    scene.apply(&plan).unwrap_or_else(|error| panic!("{error}"));
    let verified = node.tool("pg_verifybackup").arg("-n").arg(&to).output().unwrap();
    assert!(verified.status.success(), "{name}: {}", String::from_utf8_lossy(&verified.stderr));
    let restored = files_below(&to);
    let names = |files: &BTreeMap<Vec<u8>, PathBuf>| -> Vec<String> {
        files.keys().filter(|name| is_of_relation(name)).map(|name| name.escape_ascii().to_string()).collect()
    };
    assert_eq!(names(&restored), names(oracle), "{name}");
    for (file, path) in restored.iter().filter(|(file, _)| is_of_relation(file)) {
        assert!(fs::read(path).unwrap() == fs::read(&oracle[file]).unwrap(), "{name}: {}", file.escape_ascii());
    }
    assert!(restored.keys().all(|file| !file.escape_ascii().to_string().contains("INCREMENTAL")), "{name}");
    let label = fs::read_to_string(to.join("backup_label")).unwrap();
    assert!(!label.contains("INCREMENTAL"), "{label}");
    assert!(label.contains(&format!("START WAL LOCATION: {} ", backup.start_lsn)), "{label}");
    fs::remove_dir_all(to).unwrap();
}
