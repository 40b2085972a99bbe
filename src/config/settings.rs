//! Values as they were written, each with the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::keys::{self, Form, Key, Section};
use super::values;
use crate::error::{Error, ErrorCode, Result};

/// A value as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// A string, from the file or a variable.
    Text(String),
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Strings.
    List(Vec<String>),
}

impl fmt::Display for Raw {
    /// As it would stand in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{}", quoted(text)),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
                write!(f, "[{}]", items.join(", "))
            }
        }
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A line of a file and the columns that matter in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters matter.
    pub width: usize,
    /// The whole line.
    pub text: String,
}

impl Snippet {
    /// The snippet for a range of bytes of a text.
    pub fn new(path: PathBuf, text: &str, span: std::ops::Range<usize>) -> Self {
        let start = span.start.min(text.len());
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = text.get(line_start..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let column = text.get(line_start..start).unwrap_or_default().chars().count();
        let marked = text.get(start..span.end.min(line_start + line.len()).max(start)).unwrap_or_default();
        Self {
            path,
            line: before.matches('\n').count() + 1,
            column: column + 1,
            width: marked.chars().count().max(1),
            text: line.to_owned(),
        }
    }

    /// Adds it to an error: file:line:column, the line, a caret.
    pub fn explain(&self, error: Error) -> Error {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(self.column - 1);
        error
            .because(format!("--> {}:{}:{}", self.path.display(), self.line, self.column))
            .because(format!("{margin} |"))
            .because(format!("{number} | {}", self.text))
            .because(format!("{margin} | {indent}{}", "^".repeat(self.width)))
    }
}

/// Where a value came from. Later kinds in this list give way to earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(String),
    /// A file.
    File(Snippet),
    /// Nothing set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::File(snippet) => write!(f, "{}:{}", snippet.path.display(), snippet.line),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and its origin.
#[derive(Clone)]
pub struct Setting {
    /// The value.
    pub raw: Raw,
    /// Where it came from.
    pub origin: Origin,
}

/// What files and variables set. `Debug` shows which keys only: values and lines of files may hold secrets.
#[derive(Clone, Default)]
pub struct Settings {
    values: BTreeMap<(Section, &'static str), Setting>,
    /// Clusters that are named, with or without keys of their own.
    clusters: Vec<String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Settings {
    /// Sets a key; what was set before gives way.
    pub fn set(&mut self, section: Section, key: &'static Key, raw: Raw, origin: Origin) {
        if let Section::Cluster(name) | Section::Retention(name) = &section {
            self.name_cluster(name);
        }
        self.values.insert((section, key.name), Setting { raw, origin });
    }

    /// Makes a cluster known, without setting anything.
    pub fn name_cluster(&mut self, name: &str) {
        if !self.clusters.iter().any(|known| known == name) {
            self.clusters.push(name.to_owned());
        }
    }

    /// Names of the clusters, in the order in which they were met.
    pub fn clusters(&self) -> &[String] {
        &self.clusters
    }

    /// What was set for a key, if anything.
    pub fn get(&self, section: &Section, name: &str) -> Option<&Setting> {
        let key = keys::find(section.place(), name)?;
        self.values.get(&(section.clone(), key.name))
    }

    /// Everything that was set.
    pub fn iter(&self) -> impl Iterator<Item = (&Section, &'static str, &Setting)> {
        self.values.iter().map(|((section, name), setting)| (section, *name, setting))
    }

    /// An error about a value, with its place.
    pub fn invalid(&self, section: &Section, name: &str, what: &str) -> Error {
        let setting = self.get(section, name);
        let shown = setting.map_or_else(String::new, |setting| format!(" = {}", setting.raw));
        let shown = if may_hold_secret(name) { String::new() } else { shown };
        let message = format!("`{name}`{shown} in [{section}] {what}");
        let error =
            Error::new(ErrorCode::InvalidConfig, message).help("see every key with its form: pgvault config init");
        match setting.map(|setting| &setting.origin) {
            Some(Origin::File(snippet)) if !may_hold_secret(name) => snippet.explain(error),
            Some(Origin::Default) | None => error,
            Some(origin) => error.because(format!("set by {origin}")),
        }
    }

    /// The text of a key: what was set, else its default; empty is the same as absent.
    pub fn text(&self, section: &Section, name: &str) -> Result<Option<String>> {
        let text = match self.get(section, name).map(|setting| &setting.raw) {
            Some(Raw::Text(text)) => text.clone(),
            Some(Raw::Integer(number)) => number.to_string(),
            Some(_) => return Err(self.invalid(section, name, "must be a string")),
            None => default(section, name).to_owned(),
        };
        Ok(if text.is_empty() { None } else { Some(text) })
    }

    /// A key that is read by one of the parsers of [`values`].
    pub fn parsed<T>(
        &self,
        section: &Section,
        name: &str,
        parse: impl Fn(&str) -> values::Parsed<T>,
    ) -> Result<Option<T>> {
        self.text(section, name)?
            .map(|text| parse(&text).map_err(|what| self.invalid(section, name, &what)))
            .transpose()
    }

    /// A yes or no; `None` when nothing says.
    pub fn boolean(&self, section: &Section, name: &str) -> Result<Option<bool>> {
        match self.get(section, name).map(|setting| &setting.raw) {
            Some(Raw::Bool(value)) => Ok(Some(*value)),
            Some(Raw::Text(text)) => values::boolean(text).map(Some).map_err(|what| self.invalid(section, name, &what)),
            Some(_) => Err(self.invalid(section, name, "is neither true nor false")),
            None => Ok(values::boolean(default(section, name)).ok()),
        }
    }

    /// A whole number that is not negative.
    pub fn number(&self, section: &Section, name: &str) -> Result<u64> {
        let what = "is not a whole number of at least 0";
        match self.get(section, name).map(|setting| &setting.raw) {
            Some(Raw::Integer(number)) => u64::try_from(*number).map_err(|_| self.invalid(section, name, what)),
            Some(Raw::Text(text)) => text.trim().parse().map_err(|_| self.invalid(section, name, what)),
            Some(_) => Err(self.invalid(section, name, what)),
            None => Ok(default(section, name).parse().unwrap_or_default()),
        }
    }

    /// Strings; one string counts as a list of one, a variable is split at commas.
    pub fn list(&self, section: &Section, name: &str) -> Result<Vec<String>> {
        let from_text =
            |text: &str| text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect();
        match self.get(section, name).map(|setting| &setting.raw) {
            Some(Raw::List(items)) => Ok(items.clone()),
            Some(Raw::Text(text)) => Ok(from_text(text)),
            Some(_) => Err(self.invalid(section, name, "must be an array of strings")),
            None => Ok(Vec::new()),
        }
    }
}

/// Whether a value may contain a password and so is never shown whole.
pub fn may_hold_secret(name: &str) -> bool {
    name == "conninfo"
}

fn default(section: &Section, name: &str) -> &'static str {
    keys::find(section.place(), name).map_or("", |key| key.default)
}

/// Whether a value of this shape may stand for a key in a file.
pub fn fits(form: Form, raw: &Raw) -> bool {
    matches!(
        (form, raw),
        (Form::Text, Raw::Text(_) | Raw::Integer(_))
            | (Form::Bool, Raw::Bool(_))
            | (Form::Integer, Raw::Integer(_))
            | (Form::List, Raw::List(_) | Raw::Text(_))
    )
}
