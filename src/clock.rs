//! The only caller of the system clock: everything else gets the time as an argument or through [`Clock`].

use std::fmt::Debug;
use std::time::Instant;

use chrono::{DateTime, Utc};

/// Where the time comes from.
pub trait Clock: Send + Sync + Debug {
    /// The wall clock, for people and for names; never for ordering or timeouts.
    fn now(&self) -> DateTime<Utc>;

    /// The monotonic clock, for intervals.
    fn instant(&self) -> Instant;
}

/// The clock of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    fn instant(&self) -> Instant {
        Instant::now()
    }
}
