//! Connection information in libpq's words: `host=pg1,pg2 user=pgvault`, `postgres://…`, and what the environment, a
//! service file and a password file add (fe-connect.c).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

mod dsn;
mod environment;
mod keyword;
mod passfile;
mod resolve;
mod service;
#[cfg(test)]
mod tests;
mod uri;
mod words;

pub use environment::Environment;
pub use passfile::PassfileError;
pub use words::{AuthMethod, ChannelBinding, LoginMethods as RequireAuth, SslMode, SslNegotiation, TargetSessionAttrs};

/// Everything that is needed to reach a cluster. Printing it never shows the password.
#[derive(Clone)]
pub struct Conninfo {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) dbname: Option<String>,
    pub(super) password: Password,
    pub(super) options: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) target_session_attrs: TargetSessionAttrs,
    pub(super) tls: TlsWords,
    pub(super) channel_binding: ChannelBinding,
    pub(super) require_auth: RequireAuth,
    pub(super) keepalive: Keepalive,
}

/// Where the password comes from. Files are read again at every connect, so that a password can be rotated.
#[derive(Clone)]
pub(super) struct Password {
    /// `password` itself.
    pub(super) given: Option<SecretString>,
    /// A file that holds nothing but the password.
    pub(super) file: Option<PathBuf>,
    /// `passfile`: one line per server.
    pub(super) passfile: Option<PathBuf>,
}

/// One server to try.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// Its name or socket directory.
    pub name: HostName,
    /// Address to connect to instead of looking the name up.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// How a server is reached.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum HostName {
    /// By TCP.
    Tcp(String),
    /// By the socket `.s.PGSQL.<port>` in this directory; `@name` is Linux's abstract namespace.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            HostName::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            HostName::Tcp(name) => write!(f, "{name}:{}", self.port),
            HostName::Unix(directory) => write!(f, "{}:{}", directory.display(), self.port),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the conninfo says about TLS, with libpq's default files filled in where they exist.
#[derive(Clone, Debug)]
pub(super) struct TlsWords {
    pub(super) mode: SslMode,
    pub(super) negotiation: SslNegotiation,
    pub(super) root_cert: RootCert,
    pub(super) crl: Option<PathBuf>,
    /// Certificate and key of the client.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    pub(super) sni: bool,
    pub(super) only_tls13: bool,
    pub(super) only_tls12: bool,
}

/// What server certificates are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootCert {
    /// Nothing given, and no `~/.postgresql/root.crt`.
    Absent,
    /// This file.
    File(PathBuf),
    /// What the operating system trusts.
    System,
}

/// TCP liveness. A daemon must notice a dead peer, so the intervals have defaults shorter than the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub(super) on: bool,
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) count: u32,
    pub(super) user_timeout: Option<Duration>,
}

/// The connection information cannot be used. Never quotes a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// A keyword that libpq does not know either.
    #[error("unknown connection keyword \"{keyword}\"{}", did_you_mean(.suggestion.as_deref()))]
    UnknownKeyword {
        /// The keyword.
        keyword: String,
        /// A known one that is close.
        suggestion: Option<String>,
    },
    /// The text is not of the form `keyword=value …` or `postgres://…`.
    #[error("cannot read the connection information: {0}")]
    Syntax(String),
    /// A value that its keyword does not allow.
    #[error("{origin}: \"{value}\" is not {expected}")]
    InvalidValue {
        /// The keyword or environment variable.
        origin: String,
        /// The value.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// Something that libpq knows and pgvault cannot do; ignoring it would weaken what was asked for.
    #[error("{origin}: {reason}")]
    Unsupported {
        /// The keyword or environment variable.
        origin: String,
        /// Why.
        reason: String,
    },
    /// Keywords that contradict each other.
    #[error("{0}")]
    Contradiction(String),
    /// The service file.
    #[error("service \"{service}\": {problem}")]
    Service {
        /// The service asked for.
        service: String,
        /// What is wrong.
        problem: String,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|known| format!("; did you mean \"{known}\"?")).unwrap_or_default()
}

/// Keyword → value with where it came from.
type Words = BTreeMap<&'static str, Word>;

