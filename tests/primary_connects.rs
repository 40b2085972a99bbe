//! Does the adapter to PostgreSQL reach real servers in every way that libpq can, and read their streams whole?

use pgvault::primary::{ConnectOptions, Conninfo, Environment, PgError, ReplicationConnection};

use crate::support::pg::PgNode;

mod base_backup;
mod streaming;

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
