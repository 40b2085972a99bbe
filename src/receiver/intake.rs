//! Bytes of one timeline into the spool: writes inline, everything that waits for the disk on helper threads.

use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};
use wal::{Lsn, SegmentName, TimelineId};

use super::errands::Errands;
use super::syncer::{Positions, Syncer, Tell};
use crate::spool::{Held, HeldPrefix, SegmentFile, SentAgain, Space, Spool, SpoolError, SyncHandle, WriteError};

/// Takes in the WAL of one timeline, from a segment start on.
#[derive(Debug)]
pub(super) struct Intake {
    spool: Spool,
    timeline: TimelineId,
    position: Lsn,
    current: Option<SegmentFile>,
    /// The segment after the current one, being made ahead of time so that the read loop does not wait for it.
    spare: Option<Spare>,
    syncer: Syncer,
    space: Space,
    /// What another timeline's file says of the first segment's beginning.
    prefix: Option<HeldPrefix>,
    /// The segment before, which the server sends again for us to compare.
    again: Option<SentAgain>,
    /// Where what is taken in begins: what comes before is only compared.
    from: Lsn,
    /// Where what was held before ends.
    held: Lsn,
}

/// What is known of the first bytes that a server will send: they must be the same.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The beginning of a new timeline's first segment, which it has in common with its parent.
    pub(super) prefix: Option<HeldPrefix>,
    /// The whole segment before the one to go on with.
    pub(super) again: Option<SentAgain>,
}

#[derive(Debug)]
struct Spare {
    name: SegmentName,
    making: JoinHandle<Result<SegmentFile, SpoolError>>,
}

impl Intake {
    /// Goes on with what is held of the segment at `start`, or begins it. `known` is what the server's bytes are compared
    /// with before anything of them is taken in. With `synchronous`, segments are written with zeros ahead of time, so that a
    /// sync has nothing but the new bytes to write.
    pub(super) async fn open(
        spool: Spool,
        timeline: TimelineId,
        start: Lsn,
        known: Known,
        synchronous: bool,
    ) -> Result<Self, WriteError> {
        let Known { prefix, again } = known;
        let name = SegmentName::containing(timeline, start, spool.segment_size());
        let (current, held) = match spool.get(name) {
            Some(Held::Open { durable } | Held::Left { end: durable }) => {
                let spool = spool.clone();
                (Some(blocking(move || spool.resume(name, durable)).await?), durable)
            }
            // Begun with the first byte, not before: a server that refuses leaves no empty file behind.
            Some(Held::Complete) | None => (None, start),
        };
        // What is not settled is not told before it is: until then it counts for nothing in this session.
        let settled = current.as_ref().is_none_or(SegmentFile::is_settled);
        let position = again.as_ref().map_or(start, SentAgain::start);
        let syncer = Syncer::start(position, if settled { held } else { start });
        let space = if synchronous { Space::Written } else { Space::Reserved };
        Ok(Self { spool, timeline, position, current, spare: None, syncer, space, prefix, again, from: start, held })
    }

    /// Takes in the next bytes.
    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            if let Some(again) = &mut self.again {
                let taken = again.compare(bytes)?;
                bytes = &bytes[taken..];
                self.position = again.position();
                self.syncer.compared(self.position);
                self.again.take_if(|again| again.is_over());
                continue;
            }
            let segment = self.segment().await?;
            let taken = segment.write(bytes)?;
            bytes = &bytes[taken..];
            let (position, settled, open) = (segment.position(), segment.is_settled(), segment.sync_handle());
            self.position = position;
            if settled {
                self.written(open);
            }
        }
        Ok(())
    }

    async fn segment(&mut self) -> Result<&mut SegmentFile, WriteError> {
        let segment = match self.current.take() {
            Some(segment) => segment,
            None => {
                let name = SegmentName::containing(self.timeline, self.position, self.spool.segment_size());
                let mut segment = self.make_or_take_spare(name).await?;
                segment.activate(self.prefix.take());
                segment
            }
        };
        if self.spare.is_none() {
            self.make_spare(segment.end());
        }
        Ok(self.current.insert(segment))
    }

    async fn make_or_take_spare(&mut self, name: SegmentName) -> Result<SegmentFile, WriteError> {
        if let Some(spare) = self.spare.take() {
            match joined(spare.making.await) {
                Ok(made) if spare.name == name => return Ok(made),
                Ok(other) => blocking(move || other.discard()).await?,
                // There may be room by now.
                Err(_) => {}
            }
        }
        let (spool, space) = (self.spool.clone(), self.space);
        Ok(blocking(move || spool.create_in(name, space)).await?)
    }

    fn make_spare(&mut self, start: Lsn) {
        let name = SegmentName::containing(self.timeline, start, self.spool.segment_size());
        let (spool, space) = (self.spool.clone(), self.space);
        self.spare = Some(Spare { name, making: spawn_blocking(move || spool.create_in(name, space)) });
    }

    /// Bytes were written: the syncing thread gets the segment if it is complete, else what it may sync of it.
    fn written(&mut self, open: SyncHandle) {
        match self.current.take().map(SegmentFile::complete) {
            Some(Ok(complete)) => self.syncer.complete(complete),
            Some(Err(segment)) => {
                self.current = Some(segment);
                self.syncer.written(self.position, open);
            }
            None => {}
        }
    }

    /// Someone waits for what was received so far.
    pub(super) fn want_durable(&self) {
        self.syncer.want();
    }

    /// From here on the server is told what is durable by whoever makes it so.
    pub(super) fn tell_through(&self, tell: Arc<dyn Tell>) {
        self.syncer.tell_through(tell);
    }

    /// As [`Syncer::run_errands_of`].
    pub(super) fn run_errands_of(&self, errands: Errands) {
        self.syncer.run_errands_of(errands);
    }

    /// The positions, for whoever tells them.
    pub(super) fn positions(&self) -> Positions {
        self.syncer.positions()
    }

    /// As [`Syncer::untold`].
    pub(super) async fn untold(&mut self) -> Result<(), SpoolError> {
        self.syncer.untold().await
    }

    /// Makes everything durable that was received.
    pub(super) async fn flush(&mut self) -> Result<(), SpoolError> {
        self.syncer.flush().await
    }

    /// Ends the intake: waits for what runs, and removes the spare.
    pub(super) async fn close(self) -> Result<(), SpoolError> {
        self.syncer.close().await?;
        match self.spare {
            None => Ok(()),
            Some(spare) => match joined(spare.making.await) {
                Ok(made) => blocking(move || made.discard()).await,
                // It could not be made, and nothing needs it any more.
                Err(_) => Ok(()),
            },
        }
    }

    /// The timeline.
    pub(super) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// First byte that the server has not sent (again) in this session.
    pub(super) fn position(&self) -> Lsn {
        self.position
    }

    /// Where what is taken in begins: what the server sends before is only compared.
    pub(super) fn from(&self) -> Lsn {
        self.from
    }

    /// Where what was held before this intake began ends.
    pub(super) fn held(&self) -> Lsn {
        self.held
    }

    /// Whether everything received is durable.
    pub(super) fn is_clean(&self) -> bool {
        self.syncer.is_clean()
    }
}

/// Runs what waits for the disk on a helper thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    joined(spawn_blocking(work).await)
}

fn joined<T>(result: Result<Result<T, SpoolError>, tokio::task::JoinError>) -> Result<T, SpoolError> {
    match result {
        Ok(result) => result,
        // Helpers are not cancelled, so one that does not return has panicked: nothing is known about its file.
        Err(error) => Err(SpoolError::Helper(error.to_string())),
    }
}
