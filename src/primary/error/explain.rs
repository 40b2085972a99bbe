//! From a failed conversation to what a person reads: code, causes and help with a command to copy.

use std::net::IpAddr;

use super::{HostFailure, PgError, Refusal, ServerError};
use crate::error::{Error, ErrorCode};
use crate::primary::conninfo::ConninfoError;

impl PgError {
    /// The error of an operation that failed for this reason: `doing` says what could not be done, "cannot stream WAL of
    /// main".
    pub fn explain(&self, doing: impl Into<String>) -> Error {
        let mut error = Error::new(self.code(), doing).because(self);
        if let Some(hint) = self.server_error().and_then(|server| server.hint.as_deref()) {
            error = error.because(format!("the server's hint: {hint}"));
        }
        self.help().into_iter().fold(error, Error::help)
    }

    /// The catalogue's code for this failure.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Conninfo(error) => match **error {
                ConninfoError::UnknownKeyword { .. } => ErrorCode::UnknownKey,
                _ => ErrorCode::InvalidConfig,
            },
            Self::Auth { .. } | Self::Tls { .. } => ErrorCode::ConnectionRefused,
            Self::NoSuitableHost { failures, .. } => needs_a_person(failures).map_or(ErrorCode::NoPrimary, Self::code),
            Self::Unreachable { .. } | Self::WrongRole { .. } => ErrorCode::NoPrimary,
            Self::Refused(refusal) => code_of(&refusal.error).unwrap_or(ErrorCode::ConnectionRefused),
            Self::Server(error) => code_of(error).unwrap_or(ErrorCode::PostgresFailed),
            Self::TooOld { .. } => ErrorCode::ServerSettings,
            Self::Timeout { .. } | Self::Io { .. } | Self::Protocol(_) => ErrorCode::PostgresFailed,
        }
    }

    fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Refused(refusal) => Some(&refusal.error),
            _ => None,
        }
    }

    fn help(&self) -> Vec<String> {
        let help: &[&str] = match self {
            Self::Refused(refusal) => return help_for_refusal(refusal),
            Self::Server(error) => return help_for_code(code_of(error), error, None),
            Self::NoSuitableHost { failures, .. } if needs_a_person(failures).is_some() => {
                return needs_a_person(failures).map(Self::help).unwrap_or_default();
            }
            Self::Conninfo(_) => &["correct the conninfo; `pgvault config show` prints where each value comes from"],
            Self::Auth { .. } => &[
                "give the password in ~/.pgpass (mode 0600): host:port:database:user:password, database `replication` or `*`",
            ],
            Self::Tls { .. } => &[
                "give the authority's certificate with sslrootcert=FILE, and connect by a name in the server's certificate",
            ],
            Self::Unreachable { .. } => {
                &["check that the server runs and that `listen_addresses`, the port and the firewall let us in"]
            }
            Self::NoSuitableHost { .. } | Self::WrongRole { .. } => &[
                "check which node is the primary: SELECT pg_is_in_recovery(); on each, or drop target_session_attrs to take any",
            ],
            Self::TooOld { .. } => &["back up a server of PostgreSQL 14 or later"],
            Self::Timeout { .. } | Self::Io { .. } | Self::Protocol(_) => {
                &["look at the server's log at this moment; pgvault tries again by itself"]
            }
        };
        help.iter().map(|&line| line.to_owned()).collect()
    }
}

/// Of several hosts that failed, the first that turned us away: it may be the primary, and it will not change by itself.
fn needs_a_person(failures: &[HostFailure]) -> Option<&PgError> {
    let by_decision = [ErrorCode::ConnectionRefused, ErrorCode::NoReplicationRight, ErrorCode::ServerSettings];
    failures
        .iter()
        .map(|failure| &failure.error)
        .find(|error| !error.is_transient() && by_decision.contains(&error.code()))
}

/// The code for what a server said; `None` when its SQLSTATE has none of its own.
fn code_of(error: &ServerError) -> Option<ErrorCode> {
    match error.sqlstate.as_str() {
        "28000" | "28P01" => Some(ErrorCode::ConnectionRefused),
        "42501" => Some(ErrorCode::NoReplicationRight),
        // Too many connections, no free slot or sender.
        "53300" | "53400" => Some(ErrorCode::ServerSettings),
        // Either wal_level is too low, or the slot was invalidated: PostgreSQL has one SQLSTATE for both.
        "55000" if error.message.contains("can no longer") => Some(ErrorCode::WalLost),
        "55000" => Some(ErrorCode::ServerSettings),
        "58P01" | "42704" => Some(ErrorCode::WalLost),
        _ => None,
    }
}

fn help_for_code(code: Option<ErrorCode>, error: &ServerError, user: Option<&str>) -> Vec<String> {
    let text = match (code, error.sqlstate.as_str()) {
        (Some(ErrorCode::NoReplicationRight), _) => {
            format!("as a superuser: ALTER ROLE {} REPLICATION;", user.map_or("pgvault".to_owned(), quote_identifier))
        }
        (_, "53300") => "ALTER SYSTEM SET max_wal_senders = 20;   (needs a restart; or close other connections)".to_owned(),
        (_, "53400") => "ALTER SYSTEM SET max_replication_slots = 20;   (needs a restart; or drop a slot that nobody uses)".to_owned(),
        (Some(ErrorCode::ServerSettings), _) => "ALTER SYSTEM SET wal_level = replica;   (needs a restart)".to_owned(),
        (Some(ErrorCode::WalLost), _) => "the missing range is a gap: take a new base backup with `pgvault backup now`".to_owned(),
        (_, "55006") => "another receiver holds the slot: end it, or give this pgvault a slot of its own".to_owned(),
        (_, "XX001") => "pages on the server are damaged: its log names them; take the backup with page verification off to have one at all".to_owned(),
        _ => "look at the server's log at this moment".to_owned(),
    };
    vec![text]
}

fn help_for_refusal(refusal: &Refusal) -> Vec<String> {
    match refusal.error.sqlstate.as_str() {
        "28000" => {
            let kind = match (refusal.local_address, refusal.encrypted) {
                (None, _) => "local",
                (Some(_), true) => "hostssl",
                (Some(_), false) => "host",
            };
            let database = refusal.database.as_deref().unwrap_or("replication");
            let user = &refusal.user;
            let line = match refusal.local_address {
                None => format!("{kind} {database} {user} scram-sha-256"),
                Some(address) => format!("{kind} {database} {user} {} scram-sha-256", single_address(address)),
            };
            vec![format!("add to pg_hba.conf of {}: {line}", refusal.host), "then: SELECT pg_reload_conf();".to_owned()]
        }
        "28P01" => {
            vec![
                "check the password: in the conninfo, PGPASSWORD, or ~/.pgpass (database `replication` or `*`)"
                    .to_owned(),
            ]
        }
        _ => help_for_code(code_of(&refusal.error), &refusal.error, Some(&refusal.user)),
    }
}

fn single_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }
}

/// The name as it must stand in SQL.
fn quote_identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
