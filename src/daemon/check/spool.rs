//! The check of the spool: how full it is, when it will be full, and what that means for the primary.

use std::time::Duration;

use super::CheckStatus::{Failed, Ok as Fine, Skipped, Warn};
use super::Finding;
use crate::daemon::status::counted;
use crate::daemon::view::ClusterView;
use crate::wal_pipeline::{SpoolLevel, WalState, WalStatus};

/// A spool that is full sooner than that, while nothing is stored, is a reason to look.
const SOON: Duration = Duration::from_secs(24 * 3600);

/// Whether WAL can wait, and for how long.
pub(super) fn spool(view: &ClusterView) -> Finding {
    let name = "spool";
    let Some(wal) = &view.wal else { return Finding::new(name, Skipped, "no daemon runs") };
    let waiting = format!("{}, {} MB wait", counted(wal.spool_segments, "file"), wal.spool_bytes >> 20);
    let free = wal.spool_free_bytes.map_or_else(String::new, |bytes| format!(", {} MB free", bytes >> 20));
    let until_full = until_full(wal);
    let fix = "free the disk, raise `max_size` in [spool], or see why archiving lags: pgvault status";
    if wal.state == WalState::Stalled || wal.spool_level == SpoolLevel::Full {
        let kept = kept_by_the_primary(view);
        return Finding::new(name, Failed, format!("full: {waiting}{free}; nothing more is received{kept}")).fix(fix);
    }
    // A burst fills it as well; that is news only where nothing is stored meanwhile.
    let soon = wal.spool_time_left.is_some_and(|left| left < SOON) && wal.archive_error.is_some();
    match wal.spool_level {
        SpoolLevel::Normal if !soon => Finding::new(name, Fine, format!("{waiting}{free}{until_full}")),
        SpoolLevel::Normal => Finding::new(name, Warn, format!("fills: {waiting}{free}{until_full}")).fix(fix),
        SpoolLevel::High | SpoolLevel::Full => {
            Finding::new(name, Warn, format!("nearly full: {waiting}{free}{until_full}")).fix(fix)
        }
    }
}

/// What a full spool means for the primary: its slot retains what is not received.
fn kept_by_the_primary(view: &ClusterView) -> String {
    let safe = view.slots().find_map(|(member, row)| Some((&member.host, row.safe_wal_size?)));
    match safe {
        Some((host, bytes)) => {
            format!("; {host} keeps WAL for the slot and can write {} MB before it is lost", bytes >> 20)
        }
        None if view.slot.is_some() => "; the primary keeps WAL for the slot, without a limit that is known".to_owned(),
        None => "; there is no slot: the primary may remove WAL that was not received".to_owned(),
    }
}

/// When the spool is full if it goes on filling; nothing when it does not fill.
pub(in crate::daemon) fn until_full(wal: &WalStatus) -> String {
    wal.spool_time_left.map_or_else(String::new, |left| format!("; full in about {}", duration(left)))
}

/// `45 s`, `12 min`, `3 h 20 min`
fn duration(left: Duration) -> String {
    match left.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
