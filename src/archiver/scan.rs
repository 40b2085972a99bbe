//! The archiver's reading side: what became durable is scanned in order, segment by segment.

use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;
use wal::{PgTime, SegmentName};

use super::alarms::Doing;
use super::scanner::{Cursor, ScanError};
use super::store::TailPiece;
use super::{Archiver, Run, STORE_AGAIN, STRIDE, warm_up};
use crate::error::{Error, ErrorCode};
use crate::fault_point;
use crate::receiver::Backoff;
use crate::spool::{Held, SpoolError};

/// Why scanning did not get on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    WarmUp(#[from] warm_up::WarmUpError),
}

impl Archiver {
    /// After a restart: complete segments that the repository already has are only kept for reading on.
    pub(super) async fn skip_stored(&self, run: &mut Run) {
        let mut backoff = Backoff::up_to(STORE_AGAIN);
        for (name, held) in self.spool.held() {
            if held != Held::Complete {
                break;
            }
            loop {
                match warm_up::is_stored(&self.spool, &self.repository, name).await {
                    Ok(true) => {
                        run.done = Some(name);
                        run.confirmed.insert(name);
                        let end = self.spool.end_of(name, held);
                        self.board.update(|status| {
                            status.archived = status.archived.max(Some(end));
                            status.shipped = status.shipped.max(Some(end));
                        });
                        break;
                    }
                    Ok(false) => return,
                    Err(error) => {
                        self.told(
                            "other",
                            Error::new(ErrorCode::RepositoryDenied, "cannot see what is stored").caused_by(&error),
                        );
                        tokio::time::sleep(backoff.pause(rand::random())).await;
                    }
                }
            }
        }
    }

    /// Scans the next stretch of durable bytes; whether there is more to scan at once.
    pub(super) async fn scan(&self, run: &mut Run) -> Result<bool, Failure> {
        if run.halted.is_some() {
            return Ok(false);
        }
        self.take_up_again(run);
        let Some((name, held)) = self.spool.next_after(run.done) else { return Ok(false) };
        let end = self.spool.end_of(name, held);
        if run.cursor.as_ref().is_none_or(|cursor| cursor.name() != name) {
            run.cursor = Some(self.begin(run, name).await?);
        }
        let Some(mut cursor) = run.cursor.take() else { return Ok(false) };
        let before = cursor.before().clone();
        let until = end.min(cursor.position().saturating_add(STRIDE));
        let mut exposure = std::mem::take(&mut run.exposure);
        let spool = self.spool.clone();
        let (cursor, exposure, result) = spawn_blocking(move || {
            let result = cursor.advance(&spool, until, &mut exposure);
            (cursor, exposure, result)
        })
        .await
        .map_err(|error| SpoolError::Helper(error.to_string()))?;
        run.exposure = exposure;
        if let Err(error) = result {
            // From the start of the segment again, when it can be read.
            run.cursor = Some(Cursor::new(&self.spool, name, before));
            return Err(error.into());
        }
        fault_point!("archiver.scanned");
        if let Some(fact) = cursor.last_commit() {
            self.board.update(|status| status.last_commit = Some(fact));
        }
        if let Some(shipped) = self.board.read(|status| status.shipped) {
            // Found again after a restart, and stored before it.
            run.exposure.shipped(shipped);
        }
        let finished = cursor.position() >= end;
        match held {
            Held::Complete if finished => {
                run.queue.push_back((name, cursor.index().clone()));
                run.tails.retain(|piece| piece.segment != name);
                run.done = Some(name);
            }
            Held::Left { .. } if finished => {
                self.leave(run, &cursor, name);
                run.done = Some(name);
            }
            Held::Complete | Held::Left { .. } | Held::Open { .. } => {}
        }
        let more = !finished || !matches!(held, Held::Open { .. });
        run.cursor = Some(cursor);
        Ok(more)
    }

