//! The replication slot: what keeps the server from removing WAL that we still need.

use std::fmt;
use std::time::Duration;

use tokio::time::timeout;
use wal::Lsn;

use super::trouble::Trouble;
use crate::error::{Error, ErrorCode};
use crate::primary::sql::{self, SlotRow};
use crate::primary::{ConnectOptions, PgError, ReplicationConnection, SlotName};

/// A server that does not answer a query at once must not hold up the stream.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked for a slot that its owner has to make.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What was found out about the slot that streaming is about to use.
#[derive(Clone, Debug)]
pub(super) struct SlotFound {
    /// From where on it keeps WAL, as far as the server tells.
    pub(super) kept_from: Option<Lsn>,
    /// What had become of it: it was made anew, which hides the loss from the server's own views.
    pub(super) fate: Option<SlotFate>,
    /// It is not there to be used, and not ours to make: streaming goes on without one until its owner has made it.
    pub(super) missed: Option<Error>,
}

impl SlotFound {
    fn there(kept_from: Option<Lsn>) -> Self {
        Self { kept_from, fate: None, missed: None }
    }

    fn missed(error: Error, fate: SlotFate) -> Self {
        Self { kept_from: None, fate: Some(fate), missed: Some(error) }
    }
}

/// What can have become of a slot that kept WAL for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SlotFate {
    /// It is gone.
    Missing,
    /// The server invalidated it, for the reason that it gives where it gives one (PostgreSQL 17+).
    Invalidated(Option<String>),
    /// It was made without RESERVE_WAL and never used.
    NeverReserved,
    /// It keeps nothing, and it is not visible whether it was invalidated or never reserved anything.
    KeepsNothing,
}

impl fmt::Display for SlotFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the replication slot was dropped"),
            Self::Invalidated(Some(reason)) if reason == "idle_timeout" => {
                f.write_str("the replication slot was invalidated (idle_replication_slot_timeout)")
            }
            Self::Invalidated(Some(reason)) if reason != "wal_removed" => {
                write!(f, "the replication slot was invalidated ({reason})")
            }
            // The only reason before PostgreSQL 17.
            Self::Invalidated(_) => f.write_str("the replication slot was invalidated (max_slot_wal_keep_size)"),
            Self::NeverReserved => f.write_str("the replication slot had never reserved WAL"),
            Self::KeepsNothing => f.write_str("the replication slot was invalidated, or had never reserved WAL"),
        }
    }
}

/// How the slot stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Keeps(Lsn),
    KeepsNothing(SlotFate),
    Missing,
    /// Neither the protocol nor SQL tells.
    Unseen,
}

/// How the slot is to be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotUse {
    /// Whether it is ours to make.
    pub(super) create: bool,
    /// Whether the server refused to stream from it the last time: then its position alone proves nothing.
    pub(super) refused: bool,
}

/// Makes sure that the slot exists and reserves WAL.
///
/// Ours is made anew where it is gone or keeps nothing. Whoever calls this compares `kept_from` with what is needed next:
/// whether WAL was lost is told by the server when it is asked for it, and by nothing else.
pub(super) async fn ensure(
    connection: &mut ReplicationConnection,
    options: &ConnectOptions,
    name: &SlotName,
    SlotUse { create, refused }: SlotUse,
) -> Result<SlotFound, Trouble> {
    let standing = match standing(connection, options, name).await? {
        Standing::Keeps(_) if refused => match by_sql(connection, options, name).await {
            Some(Some(row)) => standing_of(&row),
            Some(None) | None => Standing::KeepsNothing(SlotFate::Invalidated(None)),
        },
        standing => standing,
    };
    match standing {
        Standing::Keeps(restart_lsn) => Ok(SlotFound::there(Some(restart_lsn))),
        Standing::Unseen if create => {
            create_unless_there(connection, name).await?;
            Ok(SlotFound::there(None))
        }
        Standing::Unseen => Ok(SlotFound::there(None)),
        Standing::KeepsNothing(fate) if create => {
            tracing::warn!(slot = %name, "{fate}: it is made anew");
            connection.drop_slot(name).await?;
            created(connection, options, name, fate).await
        }
        Standing::Missing if create => created(connection, options, name, SlotFate::Missing).await,
        Standing::KeepsNothing(fate) => {
            let missed = not_ours(format!("slot \"{name}\" keeps no WAL: {fate}"), name);
            Ok(SlotFound::missed(missed, fate))
        }
        Standing::Missing => {
            let missed = not_ours(format!("slot \"{name}\" does not exist"), name);
            Ok(SlotFound::missed(missed, SlotFate::Missing))
        }
    }
}

