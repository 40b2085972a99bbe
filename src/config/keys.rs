//! Every key that a configuration can have: the one table from which files, variables, `config show` and `config init`
//! work.

mod table;

pub use table::KEYS;

/// A part of the configuration: a table of the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `[daemon]`
    Daemon,
    /// `[repository]`
    Repository,
    /// `[cluster.NAME]`
    Cluster(String),
    /// `[cluster.NAME.retention]`
    Retention(String),
    /// `[spool]`
    Spool,
    /// `[http]`
    Http,
    /// `[log]`
    Log,
}

impl Section {
    /// Which keys it has.
    pub fn place(&self) -> Place {
        match self {
            Self::Daemon => Place::Daemon,
            Self::Repository => Place::Repository,
            Self::Cluster(_) => Place::Cluster,
            Self::Retention(_) => Place::Retention,
            Self::Spool => Place::Spool,
            Self::Http => Place::Http,
            Self::Log => Place::Log,
        }
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Daemon => f.write_str("daemon"),
            Self::Repository => f.write_str("repository"),
            Self::Cluster(name) => write!(f, "cluster.{name}"),
            Self::Retention(name) => write!(f, "cluster.{name}.retention"),
            Self::Spool => f.write_str("spool"),
            Self::Http => f.write_str("http"),
            Self::Log => f.write_str("log"),
        }
    }
}

/// A kind of section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `[daemon]`
    Daemon,
    /// `[repository]`
    Repository,
    /// `[cluster.*]`
    Cluster,
    /// `[cluster.*.retention]`
    Retention,
    /// `[spool]`
    Spool,
    /// `[http]`
    Http,
    /// `[log]`
    Log,
}

/// How a value is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A string.
    Text,
    /// `true` or `false`.
    Bool,
    /// A number.
    Integer,
    /// An array of strings, or one string.
    List,
}

/// A key, what it is for, and how else it can be set.
#[derive(Debug)]
pub struct Key {
    /// Where it stands.
    pub place: Place,
    /// Its name.
    pub name: &'static str,
    /// How it is written.
    pub form: Form,
    /// Its value when nothing sets it, as text; empty when there is none or it follows from others.
    pub default: &'static str,
    /// Its short variable, without `PGVAULT_`.
    pub variable: Option<&'static str>,
    /// What it is, for `config init`.
    pub about: &'static str,
    /// Why it does nothing in this version.
    pub unbuilt: Option<&'static str>,
}

/// The key with this name in a section of this kind.
pub fn find(place: Place, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.place == place && key.name == name)
}

/// The key that a path such as `cluster.main.retention.redundancy` names.
pub fn by_path(path: &str) -> Option<(Section, &'static Key)> {
    let parts: Vec<&str> = path.split('.').collect();
    let (section, name) = match parts.as_slice() {
        ["cluster", cluster, name] => (Section::Cluster((*cluster).to_owned()), *name),
        ["cluster", cluster, "retention", name] => (Section::Retention((*cluster).to_owned()), *name),
        ["daemon", name] => (Section::Daemon, *name),
        ["repository", name] => (Section::Repository, *name),
        ["spool", name] => (Section::Spool, *name),
        ["http", name] => (Section::Http, *name),
        ["log", name] => (Section::Log, *name),
        _ => return None,
    };
    if let Section::Cluster(cluster) | Section::Retention(cluster) = &section {
        super::values::cluster_name(cluster).ok()?;
    }
    Some((section.clone(), find(section.place(), name)?))
}

/// The keys of a section, in order.
pub fn of(place: Place) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.place == place)
}

/// The candidate nearest to `word`, when one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(word.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
