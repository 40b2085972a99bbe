//! From connection information to a connection that is ready for commands.

use std::time::Duration;

use tokio::time::timeout;

use super::conninfo::{Conninfo, Host, TargetSessionAttrs};
use super::dial;
use super::error::{HostFailure, PgError};
use super::version::ServerVersion;
use super::wire::Wire;

mod attempt;

use attempt::Attempt;

/// How long we wait for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For one address: TCP, TLS and authentication together. `connect_timeout` of the conninfo wins.
    pub connect: Duration,
    /// For the answer to a command, and for the server to take what we write.
    pub reply: Duration,
    /// For a stream (WAL, base backup): no data and no keepalive for so long is [`super::PgError::Timeout`].
    /// `wal_sender_timeout` (60 s by default) makes the server send a keepalive after half of it.
    pub silence: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(15), reply: Duration::from_secs(60), silence: Duration::from_secs(90) }
    }
}

/// Whom to connect to, and how.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Hosts, credentials, TLS.
    pub conninfo: Conninfo,
    /// Index into [`Conninfo::hosts`] of the only host to try, whatever its role; `None` tries them in order until one
    /// is what `target_session_attrs` asks for.
    pub host: Option<usize>,
    /// The name that the server shows and that `synchronous_standby_names` knows us by, unless the conninfo gives one.
    pub application_name: String,
    /// How long to wait.
    pub deadlines: Deadlines,
}

impl ConnectOptions {
    /// Options with the usual deadlines, any host.
    pub fn new(conninfo: Conninfo, application_name: impl Into<String>) -> Self {
        Self { conninfo, host: None, application_name: application_name.into(), deadlines: Deadlines::default() }
    }
}

/// What kind of session is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Session<'a> {
    /// A physical walsender.
    Replication,
    /// SQL in this database.
    Sql { database: &'a str },
}

impl<'a> Session<'a> {
    /// The database as password files name it.
    fn database_in_passfile(self) -> &'a str {
        match self {
            Self::Replication => "replication",
            Self::Sql { database } => database,
        }
    }
}

/// A connection that is ready for commands.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) wire: Wire,
    pub(super) host: Host,
    pub(super) version: ServerVersion,
    pub(super) warning: Option<String>,
    /// BackendKeyData: process id and cancel key.
    pub(super) key: Vec<u8>,
}

/// Connects to the first host that is what `target_session_attrs` asks for.
///
/// Unlike libpq, a host that refuses us does not end the search: a backup server had rather find the primary behind a
/// standby whose pg_hba.conf is wrong.
pub(super) async fn connect(options: &ConnectOptions, session: Session<'_>) -> Result<Connected, PgError> {
    let hosts = options.conninfo.hosts();
    if let Some(index) = options.host {
        let host = hosts.get(index).ok_or_else(|| PgError::Protocol(format!("there is no host number {index}")))?;
        return connect_to_host(options, session, host, TargetSessionAttrs::Any).await;
    }
    let wanted = options.conninfo.target_session_attrs();
    let rounds: &[TargetSessionAttrs] = match wanted {
        TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
        _ => &[wanted],
    };
    let mut failures = Vec::new();
    for &wanted in rounds {
        failures.clear();
        for host in hosts {
            match connect_to_host(options, session, host, wanted).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failures.push(HostFailure { host: host.to_string(), error }),
            }
        }
    }
    match failures.len() {
        1 => Err(failures.swap_remove(0).error),
        _ => Err(PgError::NoSuitableHost { wanted, failures }),
    }
}

/// Tries the addresses of one host in turn, each within the deadline.
async fn connect_to_host(
    options: &ConnectOptions,
    session: Session<'_>,
    host: &Host,
    wanted: TargetSessionAttrs,
) -> Result<Connected, PgError> {
    let limit = options.conninfo.connect_timeout.unwrap_or(options.deadlines.connect);
    let late = || PgError::Unreachable {
        host: host.to_string(),
        reason: format!("no connection within {} s", limit.as_secs_f32()),
    };
    let addresses = timeout(limit, dial::addresses(host)).await.unwrap_or_else(|_| Err(late()))?;
    let mut failure = None;
    for address in &addresses {
        let attempt = Attempt { options, session, host, address, limit };
        let connecting = async {
            let mut connected = attempt.run().await?;
            check_role(&mut connected, wanted, limit).await?;
            Ok(connected)
        };
        match timeout(limit, connecting).await.unwrap_or_else(|_| Err(late())) {
            // Another address of the same name may be the same server seen another way, never another opinion of us.
            Err(
                error @ (PgError::Unreachable { .. }
                | PgError::Timeout { .. }
                | PgError::Io { .. }
                | PgError::WrongRole { .. }),
            ) => {
                failure = Some(error);
            }
            result => return result,
        }
    }
    Err(failure.unwrap_or_else(late))
}

/// Whether the server is what was asked for: by what it reported at connect, or by asking it.
async fn check_role(connected: &mut Connected, wanted: TargetSessionAttrs, limit: Duration) -> Result<(), PgError> {
    if wanted == TargetSessionAttrs::Any {
        return Ok(());
    }
    let in_recovery = is_on(connected, "in_hot_standby", limit).await?;
    let read_only = in_recovery || is_on(connected, "default_transaction_read_only", limit).await?;
    let suits = match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => true,
        TargetSessionAttrs::ReadWrite => !read_only,
        TargetSessionAttrs::ReadOnly => read_only,
        TargetSessionAttrs::Primary => !in_recovery,
        TargetSessionAttrs::Standby => in_recovery,
    };
    if suits { Ok(()) } else { Err(PgError::WrongRole { host: connected.host.to_string(), in_recovery, read_only }) }
}

/// A parameter that servers report; a proxy may have swallowed it.
async fn is_on(connected: &mut Connected, name: &str, limit: Duration) -> Result<bool, PgError> {
    if let Some(value) = connected.wire.reader.parameters.get(name) {
        return Ok(value == "on");
    }
    let rows = connected.wire.query(&format!("SHOW {name}"), limit).await?;
    Ok(rows.first().and_then(|row| row.first()) == Some(&Some(b"on".to_vec())))
}
