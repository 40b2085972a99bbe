//! What pgvault tells a person when something cannot be done: what happened, why, what to do, and a stable code.
//!
//! Inner layers have small error types of their own (`StorageError`, `ParseLsnError`, …). Operations turn them into an
//! [`Error`] when they know what the person wanted; the command line prints it and exits with [`ErrorCode::exit_code`].

use std::fmt;

/// The catalogue of errors. Codes and exit codes are a contract (INTERFACE sections 2 and 3): add, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Something that has no code of its own.
    Unclassified,
    /// The command line cannot be understood.
    Usage,
    /// A known command that this version does not have yet.
    NotAvailable,
    /// A key or variable that pgvault does not know.
    UnknownKey,
    /// A secret was given twice, as itself and as a file.
    AmbiguousSecret,
    /// No repository is configured and none can be assumed.
    NoRepository,
    /// A value cannot be understood, or values contradict each other.
    InvalidConfig,
    /// The server does not let us in: pg_hba.conf, password, TLS.
    ConnectionRefused,
    /// The role may not replicate.
    NoReplicationRight,
    /// The server's settings do not allow streaming: wal_level, slots, senders.
    ServerSettings,
    /// No host can be reached, or none is a primary.
    NoPrimary,
    /// Another system identifier, or another history under the same timeline.
    ForeignCluster,
    /// The slot is gone or lost, or WAL that we still need was removed.
    WalLost,
    /// PostgreSQL answered with an error that has no code of its own.
    PostgresFailed,
    /// The target lies before the first moment that can be recovered.
    TargetTooEarly,
    /// The target lies after the last moment that can be recovered.
    TargetTooLate,
    /// The target lies in a gap.
    TargetInGap,
    /// The target directory is not empty, or a server runs in it.
    TargetDirectory,
    /// Not enough space for the restore.
    NoSpace,
    /// A time without a zone.
    TimeWithoutZone,
    /// No such xid, restore point or timeline in the stored WAL.
    TargetUnknown,
    /// There is no base backup from which the target could be reached.
    NoBackup,
    /// The repository cannot be reached or does not let us in.
    RepositoryDenied,
    /// Another pgvault works with the same state directory or writes to the same place.
    AnotherWriter,
    /// Stored bytes are not what they must be.
    Damaged,
    /// The repository is of a format that this version cannot read.
    FormatTooNew,
    /// It is encrypted, and there is no key for it.
    NoKey,
    /// No such cluster, backup or object.
    NotFound,
    /// The same name already holds other bytes.
    Conflict,
    /// Two histories claim to be this cluster.
    TimelineConflict,
    /// The spool cannot take WAL: full, unwritable or damaged.
    Spool,
    /// A refusal that leaves everything as it was and has no code of its own.
    Refused,
    /// `check` found something FAILED.
    CheckFailed,
    /// `check --strict` found something to WARN about.
    CheckWarned,
    /// A person or the system asked to stop.
    Interrupted,
}

impl ErrorCode {
    /// Every code, for the catalogue and its test.
    pub const ALL: &[Self] = &[
        Self::Unclassified,
        Self::Usage,
        Self::NotAvailable,
        Self::UnknownKey,
        Self::AmbiguousSecret,
        Self::NoRepository,
        Self::InvalidConfig,
        Self::ConnectionRefused,
        Self::NoReplicationRight,
        Self::ServerSettings,
        Self::NoPrimary,
        Self::ForeignCluster,
        Self::WalLost,
        Self::PostgresFailed,
        Self::TargetTooEarly,
        Self::TargetTooLate,
        Self::TargetInGap,
        Self::TargetDirectory,
        Self::NoSpace,
        Self::TimeWithoutZone,
        Self::TargetUnknown,
        Self::NoBackup,
        Self::RepositoryDenied,
        Self::AnotherWriter,
        Self::Damaged,
        Self::FormatTooNew,
        Self::NoKey,
        Self::NotFound,
        Self::Conflict,
        Self::TimelineConflict,
        Self::Spool,
        Self::Refused,
        Self::CheckFailed,
        Self::CheckWarned,
        Self::Interrupted,
    ];

