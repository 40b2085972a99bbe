//! What the archiver tells through the board.

use wal::PgTime;

use super::{Archiver, Run};
use crate::error::Error;

impl Archiver {
    pub(super) fn told(&self, reason: &'static str, error: Error) {
        self.count(reason);
        self.board.update(|status| status.archive_error = Some(error));
    }

    pub(super) fn count(&self, reason: &'static str) {
        self.board.update(|status| *status.counters.archive_errors.entry(reason).or_default() += 1);
    }

    /// What the repository holds without a hole: whole segments, and the tail right after them.
    pub(super) fn tell_shipped(&self, run: &mut Run) {
        let mut shipped = self.board.read(|status| status.archived);
        let mut timeline = None;
        let mut next = self.spool.next_after(None);
        while let Some((name, held)) = next {
            next = self.spool.next_after(Some(name));
            if run.confirmed.contains(&name) {
                shipped = Some(self.spool.end_of(name, held));
                timeline = Some(name.timeline());
                continue;
            }
            // A new timeline may begin before the end of what is stored of the one that was left.
            let begins = timeline.is_some_and(|before| before < name.timeline()).then(|| self.spool.start_of(name));
            shipped = run.tail_ends.get(&name).copied().or(begins).or(shipped);
            break;
        }
        if let Some(shipped) = shipped {
            run.exposure.shipped(shipped);
            self.board.update(|status| status.shipped = Some(shipped));
        }
    }

    pub(super) fn tell_exposure(&self, run: &Run) {
        let now = PgTime::from(self.clock.now());
        self.board.update_quietly(|status| {
            // The primary's clock made the commit times; the offset between the clocks is taken out.
            let offset = status.clock_offset_micros.unwrap_or(0);
            let age = run.exposure.oldest().map(|time| now.as_micros() - offset - time.as_micros());
            #[expect(clippy::cast_precision_loss, reason = "an age of centuries need not be exact")]
            let seconds = age.map_or(0.0, |micros| micros.max(1) as f64 / 1e6);
            status.rpo_seconds = seconds;
        });
    }
}
