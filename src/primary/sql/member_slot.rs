//! Our slot on one member, in one look; and the way to drop it.

use tokio_postgres::types::Type;
use wal::Lsn;

use super::session::{SqlSession, allowed, get, parsed};
use crate::primary::error::PgError;
use crate::primary::slot::SlotName;

/// A member as far as our slot is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberLook {
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// The end of its flushed WAL, or of what it replayed; `None` before it replayed any.
    pub end: Option<Lsn>,
    /// The slot of that name.
    pub slot: Option<MemberSlot>,
}

/// A slot on a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSlot {
    /// Whether it is physical.
    pub physical: bool,
    /// Whether a connection uses it.
    pub active: bool,
    /// As in `pg_replication_slots`.
    pub wal_status: Option<String>,
    /// First byte of WAL that it keeps.
    pub restart_lsn: Option<Lsn>,
}

impl SqlSession {
    /// Looks at the slot of this name.
    pub async fn member_slot(&self, name: &SlotName) -> Result<MemberLook, PgError> {
        let query = "SELECT m.recovering, \
             CASE WHEN m.recovering THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END::text, \
             s.slot_type = 'physical', s.active, s.wal_status, s.restart_lsn::text \
             FROM (SELECT pg_catalog.pg_is_in_recovery() AS recovering) m \
             LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1";
        let row = self.one(query, &[(&name.as_str(), Type::NAME)]).await?;
        let physical: Option<bool> = get(&row, 2)?;
        let slot = match physical {
            None => None,
            Some(physical) => Some(MemberSlot {
                physical,
                active: get(&row, 3)?,
                wal_status: get(&row, 4)?,
                restart_lsn: parsed(&row, 5)?,
            }),
        };
        Ok(MemberLook { in_recovery: get(&row, 0)?, end: parsed(&row, 1)?, slot })
    }

    /// `pg_drop_replication_slot(name)`; false without the right to.
    pub async fn drop_slot(&self, name: &SlotName) -> Result<bool, PgError> {
        let query = "SELECT pg_catalog.pg_drop_replication_slot($1) IS NULL";
        Ok(allowed(self.one(query, &[(&name.as_str(), Type::NAME)]).await)?.is_some())
    }
}
