//! Stored bytes that are not what they were.

use std::fs;
use std::path::{Path, PathBuf};

use super::refused;
use super::wal_fetch::flip;
use crate::support::pg::{PgNode, major};
use crate::support::restored::wait_promoted;
use crate::support::scene::{Scene, Setting, configure};

fn objects(dir: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if wanted(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn lies_in(path: &Path, folder: &str) -> bool {
    path.components().any(|part| part.as_os_str() == folder)
}

/// `recover --latest`, which must fail because of this object, and leave nothing that PostgreSQL would start.
fn cannot_be_restored(scene: &mut Scene, object: &Path) {
    let mut node: PgNode = scene.place();
    let args = ["recover", "main", "--latest", "--to", node.data.to_str().unwrap()];
    let refusal = refused(&scene.installed, &args, &[&scene.installed.repository], "E0403", 9);
    let name = object.strip_prefix(&scene.installed.repository).unwrap().to_str().unwrap();
    refusal.says(name);
    assert!(!node.data.join("global/pg_control").exists());
    if node.data.exists() {
        configure(&node);
        assert!(!node.try_start(), "PostgreSQL starts on half a restore");
    }
}

#[test]
fn damaged_objects_are_named_and_never_started_from() {
    let mut scene = Scene::new(Setting::of(major(15)));
    scene.backup();
    scene.more(30);
    let oracle = scene.settle();
    scene.daemon.take().unwrap().stop();
    let repository = scene.installed.repository.clone();
    let packs = objects(&repository, |path| lies_in(path, "packs"));
    let manifest = objects(&repository, |path| path.ends_with("manifest") && lies_in(path, "backups"));
    let tables = objects(&repository, |path| lies_in(path, "files") && lies_in(path, "backups"));
    for object in [&packs[0], &manifest[0], &tables[0]] {
        let right = fs::read(object).unwrap();
        flip(object, right.len() / 3);
        cannot_be_restored(&mut scene, object);
        fs::remove_file(object).unwrap();
        fs::write(object, right).unwrap();
    }
    let right = fs::read(&packs[0]).unwrap();
    fs::remove_file(&packs[0]).unwrap();
    let mut node: PgNode = scene.place();
    let output = scene.installed.run(["recover", "main", "--latest", "--to", node.data.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(packs[0].file_name().unwrap().to_str().unwrap()), "{text}");
    assert!(!node.data.join("global/pg_control").exists());
    fs::write(&packs[0], right).unwrap();

    // What is whole again restores into the very directory in which it failed.
    scene.installed.ok(["recover", "main", "--latest", "--to", node.data.to_str().unwrap()]);
    configure(&node);
    node.start();
    wait_promoted(&node);
    let latest = scene.latest();
    oracle.check(&node, &latest).assert_exact();
    scene.forget(node);
}
