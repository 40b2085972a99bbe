use std::time::Duration;

use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use crate::config::{show, template};

struct Setup {
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self, variables: &[(&str, &str)]) -> Result<Config> {
        let variables: Variables = variables.iter().copied().collect();
        load_from(&Flags::default(), &variables, &self.dir.path().join("pgvault.toml"))
    }

    fn error(&self, text: &str) -> String {
        self.file("pgvault.toml", text);
        let path = self.dir.path().join("pgvault.toml").display().to_string();
        self.load(&[]).unwrap_err().to_string().replace(&path, "FILE")
    }
}

#[test]
fn no_file_is_needed() {
    let config = Setup::new().load(&[("PGHOST", "db"), ("PGVAULT_REPOSITORY", "s3://backups/pg")]).unwrap();
    assert_eq!(config.clusters.len(), 1);
    assert_eq!(config.clusters[0].name, "main");
    assert_eq!(config.clusters[0].slot.as_deref(), Some("pgvault"));
    assert_eq!(config.clusters[0].max_rpo, Duration::from_secs(5));
    assert_eq!(config.repository.storage.url, "s3://backups/pg");
    assert_eq!(config.state_dir, Path::new("/var/lib/pgvault"));
}

#[test]
fn without_anything_there_is_no_cluster_and_the_repository_lies_under_the_state_directory() {
    let config = Setup::new().load(&[("XDG_STATE_HOME", "/home/me/.state")]).unwrap();
    assert!(config.clusters.is_empty());
    assert_eq!(config.state_dir, Path::new("/home/me/.state/pgvault"));
    assert_eq!(config.repository.storage.url, "file:///home/me/.state/pgvault/repository");
    assert_eq!(config.spool.dir, Path::new("/home/me/.state/pgvault/spool"));
}

#[test]
fn variables_win_over_files_and_drop_ins_are_read_in_order() {
    let setup = Setup::new();
    setup.file("pgvault.toml", "[cluster.main]\nslot = \"a\"\nmax_rpo = \"9s\"\n");
    setup.file("conf.d/20-b.toml", "[cluster.other]\nslot = \"c\"\n[cluster.main]\nmax_rpo = \"8s\"\n");
    setup.file("conf.d/10-a.toml", "[cluster.main]\nmax_rpo = \"7s\"\n");
    setup.file("conf.d/readme.txt", "not TOML");
    let config = setup.load(&[("PGVAULT_CLUSTER__MAIN__SLOT", "b")]).unwrap();
    let main = config.cluster("main").unwrap();
    assert_eq!(main.slot.as_deref(), Some("b"));
    assert_eq!(main.max_rpo, Duration::from_secs(8));
    assert_eq!(config.cluster("other").unwrap().slot.as_deref(), Some("c"));
    assert_eq!(config.files.len(), 3);
}

#[test]
fn a_file_that_was_named_must_exist() {
    let variables: Variables = [("PGVAULT_CONFIG", "/nowhere/pgvault.toml")].into_iter().collect();
    let error = load(&Flags::default(), &variables).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidConfig);
    assert!(error.to_string().contains("/nowhere/pgvault.toml"));
}

#[test]
fn every_wrong_value_says_where_it_stands_and_what_would_do() {
    let setup = Setup::new();
    let cases = [
        (
            "[cluster.main]\nmax_rpo = \"5 parsecs\"\n",
            "`max_rpo` = \"5 parsecs\" in [cluster.main] is not a duration: \"parsecs\" is not a unit",
            "FILE:2:11",
        ),
        ("[cluster.main]\nmax_rpo = \"10ms\"\n", "is shorter than 100ms", "FILE:2:11"),
        ("[cluster.main]\nschedule = \"daily\"\n", "is not a schedule", "FILE:2:12"),
        ("[cluster.main]\ntime_zone = \"Paris\"\n", "is not a time zone", "FILE:2:13"),
        ("[cluster.main]\nslot = \"my-slot\"\n", "is not a name for a slot", "FILE:2:8"),
        ("[cluster.main]\nbackup_from = \"moon\"\n", "is none of primary, standby and prefer-standby", "FILE:2:15"),
        ("[cluster.main]\nmax_rate = \"fast\"\n", "is not a rate", "FILE:2:12"),
        ("[cluster.main]\napplication_name = \"caf\u{e9}\"\n", "printable ASCII", "FILE:2:20"),
        ("[cluster.main.retention]\nredundancy = -1\n", "is not a whole number of at least 0", "FILE:2:14"),
        ("[cluster.main.retention]\nrecovery_window = \"soon\"\n", "is not a duration", "FILE:2:19"),
        ("[repository]\nurl = \"/srv\"\n", "has no scheme: write file:///srv", "FILE:2:7"),
        ("[repository]\nurl = \"file://srv\"\n", "is not absolute", "FILE:2:7"),
        ("[repository]\nurl = \"s3://\"\n", "names no bucket", "FILE:2:7"),
        ("[repository]\nurl = \"ftp://x\"\n", "is neither s3://bucket/prefix nor file:///path", "FILE:2:7"),
        ("[repository]\ncompression = \"gzip\"\n", "is neither \"none\" nor \"zstd:LEVEL\"", "FILE:2:15"),
        ("[repository]\nconnections = 0\n", "is not a number from 1 to 256", "FILE:2:15"),
        ("[repository]\nencryption = [\"age1abc\"]\n", "names no recipient age1", "FILE:2:14"),
        ("[spool]\nmax_size = \"1MB\"\n", "is too small", "FILE:2:12"),
        ("[spool]\non_full = \"drop\"\n", "this version knows \"stall\"", "FILE:2:11"),
        ("[http]\nlisten = \"nowhere\"\n", "is not an address", "FILE:2:10"),
        ("[http]\nactions = true\n", "needs a token", "FILE:2:11"),
        ("[log]\nformat = \"xml\"\n", "is none of auto, text and json", "FILE:2:10"),
        ("[log]\nlevel = \"loud\"\n", "is none of error, warn", "FILE:2:9"),
        ("[log]\nrotate_size = \"1kB\"\n", "is too small", "FILE:2:15"),
    ];
    for (text, what, place) in cases {
        let error = setup.error(text);
        assert!(error.starts_with("error[E0104]: "), "{error}");
        assert!(error.contains(what), "{text}: {error}");
        assert!(error.contains(&format!("--> {place}")) && error.contains("^"), "{text}: {error}");
    }
}

