//! Queries. All names are looked up in `pg_catalog` alone: the session's `search_path` is pinned at the start.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row};
use wal::{Lsn, PgTime};

use super::handover::Handover;
use super::settings;
use super::{ReplicationRow, RoleRights, ServerSettings, SlotRow};
use crate::primary::connect::{self, ConnectOptions, Session};
use crate::primary::conninfo::Host;
use crate::primary::error::{PgError, ServerError, SqlState};
use crate::primary::slot::SlotName;
use crate::primary::version::ServerVersion;

/// One SQL session with one server. Dropping it ends the session.
#[derive(Debug)]
pub struct SqlSession {
    client: Client,
    connection: JoinHandle<()>,
    host: Host,
    version: ServerVersion,
    limit: Duration,
}

impl Drop for SqlSession {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Connects to the database of the conninfo, or `postgres`, on the first suitable host.
pub async fn connect(options: &ConnectOptions) -> Result<SqlSession, PgError> {
    let database = options.conninfo.dbname().unwrap_or("postgres");
    let connected = connect::connect(options, Session::Sql { database }).await?;
    let (transport, rest) = connected
        .wire
        .into_transport()
        .ok_or_else(|| PgError::Protocol("the connection is still in use".to_owned()))?;
    let stream = Handover::new(transport, &connected.key, &rest);
    // Everything that counts was settled in our own startup message; this one never reaches the server.
    let mut config = Config::new();
    config.user(options.conninfo.user()).ssl_mode(SslMode::Disable);
    let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|error| explain(&error))?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Whoever asks next gets the error; here it is only noted.
            tracing::debug!(%error, "an SQL session ended");
        }
    });
    let limit = options.deadlines.reply;
    Ok(SqlSession { client, connection, host: connected.host, version: connected.version, limit })
}

