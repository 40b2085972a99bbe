//! What libpq takes from the environment: variables, the home directory, the user's name.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::{ConninfoError, Words, keyword};

/// The environment as an argument: nothing below reads the process's own.
#[derive(Clone, Default)]
pub struct Environment {
    pub(super) variables: BTreeMap<String, String>,
    /// The home directory: `~/.pgpass`, `~/.pg_service.conf`, `~/.postgresql/`.
    pub home: Option<PathBuf>,
    /// Name of the operating system's user: the default role.
    pub user: Option<String>,
    /// Where sockets are looked for when no host is given.
    pub socket_directory: Option<PathBuf>,
}

impl Environment {
    /// An environment with these variables and nothing else.
    pub fn from_variables<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, ..Self::default() }
    }

    /// The environment of this process. Values that are not UTF-8 are left out.
    pub fn from_process() -> Self {
        let variables: BTreeMap<String, String> = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let (user, home) = passwd_entry(rustix::process::geteuid().as_raw());
        // Debian's directory, then the one that is compiled into a plain PostgreSQL.
        let candidates = [Path::new("/var/run/postgresql"), Path::new("/tmp")];
        Self {
            home: variables.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).or(home),
            user: user.or_else(|| variables.get("USER").cloned()),
            socket_directory: candidates.iter().find(|directory| directory.is_dir()).map(|&directory| directory.into()),
            variables,
        }
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// What the variables say in libpq's words: keyword, variable, value; a password is `***`.
    pub fn shown(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut shown = Vec::new();
        for known in keyword::KEYWORDS {
            if let Some((variable, value)) = known.variable.and_then(|name| Some((name, self.variable(name)?))) {
                let value = if known.name == "password" { "***" } else { value };
                shown.push((known.name, variable, value.to_owned()));
            }
        }
        shown
    }

    /// Fills keywords that are still open from their variables.
    pub(super) fn fill(&self, words: &mut Words) -> Result<(), ConninfoError> {
        for known in keyword::KEYWORDS {
            if let Some((variable, value)) = known.variable.and_then(|name| Some((name, self.variable(name)?))) {
                keyword::take_if_open(words, known, value.to_owned(), variable);
            }
        }
        Ok(())
    }
}

/// Name and home directory of a user in /etc/passwd.
fn passwd_entry(uid: u32) -> (Option<String>, Option<PathBuf>) {
    let Ok(passwd) = fs::read_to_string("/etc/passwd") else { return (None, None) };
    let uid = uid.to_string();
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&uid.as_str()));
    match entry {
        Some(fields) => (
            fields.first().map(|name| (*name).to_owned()),
            fields.get(5).filter(|home| !home.is_empty()).map(PathBuf::from),
        ),
        None => (None, None),
    }
}
