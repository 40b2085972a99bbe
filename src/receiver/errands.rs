//! Two threads for one task that must always go on, and that has to wait for the disk again and again.
//!
//! A commit that waits for us waits for a packet to be read, written and synced, and for the answer. Each change of threads
//! on this way costs more than the rest of our work. So the thread that reads syncs as well, as an *errand* between two polls
//! of its task. A disk that stalls must not leave the socket unread: a second thread watches, and when an errand takes longer
//! than usual it drives the task, runtime and all, until the first one is back. While errands are short nobody wakes it but
//! its clock, and while there are none it sleeps.

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::Notify;

/// An errand that is under way at two looks takes too long: so much lies between them.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// After so many looks without a new errand the second thread sleeps until there is one.
const IDLE_LOOKS: u32 = 100;

/// Something that waits for the disk, mostly for a moment.
pub(super) trait Errand: Debug + Send + Sync {
    /// Does it, on the thread that drives the task.
    fn run(&self);
}

/// Where a task asks for errands, while it is polled by [`drive`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Errands {
    asked: Arc<Mutex<Option<Arc<dyn Errand>>>>,
}

impl Errands {
    /// Has `errand` run as soon as the task has nothing else to do. What was asked for and not begun is replaced.
    pub(super) fn ask(&self, errand: Arc<dyn Errand>) {
        *lock(&self.asked) = Some(errand);
    }

    fn take(&self) -> Option<Arc<dyn Errand>> {
        lock(&self.asked).take()
    }
}

/// Runs `task` to its end on this thread, with the errands that it asks for. `name` is that of the second thread; an error
/// when there can be none, since errands would then leave the task alone.
pub(crate) fn drive<F>(runtime: &Runtime, errands: &Errands, name: &str, task: F) -> io::Result<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    let future = pin!(task);
    let task = Mutex::new(Task { future, output: None });
    let watch = Watch::default();
    thread::scope(|scope| {
        // Dropped whatever happens here, a panic of the task included: the scope waits for the second thread.
        let closing = Closing(&watch);
        let stand_by = || watch.stand_by(|| runtime.block_on(watch.relieve(&task)));
        let second = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, stand_by)?;
        let output = loop {
            match runtime.block_on(next_step(&task, errands)) {
                Step::Ended(output) => break output,
                Step::Errand(errand) => watch.away(|| errand.run()),
            }
        };
        drop(closing);
        second.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok(output)
    })
}

/// The task, and what it returned while the second thread drove it.
#[derive(Debug)]
struct Task<'t, F: Future> {
    future: Pin<&'t mut F>,
    output: Option<F::Output>,
}

impl<F: Future> Task<'_, F> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<F::Output> {
        match self.output.take() {
            Some(output) => Poll::Ready(output),
            None => self.future.as_mut().poll(context),
        }
    }

    /// For the second thread: leaves the answer to the first one.
    fn poll_only(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll(context).map(|output| self.output = Some(output))
    }
}

/// What the first thread has to do next.
enum Step<T> {
    Ended(T),
    Errand(Arc<dyn Errand>),
}

/// Drives the task until it has ended or wants an errand.
async fn next_step<F: Future>(task: &Mutex<Task<'_, F>>, errands: &Errands) -> Step<F::Output> {
    poll_fn(|context| match lock(task).poll(context) {
        Poll::Ready(output) => Poll::Ready(Step::Ended(output)),
        Poll::Pending => errands.take().map_or(Poll::Pending, |errand| Poll::Ready(Step::Errand(errand))),
    })
    .await
}

/// What the two threads know of each other.
#[derive(Debug, Default)]
struct Watch {
    state: Mutex<State>,
    /// Wakes the second thread where it sleeps.
    begun: Condvar,
    /// Wakes the second thread where it drives the task.
    back: Notify,
    /// Wakes the first thread once the second one has left the task.
    left: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How many errands were begun.
    errands: u64,
    /// The first thread runs the last one of them.
    away: bool,
    /// The second thread looks by itself, and need not be woken.
    looks: bool,
    /// The second thread drives the task.
    relieves: bool,
    closed: bool,
}

impl Watch {
    /// The first thread: runs an errand, and has the task for itself again when this returns.
    fn away(&self, run: impl FnOnce()) {
        let mut state = lock(&self.state);
        state.errands += 1;
        state.away = true;
        if !state.looks {
            self.begun.notify_one();
        }
        drop(state);
        run();
        let mut state = lock(&self.state);
        state.away = false;
        if state.relieves {
            self.back.notify_one();
            let relieved = self.left.wait_while(state, |state| state.relieves);
            drop(relieved.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The second thread: relieves the first one whenever it is away for too long, until it is closed.
    fn stand_by(&self, relieve: impl Fn()) {
        let mut state = lock(&self.state);
        while !state.closed {
            state.looks = false;
            state = self
                .begun
                .wait_while(state, |state| !state.away && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            state.looks = true;
            let mut idle = 0;
            while idle < IDLE_LOOKS && !state.closed {
                let before = state.errands;
                let looked = self.begun.wait_timeout_while(state, LOOK_EVERY, |state| !state.closed);
                (state, _) = looked.unwrap_or_else(PoisonError::into_inner);
                idle = if state.errands == before { idle + 1 } else { 0 };
                if state.away && state.errands == before {
                    state.relieves = true;
                    drop(state);
                    let leaving = Leaving(self);
                    relieve();
                    drop(leaving);
                    state = lock(&self.state);
                }
            }
        }
    }

    /// Drives the task until the first thread is back, or the task has ended.
    async fn relieve<F: Future>(&self, task: &Mutex<Task<'_, F>>) {
        let back = async {
            while lock(&self.state).away {
                self.back.notified().await;
            }
        };
        tokio::select! {
            biased;
            () = back => {}
            () = poll_fn(|context| lock(task).poll_only(context)) => {}
        }
    }
}

/// Lets the second thread end.
struct Closing<'w>(&'w Watch);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.begun.notify_one();
    }
}

/// Gives the task back to the first thread, also after a panic.
struct Leaving<'w>(&'w Watch);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).relieves = false;
        self.0.left.notify_one();
    }
}

/// A task that has panicked panics again when it is polled; nothing else panics while a lock is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
