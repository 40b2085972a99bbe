//! Does the command line keep the contract: exit codes, stdout and stderr, JSON, secrets?

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::support::pg::test_dir;
use crate::support::pgvault::Pgvault;

const CLUSTER: &str = "[cluster.main]\nconninfo = \"host=127.0.0.1 port=1 user=x password=hunter2\"\n";

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_this_version_lacks_is_refused_with_exit_code_2() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    let lacking: &[&[&str]] = &[
        &["peek", "main", "--at", "now"],
        &["drill", "main"],
        &["retention", "plan"],
        &["expire", "apply"],
        &["jobs"],
        &["repo", "copy", "s3://x"],
        &["config", "schema"],
    ];
    for args in lacking {
        let (code, document) = pgvault.json(args);
        assert_eq!(code, 2, "{args:?}: {document}");
        assert_eq!(document["type"], "error", "{args:?}");
        assert_eq!(document["code"], "E0003", "{args:?}");
        assert!(
            document["message"].as_str().unwrap().contains("not available in this version"),
            "{args:?}: {document}"
        );
        assert!(!document["help"].as_array().unwrap().is_empty(), "{args:?}");
    }
}

#[test]
fn a_usage_error_is_told_in_both_forms() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    for args in [&["backup", "lst"][..], &["no-such-command"], &["status", "--frob"], &["recover"], &[]] {
        let output = pgvault.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).starts_with("error[E0002]: "), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("\nhelp: "), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
        let (code, document) = pgvault.json(args);
        assert_eq!((code, &document["code"]), (2, &Value::from("E0002")), "{args:?}");
    }
}

#[test]
fn a_failing_wal_fetch_ends_with_255_whatever_is_wrong() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    let segment = "000000010000000000000001";
    for args in [&["wal", "fetch"][..], &["wal", "fetch", "main", segment], &["get-wal", "--frob"], &["archive-get"]] {
        assert_eq!(pgvault.run(args).status.code(), Some(255), "usage: {args:?}");
    }
    fs::write(&pgvault.config, "[nonsense]\n").unwrap();
    for name in ["wal-fetch", "get-wal", "archive-get"] {
        let output = pgvault.run([name, "main", segment, "/nowhere/RECOVERYXLOG"]);
        assert_eq!(output.status.code(), Some(255), "configuration: {name}");
        assert!(stderr(&output).contains("E0101"), "{}", stderr(&output));
    }
}

#[test]
fn a_configuration_error_shows_its_place_and_ends_with_3() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config("[cluster.main]\nshedule = \"0 3 * * *\"\n");
    for command in ["serve", "status", "check", "window"] {
        let output = pgvault.run([command]);
        assert_eq!(output.status.code(), Some(3), "{command}");
        let text = stderr(&output);
        assert!(text.contains("error[E0101]: unknown key `shedule` in [cluster.main]"), "{text}");
        assert!(text.contains("pgvault.toml:12:1") && text.contains("^^^^^^^"), "{text}");
        assert!(text.contains("help: did you mean `schedule`?"), "{text}");
        assert!(!text.contains("stack backtrace") && !text.contains("RUST_BACKTRACE"), "{text}");
    }
    let output = pgvault.command(["config", "check"]).env("PGVAULT_SHEDULE", "x").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_wrong_recipient_is_refused_rather_than_ignored() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(CLUSTER);
    let output = pgvault.command(["serve"]).env("PGVAULT_REPOSITORY__ENCRYPTION", "age1abc").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("names no recipient"), "{}", stderr(&output));
}

#[test]
fn config_show_names_every_source_and_hides_secrets() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(CLUSTER);
    let output =
        pgvault.command(["config", "show"]).env("PGVAULT_SLOT", "mine").env("PGPASSWORD", "hunter3").output().unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!text.contains("hunter"), "{text}");
    let line = |key: &str| {
        text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {text}")).to_owned()
    };
    assert!(line("cluster.main.slot").ends_with("environment PGVAULT_SLOT"));
    assert!(line("cluster.main.conninfo").contains("password=***"));
    assert!(line("cluster.main.max_rpo").ends_with("default"));
    assert!(line("daemon.state_dir").contains("pgvault.toml:2"));
    let (code, document) = pgvault.json(&["config", "show"]);
    assert_eq!(code, 0);
    assert!(!document.to_string().contains("hunter"));
    assert!(document["settings"].as_array().unwrap().len() > 40);
}

