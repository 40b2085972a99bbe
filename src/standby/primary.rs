//! The server that the standby will follow: what must be known of it, asked over the replication protocol.

use std::collections::BTreeMap;
use std::time::Duration;

use wal::{Lsn, SystemIdentifier, TimelineHistory, TimelineId};

use super::slot::{self, SlotFound};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, Host, PgError, ReplicationConnection, SlotName};

/// Settings that a hot standby must not go below (`CheckRequiredParameterValues` in xlogrecovery.c).
const MINIMUMS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// A server that answered.
#[derive(Clone, Debug)]
pub struct Primary {
    /// Where it answered.
    pub host: Host,
    /// Its cluster.
    pub system_identifier: SystemIdentifier,
    /// Its timeline and where that comes from.
    pub history: TimelineHistory,
    /// End of its WAL when it was asked.
    pub flush_lsn: Lsn,
    /// Settings that a hot standby of it must not go below, those that it shows.
    pub minimums: BTreeMap<String, i64>,
    /// The standby's slot on it, where one is wanted.
    pub(super) slot: Option<SlotFound>,
}

/// What became of asking it.
#[derive(Clone, Debug)]
pub enum Found {
    /// It answered.
    Here(Box<Primary>),
    /// It is down, or starts, or cannot be reached from here: why, in one line.
    Away(String),
}

impl Found {
    /// The server, when it answered.
    pub fn here(&self) -> Option<&Primary> {
        match self {
            Self::Here(primary) => Some(primary),
            Self::Away(_) => None,
        }
    }
}

/// A server that was stopped a moment ago may still hold its slot: so often, and this long apart, is looked whether it is free.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// Asks; a slot that is in use is asked for again.
pub(super) async fn look_until_free(options: &ConnectOptions, slot: Option<&SlotName>) -> Result<Found> {
    let mut looks = 1;
    loop {
        let found = look(options, slot).await?;
        let taken = found.here().is_some_and(|primary| primary.slot == Some(SlotFound::Active));
        if !taken || looks >= LOOKS {
            return Ok(found);
        }
        looks += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks. A server that runs and does not let us in would not let the standby in either: that is an error.
async fn look(options: &ConnectOptions, slot: Option<&SlotName>) -> Result<Found> {
    let doing = "cannot ask the primary of the standby";
    match ask(options, slot).await {
        Ok(Ok(primary)) => Ok(Found::Here(Box::new(primary))),
        Ok(Err(error)) => Err(error),
        Err(error) if error.is_transient() => Ok(Found::Away(error.to_string())),
        Err(error) => Err(error
            .explain(doing)
            .help("the standby would be refused as well: correct --primary-conninfo, or leave it to an HA manager with --no-config")),
    }
}

async fn ask(options: &ConnectOptions, slot: Option<&SlotName>) -> std::result::Result<Result<Primary>, PgError> {
    let mut connection = ReplicationConnection::connect(options).await?;
    let system = connection.identify_system().await?;
    let history = if system.timeline == TimelineId::FIRST {
        TimelineHistory::root(system.timeline)
    } else {
        let (name, bytes) = connection.timeline_history(system.timeline).await?;
        match TimelineHistory::parse(system.timeline, &bytes) {
            Ok(history) => history,
            Err(error) => {
                let message = format!("{} of the primary cannot be read", name);
                return Ok(Err(Error::new(ErrorCode::PostgresFailed, message).because(error)));
            }
        }
    };
    let mut minimums = BTreeMap::new();
    for name in MINIMUMS {
        match connection.show(name).await {
            Ok(text) => minimums.extend(text.parse().ok().map(|value| (name.to_owned(), value))),
            // Not shown to this role: nothing is known of it.
            Err(PgError::Server(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let slot = match slot {
        Some(name) => Some(slot::find(&mut connection, options, name).await?),
        None => None,
    };
    Ok(Ok(Primary {
        host: connection.host().clone(),
        system_identifier: system.system_identifier,
        history,
        flush_lsn: system.flush_lsn,
        minimums,
        slot,
    }))
}
