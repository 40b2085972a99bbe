//! When to tell the server something, and when its silence means that it is gone. Pure.

use std::time::Duration;

use crate::primary::StatusUpdate;
use wal::Lsn;

/// Longest pause between status updates.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Silence that we bear from a server without `wal_sender_timeout`.
const SILENCE: Duration = Duration::from_secs(90);
/// Longest silence before we ask, so that the connection's own deadline is never reached on a live server.
const ASK_AFTER: Duration = Duration::from_secs(45);

/// The rhythm of one connection, from the server's `wal_sender_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cadence {
    /// A status update at least so often.
    pub(super) status: Duration,
    /// After so long without a message the server is asked for one.
    pub(super) ask: Duration,
    /// After so long without a message the connection is given up.
    pub(super) silence: Duration,
}

impl Cadence {
    /// From the answer to `SHOW wal_sender_timeout`; what cannot be read counts as the default of a minute.
    pub(super) fn from_setting(text: &str) -> Self {
        let timeout = parse_duration(text).unwrap_or(Duration::from_secs(60));
        let silence = if timeout.is_zero() { SILENCE } else { timeout.mul_f64(1.5) };
        let status = if timeout.is_zero() { STATUS_EVERY } else { STATUS_EVERY.min(timeout / 4) };
        // The server asks for a reply after half of its timeout; past that we ask whether it is still there.
        Self { status: status.max(Duration::from_millis(100)), ask: silence.mul_f64(0.6).min(ASK_AFTER), silence }
    }
}

/// Reads a time as SHOW prints it: `1min`, `500ms`, `30s`, `0`.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let millis = match &text[digits.len()..] {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// What is reported to the server.
///
/// `flush` is what is durable, and never more than the server has sent (again) in this session: what is held from before
/// counts once it was compared. Before `from` nothing is reported as flushed: the slot stands there, and would go back
/// (`PhysicalConfirmReceivedLocation`, walsender.c). `apply` is nothing unless asked for: no row can be read from an archive.
pub(super) fn report(
    (received, durable): (Lsn, Lsn),
    from: Lsn,
    report_apply: bool,
    reply_requested: bool,
) -> StatusUpdate {
    let flush = if received < from { Lsn::INVALID } else { durable.min(received) };
    StatusUpdate { write: received, flush, apply: if report_apply { flush } else { Lsn::INVALID }, reply_requested }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rhythm_follows_the_servers_timeout() {
        let secs = Duration::from_secs;
        let usual = Cadence::from_setting("1min");
        assert_eq!((usual.status, usual.silence), (secs(10), secs(90)));
        let short = Cadence::from_setting("2s");
        assert_eq!((short.status, short.silence), (Duration::from_millis(500), secs(3)));
        let never = Cadence::from_setting("0");
        assert_eq!((never.status, never.silence), (secs(10), secs(90)));
        assert_eq!(Cadence::from_setting("nonsense"), usual);
        assert!(usual.ask < usual.silence && short.ask < short.silence);
    }

    #[test]
    fn flush_is_never_ahead_of_the_disk_nor_of_what_was_sent() {
        let at = Lsn::new;
        let told = |received, durable, apply| {
            let update = report((at(received), at(durable)), at(30), apply, false);
            (update.write.as_u64(), update.flush.as_u64(), update.apply.as_u64())
        };
        assert_eq!(told(100, 60, false), (100, 60, 0));
        assert_eq!(told(100, 60, true), (100, 60, 60));
        // Held from before and not sent again yet.
        assert_eq!(told(40, 60, false), (40, 40, 0));
        // Of the segment before, which is only compared.
        assert_eq!(told(29, 60, true), (29, 0, 0));
    }
}