/// Returns when the slot's owner has made it. Cancel-safe.
pub(super) async fn made_by_its_owner(options: &ConnectOptions, name: &SlotName) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let look = async {
            let mut connection = ReplicationConnection::connect(options).await?;
            standing(&mut connection, options, name).await
        };
        // Whoever cannot be asked now is asked again.
        if matches!(timeout(PATIENCE, look).await, Ok(Ok(Standing::Keeps(_)))) {
            return;
        }
    }
}

/// What READ_REPLICATION_SLOT tells; SQL where that is not enough: it is not known before PostgreSQL 15, and cannot tell an
/// invalidated slot from one that never reserved WAL (`ReadReplicationSlot` in walsender.c).
async fn standing(
    connection: &mut ReplicationConnection,
    options: &ConnectOptions,
    name: &SlotName,
) -> Result<Standing, Trouble> {
    match connection.read_slot(name).await {
        Ok(None) => Ok(Standing::Missing),
        Ok(Some(position)) => match position.restart_lsn {
            Some(restart_lsn) => Ok(Standing::Keeps(restart_lsn)),
            None => Ok(match by_sql(connection, options, name).await {
                Some(Some(row)) => standing_of(&row),
                Some(None) | None => Standing::KeepsNothing(SlotFate::KeepsNothing),
            }),
        },
        Err(error) if error.sqlstate() == Some("0A000") => Ok(match by_sql(connection, options, name).await {
            Some(Some(row)) => standing_of(&row),
            Some(None) => Standing::Missing,
            None => Standing::Unseen,
        }),
        Err(error) => Err(error.into()),
    }
}

fn standing_of(row: &SlotRow) -> Standing {
    let lost = row.wal_status.as_deref() == Some("lost") || row.invalidation_reason.is_some();
    match row.restart_lsn {
        _ if lost => Standing::KeepsNothing(SlotFate::Invalidated(row.invalidation_reason.clone())),
        Some(restart_lsn) => Standing::Keeps(restart_lsn),
        None => Standing::KeepsNothing(SlotFate::NeverReserved),
    }
}

/// The slot's row on the very server that we are connected to; `None` where it cannot be asked: the role may not be let in by
/// SQL, and streaming does not need it.
async fn by_sql(
    connection: &ReplicationConnection,
    options: &ConnectOptions,
    name: &SlotName,
) -> Option<Option<SlotRow>> {
    let host = options.conninfo.hosts().iter().position(|host| host == connection.host())?;
    let options = ConnectOptions { host: Some(host), ..options.clone() };
    let asked = async {
        let session = sql::connect(&options).await?;
        session.slots().await
    };
    match timeout(PATIENCE, asked).await {
        Ok(Ok(slots)) => Some(slots?.into_iter().find(|row| row.name == name.as_str())),
        Ok(Err(error)) => {
            tracing::debug!(%error, "pg_replication_slots cannot be read");
            None
        }
        Err(_) => None,
    }
}

async fn create_unless_there(connection: &mut ReplicationConnection, name: &SlotName) -> Result<(), Trouble> {
    match connection.create_physical_slot(name).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_duplicate_slot() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn created(
    connection: &mut ReplicationConnection,
    options: &ConnectOptions,
    name: &SlotName,
    fate: SlotFate,
) -> Result<SlotFound, Trouble> {
    create_unless_there(connection, name).await?;
    match standing(connection, options, name).await? {
        Standing::Keeps(restart_lsn) => Ok(SlotFound { kept_from: Some(restart_lsn), fate: Some(fate), missed: None }),
        Standing::Unseen => Ok(SlotFound { kept_from: None, fate: Some(fate), missed: None }),
        Standing::KeepsNothing(_) | Standing::Missing => {
            Err(PgError::Protocol(format!("slot \"{name}\" was made to reserve WAL and reserves none")).into())
        }
    }
}

fn not_ours(message: String, name: &SlotName) -> Error {
    Error::new(ErrorCode::WalLost, message)
        .because("create_slot = false: the HA manager owns the slot")
        .because("WAL is received without it meanwhile: what is not received soon enough, the server may remove")
        .help(format!("have it made: SELECT pg_create_physical_replication_slot('{name}', true)"))
}
