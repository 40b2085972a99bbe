//! Where the configuration is looked for, and what wins.

use std::fs;
use std::path::{Path, PathBuf};

use super::environment::{self, Variables};
use super::keys;
use super::settings::{Origin, Raw, Settings};
use super::typed::typed;
use super::{Config, file};
use crate::error::{Error, ErrorCode, Result};

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `-c`: the file, in place of those that are looked for.
    pub config: Option<PathBuf>,
    /// Keys set by flags: key as in `repository.url`, value, name of the flag.
    pub overrides: Vec<(String, String, &'static str)>,
}

/// Where files are looked for when nothing names one.
const SYSTEM_FILE: &str = "/etc/pgvault/pgvault.toml";

/// Reads files and variables: flag > `PGVAULT_*` > file > libpq's variables > default.
pub fn load(flags: &Flags, variables: &Variables) -> Result<Config> {
    load_from(flags, variables, Path::new(SYSTEM_FILE))
}

/// The files that [`load`] reads, in order.
pub fn files(flags: &Flags, variables: &Variables) -> Result<Vec<PathBuf>> {
    files_from(flags, variables, Path::new(SYSTEM_FILE))
}

fn load_from(flags: &Flags, variables: &Variables, system_file: &Path) -> Result<Config> {
    let files = files_from(flags, variables, system_file)?;
    let mut settings = Settings::default();
    for path in &files {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        file::read(path, &text, &mut settings)?;
    }
    environment::read(variables, &mut settings)?;
    for (name, value, flag) in &flags.overrides {
        let Some((section, key)) = keys::by_path(name) else {
            let error = Error::new(ErrorCode::UnknownKey, format!("unknown key `{name}` in {flag}"));
            return Err(error.help("name it as `pgvault config show` does, as in repository.url or cluster.main.slot"));
        };
        settings.set(section, key, Raw::Text(value.clone()), Origin::Flag(flag));
    }
    if settings.clusters().is_empty() && variables.names_a_server() {
        settings.name_cluster("main");
    }
    typed(files, settings, variables)
}

/// The files to read, in order. One that was named must exist; those of the system may be absent.
fn files_from(flags: &Flags, variables: &Variables, system_file: &Path) -> Result<Vec<PathBuf>> {
    let named = flags.config.clone().or_else(|| variables.get("PGVAULT_CONFIG").map(PathBuf::from));
    if let Some(path) = named {
        return std::path::absolute(&path).map(|path| vec![path]).map_err(|error| unreadable(&path, &error));
    }
    let mut files = Vec::new();
    if exists(system_file)? {
        files.push(system_file.to_owned());
    }
    let drop_ins = system_file.with_file_name("conf.d");
    if exists(&drop_ins)? {
        let entries = fs::read_dir(&drop_ins).map_err(|error| unreadable(&drop_ins, &error))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(&drop_ins, &error))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                found.push(path);
            }
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::InvalidConfig, format!("cannot read the configuration {}", path.display()))
        .because(error)
        .help(format!("ls -l {}; or name another file with -c", path.display()))
}

#[cfg(test)]
mod tests;
