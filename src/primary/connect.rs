//! From connection information to a connection that is ready for commands.

use std::time::Duration;

use super::conninfo::Conninfo;

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
