//! What the environment sets: `PGVAULT_*`, secrets in files, and the variables that libpq knows.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::keys::{self, Form, KEYS, Key, Place, Section};
use super::settings::{Origin, Raw, Settings};
use super::values;
use crate::error::{Error, ErrorCode, Result};

/// Variables of a process, taken once. `Debug` shows their names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Variables that mean something to pgvault and are not keys.
const OTHERS: [&str; 8] = [
    "PGVAULT_CONFIG",
    "PGVAULT_CLUSTER_NAME",
    "PGVAULT_HTTP_TOKEN",
    "PGVAULT_IDENTITY",
    "PGVAULT_DEMO_BIN",
    "PGVAULT_FAULT_POINT",
    "PGVAULT_REQUEST_ID",
    "PGVAULT_NO_COLOR",
];

/// Secrets of others that may be given as `X_FILE`.
const SECRETS: [&str; 4] = ["PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

impl Variables {
    /// Those of this process. Names or values that are not UTF-8 are none of ours and are left out, except that a
    /// `PGVAULT_` one would be missed silently: its value is kept with replacement characters and fails when it is read.
    pub fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
                .collect(),
        )
    }

    /// The value of a variable; empty is the same as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A secret: `X`, or the content of the file that `X_FILE` names. Both together are refused.
    pub fn secret(&self, name: &str) -> Result<Option<String>> {
        let file_variable = format!("{name}_FILE");
        match (self.get(name), self.get(&file_variable)) {
            (Some(_), Some(_)) => {
                Err(Error::new(ErrorCode::AmbiguousSecret, format!("both {name} and {file_variable} are set"))
                    .help(format!("unset one of them: unset {name}")))
            }
            (Some(value), None) => Ok(Some(value.to_owned())),
            (None, Some(path)) => read_secret(&file_variable, Path::new(path)).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Puts the content of `X_FILE` in the place of `X` for the secrets that other programs' conventions know.
    pub fn with_secrets_resolved(&self) -> Result<Self> {
        let mut resolved = self.clone();
        for name in SECRETS {
            if let Some(value) = self.secret(name)? {
                resolved.0.insert(name.to_owned(), value);
            }
        }
        Ok(resolved)
    }

    /// Whether the environment alone names a PostgreSQL server.
    pub fn names_a_server(&self) -> bool {
        ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGVAULT_CONNINFO", "PGVAULT_CLUSTER_NAME"]
            .iter()
            .any(|name| self.get(name).is_some())
    }
}

/// The content of a file that holds a secret, without the line end that editors add.
pub fn read_secret(named_by: &str, path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|error| {
        Error::new(
            ErrorCode::InvalidConfig,
            format!("cannot read the secret that {named_by} names: {}", path.display()),
        )
        .because(error)
        .help(format!("ls -l {}", path.display()))
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Sets what `PGVAULT_*` variables say. To be called after the files were read, so that names of clusters are known.
pub fn read(variables: &Variables, settings: &mut Settings) -> Result<()> {
    if let Some(name) = variables.get("PGVAULT_CLUSTER_NAME") {
        let name = values::cluster_name(name)
            .map_err(|what| Error::new(ErrorCode::InvalidConfig, format!("PGVAULT_CLUSTER_NAME=\"{name}\" {what}")))?;
        settings.name_cluster(&name);
    }
    for (name, value) in variables.iter().filter(|(name, _)| name.starts_with("PGVAULT_")) {
        if is_no_setting(name) {
            continue;
        }
        let (section, key) = locate(variables, settings, name)?;
        settings.set(section, key, raw(key, value), Origin::Variable(name.to_owned()));
    }
    Ok(())
}

/// Variables that begin with `PGVAULT_` and set no key: our own others, those of tests, and those that Kubernetes
/// injects for a Service that is named pgvault.
fn is_no_setting(name: &str) -> bool {
    let rest = name.trim_start_matches("PGVAULT_");
    let of_kubernetes =
        rest == "SERVICE_HOST" || rest.starts_with("SERVICE_PORT") || rest == "PORT" || rest.starts_with("PORT_");
    of_kubernetes || rest.starts_with("TEST_") || OTHERS.contains(&name)
}

/// Which key a variable sets.
fn locate(variables: &Variables, settings: &Settings, name: &str) -> Result<(Section, &'static Key)> {
    let rest = name.trim_start_matches("PGVAULT_");
    if let Some(key) = KEYS.iter().find(|key| key.variable == Some(rest)) {
        return Ok((short_section(variables, settings, name, key)?, key));
    }
    long_form(settings, rest).ok_or_else(|| unknown(settings, name))
}

/// The section of a short variable; for a key of a cluster, the one cluster that there is.
fn short_section(variables: &Variables, settings: &Settings, name: &str, key: &Key) -> Result<Section> {
    let cluster = || match (variables.get("PGVAULT_CLUSTER_NAME"), settings.clusters()) {
        (Some(named), _) => Ok(named.to_owned()),
        (None, []) => Ok("main".to_owned()),
        (None, [only]) => Ok(only.clone()),
        (None, [first, ..]) => {
            let long =
                format!("PGVAULT_CLUSTER__{}__{}", first.to_uppercase().replace('-', "_"), key.name.to_uppercase());
            Err(Error::new(ErrorCode::InvalidConfig, format!("{name} does not say which cluster it is for"))
                .because(format!("configured: {}", settings.clusters().join(", ")))
                .help(format!("name the cluster in the variable, as in {long}")))
        }
    };
    Ok(match key.place {
        Place::Daemon => Section::Daemon,
        Place::Repository => Section::Repository,
        Place::Cluster => Section::Cluster(cluster()?),
        Place::Retention => Section::Retention(cluster()?),
        Place::Spool => Section::Spool,
        Place::Http => Section::Http,
        Place::Log => Section::Log,
    })
}

/// `CLUSTER__MAIN__SCHEDULE`, `CLUSTER__MAIN__RETENTION__REDUNDANCY`, `REPOSITORY__URL`.
fn long_form(settings: &Settings, rest: &str) -> Option<(Section, &'static Key)> {
    let lower = rest.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split("__").collect();
    let path: Vec<String> = match parts.as_slice() {
        ["cluster", name, rest @ ..] => {
            let name = spelled(settings, name);
            ["cluster".to_owned(), name].into_iter().chain(rest.iter().map(|part| (*part).to_owned())).collect()
        }
        other => other.iter().map(|part| (*part).to_owned()).collect(),
    };
    keys::by_path(&path.join("."))
}

/// The cluster as the files spell it: variables cannot have a `-`.
fn spelled(settings: &Settings, name: &str) -> String {
    settings.clusters().iter().find(|known| known.replace('-', "_") == name).cloned().unwrap_or_else(|| name.to_owned())
}

fn unknown(settings: &Settings, name: &str) -> Error {
    let clusters = match settings.clusters() {
        [] => vec!["main".to_owned()],
        some => some.to_vec(),
    };
    let mut known: Vec<String> = OTHERS.iter().map(|&other| other.to_owned()).collect();
    for key in KEYS {
        known.extend(key.variable.map(|short| format!("PGVAULT_{short}")));
        let upper = key.name.to_uppercase();
        match key.place {
            Place::Cluster => {
                known.extend(clusters.iter().map(|c| format!("PGVAULT_CLUSTER__{}__{upper}", c.to_uppercase())))
            }
            Place::Retention => {
                known.extend(
                    clusters.iter().map(|c| format!("PGVAULT_CLUSTER__{}__RETENTION__{upper}", c.to_uppercase())),
                );
            }
            Place::Daemon => known.push(format!("PGVAULT_DAEMON__{upper}")),
            Place::Repository => known.push(format!("PGVAULT_REPOSITORY__{upper}")),
            Place::Spool => known.push(format!("PGVAULT_SPOOL__{upper}")),
            Place::Http => known.push(format!("PGVAULT_HTTP__{upper}")),
            Place::Log => known.push(format!("PGVAULT_LOG__{upper}")),
        }
    }
    let error = Error::new(ErrorCode::UnknownKey, format!("unknown variable {name}"));
    match keys::nearest(name, known.iter().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None => error.help("variables are listed by: pgvault config show; unset what is not pgvault's"),
    }
}

/// A variable's text in the form of its key; what does not fit stays text and is refused when it is read.
fn raw(key: &Key, value: &str) -> Raw {
    match key.form {
        Form::Integer => value.trim().parse().map_or_else(|_| Raw::Text(value.to_owned()), Raw::Integer),
        Form::Text | Form::Bool | Form::List => Raw::Text(value.to_owned()),
    }
}

/// Where state lives when no key says: systemd's directory, the user's, or the system's.
pub fn default_state_dir(variables: &Variables) -> (PathBuf, &'static str) {
    if let Some(directories) = variables.get("STATE_DIRECTORY") {
        let first = directories.split(':').next().unwrap_or(directories);
        return (PathBuf::from(first), "environment STATE_DIRECTORY");
    }
    match variables.get("XDG_STATE_HOME") {
        Some(home) => (Path::new(home).join("pgvault"), "environment XDG_STATE_HOME"),
        None => (PathBuf::from("/var/lib/pgvault"), "default"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let mut settings = Settings::default();
        read(&variables.iter().copied().collect(), &mut settings).map(|()| settings)
    }

    #[test]
    fn short_and_long_names_set_the_same_key() {
        let main = Section::Cluster("main".to_owned());
        for variable in ["PGVAULT_SCHEDULE", "PGVAULT_CLUSTER__MAIN__SCHEDULE"] {
            let settings = settings(&[(variable, "0 1 * * *")]).unwrap();
            assert_eq!(settings.text(&main, "schedule").unwrap().as_deref(), Some("0 1 * * *"), "{variable}");
            assert_eq!(settings.get(&main, "schedule").unwrap().origin.to_string(), format!("environment {variable}"));
        }
        let settings = settings(&[("PGVAULT_CLUSTER__MAIN__RETENTION__REDUNDANCY", "3")]).unwrap();
        assert_eq!(settings.number(&Section::Retention("main".to_owned()), "redundancy").unwrap(), 3);
    }

    #[test]
    fn an_empty_schedule_from_a_variable_means_none() {
        let settings = settings(&[("PGVAULT_SCHEDULE", ""), ("PGVAULT_SLOT", "")]).unwrap();
        assert_eq!(settings.text(&Section::Cluster("main".to_owned()), "schedule").unwrap(), None);
        assert_eq!(settings.text(&Section::Cluster("main".to_owned()), "slot").unwrap(), None);
    }

    #[test]
    fn an_unknown_variable_is_refused_with_a_suggestion() {
        let error = settings(&[("PGVAULT_SHEDULE", "x")]).unwrap_err().to_string();
        assert_eq!(error, "error[E0101]: unknown variable PGVAULT_SHEDULE\nhelp: did you mean PGVAULT_SCHEDULE?");
        let error = settings(&[("PGVAULT_CLUSTER__MAIN__SHEDULE", "x")]).unwrap_err().to_string();
        assert!(error.ends_with("did you mean PGVAULT_CLUSTER__MAIN__SCHEDULE?"), "{error}");
    }

    #[test]
    fn what_kubernetes_injects_for_a_service_is_ignored() {
        let injected = [
            ("PGVAULT_SERVICE_HOST", "10.0.0.1"),
            ("PGVAULT_SERVICE_PORT", "8080"),
            ("PGVAULT_SERVICE_PORT_HTTP", "8080"),
            ("PGVAULT_PORT", "tcp://10.0.0.1:8080"),
            ("PGVAULT_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(settings(&injected).unwrap().iter().count(), 0);
    }

    #[test]
    fn a_secret_comes_from_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "s3cret\n").unwrap();
        let file = path.to_str().unwrap();
        let from_file: Variables = [("PGPASSWORD_FILE", file)].into_iter().collect();
        assert_eq!(from_file.with_secrets_resolved().unwrap().get("PGPASSWORD"), Some("s3cret"));
        let both: Variables = [("PGPASSWORD_FILE", file), ("PGPASSWORD", "other")].into_iter().collect();
        let error = both.secret("PGPASSWORD").unwrap_err();
        assert_eq!(error.code(), ErrorCode::AmbiguousSecret);
        assert!(!error.to_string().contains("other") && !error.to_string().contains("s3cret"));
        let missing: Variables = [("PGPASSWORD_FILE", "/nowhere/secret")].into_iter().collect();
        assert_eq!(missing.secret("PGPASSWORD").unwrap_err().code(), ErrorCode::InvalidConfig);
        assert!(!format!("{both:?}").contains("other"));
    }

    #[test]
    fn a_short_variable_needs_one_cluster() {
        let two = || {
            let mut settings = Settings::default();
            settings.name_cluster("a-b");
            settings.name_cluster("c");
            settings
        };
        let variables: Variables = [("PGVAULT_SLOT", "x")].into_iter().collect();
        let error = read(&variables, &mut two()).unwrap_err().to_string();
        assert!(
            error.contains("PGVAULT_SLOT does not say which cluster") && error.contains("PGVAULT_CLUSTER__A_B__SLOT"),
            "{error}"
        );
        let long: Variables = [("PGVAULT_CLUSTER__A_B__SLOT", "x")].into_iter().collect();
        let mut settings = two();
        read(&long, &mut settings).unwrap();
        assert_eq!(settings.text(&Section::Cluster("a-b".to_owned()), "slot").unwrap().as_deref(), Some("x"));
    }
}
