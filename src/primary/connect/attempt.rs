//! One attempt at one address: socket, TLS, startup, authentication, until the server is ready.

use std::net::IpAddr;
use std::time::Duration;

use postgres_protocol::message::frontend;

use super::{ConnectOptions, Connected, Session};
use crate::primary::auth::{Login, authenticate};
use crate::primary::conninfo::{Host, SslMode};
use crate::primary::dial::{self, Address, Dialled};
use crate::primary::error::{PgError, Refusal};
use crate::primary::tls::{self, Negotiated};
use crate::primary::transport::Transport;
use crate::primary::version::ServerVersion;
use crate::primary::wire::{Wire, body, unexpected};

/// One attempt at one address.
pub(super) struct Attempt<'a> {
    pub(super) options: &'a ConnectOptions,
    pub(super) session: Session<'a>,
    pub(super) host: &'a Host,
    pub(super) address: &'a Address,
    pub(super) limit: Duration,
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
    pub(super) async fn run(&self) -> Result<Connected, PgError> {
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
