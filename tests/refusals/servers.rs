//! Configurations, servers and stores that cannot be worked with.

use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::refused;
use crate::support::LIMIT;
use crate::support::pg::{PgNode, major, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::scene::store_in_s3;

#[test]
fn a_configuration_that_cannot_be_meant() {
    let dir = test_dir();
    let installed = Pgvault::new(dir.path());
    let repository = installed.repository.clone();
    let cases = [
        ("[cluster.main]\nshedule = \"\"", "E0101", "did you mean `schedule`?"),
        ("[clutser.main]\nschedule = \"\"", "E0101", "did you mean `cluster`?"),
        ("[cluster.main]\nschedule = \"61 3 * * *\"", "E0104", "61 3 * * *"),
        ("[cluster.main]\nmax_rpo = \"soon\"", "E0104", "soon"),
        ("[cluster.main]\nconninfo = \"host=a hots=b\"", "E0104", "hots"),
        ("[cluster.main]\nslot = \"No Such Slot!\"", "E0104", "No Such Slot!"),
        ("[cluster.main]\nbackup_from = \"moon\"", "E0104", "moon"),
    ];
    for (text, code, what) in cases {
        installed.config(text);
        for command in [&["config", "check"][..], &["status"], &["serve"]] {
            refused(&installed, command, &[&repository], code, 3).says(what);
        }
    }
    assert!(fs::read_dir(&repository).unwrap().next().is_none());
}

#[test]
fn a_secret_that_is_given_twice() {
    let dir = test_dir();
    let installed = Pgvault::new(dir.path());
    installed.config("[cluster.main]\nconninfo = \"host=127.0.0.1 port=1\"");
    let file = dir.path().join("password");
    fs::write(&file, "from-a-file").unwrap();
    let output = installed
        .command(["config", "check"])
        .env("PGPASSWORD", "hunter2")
        .env("PGPASSWORD_FILE", &file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("error[E0102]") && text.contains("PGPASSWORD_FILE") && text.contains("\nhelp: "), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("from-a-file"), "{text}");
}

/// A server that one thing is wrong with, and an installation that points to it as `user`.
fn server(dir: &Path, settings: &[(&str, &str)], hba: Option<&str>) -> PgNode {
    let mut node = PgNode::init(dir, "primary", major(15), &[], settings);
    if let Some(hba) = hba {
        fs::write(node.data.join("pg_hba.conf"), hba).unwrap();
    }
    node.start();
    node
}

fn pointing_to(dir: &Path, node: &PgNode, user: &str) -> Pgvault {
    let installed = Pgvault::new(dir);
    let conninfo = format!("host=127.0.0.1 port={} user={user}", node.port);
    installed.config(&format!("[cluster.main]\nconninfo = \"{conninfo}\"\nschedule = \"\""));
    installed
}

#[test]
fn a_server_without_a_line_for_replication() {
    let dir = test_dir();
    let node = server(dir.path(), &[], Some("local all all trust\nhost all all 127.0.0.1/32 trust\n"));
    let installed = pointing_to(dir.path(), &node, "postgres");
    let refusal = refused(&installed, &["backup", "now", "--wait"], &[&installed.repository.join("main")], "E0201", 4);
    refusal.says("host replication postgres 127.0.0.1/32").says("SELECT pg_reload_conf();");
}

#[test]
fn a_role_that_may_not_replicate() {
    let dir = test_dir();
    let node = server(dir.path(), &[], None);
    node.sql("CREATE ROLE poor LOGIN");
    let installed = pointing_to(dir.path(), &node, "poor");
    refused(&installed, &["backup", "now", "--wait"], &[&installed.repository.join("main")], "E0202", 4)
        .says("ALTER ROLE poor REPLICATION;");
}

#[test]
fn a_server_whose_settings_do_not_allow_it() {
    let dir = test_dir();
    let node = server(dir.path(), &[("wal_level", "minimal"), ("max_wal_senders", "0")], None);
    let installed = pointing_to(dir.path(), &node, "postgres");
    refused(&installed, &["backup", "now", "--wait"], &[&installed.repository.join("main")], "E0203", 4)
        .says("ALTER SYSTEM SET");
}

#[test]
fn a_server_that_nobody_answers_for() {
    let dir = test_dir();
    let installed = Pgvault::new(dir.path());
    installed.config("[cluster.main]\nconninfo = \"host=127.0.0.1,127.0.0.1 port=1,2 user=x\"\nschedule = \"\"");
    refused(&installed, &["backup", "now", "--wait"], &[&installed.repository.join("main")], "E0204", 4)
        .says("127.0.0.1:1")
        .says("127.0.0.1:2");
}

#[test]
fn another_cluster_under_the_same_name() {
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "one", major(15), &["--wal-segsize=1"], &[]);
    node.start();
    let installed = Pgvault::new(dir.path());
    installed.config_for(&node, "");
    let daemon = installed.serve();
    installed.wait_streaming();
    installed.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    daemon.stop();
    assert!(node.stop("fast", LIMIT));
    let mut other = PgNode::init(dir.path(), "other", major(15), &["--wal-segsize=1"], &[]);
    other.start();
    installed.config_for(&other, "");
    let refusal = refused(&installed, &["backup", "now", "main", "--wait"], &[&installed.repository], "E0205", 7);
    let identifier = other.sql("SELECT system_identifier FROM pg_control_system()");
    refusal.says(&identifier);
    // The daemon does not mix them either: it says so, and stores nothing.
    let before = crate::support::restored::listing(&installed.repository);
    let daemon = installed.serve();
    installed.wait("the foreign cluster is told", LIMIT, || {
        installed.json(&["status", "main"]).1.to_string().contains(&identifier)
    });
    assert_eq!(crate::support::restored::listing(&installed.repository), before);
    assert_eq!(other.sql("SELECT count(*) FROM pg_replication_slots"), "0", "nor is anything left on the server");
    daemon.stop();
}

