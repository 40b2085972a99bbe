//! The archiver's writing side: segments in parallel, confirmed in order; tails one at a time; files removed behind.

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use wal::{SegmentName, WalRange};

use super::store::TailPiece;
use super::{Archiver, Run, STRIDE};
use crate::error::{Error, ErrorCode};
use crate::spool::{Held, SpoolError};
use crate::wal_pipeline::Fact;

impl Archiver {
    pub(super) fn start_uploads(&self, run: &mut Run) {
        while run.uploading.len() < self.uploads.max(1) {
            let Some((name, index)) = run.queue.pop_front() else { return };
            let last_commit = index.last_commit.map(|mark| Fact { lsn: mark.lsn, time: mark.time });
            let store = run.store.clone();
            let upload = async move {
                store.segment(name, index).await;
                (name, last_commit)
            };
            run.uploading.push_back(AbortOnDropHandle::new(tokio::spawn(upload)));
        }
    }

    /// When it is time: what is new in the open segment becomes a tail. Returns when it will be time.
    pub(super) fn cut_tail(&self, run: &mut Run, stopping: bool) -> Option<Instant> {
        let cursor = run.cursor.as_mut()?;
        let name = cursor.name();
        let (from, _) = cursor.tail();
        let to = cursor.position();
        let large = to.bytes_since(from) >= STRIDE;
        let wanted = match self.spool.get(name) {
            // After a failed write the spool may hold less than was scanned; it is received again.
            Some(Held::Open { durable }) => !self.max_rpo.is_zero() && to <= durable,
            // The rest of it comes with `leave`.
            Some(Held::Left { end }) => large && to <= end,
            Some(Held::Complete) | None => false,
        };
        // What waits behind whole segments would not be reachable yet; and one small piece at a time is enough.
        let first_in_line = run.queue.is_empty() && run.tails.is_empty() && run.tail_in_flight.is_none();
        if !wanted || to <= from || run.halted.is_some() || !(first_in_line || large) {
            return None;
        }
        // The receiver lets WAL be volatile for up to a quarter of the time.
        let due = run.last_tail + self.max_rpo.mul_f64(0.75);
        if !(stopping || large || Instant::now() >= due) {
            return Some(due);
        }
        let (from, index) = cursor.next_tail();
        run.tails.push_back(TailPiece { segment: name, from, to, index: index.clone() });
        run.last_tail = Instant::now();
        cursor.cut_tail();
        None
    }

    pub(super) fn start_tail(&self, run: &mut Run) {
        if run.tail_in_flight.is_some() {
            return;
        }
        if let Some(piece) = run.tails.pop_front() {
            let name = piece.segment;
            let task = AbortOnDropHandle::new(tokio::spawn(run.store.clone().tail(piece)));
            run.tail_in_flight = Some((name, task));
        }
    }

    /// The next segment in order is confirmed.
    pub(super) async fn stored(
        &self,
        run: &mut Run,
        stored: Result<(SegmentName, Option<Fact>), tokio::task::JoinError>,
    ) {
        let (name, last_commit) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let error =
                    Error::new(ErrorCode::Unclassified, "storing a segment ended without an answer").because(error);
                self.told("other", error);
                run.begin_again(&self.spool);
                return;
            }
        };
        let start = self.spool.start_of(name);
        let end = self.spool.end_of(name, Held::Complete);
        run.confirmed.insert(name);
        run.tail_ends.retain(|&segment, _| segment > name);
        // Stored whole, its tails mean nothing any more; a put that is dropped leaves a whole object or none.
        run.tail_in_flight.take_if(|(segment, _)| *segment == name);
        run.tails.retain(|piece| piece.segment != name);
        run.store.alarms.done(name);
        self.board.update(|status| {
            status.archived = Some(end);
            status.counters.segments_archived += 1;
            if last_commit.is_some() {
                status.last_archived_commit = last_commit;
            }
        });
        if let Err(error) = self.gaps.prove(WalRange { timeline: name.timeline(), start, end }) {
            self.told("spool", error);
        }
        self.tell_shipped(run);
        self.sweep(run).await;
    }

    pub(super) async fn tail_stored(&self, run: &mut Run, piece: Result<TailPiece, tokio::task::JoinError>) {
        run.tail_in_flight = None;
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                self.told(
                    "other",
                    Error::new(ErrorCode::Unclassified, "storing a tail ended without an answer").because(error),
                );
                // Later pieces would not be reachable without this one.
                run.begin_again(&self.spool);
                return;
            }
        };
        if let Some(mark) = piece.index.last_commit {
            let fact = Fact { lsn: mark.lsn, time: mark.time };
            self.board.update(|status| status.last_archived_commit = Some(fact));
        }
        run.tail_ends.insert(piece.segment, piece.to);
        if matches!(self.spool.get(piece.segment), Some(Held::Left { end }) if end <= piece.to) {
            run.confirmed.insert(piece.segment);
        }
        self.tell_shipped(run);
        self.sweep(run).await;
    }

    /// Removes confirmed files from the spool, all but the last complete one.
    ///
    /// Proof: a name is in `confirmed` only after the repository has answered for exactly its bytes; files are removed
    /// only from the front, so everything that is not confirmed, and the segment before it, stays.
    async fn sweep(&self, run: &mut Run) {
        let mut front: Vec<(SegmentName, Held)> = Vec::new();
        while let Some(next) = self.spool.next_after(front.last().map(|(name, _)| *name))
            && run.confirmed.contains(&next.0)
        {
            front.push(next);
        }
        let Some(keep) = front.iter().rposition(|(_, held)| *held == Held::Complete) else { return };
        for &(name, _) in &front[..keep] {
            let spool = self.spool.clone();
            match spawn_blocking(move || spool.remove(name)).await {
                Ok(Ok(())) => {
                    run.confirmed.remove(&name);
                }
                Ok(Err(error)) => self.told("spool", error.into()),
                Err(error) => self.told("spool", SpoolError::Helper(error.to_string()).into()),
            }
        }
    }
}
