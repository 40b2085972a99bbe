//! Waits for the disk, so that the read loop does not, and tells the server at once what the disk has.
//!
//! Bytes are written by the read loop; what they amount to stands in [`GroupCommit`], which both sides share. A job is done by
//! a thread of its own, or, when it is short and commits wait for it, as an errand of the thread that reads: then nobody has to
//! be woken between the packet and the answer. Whoever does a job tells the server as well: the read loop is not woken for it.

use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use wal::Lsn;

use super::errands::{Errand, Errands};
use super::group_commit::{GroupCommit, SyncJob};
use crate::spool::{CompleteSegment, SpoolError, SyncHandle};

/// Syncing so many bytes is an errand; more is left to the thread, so that reading goes on meanwhile.
const SHORT: u64 = 256 << 10;

/// Tells the server where we are. Called by whoever has synced, and must not wait.
pub(super) trait Tell: Send + Sync + Debug {
    /// Whether it was told; if not, the read loop does it.
    fn try_tell(&self) -> bool;
}

/// The positions of an intake. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    shared: Arc<Shared>,
}

impl Positions {
    /// First byte that the server has not sent (again) in this session, and first byte that a power loss might take.
    pub(super) fn get(&self) -> (Lsn, Lsn) {
        let state = self.shared.state();
        (state.position, state.commit.durable())
    }
}

/// What makes the bytes of one intake durable. Dropped, its thread ends after the job that it has.
#[derive(Debug)]
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), SpoolError>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes the read loop.
    done: Notify,
}

#[derive(Debug)]
struct State {
    commit: GroupCommit<CompleteSegment>,
    position: Lsn,
    /// What to sync of the segment that is being written.
    open: Option<SyncHandle>,
    tell: Option<Arc<dyn Tell>>,
    /// Where short jobs are asked for; without it the thread does them too.
    errands: Option<Errands>,
    /// What ended an errand.
    failure: Option<SpoolError>,
    /// The thread has nothing to do and sleeps.
    sleeps: bool,
    /// The read loop waits for the end of a job.
    awaited: bool,
    closed: bool,
}