/// One value, not yet understood.
#[derive(Clone)]
struct Word {
    value: String,
    /// The keyword itself, or the environment variable.
    origin: String,
}

impl Conninfo {
    /// Reads `text` (keywords or a URI, may be empty) as libpq does; what it leaves open is filled from the service
    /// file, then from the environment, then by defaults.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, ConninfoError> {
        let is_uri = uri::SCHEMES.iter().any(|scheme| text.starts_with(scheme));
        let mut words = if is_uri { uri::parse(text)? } else { dsn::parse(text)? };
        service::fill(&mut words, environment)?;
        environment.fill(&mut words)?;
        resolve::resolve(words, environment)
    }

    /// The servers, in the order of trying; at least one.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database for SQL sessions, when one is named.
    pub fn dbname(&self) -> Option<&str> {
        self.dbname.as_deref()
    }

    /// `application_name`, when one is named.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// Which of several hosts is wanted.
    pub fn target_session_attrs(&self) -> TargetSessionAttrs {
        self.target_session_attrs
    }

    /// What `sslmode` asks for.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    /// The same with another `target_session_attrs`.
    #[must_use]
    pub fn with_target_session_attrs(mut self, wanted: TargetSessionAttrs) -> Self {
        self.target_session_attrs = wanted;
        self
    }

    /// The same for this server alone.
    #[must_use]
    pub fn for_host(mut self, host: Host) -> Self {
        self.hosts = vec![host];
        self
    }

    /// The same with these servers tried as well, after those that are named already.
    #[must_use]
    pub fn with_more_hosts<'a>(mut self, hosts: impl IntoIterator<Item = &'a Host>) -> Self {
        for host in hosts {
            if !self.hosts.iter().any(|known| known.name == host.name && known.port == host.port) {
                self.hosts.push(host.clone());
            }
        }
        self
    }

    /// The same with this `application_name`, whatever was named before.
    #[must_use]
    pub fn with_application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// The same with this password, whatever was given before.
    #[must_use]
    pub fn with_password(mut self, password: SecretString) -> Self {
        self.password.given = Some(password);
        self.password.file = None;
        self
    }

    /// The same with the password in this file (its last line end is not part of it), read at every connect.
    #[must_use]
    pub fn with_password_file(mut self, path: impl AsRef<Path>) -> Self {
        self.password.given = None;
        self.password.file = Some(path.as_ref().to_owned());
        self
    }

    /// The password for one host, read now: `None` when there is none.
    pub(super) fn password_for(&self, host: &Host, database: &str) -> Result<Option<SecretString>, PassfileError> {
        if let Some(password) = &self.password.given {
            return Ok(Some(password.clone()));
        }
        if let Some(path) = &self.password.file {
            return passfile::read_whole(path).map(Some);
        }
        match &self.password.passfile {
            Some(path) => passfile::look_up(path, host, database, &self.user),
            None => Ok(None),
        }
    }
}

impl fmt::Display for Conninfo {
    /// libpq words with `***` for a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |host: &Host| match &host.name {
            HostName::Tcp(name) => name.clone(),
            HostName::Unix(directory) => directory.display().to_string(),
        };
        let hosts: Vec<String> = self.hosts.iter().map(name).collect();
        let ports: Vec<String> = self.hosts.iter().map(|host| host.port.to_string()).collect();
        write!(f, "host={} port={} user={}", quote(&hosts.join(",")), ports.join(","), quote(&self.user))?;
        if let Some(dbname) = &self.dbname {
            write!(f, " dbname={}", quote(dbname))?;
        }
        if self.password.given.is_some() {
            f.write_str(" password=***")?;
        }
        if let Some(name) = &self.application_name {
            write!(f, " application_name={}", quote(name))?;
        }
        if self.target_session_attrs != TargetSessionAttrs::Any {
            write!(f, " target_session_attrs={}", self.target_session_attrs)?;
        }
        write!(f, " sslmode={}", self.tls.mode)
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({self})")
    }
}

/// A value in libpq's quotes, where it needs them.
fn quote(value: &str) -> String {
    let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\');
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
}
