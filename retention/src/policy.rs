//! The rules for how long backups and WAL are kept.

use std::time::Duration;

/// How long backups and WAL are kept. A backup is obsolete when *no* rule needs it; without any rule nothing ever is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Every moment in this last span can be recovered.
    pub recovery_window: Option<Duration>,
    /// So many of the newest usable backups are kept; 0 for no such rule.
    pub redundancy: u32,
    /// The newest backup of each of the last so many days that have one (UTC); 0 for no such rule.
    pub keep_daily: u32,
    /// The same for ISO weeks.
    pub keep_weekly: u32,
    /// The same for months.
    pub keep_monthly: u32,
    /// The same for years.
    pub keep_yearly: u32,
    /// Continuous WAL is kept for this last span only, though older backups are kept (each with the WAL that makes it
    /// consistent); none: all WAL since the oldest kept backup. Never less than `recovery_window`.
    pub wal_window: Option<Duration>,
}

impl Policy {
    /// Whether any rule says that backups may be forgotten.
    pub fn forgets_backups(&self) -> bool {
        let counts = [self.redundancy, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        self.recovery_window.is_some() || counts.iter().any(|&count| count > 0)
    }

    /// The span for which WAL is kept without a hole; none: since the oldest kept backup.
    pub(crate) fn effective_wal_window(&self) -> Option<Duration> {
        self.wal_window.map(|window| window.max(self.recovery_window.unwrap_or_default()))
    }
}
