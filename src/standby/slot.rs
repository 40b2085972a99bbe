//! The slot through which the standby follows its primary.

use crate::error::{Error, ErrorCode, Result};
use crate::primary::sql::{self, SlotRow};
use crate::primary::{ConnectOptions, PgError, ReplicationConnection, SlotName};

/// The longest name that a slot can have.
const LONGEST: usize = 63;

/// How a slot of the wanted name stands on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotFound {
    /// There is none.
    Missing,
    /// It is there, keeps WAL, and nobody uses it.
    Idle,
    /// It is there and of no use to anybody: invalidated, or made without reserving WAL and never used.
    KeepsNothing,
    /// Somebody streams through it.
    Active,
    /// It is a logical one.
    Logical,
    /// It is there; whether somebody uses it cannot be seen.
    Unseen,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotStep {
    /// Make it.
    Create,
    /// Make it anew in place of one that keeps nothing.
    Replace,
    /// Use the one that is there.
    Use,
}

impl SlotStep {
    /// In one word for documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Use => "use",
        }
    }
}

/// The name of the slot of a standby on this host where none is given: `<cluster>_<host>`, in letters that slots may have.
/// `None` where nothing is left of the two.
pub fn derived_name(cluster: &str, host: &str) -> Option<SlotName> {
    let plain = |text: &str| -> String {
        text.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    };
    let mut name = format!("{}_{}", plain(cluster), plain(host.trim()));
    name.truncate(LONGEST);
    SlotName::new(name.trim_matches('_')).ok()
}

/// Looks for the slot, by SQL; where that is not let in, by the replication protocol, which does not say who uses it.
pub(super) async fn find(
    connection: &mut ReplicationConnection,
    options: &ConnectOptions,
    name: &SlotName,
) -> std::result::Result<SlotFound, PgError> {
    let here = on_host(connection, options);
    let asked = async { sql::connect(&here).await?.slots().await };
    match asked.await {
        Ok(Some(slots)) => Ok(slots.iter().find(|row| row.name == name.as_str()).map_or(SlotFound::Missing, of_row)),
        Ok(None) | Err(_) => match connection.read_slot(name).await {
            Ok(None) => Ok(SlotFound::Missing),
            Ok(Some(_)) => Ok(SlotFound::Unseen),
            // PostgreSQL 14 does not know the command: whether the name is taken shows when it is made.
            Err(error) if matches!(error.sqlstate(), Some("0A000" | "42601")) => Ok(SlotFound::Missing),
            Err(PgError::Protocol(_)) => Ok(SlotFound::Logical),
            Err(error) => Err(error),
        },
    }
}

/// The options for the very server that answered.
fn on_host(connection: &ReplicationConnection, options: &ConnectOptions) -> ConnectOptions {
    let host = options.conninfo.hosts().iter().position(|host| host == connection.host());
    ConnectOptions { host, ..options.clone() }
}

fn of_row(row: &SlotRow) -> SlotFound {
    let lost = row.wal_status.as_deref() == Some("lost") || row.invalidation_reason.is_some();
    match row {
        row if !row.physical => SlotFound::Logical,
        row if row.active => SlotFound::Active,
        row if lost || row.restart_lsn.is_none() => SlotFound::KeepsNothing,
        _ => SlotFound::Idle,
    }
}

/// What to do about a slot that stands so, or why it cannot be the standby's.
pub(super) fn decide(found: SlotFound, name: &SlotName, host: &str, ours: Option<&SlotName>) -> Result<SlotStep> {
    let refuse = |why: &str| {
        Err(Error::new(ErrorCode::Refused, format!("slot \"{name}\" on {host} cannot be the standby's: {why}"))
            .because("nothing was changed")
            .help("name another one: --slot NAME"))
    };
    if ours == Some(name) {
        return refuse("pgvault streams through it");
    }
    match found {
        SlotFound::Missing => Ok(SlotStep::Create),
        SlotFound::KeepsNothing => Ok(SlotStep::Replace),
        SlotFound::Idle => Ok(SlotStep::Use),
        SlotFound::Active => refuse("another server streams through it"),
        SlotFound::Logical => refuse("it is a logical slot"),
        SlotFound::Unseen => refuse("it exists, and pg_replication_slots cannot be read to see whether it is in use"),
    }
}

