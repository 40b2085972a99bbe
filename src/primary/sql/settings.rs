//! Settings as `pg_settings` shows them: a number and its unit.

use std::collections::HashMap;
use std::time::Duration;

use super::ServerSettings;

/// The settings that are asked for.
pub(super) const NAMES: [&str; 17] = [
    "wal_level",
    "max_slot_wal_keep_size",
    "wal_keep_size",
    "wal_sender_timeout",
    "idle_replication_slot_timeout",
    "synchronous_standby_names",
    "synchronous_commit",
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_replication_slots",
    "data_checksums",
    "full_page_writes",
    "summarize_wal",
    "data_directory",
];

/// Value and unit by name.
pub(super) type Rows = HashMap<String, (String, Option<String>)>;

/// Understands what the server showed.
pub(super) fn read(rows: &Rows) -> ServerSettings {
    let text = |name: &str| rows.get(name).map(|(value, _)| value.clone());
    let number = |name: &str| text(name)?.parse::<u32>().ok();
    let flag = |name: &str| text(name).map(|value| value == "on");
    ServerSettings {
        wal_level: text("wal_level"),
        max_slot_wal_keep_size: rows.get("max_slot_wal_keep_size").map(|(value, unit)| bytes(value, unit.as_deref())),
        wal_keep_size: rows.get("wal_keep_size").and_then(|(value, unit)| bytes(value, unit.as_deref())),
        wal_sender_timeout: duration(rows, "wal_sender_timeout"),
        idle_replication_slot_timeout: duration(rows, "idle_replication_slot_timeout"),
        synchronous_standby_names: text("synchronous_standby_names"),
        synchronous_commit: text("synchronous_commit"),
        max_connections: number("max_connections"),
        max_worker_processes: number("max_worker_processes"),
        max_wal_senders: number("max_wal_senders"),
        max_prepared_transactions: number("max_prepared_transactions"),
        max_locks_per_transaction: number("max_locks_per_transaction"),
        max_replication_slots: number("max_replication_slots"),
        data_checksums: flag("data_checksums"),
        full_page_writes: flag("full_page_writes"),
        summarize_wal: flag("summarize_wal"),
        data_directory: text("data_directory"),
    }
}

/// A size; `None` for -1, "no limit".
fn bytes(value: &str, unit: Option<&str>) -> Option<u64> {
    let factor = match unit {
        None | Some("B") => 1,
        Some("kB") => 1 << 10,
        Some("8kB") => 8 << 10,
        Some("MB") => 1 << 20,
        Some("GB") => 1 << 30,
        Some(_) => return None,
    };
    value.parse::<u64>().ok()?.checked_mul(factor)
}

fn duration(rows: &Rows, name: &str) -> Option<Duration> {
    let (value, unit) = rows.get(name)?;
    let factor = match unit.as_deref() {
        Some("ms") => 1,
        Some("s") => 1000,
        Some("min") => 60_000,
        _ => return None,
    };
    Some(Duration::from_millis(value.parse::<u64>().ok()?.checked_mul(factor)?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Rows, read};

    #[test]
    fn settings_are_read_with_their_units() {
        let rows: Rows = [
            ("max_slot_wal_keep_size", "-1", Some("MB")),
            ("wal_keep_size", "256", Some("MB")),
            ("wal_sender_timeout", "60000", Some("ms")),
            ("idle_replication_slot_timeout", "3600", Some("s")),
            ("max_connections", "100", None),
            ("data_checksums", "off", None),
        ]
        .into_iter()
        .map(|(name, value, unit)| (name.to_owned(), (value.to_owned(), unit.map(str::to_owned))))
        .collect();
        let settings = read(&rows);
        assert_eq!(settings.max_slot_wal_keep_size, Some(None));
        assert_eq!(settings.wal_keep_size, Some(256 << 20));
        assert_eq!(settings.wal_sender_timeout, Some(Duration::from_secs(60)));
        assert_eq!(settings.idle_replication_slot_timeout, Some(Duration::from_secs(3600)));
        assert_eq!((settings.max_connections, settings.data_checksums), (Some(100), Some(false)));
        assert_eq!(settings.wal_level, None);
    }
}
