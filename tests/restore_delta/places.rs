//! Do WAL and tablespaces that lie elsewhere come right, and is nobody else's touched?

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pgvault::error::ErrorCode;
use recovery::RecoveryTarget;

use super::{changed_since, delta, opens_with};
use crate::support::LIMIT;
use crate::support::pg::{give_to_server_user, major, test_dir};
use crate::support::tree::{assert_same, tree};

/// Moves a directory elsewhere and leaves a link.
fn move_out(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
    symlink(to, from).unwrap();
}

#[test]
fn wal_and_tablespaces_stay_where_the_old_directory_has_them() {
    let dir = test_dir();
    let at = |name: &str| dir.path().join(name);
    let (space, second) = (at("a space"), at("second"));
    let (scene, node, expected) = changed_since(dir.path(), major(17), |node| {
        for (name, path) in [("fast", &space), ("other", &second)] {
            fs::create_dir(path).unwrap();
            give_to_server_user(path);
            node.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", path.display()));
        }
        node.sql(
            "CREATE TABLE in_fast TABLESPACE fast AS SELECT g, repeat('f', 300) f FROM generate_series(1, 5000) g",
        );
        node.sql("CREATE TABLE in_other TABLESPACE other AS SELECT g FROM generate_series(1, 5000) g");
        node.sql("VACUUM");
    });
    // As on another machine: one of them lies elsewhere, and a link leads to what is not of this backup.
    let link_of = |path: &Path| {
        let mut links = fs::read_dir(node.data.join("pg_tblspc")).unwrap().map(|entry| entry.unwrap().path());
        links.find(|link| fs::read_link(link).unwrap() == path).unwrap()
    };
    let moved = at("moved elsewhere");
    let link = link_of(&space);
    fs::rename(&space, &moved).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&moved, &link).unwrap();
    let outside = at("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    symlink(&outside, node.data.join("pg_tblspc/99999")).unwrap();
    fs::create_dir_all(moved.join("PG_9.6_201608131/1")).unwrap();
    fs::write(moved.join("PG_9.6_201608131/1/1"), "of another version").unwrap();
    let version = fs::read_dir(&moved)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_str().unwrap().contains(&format!("PG_{}_", node.major)))
        .unwrap();
    fs::create_dir_all(version.join("77")).unwrap();
    fs::write(version.join("77/1"), "of the old cluster").unwrap();
    let wal = at("wal elsewhere");
    move_out(&node.data.join("pg_wal"), &wal);
    give_to_server_user(dir.path());

    // The plain one goes to places of its own.
    let (plain, plain_space, plain_second, plain_wal) =
        (at("plain"), at("plain space"), at("plain second"), at("plain wal"));
    let mut request = scene.request(&plain, RecoveryTarget::Latest);
    request.tablespaces = vec![(space.clone(), plain_space.clone()), (second.clone(), plain_second.clone())];
    request.wal_dir = Some(plain_wal.clone());
    scene.apply(&scene.plan(&request).unwrap()).unwrap();

    let mut request = scene.request(&node.data, RecoveryTarget::Latest);
    request.delta = true;
    let plan = scene.plan(&request).unwrap();
    assert_eq!(plan.existing.as_ref().unwrap().left, [moved.join("PG_9.6_201608131")]);
    assert_eq!(plan.wal_dir.as_ref(), Some(&wal));
    let outcome = scene.apply(&plan).unwrap();
    assert!(outcome.kept_bytes > 0);
    let names = |places: [&Path; 3]| {
        [("SPACE", places[0]), ("SECOND", places[1]), ("WAL", places[2])].map(|(n, p)| (n, p.to_owned()))
    };
    let (ours, theirs) = (names([&moved, &second, &wal]), names([&plain_space, &plain_second, &plain_wal]));
    let ours: Vec<(&str, &Path)> = ours.iter().map(|(name, path)| (*name, path.as_path())).collect();
    let theirs: Vec<(&str, &Path)> = theirs.iter().map(|(name, path)| (*name, path.as_path())).collect();
    assert_same(&tree(&node.data, &ours), &tree(&plain, &theirs), "the data directory");
    assert_same(&tree(&second, &[]), &tree(&plain_second, &[]), "a tablespace");
    assert_same(&tree(&wal, &[]), &tree(&plain_wal, &[]), "WAL");
    let mut of_space = tree(&moved, &[]);
    assert_eq!(fs::read_to_string(moved.join("PG_9.6_201608131/1/1")).unwrap(), "of another version");
    of_space.retain(|path, _| !path.starts_with(b"PG_9.6"));
    assert_same(&of_space, &tree(&plain_space, &[]), "a tablespace that had moved");
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "precious");

    let mut node = node;
    opens_with(&mut node, &expected);
    // Nothing is restored over the places of a running server, whose links lead there.
    let mut stolen = scene.request(&at("thief"), RecoveryTarget::Latest);
    stolen.delta = true;
    stolen.tablespaces = vec![(space, moved), (second, plain_second)];
    assert_eq!(scene.plan(&stolen).unwrap_err().code(), ErrorCode::TargetDirectory);
    // Nor over those of a copy of its data directory, which lead to the same places.
    let thief = at("copied");
    assert!(std::process::Command::new("cp").arg("-a").arg(&node.data).arg(&thief).status().unwrap().success());
    fs::remove_file(thief.join("postmaster.pid")).unwrap();
    let mut stolen = scene.request(&thief, RecoveryTarget::Latest);
    stolen.delta = true;
    let error = scene.plan(&stolen).unwrap_err();
    assert!(error.message().contains("a server runs in it"), "{error}");
    assert!(node.stop("fast", LIMIT));
}

#[test]
fn wal_goes_where_it_is_told_and_back_into_the_data_directory() {
    let dir = test_dir();
    let (scene, node, _) = changed_since(dir.path(), major(15), |_| ());
    let wal = dir.path().join("wal elsewhere");
    delta(&scene, &node.data, |request| request.wal_dir = Some(wal.clone()));
    assert_eq!(fs::read_link(node.data.join("pg_wal")).unwrap(), wal);
    assert!(wal.join("archive_status").is_dir());
    fs::write(wal.join("000000010000000000000001"), "old").unwrap();
    // A link that leads nowhere any more is no place.
    fs::rename(&wal, dir.path().join("gone")).unwrap();
    delta(&scene, &node.data, |_| ());
    assert!(fs::symlink_metadata(node.data.join("pg_wal")).unwrap().is_dir());
    let plain = dir.path().join("plain");
    scene.apply(&scene.plan(&scene.request(&plain, RecoveryTarget::Latest)).unwrap()).unwrap();
    assert_same(&tree(&node.data, &[]), &tree(&plain, &[]), "without a link");
}
