//! Configuration: files and environment, typed and validated.
//!
//! ```text
//! /etc/pgvault/pgvault.toml + conf.d/*.toml | -c | PGVAULT_CONFIG | nothing     file.rs, load.rs
//! PGVAULT_*, X_FILE, PG*                                                         environment.rs
//!   -> Settings: every value with its origin                                     settings.rs, keys.rs
//!   -> Config: typed, checked, what has no effect yet is said                    typed.rs, values.rs
//! ```

pub mod environment;
mod file;
pub mod keys;
mod load;
pub mod settings;
mod show;
mod typed;
pub mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::codec::Compression;
use crate::error::{Error, ErrorCode, Result};
use crate::patroni::PatroniUrl;
use crate::repository::keys::Recipient;
use crate::storage::StorageOptions;

pub use environment::Variables;
pub use load::{Flags, files, load};
pub use settings::{Origin, Raw, Settings};
pub use show::{Shown, show, template};
pub use values::Schedule;

/// Everything that pgvault is told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files it was read from, in order; none when there was none.
    pub files: Vec<PathBuf>,
    /// Where state lives: spool, local indexes, control socket.
    pub state_dir: PathBuf,
    /// What is stored, and where.
    pub repository: RepositoryConfig,
    /// The clusters, in the order of the files.
    pub clusters: Vec<ClusterConfig>,
    /// WAL that is not yet in the repository.
    pub spool: SpoolConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// The log.
    pub log: LogConfig,
    /// The process's variables with secrets resolved, for libpq's words and the AWS chain.
    pub variables: Variables,
    /// Values as written, with origins.
    pub settings: Settings,
}

/// `[repository]`
#[derive(Clone, Debug)]
pub struct RepositoryConfig {
    /// Where it lies and how to get there.
    pub storage: StorageOptions,
    /// How stored bytes are compressed.
    pub compression: Compression,
    /// For whom new data keys are wrapped; empty: encryption is not asked for.
    pub encryption: Vec<Recipient>,
    /// What opens what is encrypted.
    pub identity: IdentityConfig,
}

/// Where the identity is that opens an encrypted repository; at most one of the two.
#[derive(Clone, Debug, Default)]
pub struct IdentityConfig {
    /// A file of age identities, read when the repository is opened.
    pub file: Option<PathBuf>,
    /// The identities themselves, from the environment.
    pub text: Option<SecretString>,
}

/// `[cluster.NAME]`
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name in object keys, labels and commands.
    pub name: String,
    /// libpq words; may hold a password. Empty: everything comes from libpq's variables.
    pub conninfo: SecretString,
    /// Replication slot; `None`: slotless.
    pub slot: Option<String>,
    /// The name for `synchronous_standby_names`.
    pub application_name: String,
    /// Whether pgvault creates its slot; false: the HA manager owns it.
    pub create_slot: bool,
    /// How often the tail of the open segment is shipped; zero: whole segments only.
    pub max_rpo: Duration,
    /// Flush at once, to be a synchronous standby.
    pub synchronous: bool,
    /// Report what is flushed as applied too: commits under `remote_apply` then wait for the spool and no longer.
    pub report_apply: bool,
    /// When base backups are taken; `None`: never by itself.
    pub schedule: Option<Schedule>,
    /// The server's data directory, where base backups read it.
    pub data_directory: Option<PathBuf>,
    /// Bytes per second of base backups.
    pub max_rate: Option<u64>,
    /// Patroni's REST API on the members.
    pub patroni_urls: Vec<PatroniUrl>,
    /// What may be forgotten.
    pub retention: RetentionConfig,
}

/// `[cluster.NAME.retention]`
#[derive(Clone, Debug)]
pub struct RetentionConfig {
    /// So far back one can go.
    pub recovery_window: Option<Duration>,
    /// At least so many usable backups.
    pub redundancy: u64,
    /// Backups kept by calendar: daily, weekly, monthly, yearly.
    pub keep: [u64; 4],
    /// WAL kept shorter than the backups.
    pub wal_window: Option<Duration>,
}

/// `[spool]`
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// Where it lies.
    pub dir: PathBuf,
    /// Its limit in bytes; `None`: what the disk holds.
    pub max_size: Option<u64>,
}

/// `[http]`
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where it listens; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// What requests that act must bring.
    pub token: Option<SecretString>,
    /// Whether requests with the token may act.
    pub actions: bool,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`.
    pub level: tracing::Level,
    /// In place of standard error.
    pub file: Option<PathBuf>,
    /// A file is rotated at this size.
    pub rotate_size: u64,
    /// So many old files are kept.
    pub rotate_keep: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Config {
    /// The cluster with this name.
    pub fn cluster(&self, name: &str) -> Option<&ClusterConfig> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    /// A cluster that no file names, with the defaults of every key.
    pub fn implied_cluster(&self, name: &str) -> Result<ClusterConfig> {
        let name =
            values::cluster_name(name).map_err(|what| Error::new(ErrorCode::NotFound, format!("\"{name}\" {what}")))?;
        typed::cluster(&self.settings, &name)
    }

    /// The control socket of the daemon that works in this state directory.
    pub fn control_socket(&self) -> PathBuf {
        self.state_dir.join("control.sock")
    }

    /// Keys that are set and do nothing in this version, each as a sentence.
    pub fn without_effect(&self) -> Vec<String> {
        self.without_effect_in(|_| true)
    }

    /// The same for one cluster, with what concerns all of them.
    pub fn without_effect_of(&self, cluster: &str) -> Vec<String> {
        self.without_effect_in(|section| match section {
            keys::Section::Cluster(name) | keys::Section::Retention(name) => name == cluster,
            _ => true,
        })
    }

    fn without_effect_in(&self, of: impl Fn(&keys::Section) -> bool) -> Vec<String> {
        self.settings
            .iter()
            .filter(|(section, ..)| of(section))
            .filter_map(|(section, name, setting)| {
                let key = keys::find(section.place(), name)?;
                let why = key.unbuilt?;
                let inert = matches!(&setting.raw, Raw::Text(text) if text.is_empty() || text == key.default)
                    || matches!(&setting.raw, Raw::List(items) if items.is_empty())
                    || matches!(&setting.raw, Raw::Integer(0));
                (!inert).then(|| format!("`{name}` in [{section}] has no effect: {why} ({})", setting.origin))
            })
            .collect()
    }
}
