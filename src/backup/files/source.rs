//! Whether files are read from the data directory: it is readable, the server's own, and we may start a backup.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::directory::{DataDirectory, Postmaster, Unreadable, difference};
use super::noted::{Instance, boot};
use crate::backup::request::BackupDeps;
use crate::backup::server::ServerFacts;
use crate::error::{Error, ErrorCode};
use crate::primary::sql::{self, SqlSession, grant};
use crate::primary::{ConnectOptions, PgError, ReplicationConnection};

/// `pg_control` may change between our look and the server's: so often is it looked at again.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Where the data directory may be read, and what is known of it.
#[derive(Clone, Debug)]
pub struct FilesAccess {
    /// `PGDATA` as seen from here.
    pub data_directory: PathBuf,
    /// Where is noted what the next backup need not read; nothing is when there is none.
    pub noted_file: Option<PathBuf>,
    /// How long a file must not have changed to be noted: on a primary, on a standby.
    pub settle: [Duration; 2],
}

impl FilesAccess {
    /// With the usual times: ten seconds, five minutes.
    pub fn new(data_directory: PathBuf, noted_file: Option<PathBuf>) -> Self {
        Self { data_directory, noted_file, settle: [Duration::from_secs(10), Duration::from_secs(300)] }
    }
}

/// A data directory that is the server's, and a session with that server.
#[derive(Debug)]
pub(in crate::backup) struct FilesSource {
    pub(super) session: SqlSession,
    pub(super) directory: DataDirectory,
    pub(super) postmaster: Postmaster,
    pub(super) instance: Instance,
    pub(super) from_standby: bool,
}

/// Opens the source; `Ok(Err(reason))` where the server has to send the files.
///
/// # Errors
///
/// `ForeignCluster` when the directory is another cluster's: then the configuration is wrong, and nothing of it is read.
pub(in crate::backup) async fn open(
    access: &FilesAccess,
    deps: &BackupDeps<'_>,
    connection: &ReplicationConnection,
    server: &ServerFacts,
) -> Result<Result<Arc<FilesSource>, String>, Error> {
    let host = connection.host().clone();
    let options = ConnectOptions { conninfo: deps.server.conninfo.clone().for_host(host), ..deps.server.clone() };
    match find(access.data_directory.clone(), &options, server.from_standby).await {
        Ok(source) => Ok(Ok(Arc::new(source))),
        Err(Unusable::Foreign(said)) => {
            let message = format!("data_directory \"{}\" is another cluster's", access.data_directory.display());
            Err(Error::new(ErrorCode::ForeignCluster, message)
                .because(said)
                .help("name the data directory of this server, or none: data_directory = \"\""))
        }
        Err(unusable) => {
            Ok(Err(format!("data_directory \"{}\" is not read: {unusable}", access.data_directory.display())))
        }
    }
}

/// Whether a backup would read this directory: that of one of the servers of `options`; else the reason.
pub async fn try_data_directory(path: &Path, options: &ConnectOptions) -> Result<(), String> {
    let mut reasons = Vec::new();
    for index in 0..options.conninfo.hosts().len() {
        let options = ConnectOptions { host: Some(index), ..options.clone() };
        match find(path.to_owned(), &options, false).await {
            Ok(_) => return Ok(()),
            Err(unusable) => reasons.push(unusable.to_string()),
        }
    }
    reasons.dedup();
    Err(reasons.join("; "))
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("there is no SQL session with its server: {0}")]
    NoSession(#[from] PgError),
    #[error("the role may not start a backup; as a superuser, in the database of `conninfo`: {0}")]
    NotAllowed(String),
    #[error("it is not that of the server whose WAL is received: {0}")]
    Elsewhere(String),
    #[error("{0}")]
    Foreign(String),
    #[error("a thread ended unexpectedly")]
    Thread(#[from] tokio::task::JoinError),
}

async fn find(path: PathBuf, options: &ConnectOptions, from_standby: bool) -> Result<FilesSource, Unusable> {
    let session = sql::connect(options).await?;
    let major = session.server_version().major();
    let directory = spawn_blocking(move || {
        let directory = DataDirectory::open(&path, major)?;
        let control = directory.control()?.control;
        // Before anything is begun: tablespaces may lie where we do not see them.
        directory.tablespaces(&control)?;
        directory.postmaster()?;
        Ok::<_, Unreadable>(directory)
    })
    .await??;
    if !session.may_back_up().await? {
        return Err(Unusable::NotAllowed(grant(session.server_version(), options.conninfo.user())));
    }
    let (directory, postmaster, instance) = prove(directory, &session).await?;
    Ok(FilesSource { session, directory, postmaster, instance, from_standby })
}

/// Proves that the directory is the server's: both tell the same of it, at a moment at which nothing changed.
async fn prove(
    mut directory: DataDirectory,
    session: &SqlSession,
) -> Result<(DataDirectory, Postmaster, Instance), Unusable> {
    let mut looks = 0;
    loop {
        let look = move |directory: DataDirectory| {
            let seen = (directory.control()?.control, directory.postmaster()?);
            Ok::<_, Unreadable>((directory, seen))
        };
        let (looked, before) = spawn_blocking(move || look(directory)).await??;
        let server = session.instance().await?;
        let (looked, after) = spawn_blocking(move || look(looked)).await??;
        directory = looked;
        looks += 1;
        let (control, postmaster) = after;
        let differs = difference(&control, postmaster, &server);
        if control.system_identifier != server.system_identifier {
            return Err(Unusable::Foreign(differs.unwrap_or_default()));
        }
        match differs {
            None if before == after => {
                let Postmaster { pid, started_at, .. } = postmaster;
                let system_identifier = server.system_identifier;
                return Ok((directory, postmaster, Instance { system_identifier, pid, started_at, boot: boot() }));
            }
            Some(differs) if looks >= LOOKS => return Err(Unusable::Elsewhere(differs)),
            None if looks >= LOOKS => return Err(Unusable::Elsewhere("it does not stop changing".to_owned())),
            _ => sleep(LOOK_AGAIN).await,
        }
    }
}