impl Syncer {
    /// Begins at `position`; everything before `durable` is on disk.
    pub(super) fn start(position: Lsn, durable: Lsn) -> Self {
        let state = State {
            commit: GroupCommit::new(durable),
            position,
            open: None,
            tell: None,
            errands: None,
            failure: None,
            sleeps: false,
            awaited: false,
            closed: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), done: Notify::new() });
        let thread = Some(spawn_blocking({
            let shared = Arc::clone(&shared);
            move || shared.run()
        }));
        Self { shared, thread }
    }

    /// From here on the server is told by the syncing thread.
    pub(super) fn tell_through(&self, tell: Arc<dyn Tell>) {
        self.shared.state().tell = Some(tell);
    }

    /// From here on what is short is synced by the thread that reads. To be asked for by its task alone.
    pub(super) fn run_errands_of(&self, errands: Errands) {
        self.shared.state().errands = Some(errands);
    }

    /// The positions, for whoever tells them.
    pub(super) fn positions(&self) -> Positions {
        Positions { shared: Arc::clone(&self.shared) }
    }

    /// Bytes up to `position` were written. `open` syncs the segment that they are in, as far as it is written now.
    pub(super) fn written(&self, position: Lsn, open: SyncHandle) {
        let mut state = self.shared.state();
        state.position = position;
        state.commit.written(position);
        state.open = Some(open);
        self.shared.begin_if_due(state);
    }

    /// Bytes up to `position` are those that were held before: there is nothing to sync.
    pub(super) fn compared(&self, position: Lsn) {
        self.shared.state().position = position;
    }

    /// The segment that was written is complete.
    pub(super) fn complete(&self, segment: CompleteSegment) {
        let mut state = self.shared.state();
        state.position = segment.end();
        state.open = None;
        let end = segment.end();
        state.commit.segment_complete(segment, end);
        self.shared.begin_if_due(state);
    }

    /// Someone waits for what was received so far.
    pub(super) fn want(&self) {
        let mut state = self.shared.state();
        state.commit.want();
        self.shared.begin_if_due(state);
    }

    /// Whether everything received is durable.
    pub(super) fn is_clean(&self) -> bool {
        self.shared.state().commit.is_clean()
    }

    /// Returns when the read loop has to look again: to tell the server what is durable, because whoever synced could not,
    /// or to ask for what is to be synced next; an error when nothing is synced any more. Cancel-safe.
    pub(super) async fn untold(&mut self) -> Result<(), SpoolError> {
        let Some(thread) = &mut self.thread else { return Err(SpoolError::Helper("it has ended".to_owned())) };
        let ended = tokio::select! {
            () = self.shared.done.notified() => return self.shared.failure(),
            ended = thread => ended,
        };
        self.thread = None;
        match ended {
            Ok(Err(error)) => Err(error),
            // It ends by itself only after an error. Helpers are not cancelled, so this one has panicked: nothing is known.
            Ok(Ok(())) => Err(SpoolError::Helper("it has ended".to_owned())),
            Err(error) => Err(SpoolError::Helper(error.to_string())),
        }
    }

    /// Makes everything durable that was received. After a failed sync there is nothing left to do for it.
    pub(super) async fn flush(&mut self) -> Result<(), SpoolError> {
        loop {
            {
                let mut state = self.shared.state();
                if state.commit.is_clean() || state.commit.has_failed() {
                    return Ok(());
                }
                state.awaited = true;
                state.commit.want();
                self.shared.begin_if_due(state);
            }
            self.untold().await?;
        }
    }

    /// Ends the thread after the job that it has.
    pub(super) async fn close(mut self) -> Result<(), SpoolError> {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            thread.await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string())))?;
        }
        self.shared.failure()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// The thread: one job after the other, until it is closed or one fails.
    ///
    /// Proof that nothing is reported before it is durable: `written` is called after the bytes were handed to the system
    /// and under the lock under which the job is made, so the job's sync begins after its bytes were written; `durable`
    /// moves only after that sync has succeeded; and whoever tells reads it from here. After an error nothing is synced any
    /// more: a failed fsync is never repeated on the same file.
    fn run(&self) -> Result<(), SpoolError> {
        while let Some(job) = self.next_job() {
            self.work(job)?;
            self.tell();
            if self.state().next_is_errand() {
                self.done.notify_one();
            }
        }
        Ok(())
    }

    /// Does a job that was taken, and gives no other one out after an error.
    fn work(&self, job: SyncJob<CompleteSegment, SyncHandle>) -> Result<(), SpoolError> {
        let ended = run(job);
        let mut state = self.state();
        match ended {
            Ok(end) => {
                state.commit.succeeded(end);
                Ok(())
            }
            Err(error) => {
                state.commit.failed();
                Err(error)
            }
        }
    }

    /// Tells the server what is durable now, and wakes the read loop where there is something to do for it.
    fn tell(&self) {
        let tell = self.state().tell.clone();
        let told = tell.is_none_or(|tell| tell.try_tell());
        let awaited = std::mem::take(&mut self.state().awaited);
        if !told || awaited {
            self.done.notify_one();
        }
    }

    /// Waits for something to do; `None` when it shall end.
    fn next_job(&self) -> Option<SyncJob<CompleteSegment, SyncHandle>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            // An errand's bytes and a job of ours cannot be in flight together: `GroupCommit` gives out one at a time.
            if !state.next_is_errand()
                && let Some(job) = state.next_job()
            {
                return Some(job);
            }
            state.sleeps = true;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleeps = false;
        }
    }

    /// Has the next job done, if there is one, by whoever shall do it.
    fn begin_if_due(self: &Arc<Self>, state: MutexGuard<'_, State>) {
        match &state.errands {
            Some(errands) if state.next_is_errand() => errands.ask(Arc::clone(self) as Arc<dyn Errand>),
            _ => self.wake_if_due(state),
        }
    }

    fn wake_if_due(&self, mut state: MutexGuard<'_, State>) {
        if state.sleeps && state.commit.is_due() {
            // Not again before it has looked.
            state.sleeps = false;
            drop(state);
            self.work.notify_one();
        }
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        // It holds our positions, and the connection: neither may outlive the intake.
        let tell = state.tell.take();
        drop(state);
        drop(tell);
        self.work.notify_one();
    }

    /// Why an errand failed, once.
    fn failure(&self) -> Result<(), SpoolError> {
        self.state().failure.take().map_or(Ok(()), Err)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Errand for Shared {
    /// As the thread does, for as long as the next job is an errand: while a slow one was run, more may have arrived.
    fn run(&self) {
        loop {
            let mut state = self.state();
            let job = if !state.closed && state.next_is_errand() { state.next_job() } else { None };
            let Some(job) = job else { return self.wake_if_due(state) };
            drop(state);
            match self.work(job) {
                Ok(()) => self.tell(),
                Err(error) => {
                    self.state().failure = Some(error);
                    self.done.notify_one();
                }
            }
        }
    }
}

impl State {
    fn next_job(&mut self) -> Option<SyncJob<CompleteSegment, SyncHandle>> {
        let Self { commit, open, .. } = self;
        commit.next_job(|| {
            let open = open.take()?;
            let end = open.end();
            Some((open, end))
        })
    }

    /// Whether what is due next is short, and there is somebody who runs errands.
    fn next_is_errand(&self) -> bool {
        self.errands.is_some() && self.commit.is_due() && self.commit.is_short(SHORT)
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

#[cfg(test)]
mod tests;
