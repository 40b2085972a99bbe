//! The thread that waits for the disk, so that the read loop does not, and that tells the server at once what the disk has.
//!
//! Bytes are written by the read loop; what they amount to stands in [`GroupCommit`], which both sides share. The thread takes
//! a job, does it, and takes the next one: the read loop is not woken for it, and a commit that waits for us waits for one
//! change of threads less.

use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use wal::Lsn;

use super::arrivals::{Arrivals, Woken};
use super::group_commit::{GroupCommit, SyncJob};
use crate::spool::{CompleteSegment, SpoolError, SyncHandle};

/// How often the thread looks whether what has arrived is written, before it sleeps: for some tens of microseconds.
const LOOKS: u32 = 100;

/// Tells the server where we are. Called on the syncing thread, and must not wait.
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

/// The syncing thread of one intake. Dropped, it ends after the job that it has.
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
    /// What wakes the thread besides.
    arrivals: Option<Arc<Arrivals>>,
    /// The thread has nothing to do and sleeps.
    sleeps: bool,
    /// It sleeps where the bell of `arrivals` wakes it.
    rings: bool,
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
            arrivals: None,
            sleeps: false,
            rings: false,
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

    /// From here on the thread is woken by what arrives as well.
    pub(super) fn wake_by(&self, arrivals: Arrivals) {
        self.shared.state().arrivals = Some(Arc::new(arrivals));
        self.shared.work.notify_one();
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
        self.shared.wake_if_due(state);
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
        self.shared.wake_if_due(state);
    }

    /// Someone waits for what was received so far.
    pub(super) fn want(&self) {
        let mut state = self.shared.state();
        state.commit.want();
        self.shared.wake_if_due(state);
    }

    /// Whether everything received is durable.
    pub(super) fn is_clean(&self) -> bool {
        self.shared.state().commit.is_clean()
    }

    /// Returns when the server has to be told what is durable, because the syncing thread could not; an error when nothing
    /// is synced any more. Cancel-safe.
    pub(super) async fn untold(&mut self) -> Result<(), SpoolError> {
        let Some(thread) = &mut self.thread else { return Err(SpoolError::Helper("it has ended".to_owned())) };
        let ended = tokio::select! {
            () = self.shared.done.notified() => return Ok(()),
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
                self.shared.wake_if_due(state);
            }
            self.untold().await?;
        }
    }

    /// Ends the thread after the job that it has.
    pub(super) async fn close(mut self) -> Result<(), SpoolError> {
        self.shared.close();
        match self.thread.take() {
            Some(thread) => thread.await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string()))),
            None => Ok(()),
        }
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
            let tell = self.state().tell.clone();
            let told = tell.is_none_or(|tell| tell.try_tell());
            let awaited = std::mem::take(&mut self.state().awaited);
            if !told || awaited {
                self.done.notify_one();
            }
        }
        Ok(())
    }

    /// Does a job that was taken. After an error no other one is given out.
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

    /// Waits for something to do; `None` when it shall end.
    fn next_job(&self) -> Option<SyncJob<CompleteSegment, SyncHandle>> {
        // What arrives may be nothing to sync, or be there for long: between two jobs it wakes the thread once.
        let mut by_arrival = true;
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.next_job() {
                return Some(job);
            }
            state.sleeps = true;
            state = match state.arrivals.clone().filter(|_| by_arrival) {
                Some(arrivals) => {
                    state.rings = true;
                    drop(state);
                    let woken = arrivals.wait();
                    // It holds the connection.
                    drop(arrivals);
                    by_arrival = woken == Woken::ByBell;
                    if woken == Woken::ByArrival { self.soon() } else { self.state() }
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            (state.sleeps, state.rings) = (false, false);
        }
    }

    /// Something has arrived: the read loop is about to write it, so it is looked for a few times before one sleeps.
    fn soon(&self) -> MutexGuard<'_, State> {
        for _ in 0..LOOKS {
            let mut state = self.state();
            // Nobody needs to wake us.
            (state.sleeps, state.rings) = (false, false);
            if state.closed || state.commit.is_due() {
                return state;
            }
            drop(state);
            std::thread::yield_now();
        }
        self.state()
    }

    fn wake_if_due(&self, mut state: MutexGuard<'_, State>) {
        if state.sleeps && state.commit.is_due() {
            // Not again before it has looked.
            state.sleeps = false;
            self.wake(state);
        }
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let rings = std::mem::take(&mut state.rings);
        let arrivals = state.arrivals.clone().filter(|_| rings);
        drop(state);
        match arrivals {
            Some(arrivals) => arrivals.ring(),
            None => self.work.notify_one(),
        }
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        // It holds our positions, and the connection: neither may outlive the intake.
        let tell = state.tell.take();
        let arrivals = state.arrivals.take();
        drop(state);
        drop(tell);
        if let Some(arrivals) = arrivals {
            arrivals.ring();
        }
        self.work.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