#[test]
fn an_empty_repository_is_refused_with_both_ways_out() {
    let error = Setup::new().error("[repository]\nurl = \"\"\n");
    assert!(error.starts_with("error[E0103]: no repository is configured"), "{error}");
    assert!(error.contains("[repository]") && error.contains("PGVAULT_REPOSITORY="), "{error}");
}

#[test]
fn a_wrong_variable_is_named() {
    let error = Setup::new().load(&[("PGVAULT_MAX_RPO", "soon")]).unwrap_err().to_string();
    assert!(error.contains("set by environment PGVAULT_MAX_RPO"), "{error}");
}

#[test]
fn a_wrong_conninfo_is_never_printed() {
    let setup = Setup::new();
    let error = setup.error("[cluster.main]\nconninfo = 5\nslot = \"BAD\"\n");
    assert!(!error.contains("conninfo"), "{error}");
    let error = setup.error("[cluster.main]\nconninfo = [\"password=secret\"]\n");
    assert!(!error.contains("secret\"]") || error.contains("must be a string"), "{error}");
}

#[test]
fn what_has_no_effect_is_said() {
    let setup = Setup::new();
    setup.file(
        "pgvault.toml",
        "[cluster.main]\npatroni_urls = [\"http://pg1:8008\"]\nbackup_from = \"standby\"\ndata_directory = \"\"\n[cluster.main.retention]\nredundancy = 3\nkeep_daily = 0\n",
    );
    let said = setup.load(&[]).unwrap().without_effect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said.iter().any(|line| line.contains("`backup_from` in [cluster.main] has no effect")));
    assert!(said.iter().any(|line| line.contains("this version deletes nothing")));
    assert!(Setup::new().load(&[("PGHOST", "db")]).unwrap().without_effect().is_empty());
}

#[test]
fn every_value_is_shown_with_its_source_and_no_secret() {
    let setup = Setup::new();
    setup.file("pgvault.toml", "[cluster.main]\nconninfo = \"host=db password=hunter2\"\n");
    let config = setup.load(&[("PGVAULT_SLOT", "s"), ("PGPASSWORD", "hunter3")]).unwrap();
    assert_eq!(config.clusters[0].conninfo.expose_secret(), "host=db password=hunter2");
    let rows = show(&config);
    let find = |section: &str, key: &str| rows.iter().find(|row| row.section == section && row.key == key).unwrap();
    assert_eq!(find("cluster.main", "slot").source, "environment PGVAULT_SLOT");
    assert_eq!(find("cluster.main", "conninfo").value, "\"host=db password=***\"");
    assert!(find("cluster.main", "conninfo").source.ends_with("pgvault.toml:2"));
    assert_eq!(find("http", "listen").source, "default");
    let everything = format!("{rows:?} {config:?}");
    assert!(!everything.contains("hunter"), "{everything}");
}

#[test]
fn the_template_is_a_configuration_when_uncommented() {
    let setup = Setup::new();
    let text: String = template()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .filter(|line| !line.starts_with("url ="))
        .collect();
    setup.file("pgvault.toml", &text);
    let config = setup.load(&[]).unwrap();
    assert_eq!(config.clusters.len(), 1);
    assert!(config.without_effect().iter().all(|line| line.contains("retention")), "{:?}", config.without_effect());
}
