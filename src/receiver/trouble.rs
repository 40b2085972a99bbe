//! What can end an attempt to stream, and what follows from it.

use std::path::PathBuf;
use std::time::Duration;

use wal::{Lsn, SegmentName};

use super::start::Conflict;
use crate::error::{Error, ErrorCode};
use crate::primary::PgError;
use crate::spool::{SpoolError, WriteError};
use crate::wal_pipeline::WalState;

/// Why WAL does not flow.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The conversation with the server failed.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// No member is there to stream from.
    #[error(transparent)]
    NoSource(PgError),
    /// The spool cannot take WAL.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The server sends other bytes than we hold.
    #[error("the server's WAL differs from ours at {at} in segment {segment}")]
    Diverged {
        /// The segment.
        segment: SegmentName,
        /// First byte that differs.
        at: Lsn,
        /// Where the server's bytes are kept.
        kept_as: Option<PathBuf>,
    },
    /// The server is not the one whose WAL we hold.
    #[error("{}", .0.message())]
    Refused(Error),
    /// The server's history does not continue ours.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The server's WAL ends before what we need next.
    #[error("the server's WAL ends at {server_end}, we hold {held}")]
    Held {
        /// Where it ends.
        server_end: Lsn,
        /// Where ours ends.
        held: Lsn,
    },
    /// There is no primary, and the standby's WAL ends before what we need next: it may still get it.
    #[error("the standby's WAL ends before what we hold")]
    Behind {
        /// Where it ends.
        server_end: Lsn,
        /// Where ours ends.
        held: Lsn,
    },
    /// The server has removed what we need next; a member that does not answer may still have it.
    #[error("{}", .0.message())]
    Removed(Error),
    /// Nothing was heard from the server for too long.
    #[error("the server was silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// Something of our own failed.
    #[error("{}", .0.message())]
    Own(Error),
}

impl From<WriteError> for Trouble {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Spool(error) => Self::Spool(error),
            WriteError::Divergence { segment, at } => Self::Diverged { segment, at, kept_as: None },
        }
    }
}

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// A little longer each time.
    Growing,
    /// Only a person can change it: rarely.
    Longest,
    /// Until the archiver has made room: a short look each time.
    ForRoom,
    /// Until another member can be streamed from: soon, since that is what a failover waits for.
    ForTheNext,
}

impl Trouble {
    /// What to show meanwhile.
    pub(super) fn state(&self) -> WalState {
        match self {
            Self::Postgres(_) | Self::NoSource(_) | Self::Silent(_) | Self::Own(_) | Self::Behind { .. } => {
                WalState::Connecting
            }
            Self::Spool(error) if error.is_no_space() => WalState::Stalled,
            Self::Spool(_) => WalState::Connecting,
            Self::Diverged { .. } => WalState::Diverged,
            Self::Refused(_) | Self::Conflict(_) => WalState::Refused,
            Self::Held { .. } => WalState::Held,
            Self::Removed(_) => WalState::SlotLost,
        }
    }

    /// When to try again. Where there are several members, another one may be ready at any moment.
    pub(super) fn pause(&self, several: bool) -> Pause {
        match self {
            Self::NoSource(_) | Self::Behind { .. } => Pause::ForTheNext,
            // The name of a single host may move to another server in a failover.
            Self::Postgres(PgError::Unreachable { .. }) => Pause::ForTheNext,
            Self::Postgres(_)
            | Self::Silent(_)
            | Self::Held { .. }
            | Self::Removed(_)
            | Self::Refused(_)
            | Self::Conflict(_)
                if several =>
            {
                Pause::ForTheNext
            }
            Self::Postgres(error) if error.is_transient() || error.is_wal_removed() || error.is_invalidated_slot() => {
                Pause::Growing
            }
            // A password that is being changed here and there is right again in a moment.
            Self::Postgres(error) if error.is_login_refused() => Pause::Growing,
            Self::Spool(error) if error.is_no_space() => Pause::ForRoom,
            Self::Silent(_) | Self::Spool(_) | Self::Held { .. } | Self::Removed(_) => Pause::Growing,
            Self::Postgres(_) | Self::Diverged { .. } | Self::Refused(_) | Self::Conflict(_) | Self::Own(_) => {
                Pause::Longest
            }
        }
    }