#[test]
fn config_show_tells_what_libpq_s_variables_say() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    let variables = [("PGHOST", "db"), ("PGUSER", "it's me"), ("PGPASSWORD", "hunter2")];
    let output = pgvault.command(["config", "show"]).envs(variables).output().unwrap();
    let text = stdout(&output);
    let line = text.lines().find(|line| line.starts_with("cluster.main.conninfo")).unwrap();
    assert!(line.contains("password=*** host=db") && line.contains("user='it"), "{line}");
    assert!(line.ends_with("environment PGUSER PGPASSWORD PGHOST"), "{line}");
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn config_check_reads_the_connection_words() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    for (name, value) in [
        ("PGPORT", "junk"),
        ("PGSSLMODE", "bogus"),
        ("PGTARGETSESSIONATTRS", "bogus"),
        ("PGSERVICE", "no-such-service"),
        ("PGVAULT_CONNINFO", "host=db junk=hunter2"),
        ("PGVAULT_CONNINFO", "host=db password='hunter2"),
    ] {
        let output = pgvault.command(["config", "check"]).env("PGHOST", "db").env(name, value).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{name}={value}: {text}");
        assert!(text.contains("error[E0104]: the conninfo of cluster main cannot be used"), "{text}");
        assert!(!text.contains("hunter"), "{text}");
    }
}

#[test]
fn config_init_is_a_configuration() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    let text = pgvault.ok(["config", "init"]);
    fs::write(&pgvault.config, text).unwrap();
    assert!(pgvault.ok(["config", "check"]).contains("configuration ok"));
    let (code, document) = pgvault.json(&["config", "check"]);
    assert_eq!((code, &document["ok"]), (0, &Value::from(true)));
}

#[test]
fn an_unknown_cluster_is_not_found() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(CLUSTER);
    for args in [&["status", "mian"][..], &["window", "mian"], &["backup", "list", "--cluster", "mian"]] {
        let (code, document) = pgvault.json(args);
        assert_eq!(code, 6, "{args:?}: {document}");
        assert_eq!(document["code"], "E0004");
    }
    let nothing = Pgvault::new(&dir.path().join("nothing"));
    let (code, document) = nothing.json(&["backup", "list"]);
    assert_eq!((code, &document["code"]), (3, &Value::from("E0104")), "{document}");
    assert!(document["help"].to_string().contains("--cluster main"), "{document}");
    let output = pgvault.run(["wal", "fetch", "mian", "000000010000000000000001", "/nowhere/x"]);
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn a_time_without_a_zone_is_refused_with_both_readings() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(CLUSTER);
    for args in [
        &["window", "main", "--at", "2026-11-20 05:22:36"][..],
        &["recover", "main", "--to", "/nowhere", "--target-time", "2026-11-20 05:22:36"],
    ] {
        let (code, document) = pgvault.json(args);
        assert_eq!((code, &document["code"]), (2, &Value::from("E0306")), "{args:?}: {document}");
        let readings: Vec<&str> =
            document["help"].as_array().unwrap().iter().map(|help| help.as_str().unwrap()).collect();
        assert_eq!(readings[0], "if UTC is meant: 2026-11-20T05:22:36.000000Z", "{document}");
        assert!(readings[1].contains(" is meant: 2026-11-20T"), "{document}");
    }
}

#[test]
fn flags_that_would_have_no_effect_are_refused() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(CLUSTER);
    let standby = ["--standby", "--primary-conninfo", "host=db user=x"];
    let refused: &[&[&str]] = &[
        &["--latest", "--exclusive"],
        &["--immediate", "--exclusive"],
        &["--exclusive"],
        &["--no-config", "--recovery-option", "archive_cleanup_command=true"],
        &["--no-config", "--action", "promote"],
        &["--no-config", standby[0], standby[1], standby[2]],
        &["--action", "promote", standby[0], standby[1], standby[2]],
        &[standby[0], standby[1], "nonsense"],
        &[standby[0], standby[1], "host=db sslmode=bogus"],
    ];
    for flags in refused {
        let args: Vec<&str> = ["recover", "main", "--to", "/nowhere"].iter().chain(*flags).copied().collect();
        let (code, document) = pgvault.json(&args);
        assert_eq!((code, &document["code"]), (2, &Value::from("E0002")), "{flags:?}: {document}");
    }
}

#[test]
fn completions_man_pages_and_version_are_made() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    for shell in ["bash", "zsh", "fish"] {
        assert!(pgvault.ok(["completions", shell]).contains("pgvault"), "{shell}");
    }
    let man = pgvault.state.join("man");
    pgvault.ok(["man", man.to_str().unwrap()]);
    let pages: Vec<String> =
        fs::read_dir(&man).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(pages.iter().any(|page| page == "pgvault.1"), "{pages:?}");
    assert!(pages.iter().any(|page| page.contains("wal-fetch")), "{pages:?}");
    assert!(pgvault.ok(["version"]).starts_with("pgvault "));
    assert_eq!(pgvault.json(&["version"]).1["name"], "pgvault");
    assert!(pgvault.ok(["--help"]).contains("Exit codes"));
    let help = pgvault.ok(["recover", "--help"]);
    let place = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text}: {help}"));
    assert!(place("--to <DIR>") < place("--target-time") && place("--dry-run") < place("Options of every command"));
}

#[test]
fn health_without_a_daemon_fails_and_says_so() {
    let dir = test_dir();
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(CLUSTER);
    let output = pgvault.run(["health"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("no daemon"), "{}", stderr(&output));
}