/// Makes the slot, where it must be made, with WAL kept from now on.
///
/// It is asked for again first: hours may lie between the plan and this. One that was not there and is now is somebody else's
/// unless nobody uses it.
pub(super) async fn make(options: &ConnectOptions, name: &SlotName, ours: Option<&SlotName>) -> Result<SlotStep> {
    let doing = format!("cannot make slot \"{name}\"");
    let explain = |error: PgError| error.explain(doing.clone());
    let mut connection = ReplicationConnection::connect(options).await.map_err(explain)?;
    let found = find(&mut connection, options, name).await.map_err(explain)?;
    let step = decide(found, name, &connection.host().to_string(), ours)?;
    if step == SlotStep::Replace {
        connection.drop_slot(name).await.map_err(explain)?;
    }
    if step != SlotStep::Use {
        connection.create_physical_slot(name).await.map_err(explain)?;
    }
    Ok(step)
}

#[cfg(test)]
mod tests {
    use wal::Lsn;

    use super::*;

    fn name(text: &str) -> SlotName {
        SlotName::new(text).unwrap()
    }

    #[test]
    fn a_slot_is_named_after_the_cluster_and_the_host() {
        let derived = |cluster: &str, host: &str| derived_name(cluster, host).map(|name| name.to_string());
        assert_eq!(derived("main", "pg2\n").as_deref(), Some("main_pg2"));
        assert_eq!(derived("Main.eu", "PG-2.example").as_deref(), Some("main_eu_pg_2_example"));
        assert_eq!(derived("main", "é").as_deref(), Some("main"));
        assert_eq!(derived("-", "-"), None);
        assert_eq!(derived("main", &"h".repeat(100)).map(|name| name.as_str().len()), Some(63));
    }

    fn row(physical: bool, active: bool, wal_status: Option<&str>, restart_lsn: Option<Lsn>) -> SlotRow {
        SlotRow {
            name: "s".to_owned(),
            physical,
            active,
            wal_status: wal_status.map(str::to_owned),
            restart_lsn,
            safe_wal_size: None,
            invalidation_reason: None,
        }
    }

    #[test]
    fn a_slot_of_somebody_else_is_never_taken() {
        let at = Some(Lsn::new(0x100));
        let table = [
            (row(true, false, Some("reserved"), at), SlotFound::Idle),
            (row(true, true, Some("reserved"), at), SlotFound::Active),
            (row(true, false, Some("lost"), None), SlotFound::KeepsNothing),
            (row(true, false, None, None), SlotFound::KeepsNothing),
            (row(false, false, Some("reserved"), at), SlotFound::Logical),
        ];
        for (row, expected) in table {
            assert_eq!(of_row(&row), expected, "{row:?}");
        }
        let step = |found| decide(found, &name("s"), "pg1:5432", Some(&name("pgvault"))).map_err(|error| error.code());
        assert_eq!(step(SlotFound::Missing), Ok(SlotStep::Create));
        assert_eq!(step(SlotFound::Idle), Ok(SlotStep::Use));
        assert_eq!(step(SlotFound::KeepsNothing), Ok(SlotStep::Replace));
        for taken in [SlotFound::Active, SlotFound::Logical, SlotFound::Unseen] {
            assert_eq!(step(taken), Err(ErrorCode::Refused), "{taken:?}");
        }
        let ours = decide(SlotFound::Missing, &name("pgvault"), "pg1:5432", Some(&name("pgvault")));
        assert_eq!(ours.unwrap_err().code(), ErrorCode::Refused);
    }
}