impl SqlSession {
    /// The host that answered.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        self.version
    }

    /// Whether the connection still stands.
    pub fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    /// `pg_is_in_recovery()`.
    pub async fn is_in_recovery(&self) -> Result<bool, PgError> {
        let row = self.one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await?;
        get(&row, 0)
    }

    /// The server's wall clock.
    pub async fn server_time(&self) -> Result<PgTime, PgError> {
        let query = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8";
        get(&self.one(query, &[]).await?, 0).map(PgTime::from_unix_micros)
    }

    /// Whether this session is encrypted, as the server sees it.
    pub async fn is_encrypted(&self) -> Result<bool, PgError> {
        let query = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";
        let rows = self.query(query, &[]).await?;
        rows.first().map_or(Ok(false), |row| get(row, 0))
    }

    /// What our role may do.
    pub async fn rights(&self) -> Result<RoleRights, PgError> {
        let query = "SELECT r.rolsuper, r.rolreplication, pg_catalog.pg_has_role(r.oid, 'pg_monitor', 'USAGE') \
                     FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
        let row = self.one(query, &[]).await?;
        Ok(RoleRights { superuser: get(&row, 0)?, replication: get(&row, 1)?, monitor: get(&row, 2)? })
    }

    /// All replication slots; `None` when the role may not see them.
    pub async fn slots(&self) -> Result<Option<Vec<SlotRow>>, PgError> {
        let query = "SELECT slot_name::text, slot_type = 'physical', active, wal_status, restart_lsn::text, safe_wal_size, \
                     pg_catalog.to_jsonb(s) ->> 'invalidation_reason' \
                     FROM pg_catalog.pg_replication_slots s ORDER BY slot_name";
        let Some(rows) = allowed(self.query(query, &[]).await)? else { return Ok(None) };
        let read = |row: &Row| {
            Ok(SlotRow {
                name: get(row, 0)?,
                physical: get(row, 1)?,
                active: get(row, 2)?,
                wal_status: get(row, 3)?,
                restart_lsn: parsed(row, 4)?,
                safe_wal_size: get(row, 5)?,
                invalidation_reason: get(row, 6)?,
            })
        };
        rows.iter().map(read).collect::<Result<_, PgError>>().map(Some)
    }

    /// One replication slot; `None` when there is none of that name.
    pub async fn slot(&self, name: &SlotName) -> Result<Option<SlotRow>, PgError> {
        let slots = self.slots().await?.unwrap_or_default();
        Ok(slots.into_iter().find(|slot| slot.name == name.as_str()))
    }

    /// The receivers that stream now; `None` when the role may not see them.
    pub async fn replication(&self) -> Result<Option<Vec<ReplicationRow>>, PgError> {
        let query = "SELECT application_name, pg_catalog.host(client_addr), state, sync_state, sent_lsn::text, flush_lsn::text \
                     FROM pg_catalog.pg_stat_replication ORDER BY application_name, pid";
        let Some(rows) = allowed(self.query(query, &[]).await)? else { return Ok(None) };
        let read = |row: &Row| {
            Ok(ReplicationRow {
                application_name: get(row, 0)?,
                client_addr: get(row, 1)?,
                state: get(row, 2)?,
                sync_state: get(row, 3)?,
                sent_lsn: parsed(row, 4)?,
                flush_lsn: parsed(row, 5)?,
            })
        };
        rows.iter().map(read).collect::<Result<_, PgError>>().map(Some)
    }

    /// The settings that matter.
    pub async fn settings(&self) -> Result<ServerSettings, PgError> {
        let query = "SELECT name, setting, unit FROM pg_catalog.pg_settings WHERE name = ANY ($1)";
        let names: Vec<&str> = settings::NAMES.to_vec();
        let rows = self.query(query, &[(&names, Type::TEXT_ARRAY)]).await?;
        let read = |row: &Row| Ok((get(row, 0)?, (get::<Option<String>>(row, 1)?.unwrap_or_default(), get(row, 2)?)));
        let rows = rows.iter().map(read).collect::<Result<settings::Rows, PgError>>()?;
        Ok(settings::read(&rows))
    }

    /// End of WAL: the insert position of a primary, the replay position of a standby (`None` before it replayed any).
    pub async fn current_lsn(&self) -> Result<Option<Lsn>, PgError> {
        let query = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                     ELSE pg_catalog.pg_current_wal_insert_lsn() END::text";
        parsed(&self.one(query, &[]).await?, 0)
    }

    /// `pg_switch_wal()`: the end of the segment that was left. `None` without the right to.
    pub async fn switch_wal(&self) -> Result<Option<Lsn>, PgError> {
        self.position("SELECT pg_catalog.pg_switch_wal()::text", &[]).await
    }

    /// `pg_create_restore_point(name)`: where it was written. `None` without the right to.
    pub async fn create_restore_point(&self, name: &str) -> Result<Option<Lsn>, PgError> {
        self.position("SELECT pg_catalog.pg_create_restore_point($1)::text", &[(&name, Type::TEXT)]).await
    }

    /// `pg_create_physical_replication_slot(name, immediately_reserve => true)`: where it starts to keep WAL. `None`
    /// without the right to.
    pub async fn create_physical_slot(&self, name: &SlotName) -> Result<Option<Lsn>, PgError> {
        let query = "SELECT lsn::text FROM pg_catalog.pg_create_physical_replication_slot($1, true)";
        self.position(query, &[(&name.as_str(), Type::NAME)]).await
    }

    /// `pg_replication_slot_advance(name, to)`: where the slot stands then. `None` without the right to.
    pub async fn advance_slot(&self, name: &SlotName, to: Lsn) -> Result<Option<Lsn>, PgError> {
        let query = "SELECT end_lsn::text FROM pg_catalog.pg_replication_slot_advance($1, $2::text::pg_catalog.pg_lsn)";
        self.position(query, &[(&name.as_str(), Type::NAME), (&to.to_string(), Type::TEXT)]).await
    }

    /// A position that a function returns; `None` where the role may not call it.
    async fn position(&self, query: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Option<Lsn>, PgError> {
        match allowed(self.one(query, parameters).await)? {
            Some(row) => parsed(&row, 0),
            None => Ok(None),
        }
    }

    pub(super) async fn one(&self, query: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Row, PgError> {
        let mut rows = self.query(query, parameters).await?;
        match rows.len() {
            1 => Ok(rows.swap_remove(0)),
            count => Err(PgError::Protocol(format!("{count} rows where one was due"))),
        }
    }

    /// One row of a query that may take as long as it needs: a checkpoint, say.
    pub(super) async fn one_in_its_time(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, PgError> {
        let mut rows = self.client.query_typed(query, parameters).await.map_err(|error| explain(&error))?;
        match rows.len() {
            1 => Ok(rows.swap_remove(0)),
            count => Err(PgError::Protocol(format!("{count} rows where one was due"))),
        }
    }

    async fn query(&self, query: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, PgError> {
        match timeout(self.limit, self.client.query_typed(query, parameters)).await {
            Ok(result) => result.map_err(|error| explain(&error)),
            Err(_) => {
                Err(PgError::Timeout { doing: "waiting for the answer to a query".to_owned(), limit: self.limit })
            }
        }
    }
}

/// `None` where the server said that the role lacks the right.
pub(super) fn allowed<T>(result: Result<T, PgError>) -> Result<Option<T>, PgError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_insufficient_privilege() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, PgError> {
    row.try_get(column).map_err(|error| PgError::Protocol(error.to_string()))
}

/// A column of text as a value; `None` for NULL.
pub(super) fn parsed<T: FromStr>(row: &Row, column: usize) -> Result<Option<T>, PgError> {
    let Some(text) = get::<Option<&str>>(row, column)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| PgError::Protocol(format!("column {column} of the answer is \"{text}\"")))
}

fn explain(error: &tokio_postgres::Error) -> PgError {
    if let Some(server) = error.as_db_error() {
        return PgError::Server(Box::new(ServerError {
            severity: server.severity().to_owned(),
            sqlstate: SqlState::new(server.code().code()),
            message: server.message().to_owned(),
            detail: server.detail().map(str::to_owned),
            hint: server.hint().map(str::to_owned),
        }));
    }
    let doing = "running a query";
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    match source {
        Some(source) => PgError::Io { doing, source: io::Error::new(source.kind(), source.to_string()) },
        None if error.is_closed() => PgError::Io {
            doing,
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"),
        },
        None => PgError::Protocol(error.to_string()),
    }
}