    /// The stable code in messages, `E0302`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unclassified => "E0001",
            Self::Usage => "E0002",
            Self::NotAvailable => "E0003",
            Self::NotFound => "E0004",
            Self::Refused => "E0005",
            Self::CheckFailed => "E0006",
            Self::CheckWarned => "E0007",
            Self::Interrupted => "E0008",
            Self::UnknownKey => "E0101",
            Self::AmbiguousSecret => "E0102",
            Self::NoRepository => "E0103",
            Self::InvalidConfig => "E0104",
            Self::ConnectionRefused => "E0201",
            Self::NoReplicationRight => "E0202",
            Self::ServerSettings => "E0203",
            Self::NoPrimary => "E0204",
            Self::ForeignCluster => "E0205",
            Self::WalLost => "E0206",
            Self::PostgresFailed => "E0207",
            Self::TargetTooEarly => "E0301",
            Self::TargetTooLate => "E0302",
            Self::TargetInGap => "E0303",
            Self::TargetDirectory => "E0304",
            Self::NoSpace => "E0305",
            Self::TimeWithoutZone => "E0306",
            Self::TargetUnknown => "E0307",
            Self::NoBackup => "E0308",
            Self::RepositoryDenied => "E0401",
            Self::AnotherWriter => "E0402",
            Self::Damaged => "E0403",
            Self::FormatTooNew => "E0404",
            Self::Spool => "E0405",
            Self::NoKey => "E0406",
            Self::TimelineConflict => "E0501",
            Self::Conflict => "E0502",
        }
    }

    /// What the process exits with (INTERFACE section 2).
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Unclassified | Self::Spool => 1,
            Self::Usage | Self::NotAvailable | Self::TimeWithoutZone => 2,
            Self::UnknownKey | Self::AmbiguousSecret | Self::NoRepository | Self::InvalidConfig => 3,
            Self::ConnectionRefused
            | Self::NoReplicationRight
            | Self::ServerSettings
            | Self::NoPrimary
            | Self::WalLost
            | Self::PostgresFailed => 4,
            Self::RepositoryDenied | Self::FormatTooNew | Self::NoKey => 5,
            Self::NotFound => 6,
            Self::ForeignCluster
            | Self::TargetDirectory
            | Self::NoSpace
            | Self::AnotherWriter
            | Self::TimelineConflict
            | Self::Conflict
            | Self::Refused => 7,
            Self::TargetTooEarly | Self::TargetTooLate | Self::TargetInGap | Self::TargetUnknown | Self::NoBackup => 8,
            Self::Damaged => 9,
            Self::CheckFailed => 10,
            Self::CheckWarned => 11,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened, why, and what to do. Carries no secret and no stack trace.
#[derive(Clone, Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    code: ErrorCode,
    message: String,
    causes: Vec<String>,
    help: Vec<String>,
}

/// The result of everything that a person asked for.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What happened, with the values; lower case, no final stop.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { code, message: message.into(), causes: Vec::new(), help: Vec::new() }) }
    }

    /// Adds why it happened: one line, printed under the message.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.inner.causes.push(cause.to_string());
        self
    }

    /// Adds an error and everything beneath it as causes.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Many errors print their source themselves; saying it twice helps nobody.
            if !self.inner.causes.last().is_some_and(|last| last.contains(&text)) {
                self.inner.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    /// Adds what to do: one line with a command to copy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.inner.help.push(help.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.inner.code
    }

    /// What happened.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// What happened and the first reason, for where there is one line only.
    pub fn in_one_line(&self) -> String {
        match self.inner.causes.first() {
            Some(cause) => format!("{}: {cause}", self.inner.message),
            None => self.inner.message.clone(),
        }
    }

    /// Why, outermost first.
    pub fn causes(&self) -> &[String] {
        &self.inner.causes
    }

    /// What to do.
    pub fn help_lines(&self) -> &[String] {
        &self.inner.help
    }
}

impl fmt::Display for Error {
    /// `error[E0302]: message`, then one line per cause and per `help:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.inner.code, self.inner.message)?;
        for cause in &self.inner.causes {
            write!(f, "\n  {cause}")?;
        }
        for help in &self.inner.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
