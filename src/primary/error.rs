//! What can go wrong between us and a PostgreSQL server.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::conninfo::{ConninfoError, TargetSessionAttrs};
use super::version::ServerVersion;

mod explain;

/// A failed conversation with a server. Never carries a password.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The connection information cannot be used.
    #[error(transparent)]
    Conninfo(#[from] Box<ConninfoError>),
    /// No connection to this host: name resolution, TCP or socket file.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// The host, `pg1:5432`.
        host: String,
        /// Why, in the system's words.
        reason: String,
    },
    /// The server was reached and does not let us in.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// We cannot or will not authenticate in the way that the server asks for.
    #[error("cannot authenticate to {host}: {reason}")]
    Auth {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// TLS cannot be established as `sslmode` asks for.
    #[error("no TLS with {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The server was silent for too long.
    #[error("no answer within {} s while {doing}", limit.as_secs_f32())]
    Timeout {
        /// What we waited for, "connecting to pg1:5432".
        doing: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The connection broke.
    #[error("connection lost while {doing}: {source}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The system's error; `UnexpectedEof` when the server closed the connection.
        source: io::Error,
    },
    /// The server said something that the protocol does not allow or that we do not understand.
    #[error("unexpected answer from the server: {0}")]
    Protocol(String),
    /// The server answered a command with an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server is of a major version before 14.
    #[error("PostgreSQL {version} is not supported: pgvault needs 14 or later")]
    TooOld {
        /// Its version.
        version: ServerVersion,
    },
    /// None of the hosts is what `target_session_attrs` asks for, or none could be reached.
    #[error("none of {} {}: {}", list_hosts(.failures), wanted_state(*.wanted), list_failures(.failures))]
    NoSuitableHost {
        /// What was asked for.
        wanted: TargetSessionAttrs,
        /// What happened with each host, in the order of trying.
        failures: Vec<HostFailure>,
    },
    /// This host was reached, and is not what `target_session_attrs` asks for.
    #[error("{host} is a {}{}", if *.in_recovery { "standby" } else { "primary" }, if *.read_only && !*.in_recovery { " that is read-only" } else { "" })]
    WrongRole {
        /// The host.
        host: String,
        /// Whether it is in recovery.
        in_recovery: bool,
        /// Whether its sessions are read-only.
        read_only: bool,
    },
}

/// Why one host of several was not taken.
#[derive(Debug)]
pub struct HostFailure {
    /// The host, `pg1:5432`.
    pub host: String,
    /// What happened.
    pub error: PgError,
}

fn list_hosts(failures: &[HostFailure]) -> String {
    failures.iter().map(|failure| failure.host.as_str()).collect::<Vec<_>>().join(", ")
}

fn list_failures(failures: &[HostFailure]) -> String {
    failures.iter().map(|failure| failure.error.to_string()).collect::<Vec<_>>().join("; ")
}

fn wanted_state(wanted: TargetSessionAttrs) -> &'static str {
    match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => "can be reached",
        TargetSessionAttrs::ReadWrite => "accepts writes",
        TargetSessionAttrs::ReadOnly => "is read-only",
        TargetSessionAttrs::Primary => "is a primary",
        TargetSessionAttrs::Standby => "is a standby",
    }
}

/// A server that does not let us in, and what is needed to tell an administrator how to change that.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The host.
    pub host: String,
    /// The role that we presented.
    pub user: String,
    /// The database that we asked for; `None` for replication.
    pub database: Option<String>,
    /// Our own address as seen from here; `None` on a unix socket.
    pub local_address: Option<IpAddr>,
    /// Whether the connection was encrypted.
    pub encrypted: bool,
    /// The server's words.
    pub error: ServerError,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refuses {}: {}", self.host, self.user, self.error)
    }
}

/// A five-character SQLSTATE.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SqlState(String);

impl SqlState {
    /// The code with this text; anything that is not five letters and digits becomes `XX000`.
    pub fn new(text: &str) -> Self {
        let well_formed = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Self(if well_formed { text } else { "XX000" }.to_owned())
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An ErrorResponse or NoticeResponse of a server. Texts are in the server's language: decide by `sqlstate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, …, never translated.
    pub severity: String,
    /// What kind of error.
    pub sqlstate: SqlState,
    /// The primary message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do, in the server's opinion.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl PgError {
    /// The SQLSTATE, where the server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(error.sqlstate.as_str()),
            Self::Refused(refusal) => Some(refusal.error.sqlstate.as_str()),
            _ => None,
        }
    }

    /// WAL or a history file that we asked for is no longer there (58P01, `ERRCODE_UNDEFINED_FILE`).
    pub fn is_wal_removed(&self) -> bool {
        self.sqlstate() == Some("58P01")
    }

    /// The slot that was named was invalidated (55000), which READ_REPLICATION_SLOT does not always show: a slot that was
    /// idle for too long keeps its position (`ReplicationSlotAcquire` in slot.c).
    pub fn is_invalidated_slot(&self) -> bool {
        self.sqlstate() == Some("55000")
    }

    /// The slot that was named does not exist (42704), or `pg_drop_replication_slot` was faster.
    pub fn is_missing_slot(&self) -> bool {
        self.sqlstate() == Some("42704")
    }

    /// The slot exists already (42710).
    pub fn is_duplicate_slot(&self) -> bool {
        self.sqlstate() == Some("42710")
    }

    /// The slot is used by another connection (55006).
    pub fn is_slot_in_use(&self) -> bool {
        self.sqlstate() == Some("55006")
    }

    /// The role lacks a right (42501).
    pub fn is_insufficient_privilege(&self) -> bool {
        self.sqlstate() == Some("42501")
    }

    /// The server does not let this role in as it came (class 28: wrong password, no entry in pg_hba.conf).
    pub fn is_login_refused(&self) -> bool {
        self.sqlstate().is_some_and(|state| state.starts_with("28"))
    }

    /// The connection was closed by the server without a word.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// Whether a server that runs said it, though it does not let us in: not one that starts or stops, and not the network.
    pub fn is_of_a_running_server(&self) -> bool {
        match self {
            Self::Auth { .. } => true,
            _ => self.sqlstate().is_some_and(|state| !state.starts_with("57P") && !state.starts_with("08")),
        }
    }

    /// Whether the same attempt may succeed later without anyone doing something: the network, a server that starts or
    /// stops, too many connections, a slot that a dead connection still holds.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Io { .. } | Self::WrongRole { .. } => true,
            Self::NoSuitableHost { failures, .. } => failures.iter().any(|failure| failure.error.is_transient()),
            // 08 connection exception, 53300 too many connections, 55006 object in use, 57P01..57P03 shutting down, starting.
            Self::Server(_) | Self::Refused(_) => self.sqlstate().is_some_and(|state| {
                state.starts_with("08") || matches!(state, "53300" | "55006" | "57P01" | "57P02" | "57P03")
            }),
            Self::Conninfo(_) | Self::Auth { .. } | Self::Tls { .. } | Self::Protocol(_) | Self::TooOld { .. } => false,
        }
    }
}
