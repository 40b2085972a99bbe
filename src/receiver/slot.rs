//! The replication slot: what keeps the server from removing WAL that we still need.

use wal::Lsn;

use super::trouble::Trouble;
use crate::error::{Error, ErrorCode};
use crate::primary::{PgError, ReplicationConnection, SlotName};

/// Makes sure that the slot exists and reserves WAL. Returns where it holds WAL from, as far as the server tells.
///
/// A slot that exists without a position was invalidated, or never reserved anything (the two look alike): either way it
/// keeps nothing. Ours is made anew, which *hides* the loss from the server's views, so whoever calls this compares the
/// position with what is needed next.
pub(super) async fn ensure(
    connection: &mut ReplicationConnection,
    name: &SlotName,
    create: bool,
) -> Result<Option<Lsn>, Trouble> {
    let found = match connection.read_slot(name).await {
        Ok(found) => found,
        // READ_REPLICATION_SLOT came with PostgreSQL 15.
        Err(error) if error.sqlstate() == Some("0A000") => return create_unless_there(connection, name, create).await,
        Err(error) => return Err(error.into()),
    };
    match found {
        Some(position) if position.restart_lsn.is_some() => Ok(position.restart_lsn),
        Some(_) if create => {
            connection.drop_slot(name).await?;
            create_slot(connection, name).await
        }
        None if create => create_slot(connection, name).await,
        Some(_) => Err(Trouble::SlotLost(not_ours(
            format!("slot \"{name}\" keeps no WAL: it was invalidated or never used"),
            name,
        ))),
        None => Err(Trouble::SlotLost(not_ours(format!("slot \"{name}\" does not exist"), name))),
    }
}

async fn create_unless_there(
    connection: &mut ReplicationConnection,
    name: &SlotName,
    create: bool,
) -> Result<Option<Lsn>, Trouble> {
    if create {
        match connection.create_physical_slot(name).await {
            Ok(()) => {}
            Err(error) if error.is_duplicate_slot() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

async fn create_slot(connection: &mut ReplicationConnection, name: &SlotName) -> Result<Option<Lsn>, Trouble> {
    match connection.create_physical_slot(name).await {
        Ok(()) => {}
        Err(error) if error.is_duplicate_slot() => {}
        Err(error) => return Err(error.into()),
    }
    let made = connection.read_slot(name).await?;
    match made.and_then(|slot| slot.restart_lsn) {
        Some(restart_lsn) => Ok(Some(restart_lsn)),
        None => Err(PgError::Protocol(format!("slot \"{name}\" was made to reserve WAL and reserves none")).into()),
    }
}

fn not_ours(message: String, name: &SlotName) -> Error {
    Error::new(ErrorCode::WalLost, message)
        .because("create_slot = false: the HA manager owns the slot")
        .help(format!("have it made: SELECT pg_create_physical_replication_slot('{name}', true)"))
}
