//! Do the commands of README.md and docs/RECOVERY.md do what the pages say?

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, as_server_user, bin_dir, free_port, give_to_server_user, test_dir};
use crate::support::pgvault::Pgvault;

/// The shell blocks of a page, section by section: the text between "```sh" and "```" under each `## ` heading.
fn shell_blocks(page: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let mut blocks = Vec::new();
    let (mut section, mut block) = (String::new(), None);
    for line in text.lines() {
        match (&mut block, line) {
            (None, line) if line.starts_with("## ") => section = line[3..].to_owned(),
            (None, "```sh") => block = Some(String::new()),
            (Some(script), "```") => {
                blocks.push((section.clone(), std::mem::take(script)));
                block = None;
            }
            (Some(script), line) => *script += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    blocks
}

/// What a reader of the page has at hand.
struct Reader {
    pgvault: Pgvault,
    environment: Vec<(&'static str, String)>,
}

impl Reader {
    fn new(pgvault: Pgvault, node: &PgNode, dir: &Path) -> Self {
        let path = format!("{}:{}:/usr/bin:/bin", pgvault.dir.display(), bin_dir(node.major).display());
        let restores = dir.join("restores");
        fs::create_dir_all(&restores).unwrap();
        give_to_server_user(&restores);
        let in_restores = |name: &str| restores.join(name).to_str().unwrap().to_owned();
        let environment = vec![
            ("PATH", path),
            ("PGHOST", "127.0.0.1".to_owned()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", "postgres".to_owned()),
            ("PGCTLTIMEOUT", LIMIT.as_secs().to_string()),
            ("PGVAULT_CONFIG", pgvault.config.to_str().unwrap().to_owned()),
            ("RESTORE_DIR", in_restores("moment")),
            ("RESTORE_PORT", free_port().to_string()),
            ("LATEST_DIR", in_restores("latest")),
            ("LATEST_PORT", free_port().to_string()),
            ("STANDBY_DIR", in_restores("standby")),
            ("STANDBY_PORT", free_port().to_string()),
            ("PRIMARY_CONNINFO", node.conninfo()),
        ];
        Self { pgvault, environment }
    }

    fn has(&self, name: &str) -> &str {
        &self.environment.iter().find(|(key, _)| *key == name).unwrap().1
    }

    /// Runs a block as the page has it; panics with what it printed when it fails.
    fn runs(&self, script: &str) -> String {
        let output = as_server_user("/bin/bash")
            .args(["-euc", script])
            .env_clear()
            .envs(self.environment.iter().map(|(key, value)| (*key, value.as_str())))
            .env("LANG", "C.UTF-8")
            .current_dir(&self.pgvault.dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{script}\nstdout: {}\nstderr: {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn asks(&self, port: &str, sql: &str) -> String {
        self.runs(&format!("psql -p {port} -XAtc \"{sql}\"")).trim_end().to_owned()
    }
}

/// Stops the servers that a page's commands started, also when the test fails.
struct Stops<'a>(&'a Reader);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        for name in ["RESTORE_DIR", "LATEST_DIR", "STANDBY_DIR"] {
            let data = PathBuf::from(self.0.has(name));
            if data.join("postmaster.pid").exists() {
                self.0.runs(&format!("pg_ctl -D '{}' -m immediate -w stop", data.display()));
            }
        }
    }
}

#[test]
fn the_page_for_a_bad_night_brings_the_table_back() {
    let dir = test_dir();
    let node = PgNode::start_new(dir.path(), "primary", 15);
    let pgvault = Pgvault::new(dir.path());
    pgvault.config_for(&node, "");
    let mut reader = Reader::new(pgvault, &node, dir.path());
    let daemon = reader.pgvault.serve();
    reader.pgvault.wait_streaming();

    node.sql("CREATE TABLE important (id int PRIMARY KEY); INSERT INTO important SELECT generate_series(1, 100)");
    reader.pgvault.ok(["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    node.sql("INSERT INTO important SELECT generate_series(101, 200)");
    let before_the_drop = node.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')");
    reader.environment.push(("TARGET_TIME", format!("{before_the_drop}Z")));
    node.sql("DROP TABLE important");
    node.sql("CREATE TABLE after_the_drop (id int)");
    let end = node.sql("SELECT pg_current_wal_flush_lsn()");
    reader.pgvault.wait("the drop is in the repository", LIMIT, || {
        let shipped = reader.pgvault.json(&["status", "main"]).1["clusters"][0]["wal"]["shipped_lsn"].clone();
        let lsn = |text: &str| text.parse::<wal::Lsn>().unwrap();
        shipped.as_str().is_some_and(|shipped| lsn(shipped) >= lsn(&end))
    });

    let stops = Stops(&reader);
    for (section, script) in shell_blocks("docs/RECOVERY.md") {
        if section.starts_with("2.") && script.contains("pg_wal_replay_resume") {
            let port = reader.has("RESTORE_PORT");
            assert_eq!(reader.asks(port, "SET statement_timeout = '120s'; SELECT count(*) FROM important"), "SET\n200");
        }
        reader.runs(&script);
    }
    let latest = reader.has("LATEST_PORT");
    reader
        .runs(&format!("until [ \"$(psql -p {latest} -Atc 'SELECT pg_is_in_recovery()')\" = f ]; do sleep 0.2; done"));
    assert_eq!(
        reader.asks(latest, "SELECT to_regclass('important') IS NULL, to_regclass('after_the_drop') IS NOT NULL"),
        "t|t"
    );
    drop(stops);
    daemon.stop();
}

#[test]
fn every_command_of_the_readme_exists() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    let mut commands = 0;
    for (_, script) in shell_blocks("README.md") {
        for line in script.lines() {
            let words: Vec<&str> = line
                .split_whitespace()
                .skip_while(|word| *word != "pgvault")
                .skip(1)
                .take_while(|word| word.starts_with(char::is_alphabetic))
                .collect();
            if words.is_empty() {
                continue;
            }
            let help: Vec<&str> = words.iter().copied().filter(|word| *word != "main").chain(["--help"]).collect();
            pgvault.ok(&help);
            commands += 1;
        }
    }
    assert!(commands >= 3, "the README shows {commands} commands");
}

/// Every Rust source of the tests, as one text.
fn all_tests() -> String {
    fn gather(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    for folder in ["tests", "src", "wal", "recovery/src", "recovery/tests", "retention"] {
        gather(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut text);
    }
    text
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let design = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/DESIGN.md")).unwrap();
    let tests = all_tests();
    let numbered =
        |line: &&str| line.strip_prefix("| ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let rows: Vec<&str> = design.lines().filter(numbered).collect();
    assert!(rows.len() >= 20, "{} invariants", rows.len());
    for row in rows {
        let named: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test holds: {row}");
        for name in named {
            assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}: {row}");
        }
    }
}