#[test]
fn a_bucket_that_does_not_let_us_in() {
    let dir = test_dir();
    let installed = Pgvault::new(dir.path());
    installed.config("[cluster.main]\nconninfo = \"host=127.0.0.1 port=1\"");
    store_in_s3(&installed);
    let right = fs::read_to_string(&installed.config).unwrap();
    fs::write(&installed.config, right.replace("s3://test/", "s3://no-such-bucket/")).unwrap();
    refused(&installed, &["window", "main"], &[&installed.state], "E0401", 5).says("no-such-bucket");
    fs::write(&installed.config, &right).unwrap();
    fs::write(installed.dir.join("secret"), "a-wrong-and-secret-key").unwrap();
    let refusal = refused(&installed, &["window", "main"], &[&installed.state], "E0401", 5);
    assert!(!refusal.text.contains("a-wrong-and-secret-key") && !refusal.json.to_string().contains("a-wrong"));
    refusal.says("credentials from key files");
}

#[test]
fn a_repository_of_a_later_format() {
    let dir = test_dir();
    let installed = Pgvault::new(dir.path());
    installed.config("[cluster.main]\nconninfo = \"host=127.0.0.1 port=1\"");
    installed.ok(["repo", "init"]);
    let marker = installed.repository.join("pgvault-repository.json");
    let text = fs::read_to_string(&marker).unwrap();
    let (document, _) = text.split_once("\n").unwrap();
    let newer = document.replacen("\"format\":1", "\"format\":2", 1) + "\n";
    assert_ne!(newer, document.to_owned() + "\n", "{text}");
    let seal = hex::encode(Sha256::digest(newer.as_bytes()));
    fs::remove_file(&marker).unwrap();
    fs::write(&marker, format!("{newer}{{\"sha256\":\"{seal}\"}}\n")).unwrap();
    refused(&installed, &["window", "main"], &[&installed.repository], "E0404", 5).says("2");
}
