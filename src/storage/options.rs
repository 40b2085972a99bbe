//! What it takes to open a store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};

use super::metered::{NoMeter, StorageMeter};
use super::retry::RetryPolicy;

/// Where a repository lies and how to get there. Secrets are not in here: credentials come from the environment or from
/// the files named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageOptions {
    /// `s3://bucket/prefix`, `file:///srv/pgvault`, or `memory://` for tests.
    pub url: String,
    /// Address of an S3 service other than AWS: `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// Region; default: that of the environment or profile, else `us-east-1` where an endpoint is given.
    pub region: Option<String>,
    /// Whether the bucket goes into the path instead of the host name; default: yes where an endpoint is given.
    pub path_style: Option<bool>,
    /// Whether plain HTTP is accepted.
    pub allow_http: bool,
    /// Certificates to trust besides those of the system, PEM; default: `AWS_CA_BUNDLE`.
    pub ca_file: Option<PathBuf>,
    /// Storage class of new objects; default: the store's own.
    pub storage_class: Option<String>,
    /// How many requests run at the same time; default 8.
    pub connections: Option<usize>,
    /// File that holds the access key id, read again when credentials are renewed.
    pub access_key_file: Option<PathBuf>,
    /// File that holds the secret access key.
    pub secret_key_file: Option<PathBuf>,
    /// File that holds the session token that belongs to them, for temporary credentials.
    pub session_token_file: Option<PathBuf>,
}

impl StorageOptions {
    /// Options for this place, everything else by default.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

/// When it is found out what a store does with a put of an existing key. It takes writing scratch objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// When the store is opened: whoever cannot write learns it at once.
    AtOpen,
    /// With the first put: rights to read are enough to read, and the store need not be there yet when it is opened.
    AtFirstPut,
}

/// What a store needs from the program around it.
#[derive(Clone, Debug)]
pub struct StorageContext {
    /// For durations and for judging the age of leftovers.
    pub clock: Arc<dyn Clock>,
    /// Told of every request.
    pub meter: Arc<dyn StorageMeter>,
    /// How often failed requests are repeated.
    pub retry: RetryPolicy,
    /// Start of the random numbers for waiting times and scratch names; must differ between programs that run together.
    pub seed: u64,
    /// When it is found out what the store can do.
    pub probe: Probe,
}

impl Default for StorageContext {
    /// The system's clock, no meter, the default policy, a random seed, the probe when the store is opened.
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            meter: Arc::new(NoMeter),
            retry: RetryPolicy::default(),
            seed: rand::random(),
            probe: Probe::AtOpen,
        }
    }
}
