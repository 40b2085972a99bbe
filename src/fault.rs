//! Named points at which a test can make the process die, to see what a restart finds.

/// Every name that [`fault_point!`] is used with on the way of the WAL to the repository, for tests that go through all.
pub const FAULT_POINTS: &[&str] = &[
    "spool.created",
    "spool.reserved",
    "spool.named",
    "spool.written",
    "spool.synced",
    "spool.full_synced",
    "spool.renamed",
    "spool.published",
    "spool.removed",
    "receiver.history_kept",
    "receiver.timeline_left",
    "receiver.acknowledged",
    "archiver.scanned",
    "archiver.put",
    "archiver.tail_put",
    "archiver.history_put",
    "ledger.gap_recorded",
];

/// The same for `wal fetch` and its prefetcher.
pub const FETCH_FAULT_POINTS: &[&str] = &[
    "fetch.synced",
    "fetch.published",
    "fetch.answered",
    "prefetch.claimed",
    "prefetch.ready",
    "prefetch.answering",
    "prefetch.released",
];

/// The same for restores, in the order in which they are passed.
pub const RESTORE_FAULT_POINTS: &[&str] = &[
    "restore.mark",
    "restore.marked",
    "restore.unpublished",
    "restore.removed",
    "restore.prepared",
    "restore.written",
    "restore.copied",
    "restore.settings",
    "restore.synced",
    "restore.published",
    "restore.unmark",
    "restore.done",
];

/// The same for the commit of a backup, in the order in which they are passed.
pub const BACKUP_FAULT_POINTS: &[&str] = &[
    "backup.begun",
    "backup.pack_put",
    "backup.copied",
    "backup.server_manifest_put",
    "backup.proven",
    "backup.committed",
];

/// The same for the deletion of a backup, in the order in which they are passed.
pub const DELETE_FAULT_POINTS: &[&str] = &["delete.begin", "delete.unclaimed", "delete.uncommitted", "delete.done"];

/// Marks a step after which a crash must be survivable. Compiled in only with debug assertions or the feature
/// `fault-points`; the process aborts when `PGVAULT_FAULT_POINT` is `<name>` or `<name>:<n>` for the n-th passage.
#[macro_export]
macro_rules! fault_point {
    ($name:literal) => {
        #[cfg(any(debug_assertions, feature = "fault-points"))]
        $crate::fault::pass($name);
    };
}

/// Passes a fault point: returns, or aborts the process.
#[cfg(any(debug_assertions, feature = "fault-points"))]
pub fn pass(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("PGVAULT_FAULT_POINT").ok()?;
        let (name, count) = match text.rsplit_once(':') {
            Some((name, count)) => (name.to_owned(), count.parse().ok()?),
            None => (text, 1),
        };
        Some((name, count))
    });
    debug_assert!(
        [FAULT_POINTS, FETCH_FAULT_POINTS, RESTORE_FAULT_POINTS, BACKUP_FAULT_POINTS, DELETE_FAULT_POINTS]
            .iter()
            .any(|points| points.contains(&name)),
        "fault point {name} is not listed"
    );
    if let Some((armed, count)) = armed
        && armed == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        std::process::abort();
    }
}
