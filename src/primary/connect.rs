//! From connection information to a connection that is ready for commands.

use std::net::IpAddr;
use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::auth::{Login, authenticate};
use super::conninfo::{Conninfo, Host, SslMode, TargetSessionAttrs};
use super::dial::{self, Address, Dialled};
use super::error::{HostFailure, PgError, Refusal};
use super::tls::{self, Negotiated};
use super::transport::Transport;
use super::version::ServerVersion;
use super::wire::{Wire, body, unexpected};

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
    let late = || PgError::Timeout { doing: format!("connecting to {host}"), limit };
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

/// One attempt at one address.
struct Attempt<'a> {
    options: &'a ConnectOptions,
    session: Session<'a>,
    host: &'a Host,
    address: &'a Address,
    limit: Duration,
}

/// A transport and what is known about it.
struct Channel {
    transport: Transport,
    local_address: Option<IpAddr>,
    encrypted: bool,
    endpoint: Option<Vec<u8>>,
}

impl Attempt<'_> {
    /// Plain or TLS, in the order that `sslmode` means; the second only where the first was turned away.
    async fn run(&self) -> Result<Connected, PgError> {
        let over_tcp = matches!(self.address, Address::Tcp(_));
        let order: &[bool] = match self.options.conninfo.ssl_mode() {
            _ if !over_tcp => &[false],
            SslMode::Disable => &[false],
            SslMode::Allow => &[false, true],
            SslMode::Prefer => &[true, false],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
        };
        let mut last = None;
        for &with_tls in order {
            match self.run_once(with_tls).await {
                Err(error) if may_differ_by_encryption(&error) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| PgError::Protocol("no way to connect was tried".to_owned())))
    }

    async fn run_once(&self, with_tls: bool) -> Result<Connected, PgError> {
        let channel = self.open(with_tls).await?;
        let (local_address, encrypted) = (channel.local_address, channel.encrypted);
        self.start(channel).await.map_err(|error| match error {
            PgError::Server(error) => PgError::Refused(Box::new(Refusal {
                host: self.host.to_string(),
                user: self.options.conninfo.user().to_owned(),
                database: match self.session {
                    Session::Replication => None,
                    Session::Sql { database } => Some(database.to_owned()),
                },
                local_address,
                encrypted,
                error: *error,
            })),
            other => other,
        })
    }

    async fn open(&self, with_tls: bool) -> Result<Channel, PgError> {
        let conninfo = &self.options.conninfo;
        let socket = dial::dial(self.address, &conninfo.keepalive).await.map_err(|error| PgError::Unreachable {
            host: self.host.to_string(),
            reason: format!("{}: {error}", dial::describe(self.address)),
        })?;
        let local_address = socket.local_address();
        let plain = |transport| Channel { transport, local_address, encrypted: false, endpoint: None };
        let refuse = |reason: String| PgError::Tls { host: self.host.to_string(), reason };
        match socket {
            Dialled::Unix(stream) => Ok(plain(Transport::Unix(stream))),
            Dialled::Tcp(stream) if !with_tls => Ok(plain(Transport::Tcp(stream))),
            Dialled::Tcp(stream) => match tls::negotiate(stream, &conninfo.tls, self.host).await.map_err(refuse)? {
                Negotiated::Tls(stream, endpoint) => {
                    Ok(Channel { transport: Transport::Tls(stream), local_address, encrypted: true, endpoint })
                }
                Negotiated::Plain(stream) if conninfo.tls.mode == SslMode::Prefer => Ok(plain(Transport::Tcp(stream))),
                Negotiated::Plain(_) => Err(refuse("the server does not do TLS".to_owned())),
            },
        }
    }

    /// Startup message, authentication, and what the server says about itself until it is ready.
    async fn start(&self, channel: Channel) -> Result<Connected, PgError> {
        let conninfo = &self.options.conninfo;
        let login = Login {
            conninfo,
            host: self.host,
            database: self.session.database_in_passfile(),
            encrypted: channel.encrypted,
            endpoint: channel.endpoint,
            limit: self.limit,
        };
        let mut wire = Wire::new(channel.transport);
        wire.send(self.limit, |out| frontend::startup_message(self.parameters(), out)).await?;
        authenticate(&mut wire, &login).await?;
        wire.reader.trust();
        let key = self.until_ready(&mut wire).await?;
        let text = wire.reader.parameters.get("server_version").map_or("", String::as_str);
        let version = ServerVersion::parse(text)
            .ok_or_else(|| PgError::Protocol(format!("the server does not report a version: \"{text}\"")))?;
        let warning = version.check()?;
        if let Some(warning) = &warning {
            tracing::warn!(host = %self.host, "{warning}");
        }
        Ok(Connected { wire, host: self.host.clone(), version, warning, key })
    }

    fn parameters(&self) -> Vec<(&str, &str)> {
        let conninfo = &self.options.conninfo;
        let name = conninfo.application_name().unwrap_or(&self.options.application_name);
        let mut parameters = vec![("user", conninfo.user()), ("client_encoding", "UTF8"), ("application_name", name)];
        match self.session {
            Session::Replication => {
                parameters.extend([("replication", "true"), ("idle_session_timeout", "0"), ("statement_timeout", "0")]);
            }
            // A schema that a tenant can write to must not lend its functions to our queries; and a session that waits
            // for hours is no idle one.
            Session::Sql { database } => parameters.extend([
                ("database", database),
                ("search_path", "pg_catalog, pg_temp"),
                ("idle_session_timeout", "0"),
                ("idle_in_transaction_session_timeout", "0"),
                ("default_transaction_read_only", "off"),
                ("DateStyle", "ISO"),
            ]),
        }
        if let Some(options) = &conninfo.options {
            parameters.push(("options", options));
        }
        parameters
    }

    async fn until_ready(&self, wire: &mut Wire) -> Result<Vec<u8>, PgError> {
        const DOING: &str = "waiting for the server to be ready";
        let mut key = Vec::new();
        loop {
            let frame = wire.reader.frame(self.limit, DOING).await?;
            let bytes = wire.reader.body(&frame);
            match frame.tag {
                b'K' => key = bytes.to_vec(),
                b'Z' => return Ok(key),
                b'E' => return Err(PgError::Server(Box::new(body::error_fields(bytes)))),
                other => return Err(unexpected(other, DOING)),
            }
        }
    }
}

/// Whether the same server might answer otherwise with TLS, or without.
fn may_differ_by_encryption(error: &PgError) -> bool {
    match error {
        PgError::Tls { .. } => true,
        PgError::Refused(refusal) => refusal.error.sqlstate.as_str() == "28000",
        _ => false,
    }
}