    /// The label under which it is counted.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Postgres(PgError::Auth { .. } | PgError::Refused(_) | PgError::Tls { .. }) => "auth",
            Self::Postgres(error)
                if error.is_wal_removed() || error.is_slot_in_use() || error.is_invalidated_slot() =>
            {
                "slot"
            }
            Self::Postgres(error) if error.is_transient() => "network",
            Self::NoSource(_) | Self::Silent(_) => "network",
            Self::Removed(_) => "slot",
            Self::Spool(_) => "spool",
            Self::Conflict(_) | Self::Diverged { .. } => "timeline",
            Self::Postgres(_) | Self::Refused(_) | Self::Held { .. } | Self::Behind { .. } | Self::Own(_) => "other",
        }
    }

    /// What a person reads.
    pub(super) fn explain(&self, cluster: &str) -> Error {
        let doing = format!("cannot stream WAL of \"{cluster}\"");
        match self {
            Self::Postgres(error) | Self::NoSource(error) => error.explain(doing),
            Self::Behind { server_end, held } => Error::new(ErrorCode::NoPrimary, doing)
                .because("no primary can be reached")
                .because(format!(
                    "the standby's WAL ends at {server_end}; ours reaches to {held}: nothing is missing here"
                ))
                .help("promote a standby, or bring the primary back: pgvault follows by itself"),
            Self::Spool(error) => {
                let code =
                    if matches!(error, SpoolError::InUse { .. }) { ErrorCode::AnotherWriter } else { ErrorCode::Spool };
                let help = if error.is_no_space() {
                    "see why archiving lags: pgvault status; or give the spool more room: [spool] max_size"
                } else {
                    "look at the disk of the spool and at who may write there: df, ls -ld, dmesg"
                };
                Error::new(code, doing)
                    .because(error)
                    .because("the connection is closed so that the primary is not slowed; its slot retains WAL")
                    .help(help)
            }
            Self::Diverged { segment, at, kept_as } => {
                let error =
                    Error::new(ErrorCode::TimelineConflict, format!("{doing}: two histories of segment {segment}"))
                        .because(format!(
                            "the server sends other bytes than we hold from {at} on, on the same timeline"
                        ))
                        .because("its storage went back in time, or another server took its place");
                let error = match kept_as {
                    Some(path) => error.because(format!("the server's bytes are kept in {}", path.display())),
                    None => error,
                };
                error.help("find out which history is the right one before anything else: both are kept").help(format!(
                    "to go on with the server's, in a new lineage: pgvault serve --new-lineage {cluster}"
                ))
            }
            Self::Refused(error) | Self::Removed(error) | Self::Own(error) => error.clone(),
            Self::Conflict(conflict) => Error::new(ErrorCode::TimelineConflict, doing)
                .because(conflict)
                .help("point conninfo at the present primary, or give this server another cluster name")
                .help(format!("or begin a new lineage with this one: pgvault serve --new-lineage {cluster}")),
            Self::Held { server_end, held } => {
                Error::new(ErrorCode::TimelineConflict, format!("{doing}: the server lost WAL that we hold"))
                    .because(format!("its WAL ends at {server_end}; ours reaches to {held} on the same timeline"))
                    .because("what lies between was acknowledged, perhaps, and exists only here; it is kept")
                    .help(format!("recover from pgvault what the server lost: pgvault recover {cluster} --latest"))
                    .help(format!("or go on with the server in a new lineage: pgvault serve --new-lineage {cluster}"))
            }
            Self::Silent(limit) => Error::new(ErrorCode::PostgresFailed, doing)
                .because(format!("no data and no keepalive for {} s", limit.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_server_can_end_is_tried_again_soon_and_what_only_a_person_can_rarely() {
        let unreachable = || PgError::Unreachable { host: "pg1:5432".to_owned(), reason: "refused".to_owned() };
        let auth = || PgError::Auth { host: "pg1:5432".to_owned(), reason: "no password".to_owned() };
        let (server_end, held) = (Lsn::new(1), Lsn::new(2));
        let cases = [
            (Trouble::NoSource(unreachable()), Pause::ForTheNext, Pause::ForTheNext),
            (Trouble::Postgres(unreachable()), Pause::ForTheNext, Pause::ForTheNext),
            (Trouble::Postgres(auth()), Pause::Longest, Pause::ForTheNext),
            (Trouble::Silent(Duration::from_secs(90)), Pause::Growing, Pause::ForTheNext),
            (Trouble::Held { server_end, held }, Pause::Growing, Pause::ForTheNext),
            (Trouble::Behind { server_end, held }, Pause::ForTheNext, Pause::ForTheNext),
        ];
        for (trouble, single, several) in cases {
            assert_eq!((trouble.pause(false), trouble.pause(true)), (single, several), "{trouble}");
        }
    }
}
