//! Does the adapter to PostgreSQL reach real servers in every way that libpq can, and read their streams whole?

use std::time::{Duration, Instant};

use pgvault::primary::sql::{self, SqlSession};
use pgvault::primary::{ConnectOptions, Conninfo, Environment, PgError, ReplicationConnection};

use crate::support::LIMIT;
use crate::support::pg::PgNode;

mod authentication;
mod base_backup;
mod broken_networks;
mod certificates;
mod hosts;
mod slots;
mod sql_sessions;
mod streaming;
mod timelines;
mod tls;

/// Options for this conninfo and nothing from the environment.
fn options(conninfo: &str) -> ConnectOptions {
    options_in(conninfo, &Environment::default())
}

/// Options for this conninfo and environment.
fn options_in(conninfo: &str, environment: &Environment) -> ConnectOptions {
    ConnectOptions::new(Conninfo::parse(conninfo, environment).unwrap(), "pgvault_test")
}

/// A replication connection as the superuser over TCP.
async fn connect(node: &PgNode) -> ReplicationConnection {
    ReplicationConnection::connect(&options(&node.conninfo())).await.unwrap()
}

/// A replication connection by this conninfo.
async fn try_connect(conninfo: &str) -> Result<ReplicationConnection, PgError> {
    ReplicationConnection::connect(&options(conninfo)).await
}

/// An SQL session by this conninfo.
async fn sql(conninfo: &str) -> Result<SqlSession, PgError> {
    sql::connect(&options(conninfo)).await
}

/// Runs SQL over the unix socket, where every test server trusts us.
fn sql_by_socket(node: &PgNode, sql: &str) -> String {
    let output = node.tool("psql").env("PGHOST", &node.run).args(["-XqAtc", sql]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Makes the server read its files again, and waits until it did.
fn reload(node: &PgNode) {
    let loaded = || sql_by_socket(node, "SELECT pg_conf_load_time()");
    let before = loaded();
    sql_by_socket(node, "SELECT pg_reload_conf()");
    let deadline = Instant::now() + LIMIT;
    while loaded() == before {
        assert!(Instant::now() < deadline, "the server does not reload");
        std::thread::sleep(Duration::from_millis(20));
    }
}
