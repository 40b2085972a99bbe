//! What `check` tries out for itself, beside what is known already.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::backup::try_data_directory;
use crate::clock::Clock;
use crate::codec::digest::sha256;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, ReplicationConnection};
use crate::repository::Repository;
use crate::storage::{Body, ObjectKey, PutIfAbsent, PutOutcome, StorageError, StorageErrorKind};

/// What was found out.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// A replication connection to each member, in the order of the conninfo; empty when not tried.
    pub replication: Vec<Result<()>>,
    /// Whether a backup would read the configured data directory, or why not; `None` when there is none, or not tried.
    pub data_directory: Option<std::result::Result<(), String>>,
    /// Write, read, list, write again, delete; `None` when not tried.
    pub repository: Option<Result<RepositoryProbe>>,
}

/// What the repository's store did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepositoryProbe {
    /// How long writing, reading and listing took together.
    pub took: Duration,
    /// Whether it keeps two writers apart.
    pub put_if_absent: PutIfAbsent,
    /// Whether this writer may delete; it need not.
    pub may_delete: bool,
}

/// How long one member may take to let us in, and the store to do everything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks every member for a replication connection: what pg_hba.conf, the role and free walsenders allow.
pub async fn replication(options: &ConnectOptions) -> Vec<Result<()>> {
    let tries =
        options.conninfo.hosts().iter().enumerate().map(|(index, host)| async move {
            let options = ConnectOptions { host: Some(index), ..options.clone() };
            let doing = format!("cannot open a replication connection to {host}");
            let attempt = async {
                let mut connection = ReplicationConnection::connect(&options).await?;
                connection.identify_system().await.map(|_| ())
            };
            match timeout(PATIENCE, attempt).await {
                Ok(result) => result.map_err(|error| error.explain(doing)),
                Err(_) => Err(Error::new(ErrorCode::NoPrimary, doing)
                    .because(format!("no answer within {} s", PATIENCE.as_secs()))),
            }
        });
    futures_util::future::join_all(tries).await
}

/// Tries whether a backup would read the data directory that is configured.
pub async fn data_directory(
    directory: Option<&Path>,
    options: &ConnectOptions,
) -> Option<std::result::Result<(), String>> {
    let directory = directory?;
    let tried = timeout(PATIENCE, try_data_directory(directory, options)).await;
    let tried = tried.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
    Some(tried.map_err(|reason| format!("\"{}\": {reason}", directory.display())))
}

/// Writes an object, reads it back, writes it again, lists it and deletes it.
pub async fn repository(repository: &Repository, clock: &Arc<dyn Clock>) -> Result<RepositoryProbe> {
    match timeout(PATIENCE, try_repository(repository, clock)).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorCode::RepositoryDenied,
            format!("the repository {} cannot be used", repository.location()),
        )
        .because(format!("no answer within {} s", PATIENCE.as_secs()))
        .help("see whether the store can be reached from this machine: pgvault repo check")),
    }
}

async fn try_repository(repository: &Repository, clock: &Arc<dyn Clock>) -> Result<RepositoryProbe> {
    let objects = repository.objects();
    let storage = objects.storage();
    let location = repository.location();
    let failed = |error: &StorageError| {
        let code =
            if error.kind == StorageErrorKind::Corrupt { ErrorCode::Damaged } else { ErrorCode::RepositoryDenied };
        Error::new(code, format!("the repository {location} cannot be used")).because(error).help("pgvault repo check")
    };
    let wrong = |what: &str| {
        Error::new(ErrorCode::Damaged, format!("the repository {location} cannot be trusted")).because(what)
    };
    let start = clock.instant();
    // Directly under the root: a folder would look like a cluster. A name of its own: two checks may run at once.
    let id: u64 = rand::random();
    let key = ObjectKey::new(format!("pgvault-check-{id:016x}")).map_err(|error| wrong(&error.to_string()))?;
    let content = Bytes::from(format!("written by pgvault check {id:016x}\n"));
    let sum = sha256(&content);
    storage.put_new(&key, Body::Bytes(content.clone()), sum).await.map_err(|error| failed(&error))?;
    let read = storage.get(&key).await.map_err(|error| failed(&error))?;
    let again = storage.put_new(&key, Body::Bytes(content.clone()), sum).await;
    // The name without its last digit sorts right before it: one page of one object, however much is stored.
    let before = key.as_str().get(..key.as_str().len() - 1);
    let listed = storage.list("", before, Some(1)).await;
    let may_delete = storage.delete(std::slice::from_ref(&key)).await.is_ok();
    let again = again.map_err(|error| failed(&error))?;
    let listed = listed.map_err(|error| failed(&error))?;
    if read != content {
        return Err(wrong("what was read is not what was written"));
    }
    if !listed.iter().any(|object| object.key == key) {
        return Err(wrong("what was written is not listed"));
    }
    let capability = storage.capabilities().put_if_absent;
    let put_if_absent = if again == PutOutcome::AlreadyExists { capability } else { PutIfAbsent::Unreliable };
    Ok(RepositoryProbe { took: clock.instant().saturating_duration_since(start), put_if_absent, may_delete })
}
