//! Bytes of one timeline into the spool: writes inline, everything that waits for the disk on helper threads.

use tokio::task::{JoinHandle, spawn_blocking};
use wal::{Lsn, SegmentName, TimelineId};

use super::group_commit::{GroupCommit, SyncJob};
use crate::spool::{CompleteSegment, Held, HeldPrefix, SegmentFile, Spool, SpoolError, SyncHandle, WriteError};

/// Takes in the WAL of one timeline, from a segment start on.
#[derive(Debug)]
pub(super) struct Intake {
    spool: Spool,
    timeline: TimelineId,
    position: Lsn,
    current: Option<SegmentFile>,
    /// The segment after the current one, being made ahead of time so that the read loop does not wait for it.
    spare: Option<Spare>,
    commit: GroupCommit<CompleteSegment>,
    sync: Option<JoinHandle<Result<Lsn, SpoolError>>>,
    /// What another timeline's file says of the first segment's beginning.
    prefix: Option<HeldPrefix>,
}

#[derive(Debug)]
struct Spare {
    name: SegmentName,
    making: JoinHandle<Result<SegmentFile, SpoolError>>,
}

impl Intake {
    /// Goes on with what is held of the segment at `start`, or begins it. `prefix` is what is known of a new one's
    /// beginning: the bytes that a timeline has in common with its parent.
    pub(super) async fn open(
        spool: Spool,
        timeline: TimelineId,
        start: Lsn,
        prefix: Option<HeldPrefix>,
    ) -> Result<Self, WriteError> {
        let name = SegmentName::containing(timeline, start, spool.segment_size());
        let (current, durable) = match spool.get(name) {
            Some(Held::Open { durable } | Held::Left { end: durable }) => {
                let spool = spool.clone();
                (Some(blocking(move || spool.resume(name, durable)).await?), durable)
            }
            // Begun with the first byte, not before: a server that refuses leaves no empty file behind.
            Some(Held::Complete) | None => (None, start),
        };
        let commit = GroupCommit::new(durable);
        Ok(Self { spool, timeline, position: start, current, spare: None, commit, sync: None, prefix })
    }

    /// Takes in the next bytes.
    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let segment = self.segment().await?;
            let taken = segment.write(bytes)?;
            bytes = &bytes[taken..];
            self.position = segment.position();
            self.commit.written(self.position);
            self.finish_full_segment();
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
        let spool = self.spool.clone();
        Ok(blocking(move || spool.create(name)).await?)
    }

    fn make_spare(&mut self, start: Lsn) {
        let name = SegmentName::containing(self.timeline, start, self.spool.segment_size());
        let spool = self.spool.clone();
        self.spare = Some(Spare { name, making: spawn_blocking(move || spool.create(name)) });
    }

    fn finish_full_segment(&mut self) {
        if let Some(segment) = self.current.take() {
            match segment.complete() {
                Ok(complete) => {
                    let end = complete.end();
                    self.commit.segment_complete(complete, end);
                }
                Err(segment) => self.current = Some(segment),
            }
        }
    }

    /// Someone waits for what was received so far.
    pub(super) fn want_durable(&mut self) {
        self.commit.want();
    }

    /// Begins a sync if one is due and none is running.
    pub(super) fn start_sync(&mut self) {
        let current = &self.current;
        let open = || current.as_ref().map(|segment| (segment.sync_handle(), segment.position()));
        if let Some(job) = self.commit.next_job(open) {
            self.sync = Some(spawn_blocking(move || run(job)));
        }
    }

    /// Waits for the sync in flight; never returns while none is. Cancel-safe: the sync goes on and is asked for again.
    pub(super) async fn synced(&mut self) -> Result<(), SpoolError> {
        let Some(sync) = &mut self.sync else { return std::future::pending().await };
        let result = joined(sync.await);
        self.sync = None;
        match result {
            Ok(end) => {
                self.commit.succeeded(end);
                Ok(())
            }
            Err(error) => {
                self.commit.failed();
                Err(error)
            }
        }
    }

    /// Makes everything durable that was received.
    pub(super) async fn flush(&mut self) -> Result<(), SpoolError> {
        loop {
            self.commit.want();
            self.start_sync();
            if self.sync.is_none() {
                return Ok(());
            }
            self.synced().await?;
        }
    }

    /// Ends the intake: waits for what runs, and removes the spare.
    pub(super) async fn close(mut self) -> Result<(), SpoolError> {
        if self.sync.is_some() {
            self.synced().await?;
        }
        match self.spare.take() {
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

    /// First byte that a power loss might take.
    pub(super) fn durable(&self) -> Lsn {
        self.commit.durable()
    }

    /// Whether everything received is durable.
    pub(super) fn is_clean(&self) -> bool {
        self.commit.is_clean()
    }
}

/// Publishes complete segments in order, then syncs the open one: an end is true only when all before it are durable.
fn run(job: SyncJob<CompleteSegment, SyncHandle>) -> Result<Lsn, SpoolError> {
    for complete in job.complete {
        complete.publish()?;
    }
    if let Some(open) = job.open {
        open.sync()?;
    }
    Ok(job.end)
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
