//! Does the demo do the main job: write, back up, drop a table, recover to before the drop?

use std::fs;
use std::process::{Command, Stdio};

use crate::support::LIMIT;
use crate::support::pg::{bin_dir, give_to_server_user, test_dir};
use crate::support::pgvault::Pgvault;

fn demo(major: u32, keep: bool) {
    let dir = test_dir();
    give_to_server_user(dir.path());
    let pgvault = Pgvault::new(dir.path());
    let place = dir.path().join("demo");
    let mut args = vec!["demo", "--dir", place.to_str().unwrap()];
    if keep {
        args.push("--keep");
    }
    let mut command = pgvault.command(args);
    // What points to a real installation does not lead the demo there, nor the servers that it starts.
    command.env("PGVAULT_REPOSITORY", "file:///nowhere").env("PGVAULT_CONNINFO", "host=nowhere").env("PGPORT", "1");
    let output = command.env("PGVAULT_DEMO_BIN", bin_dir(major)).output().unwrap();
    let screen = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{screen}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(screen.contains("everything is back"), "{screen}");
    assert!(screen.contains("100500 rows"), "{screen}");
    assert_eq!(place.exists(), keep);
    if keep {
        assert!(fs::read_to_string(place.join("recovered/postgresql.auto.conf")).unwrap().contains("wal fetch"));
    }
}

#[test]
fn the_demo_recovers_a_dropped_table_and_takes_everything_away() {
    demo(18, false);
}

#[test]
fn the_demo_works_on_the_oldest_major_and_keeps_what_it_made() {
    demo(14, true);
}

#[test]
fn without_postgresql_the_demo_says_what_to_install() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    let output = pgvault.command(["demo"]).env("PGVAULT_DEMO_BIN", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&output.stderr).contains("PGVAULT_DEMO_BIN"));
}

#[test]
fn an_interrupted_demo_takes_everything_away() {
    let dir = test_dir();
    give_to_server_user(dir.path());
    let pgvault = Pgvault::new(dir.path());
    let place = dir.path().join("demo");
    let mut command = pgvault.command(["demo", "--dir", place.to_str().unwrap()]);
    let mut demo =
        command.env("PGVAULT_DEMO_BIN", bin_dir(15)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // initdb runs: the hardest moment, because it and its children write for a while after they are told to end.
    pgvault.wait("initdb writes", LIMIT, || place.join("data/base").exists());
    let told = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert!(told.success());
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert!(!place.exists());
}
