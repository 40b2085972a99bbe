//! Over which directories is nothing ever restored?

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pgvault::error::ErrorCode;
use recovery::RecoveryTarget;

use super::changed_since;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, am_root, bin_dir, give_to_server_user, major, test_dir};
use crate::support::restored::{Scene, listing};

#[track_caller]
fn refused(scene: &Scene, directory: &Path, because: &str) {
    let before = listing(directory);
    let mut request = scene.request(directory, RecoveryTarget::Latest);
    request.delta = true;
    let error = scene.plan(&request).unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetDirectory, "{error}");
    assert!(error.to_string().contains(because), "{because}: {error}");
    assert!(!error.help_lines().is_empty());
    assert_eq!(listing(directory), before);
}

#[test]
fn nothing_but_an_old_directory_of_the_same_system_is_restored_over() {
    let dir = test_dir();
    let (scene, node, _) = changed_since(dir.path(), major(17), |_| ());
    let foreign = PgNode::init(dir.path(), "foreign", major(17), &[], &[]);
    refused(&scene, &foreign.data, "it belongs to another cluster: its system identifier is ");
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("diary"), "precious").unwrap();
    refused(&scene, &full, "it holds \"diary\" but no global/pg_control");
    // Without --delta the old one is refused as ever, and the way is shown.
    let error = scene.plan(&scene.request(&node.data, RecoveryTarget::Latest)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::TargetDirectory);
    assert!(error.help_lines().iter().any(|line| line.contains("--delta")), "{error:?}");
}

#[test]
fn nothing_is_restored_over_a_running_server_wherever_it_runs() {
    let dir = test_dir();
    let (scene, mut node, _) = changed_since(dir.path(), major(17), |_| ());
    node.start();
    refused(&scene, &node.data, "a server runs in it (pid ");
    // Its lock file is gone: its processes are still seen. (It ends by itself within a minute of that.)
    let lock_file = node.data.join("postmaster.pid");
    let text = fs::read(&lock_file).unwrap();
    fs::remove_file(&lock_file).unwrap();
    refused(&scene, &node.data, "data directory ");
    fs::write(&lock_file, text).unwrap();
    give_to_server_user(&lock_file);
    if am_root() {
        // We are in a container, the server is not: its pid is nobody's here. We share its kernel's memory table.
        let command =
            scene.installed.command(["recover", "main", "--latest", "--delta", "--to", node.data.to_str().unwrap()]);
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                unshare.env(name, value)
            } else {
                unshare.env_remove(name)
            };
        }
        let output = unshare.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(7), "{said}");
        assert!(said.contains("its shared memory"), "{said}");
    }
    assert!(node.stop("immediate", LIMIT));
    if am_root() {
        a_server_in_a_container(&scene, &node);
    }
    // A lock file that a crash has left holds nobody up.
    fs::write(&lock_file, "2147483647\n/x\n1\n5999\n/nowhere\n*\n1 2\nready\n").unwrap();
    let mut request = scene.request(&node.data, RecoveryTarget::Latest);
    request.delta = true;
    assert!(scene.plan(&request).is_ok());
}

/// A server that sees only its own processes and its own shared memory.
fn a_server_in_a_container(scene: &Scene, node: &PgNode) {
    let mut container = Command::new("unshare");
    container.args(["--pid", "--ipc", "--fork", "--mount-proc"]);
    container.args(["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]);
    container.arg(bin_dir(node.major).join("postgres")).arg("-D").arg(&node.data);
    let mut child = container.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while node.try_sql("SELECT 1").is_err() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    refused(scene, &node.data, "a server runs in it (");
    // The first process of a container takes all others with it.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    for pid in children.split_whitespace() {
        assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }
    child.wait().unwrap();
    while node.try_sql("SELECT 1").is_ok() {
        assert!(Instant::now() < deadline, "the server in the container does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}
