//! One sync in flight at a time; the next one covers everything that arrived meanwhile. Pure: it decides, others do.
//!
//! The position that may be reported as flushed is [`GroupCommit::durable`]. It moves only when a sync has succeeded that
//! was begun *after* the bytes before it were written, so it is never ahead of the disk.

use wal::Lsn;

/// What one sync makes durable: first the segments that became complete, in order, then the one being written.
#[derive(Debug)]
pub(super) struct SyncJob<C, S> {
    /// Complete segments, to be published under their bare names.
    pub(super) complete: Vec<C>,
    /// The segment being written, as of when the job was made; `None` when only complete segments are asked for.
    pub(super) open: Option<S>,
    /// First byte that the job says nothing about.
    pub(super) end: Lsn,
}

/// Decides when to sync what.
#[derive(Debug)]
pub(super) struct GroupCommit<C> {
    received: Lsn,
    durable: Lsn,
    complete: Vec<C>,
    complete_end: Lsn,
    wanted: bool,
    in_flight: bool,
    failed: bool,
}

impl<C> GroupCommit<C> {
    /// Everything before `durable` is on disk.
    pub(super) fn new(durable: Lsn) -> Self {
        Self {
            received: durable,
            durable,
            complete: Vec::new(),
            complete_end: durable,
            wanted: false,
            in_flight: false,
            failed: false,
        }
    }

    /// Bytes up to `end` were written, not synced.
    pub(super) fn written(&mut self, end: Lsn) {
        self.received = self.received.max(end);
    }

    /// A segment became complete; it ends at `end`.
    pub(super) fn segment_complete(&mut self, segment: C, end: Lsn) {
        self.written(end);
        self.complete.push(segment);
        self.complete_end = end;
    }

    /// Someone waits for what was received so far: the primary, or the clock.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether a sync has failed: none is begun any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether there is something to sync and nothing is being synced.
    pub(super) fn is_due(&self) -> bool {
        let wanted = self.wanted && self.received > self.durable;
        !self.in_flight && !self.failed && (wanted || !self.complete.is_empty())
    }

    /// Whether the next job is no more than `bytes` of the segment that is being written.
    pub(super) fn is_short(&self, bytes: u64) -> bool {
        self.complete.is_empty() && self.received.bytes_since(self.durable) <= bytes
    }

    /// What to sync now; `None` while a sync is in flight or when there is nothing to do. `open` gives the segment being
    /// written as it is at this moment.
    pub(super) fn next_job<S>(&mut self, open: impl FnOnce() -> Option<(S, Lsn)>) -> Option<SyncJob<C, S>> {
        if self.in_flight || self.failed {
            return None;
        }
        let wanted = std::mem::take(&mut self.wanted) && self.received > self.durable;
        let open = if wanted { open().filter(|&(_, end)| end > self.complete_end) } else { None };
        if self.complete.is_empty() && open.is_none() {
            return None;
        }
        let complete = std::mem::take(&mut self.complete);
        let (open, end) = match open {
            Some((open, end)) => (Some(open), end),
            None => (None, self.complete_end),
        };
        self.in_flight = true;
        Some(SyncJob { complete, open, end })
    }

    /// The sync in flight succeeded: everything before `end` is on disk.
    pub(super) fn succeeded(&mut self, end: Lsn) {
        self.in_flight = false;
        self.durable = self.durable.max(end);
    }

    /// The sync in flight failed. Nothing is synced any more: a failed fsync is never repeated on the same file.
    pub(super) fn failed(&mut self) {
        self.in_flight = false;
        self.failed = true;
    }

    /// First byte that a power loss might take.
    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    /// First byte that was not received.
    #[cfg(test)]
    pub(super) fn received(&self) -> Lsn {
        self.received
    }

    /// Whether everything received is on disk.
    pub(super) fn is_clean(&self) -> bool {
        !self.in_flight && self.complete.is_empty() && self.durable >= self.received
    }
}

#[cfg(test)]
mod tests;
