//! What is decided about one backup, and why.

use std::fmt;
use std::time::Duration;

use recovery::BackupId;

use crate::calendar::Period;

/// What is decided about one backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The backup.
    pub backup: BackupId,
    /// Whether it stays. What does not is obsolete: no longer needed, not yet deleted.
    pub keep: bool,
    /// Why: the rules that need it, or for each rule why it does not.
    pub reasons: Vec<Reason>,
}

/// Why a backup is kept, or why a rule does not need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Pinned by hand.
    Pinned,
    /// It is being copied right now.
    Running,
    /// Something reads it right now.
    InUse,
    /// The policy has no rule by which backups are forgotten.
    NoRule,
    /// The newest backup that can be restored cleanly.
    NewestUsable,
    /// Not usable, or damaged, but nothing newer can be restored cleanly.
    NothingNewerUsable,
    /// Among the newest so many.
    Redundancy(u32),
    /// Needed to reach the moments of this last span.
    RecoveryWindow(Duration),
    /// The newest of its day, week, month or year.
    NewestOf(Period),
    /// There are that many newer usable backups.
    BeyondRedundancy(u32),
    /// A newer usable backup finished before the recovery window starts.
    BeforeRecoveryWindow(Duration),
    /// Not the newest of any day, week, month or year that is kept.
    NoPeriod,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("kept by hand"),
            Self::Running => f.write_str("running"),
            Self::InUse => f.write_str("in use"),
            Self::NoRule => f.write_str("no retention rule"),
            Self::NewestUsable => f.write_str("newest usable backup"),
            Self::NothingNewerUsable => f.write_str("no newer usable backup"),
            Self::Redundancy(count) => write!(f, "redundancy {count}"),
            Self::RecoveryWindow(span) => write!(f, "recovery window {}", Span(*span)),
            Self::NewestOf(period) => period.fmt(f),
            Self::BeyondRedundancy(count) => write!(f, "{count} newer usable backups"),
            Self::BeforeRecoveryWindow(span) => write!(f, "before the recovery window {}", Span(*span)),
            Self::NoPeriod => f.write_str("not the newest of a kept day, week, month or year"),
        }
    }
}

/// A span as the configuration writes it: `7d`, `36h`, `90s`.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let unit = [(86_400, "d"), (3600, "h"), (60, "m")]
            .into_iter()
            .find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
        let (unit, name) = unit.unwrap_or((1, "s"));
        write!(f, "{}{name}", seconds / unit)
    }
}

/// Keeps backups that something reads right now, a restore for instance, whatever the policy says of them.
pub fn hold(verdicts: &mut [Verdict], in_use: &[BackupId]) {
    for verdict in verdicts.iter_mut().filter(|verdict| in_use.contains(&verdict.backup)) {
        if !verdict.keep {
            verdict.reasons.clear();
        }
        verdict.keep = true;
        verdict.reasons.push(Reason::InUse);
    }
}
