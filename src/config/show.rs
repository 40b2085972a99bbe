//! The configuration as people see it: every value with its source, and a file to start from.

use std::fmt::Write as _;

use super::keys::{self, Place, Section};
use super::settings::{Origin, Raw};
use super::{Config, environment};
use crate::primary::Environment;

/// One value, secrets hidden.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Shown {
    /// The table it stands in.
    pub section: String,
    /// Its key.
    pub key: &'static str,
    /// As it would be written in a file.
    pub value: String,
    /// `default`, `environment PGVAULT_SLOT`, `/etc/pgvault/pgvault.toml:7`.
    pub source: String,
}

/// Every value of every section.
pub fn show(config: &Config) -> Vec<Shown> {
    let mut sections = vec![Section::Daemon, Section::Repository];
    for cluster in &config.clusters {
        sections.push(Section::Cluster(cluster.name.clone()));
        sections.push(Section::Retention(cluster.name.clone()));
    }
    sections.extend([Section::Spool, Section::Http, Section::Log]);
    let mut shown = Vec::new();
    for section in sections {
        for key in keys::of(section.place()) {
            let setting = config.settings.get(&section, key.name);
            let (value, source) = match setting {
                Some(setting) => (shown_value(key.name, &setting.raw), setting.origin.to_string()),
                None => implied(config, &section, key),
            };
            shown.push(Shown { section: section.to_string(), key: key.name, value, source });
        }
    }
    shown
}

/// What holds when nothing sets the key.
fn implied(config: &Config, section: &Section, key: &keys::Key) -> (String, String) {
    let text = |text: String| Raw::Text(text).to_string();
    let default = Origin::Default.to_string();
    match (section.place(), key.name) {
        (Place::Daemon, "state_dir") => (
            text(config.state_dir.display().to_string()),
            environment::default_state_dir(&config.variables).1.to_owned(),
        ),
        (Place::Repository, "url") => (text(config.repository.storage.url.clone()), default),
        (Place::Spool, "dir") => (text(config.spool.dir.display().to_string()), default),
        (Place::Cluster, "conninfo") => {
            let said = Environment::from_variables(config.variables.iter()).shown();
            let words: Vec<String> = said.iter().map(|(name, _, value)| format!("{name}={}", quoted(value))).collect();
            let variables: Vec<&str> = said.iter().map(|(_, variable, _)| *variable).collect();
            (text(words.join(" ")), format!("environment {}", variables.join(" ")))
        }
        _ => {
            let value = match key.form {
                keys::Form::Bool | keys::Form::Integer if !key.default.is_empty() => key.default.to_owned(),
                keys::Form::List => "[]".to_owned(),
                _ => text(key.default.to_owned()),
            };
            (value, default)
        }
    }
}

/// A value in libpq's words.
fn quoted(value: &str) -> String {
    if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\') {
        format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
    } else {
        value.to_owned()
    }
}

fn shown_value(name: &str, raw: &Raw) -> String {
    match raw {
        Raw::Text(text) if super::settings::may_hold_secret(name) => Raw::Text(without_password(text)).to_string(),
        Raw::Text(text) if name == "url" || name == "endpoint" => Raw::Text(without_userinfo(text)).to_string(),
        other => other.to_string(),
    }
}

/// A conninfo with its secrets as `***`; when it cannot be told where a secret ends, all of it is hidden.
fn without_password(conninfo: &str) -> String {
    if conninfo.contains("://") {
        // In a URI a secret can stand in the userinfo and in the parameters.
        return if conninfo.contains("password") { "***".to_owned() } else { without_userinfo(conninfo) };
    }
    if !conninfo.to_ascii_lowercase().contains("password") {
        return conninfo.to_owned();
    }
    let simple = !conninfo.contains(['\'', '\\']) && !conninfo.contains(" =") && !conninfo.contains("= ");
    if !simple {
        return "***".to_owned();
    }
    let words = conninfo.split_whitespace().map(|word| match word.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((userinfo, host)) => {
            let user = userinfo.split(':').next().unwrap_or_default();
            let hidden = if userinfo.contains(':') { ":***" } else { "" };
            format!("{scheme}://{user}{hidden}@{host}{path}")
        }
        // An unescaped `/` in a password would end the authority too early: then nothing is certain.
        None if path.contains('@') => format!("{scheme}://***"),
        None => url.to_owned(),
    }
}

/// A file to start from: every key with its default, commented out.
pub fn template() -> String {
    let mut text = String::from(
        "# pgvault: every key with its default. Uncomment what differs.\n# pgvault config check -c FILE checks it, pgvault config show prints what holds.\n",
    );
    let sections = [
        (Place::Daemon, "daemon"),
        (Place::Repository, "repository"),
        (Place::Cluster, "cluster.main"),
        (Place::Retention, "cluster.main.retention"),
        (Place::Spool, "spool"),
        (Place::Http, "http"),
        (Place::Log, "log"),
    ];
    for (place, name) in sections {
        writeln!(text, "\n[{name}]").expect("a String takes everything");
        for key in keys::of(place) {
            let value = match key.form {
                keys::Form::Bool if key.default.is_empty() => "false".to_owned(),
                keys::Form::Bool | keys::Form::Integer => key.default.to_owned(),
                keys::Form::List => "[]".to_owned(),
                keys::Form::Text => Raw::Text(key.default.to_owned()).to_string(),
            };
            let line = format!("# {} = {value}", key.name);
            let note = match (key.about, key.unbuilt) {
                ("", None) => String::new(),
                ("", Some(_)) => "  # no effect in this version".to_owned(),
                (about, None) => format!("  # {about}"),
                (about, Some(_)) => format!("  # {about} (no effect in this version)"),
            };
            writeln!(text, "{line:<44}{note}").expect("a String takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        let cases = [
            ("host=db user=pgvault", "host=db user=pgvault"),
            ("host=db password=secret user=x", "host=db password=*** user=x"),
            ("host=db PASSWORD=secret", "host=db PASSWORD=***"),
            ("host=db sslpassword=secret", "host=db sslpassword=***"),
            ("password='a secret' host=db", "***"),
            ("password = secret host=db", "***"),
            ("postgresql://u:secret@db/x", "postgresql://u:***@db/x"),
            ("postgresql://u:se/cret@db/x", "postgresql://***"),
            ("postgresql://db/x?password=secret", "***"),
            ("postgresql://u@db/x", "postgresql://u@db/x"),
        ];
        for (conninfo, shown) in cases {
            assert_eq!(without_password(conninfo), shown);
        }
    }
}
