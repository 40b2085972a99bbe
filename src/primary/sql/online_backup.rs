//! `pg_backup_start` and `pg_backup_stop` (xlogfuncs.c): backups of a data directory that somebody else reads.
//!
//! They belong to the session: when it ends before the stop, however it ends, the server leaves backup mode
//! (`do_pg_abort_backup`) and the backup is void.

use tokio_postgres::types::Type;
use wal::{Lsn, SystemIdentifier, TimelineId};

use super::session::{SqlSession, get, parsed};
use crate::primary::error::PgError;
use crate::primary::version::ServerVersion;

/// What `pg_backup_stop` returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedBackup {
    /// Where the backup ends.
    pub stop: Lsn,
    /// Content of `backup_label`.
    pub label: Vec<u8>,
    /// Content of `tablespace_map`; empty when there is none.
    pub tablespace_map: Vec<u8>,
}

/// What tells a running server from every other, its own clones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInstance {
    /// `system_identifier` of its `pg_control`.
    pub system_identifier: SystemIdentifier,
    /// Unix seconds of the last change of its `pg_control`.
    pub control_changed_at: i64,
    /// Its last checkpoint, or restartpoint.
    pub checkpoint: Lsn,
    /// Where that began.
    pub redo: Lsn,
    /// The timeline of it.
    pub timeline: TimelineId,
    /// Unix seconds when its postmaster started.
    pub started_at: i64,
    /// The port it listens on.
    pub port: u16,
}

/// The first major version in which the functions have their present names, and no exclusive mode.
const RENAMED_IN: u32 = 15;

/// Names and arguments of both functions.
const fn functions(version: ServerVersion) -> [&'static str; 2] {
    if version.major() < RENAMED_IN {
        ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    } else {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    }
}

/// The command that lets `role` start and stop a backup. To be run in the database that pgvault connects to.
pub fn grant(version: ServerVersion, role: &str) -> String {
    let [start, stop] = functions(version);
    format!("GRANT EXECUTE ON FUNCTION {start}, {stop} TO \"{}\"", role.replace('"', "\"\""))
}

impl SqlSession {
    /// Whether our role may start and stop a backup.
    pub async fn may_back_up(&self) -> Result<bool, PgError> {
        let query = "SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege('pg_catalog.' || f, 'EXECUTE')) \
                     FROM pg_catalog.unnest($1) AS f";
        let names = functions(self.server_version()).to_vec();
        get(&self.one(query, &[(&names, Type::TEXT_ARRAY)]).await?, 0)
    }

    /// `pg_backup_start`: where the backup begins. Takes as long as the checkpoint; the session may then be idle for as
    /// long as the copy takes.
    pub async fn backup_start(&self, label: &str, fast: bool) -> Result<Lsn, PgError> {
        self.one(
            "SELECT pg_catalog.set_config('statement_timeout', '0', false), \
             pg_catalog.set_config('idle_session_timeout', '0', false)",
            &[],
        )
        .await?;
        let query = if self.server_version().major() < RENAMED_IN {
            "SELECT pg_catalog.pg_start_backup($1, $2, false)::text"
        } else {
            "SELECT pg_catalog.pg_backup_start($1, $2)::text"
        };
        let row = self.one_in_its_time(query, &[(&label, Type::TEXT), (&fast, Type::BOOL)]).await?;
        parsed(&row, 0)?.ok_or_else(|| PgError::Protocol("pg_backup_start returned no position".to_owned()))
    }

    /// `pg_backup_stop`, without waiting for archiving: we stream WAL ourselves.
    ///
    /// Fails when the backup is void: a standby was promoted meanwhile, or has replayed WAL without full page images.
    pub async fn backup_stop(&self) -> Result<StoppedBackup, PgError> {
        let function = if self.server_version().major() < RENAMED_IN {
            "pg_stop_backup(false, false)"
        } else {
            "pg_backup_stop(false)"
        };
        // As bytes: names of tablespaces need not be UTF-8.
        let query = format!(
            "SELECT lsn::text, pg_catalog.convert_to(labelfile, e), pg_catalog.convert_to(spcmapfile, e) \
             FROM pg_catalog.{function}, pg_catalog.getdatabaseencoding() AS e"
        );
        let row = self.one(&query, &[]).await?;
        let stop =
            parsed(&row, 0)?.ok_or_else(|| PgError::Protocol("pg_backup_stop returned no position".to_owned()))?;
        let label = get::<Option<Vec<u8>>>(&row, 1)?.unwrap_or_default();
        let tablespace_map = get::<Option<Vec<u8>>>(&row, 2)?.unwrap_or_default();
        Ok(StoppedBackup { stop, label, tablespace_map })
    }

    /// What tells this server from every other.
    pub async fn instance(&self) -> Result<ServerInstance, PgError> {
        let query = "SELECT s.system_identifier::text, \
                     extract(epoch FROM s.pg_control_last_modified)::pg_catalog.int8, \
                     c.checkpoint_lsn::text, c.redo_lsn::text, c.timeline_id, \
                     pg_catalog.floor(extract(epoch FROM pg_catalog.pg_postmaster_start_time()))::pg_catalog.int8, \
                     pg_catalog.current_setting('port')::pg_catalog.int4 \
                     FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c";
        let row = self.one(query, &[]).await?;
        let odd = |what: &str| PgError::Protocol(format!("pg_control_system and its like returned {what}"));
        let system: String = get(&row, 0)?;
        // bigint in SQL, unsigned in truth.
        let system: i64 = system.parse().map_err(|_| odd("no system identifier"))?;
        let timeline: i32 = get(&row, 4)?;
        Ok(ServerInstance {
            system_identifier: SystemIdentifier::new(system.cast_unsigned()),
            control_changed_at: get(&row, 1)?,
            checkpoint: parsed(&row, 2)?.ok_or_else(|| odd("no checkpoint"))?,
            redo: parsed(&row, 3)?.ok_or_else(|| odd("no redo position"))?,
            timeline: TimelineId::new(timeline.cast_unsigned()).ok_or_else(|| odd("no timeline"))?,
            started_at: get(&row, 5)?,
            port: get::<i32>(&row, 6)?.try_into().map_err(|_| odd("no port"))?,
        })
    }
}