    /// A cursor at the start of `name`, going on from the one before where that is possible.
    async fn begin(&self, run: &mut Run, name: SegmentName) -> Result<Cursor, Failure> {
        let size = self.spool.segment_size();
        let timeline = name.timeline();
        if run.history.as_ref().is_none_or(|(known, _)| *known != timeline) {
            let put = run.store.clone().history(timeline);
            run.history = Some((timeline, AbortOnDropHandle::new(tokio::spawn(put))));
        }
        let previous = run.cursor.as_ref().filter(|cursor| run.done == Some(cursor.name()));
        let state = match previous {
            Some(cursor) if cursor.position() == self.spool.start_of(name) => cursor.after(),
            // The new timeline's version of the segment in which the old one was left.
            Some(cursor) if cursor.name().number(size) == name.number(size) => cursor.before().clone(),
            _ => warm_up::warm_up(&self.spool, &self.repository, name).await?,
        };
        let mut cursor = Cursor::new(&self.spool, name, state);
        // Only an earlier run can have stored tails of it: what comes while we run is scanned without the store, so that
        // what waits for one that is away is known. Another daemon's tails are of the same bytes.
        if run.held_at_start.is_some_and(|last| name <= last)
            && self.spool.get(name) != Some(Held::Complete)
            && let Some(chain) = self.repository.tail_chain(name).await.map_err(warm_up::WarmUpError::from)?
        {
            cursor.skip_tail(chain.end);
            run.tail_ends.insert(name, chain.end);
        }
        self.tell_shipped(run);
        Ok(cursor)
    }

    /// A segment that was left, and that is written to again after all, has to be stored like any other.
    fn take_up_again(&self, run: &mut Run) {
        let goes_on = |name: &SegmentName| matches!(self.spool.get(*name), Some(Held::Open { .. } | Held::Complete));
        let Some(name) = run.left.iter().copied().find(goes_on) else { return };
        run.left.retain(|&left| left < name);
        run.confirmed.retain(|&confirmed| confirmed < name);
        run.begin_again(&self.spool);
    }

    /// Nothing more will come for a segment: what there is of it is stored as its last tail, wanted or not.
    fn leave(&self, run: &mut Run, cursor: &Cursor, name: SegmentName) {
        let Some(held) = self.spool.get(name) else { return };
        let (start, end) = (self.spool.start_of(name), self.spool.end_of(name, held));
        let (from, index) = cursor.tail();
        run.left.insert(name);
        if from < end {
            run.tails.push_back(TailPiece { segment: name, from, to: end, index: index.clone() });
        } else if end == start || run.tail_ends.get(&name).is_some_and(|&stored| stored >= end) {
            run.confirmed.insert(name);
        }
        // Else its last piece was cut before, and is still on its way: `tail_stored` confirms.
    }

    /// What commits in WAL that is not scanned is not known: until that WAL is stored, it counts as a commit of now.
    fn expose_from(&self, run: &mut Run, segment: SegmentName) {
        let offset = self.board.read(|status| status.clock_offset_micros.unwrap_or(0));
        let now = PgTime::from(self.clock.now()).as_micros().saturating_sub(offset);
        let end = self.spool.end_of(segment, Held::Complete);
        run.exposure.committed(end, PgTime::from_micros(now));
    }

    pub(super) fn scan_failed(&self, run: &mut Run, failure: Failure) {
        match failure {
            Failure::Scan(ScanError::Damaged { segment, error }) => {
                run.halted = Some(segment);
                self.expose_from(run, segment);
                tracing::error!(%segment, %error, "WAL in the spool is damaged: nothing from it on is stored");
                let error = Error::new(ErrorCode::Damaged, format!("segment {segment} in the spool is not valid WAL"))
                    .because(error)
                    .because("nothing from it on is stored, so that no recovery is silently wrong")
                    .because("the server is asked for it again by itself, as long as it still has it")
                    .help("look at the disk of the spool; when the server has it no more, take a new base backup");
                self.count("damaged");
                run.store.alarms.raise(segment, Doing::Reading, error);
            }
            Failure::Scan(ScanError::Spool(error)) | Failure::Spool(error) => self.told("spool", error.into()),
            Failure::WarmUp(error) => {
                let error =
                    Error::new(ErrorCode::RepositoryDenied, "cannot read what was stored last").caused_by(&error);
                self.told("other", error);
            }
        }
    }
}
