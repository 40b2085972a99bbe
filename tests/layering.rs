//! Do dependencies point one way: `wal <- recovery <- retention <- src`, and inside `src` as docs/DESIGN.md says?

use std::fs;
use std::path::{Path, PathBuf};

/// Module of `src`, and the modules of `src` it must never name.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "storage",
        &["repository", "primary", "receiver", "spool", "archiver", "backup", "restore", "config", "daemon", "cli"],
    ),
    (
        "codec",
        &["repository", "primary", "receiver", "spool", "archiver", "backup", "restore", "config", "daemon", "cli"],
    ),
    (
        "durable",
        &["repository", "primary", "receiver", "spool", "archiver", "backup", "restore", "config", "daemon", "cli"],
    ),
    ("clock", &["repository", "primary", "storage", "config", "daemon", "cli"]),
    ("error", &["repository", "primary", "storage", "config", "daemon", "cli"]),
    ("repository", &["primary", "receiver", "spool", "archiver", "backup", "restore", "config", "daemon", "cli"]),
    ("primary", &["repository", "receiver", "spool", "archiver", "backup", "restore", "config", "daemon", "cli"]),
    ("patroni", &["repository", "receiver", "spool", "archiver", "backup", "restore", "config", "daemon", "cli"]),
    ("receiver", &["config", "daemon", "cli", "backup", "restore"]),
    ("spool", &["config", "daemon", "cli", "backup", "restore", "primary"]),
    ("archiver", &["config", "daemon", "cli", "backup", "restore", "primary"]),
    ("backup", &["config", "daemon", "cli", "restore"]),
    ("restore", &["config", "daemon", "cli", "backup", "primary", "standby"]),
    ("standby", &["config", "daemon", "cli", "backup"]),
    ("wal_fetch", &["config", "daemon", "cli", "backup", "primary"]),
    ("backup_verify", &["config", "daemon", "cli", "backup", "restore", "primary"]),
    ("backup_delete", &["config", "daemon", "cli", "restore", "primary"]),
    ("repo_check", &["config", "daemon", "cli", "backup", "restore", "primary"]),
    ("wal_verify", &["config", "daemon", "cli", "backup", "primary"]),
    ("config", &["daemon", "cli", "receiver", "archiver", "backup", "restore"]),
    ("daemon", &["cli"]),
];

/// What a pure crate may depend on.
const PURE: &[(&str, &[&str])] = &[
    ("wal", &["serde", "thiserror", "chrono", "crc32c"]),
    ("recovery", &["serde", "serde_json", "thiserror", "chrono", "chrono-tz", "hex", "sha2", "wal"]),
    ("retention", &["serde", "thiserror", "chrono", "wal", "recovery"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Code without comments, so that a doc link to another layer is no dependency.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_of_src_use_only_the_layers_below_them() {
    let mut violations = Vec::new();
    for (module, forbidden) in FORBIDDEN {
        let folder = root().join("src").join(module);
        let single = root().join("src").join(format!("{module}.rs"));
        let mut files = if folder.is_dir() { rust_files(&folder) } else { Vec::new() };
        files.extend(single.exists().then_some(single));
        assert!(!files.is_empty(), "no module {module}: mend this table");
        for file in files {
            let code = code_of(&file);
            for other in *forbidden {
                if code.contains(&format!("crate::{other}::")) || code.contains(&format!("crate::{other};")) {
                    violations.push(format!("{} uses crate::{other}", file.strip_prefix(root()).unwrap().display()));
                }
            }
        }
    }
    assert!(violations.is_empty(), "layers are crossed:\n{}", violations.join("\n"));
}

#[test]
fn pure_crates_depend_on_nothing_that_does_io() {
    for (name, allowed) in PURE {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines().filter(|line| !line.trim().is_empty()) {
            let dependency = line.split(['.', ' ', '=']).next().unwrap();
            assert!(allowed.contains(&dependency), "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn pure_crates_name_no_io_clock_or_output() {
    let banned = [
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
        "std::process",
        "SystemTime",
        "Instant::",
        "Utc::now",
        "println!",
        "tracing",
    ];
    for (name, _) in PURE {
        for file in rust_files(&root().join(name).join("src")) {
            let code = code_of(&file);
            let code = code.split("#[cfg(test)]").next().unwrap();
            for word in banned {
                assert!(!code.contains(word), "{} names {word}", file.display());
            }
        }
    }
}

#[test]
fn only_the_command_line_prints() {
    for file in rust_files(&root().join("src")) {
        if file.starts_with(root().join("src/cli")) {
            continue;
        }
        let code = code_of(&file);
        for word in ["println!(", "eprintln!("] {
            assert!(!code.contains(word), "{} prints", file.display());
        }
    }
}
