//! From the spool to the repository: complete segments in parallel, completed in order; the tail of the open one by time.
//!
//! The spool is the queue. [`Archiver::run`] scans what became durable, in order, stores every segment that was found
//! valid, and removes a file from the spool only after the repository has confirmed its bytes and a later segment has
//! been confirmed as well: the last one is kept, so that a record that spans into the next can be read after a restart.

mod alarms;
mod exposure;
mod pieces;
mod scan;
mod scanner;
mod ship;
mod store;
mod tell;
mod warm_up;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wal::{Lsn, SegmentName, TimelineId, XactIndex};

use self::alarms::{Alarms, Doing};
use self::exposure::Exposure;
use self::scanner::Cursor;
use self::store::{Store, TailPiece};
use crate::clock::Clock;
use crate::error::Result;
use crate::receiver::Backoff;
use crate::repository::LineageRepository;
use crate::spool::{Spool, SpoolError};
use crate::wal_pipeline::{Fact, GapStore, StatusBoard};

/// At most so often is it looked for new durable bytes: a synchronous standby has thousands of syncs a second.
const SCAN_EVERY: Duration = Duration::from_millis(25);
/// How often what changes by itself is told: ages.
const TICK: Duration = Duration::from_millis(500);
/// Scanned at once, and the largest tail, roughly: bounds memory whatever the size of segments.
const STRIDE: u64 = 16 << 20;

/// The longest pause before a store that failed is asked again: when it is back, everybody should see that soon.
pub(crate) const STORE_AGAIN: Duration = Duration::from_secs(5);

/// How often a damaged segment is asked for again.
const REFETCH_EVERY: Duration = Duration::from_secs(30);

/// Asks the server again for a segment of the spool, and puts it in place of the damaged one.
pub(crate) type Refetch = Box<dyn Fn(SegmentName) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// The archiver of one cluster.
pub(crate) struct Archiver {
    pub(crate) spool: Spool,
    pub(crate) repository: LineageRepository,
    pub(crate) gaps: GapStore,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) board: StatusBoard,
    pub(crate) max_rpo: Duration,
    pub(crate) uploads: usize,
    pub(crate) drain: Duration,
    pub(crate) refetch: Refetch,
}

/// What the archiver knows while it runs.
struct Run {
    store: Store,
    cursor: Option<Cursor>,
    /// The newest segment that was there when we began.
    held_at_start: Option<SegmentName>,
    /// The last segment that was scanned to its end, and those before it.
    done: Option<SegmentName>,
    exposure: Exposure,
    /// Scanned, to be stored; in order.
    queue: VecDeque<(SegmentName, XactIndex)>,
    uploading: FuturesOrdered<AbortOnDropHandle<(SegmentName, Option<Fact>)>>,
    tails: VecDeque<TailPiece>,
    tail_in_flight: Option<(SegmentName, AbortOnDropHandle<TailPiece>)>,
    last_tail: Instant,
    /// Up to where the tails of a segment are stored.
    tail_ends: BTreeMap<SegmentName, Lsn>,
    /// Files whose content the repository has confirmed.
    confirmed: BTreeSet<SegmentName>,
    /// The timeline that is scanned, and its history on its way: a server that recovers from what is stored and is promoted
    /// meanwhile would else take the timeline's number again.
    history: Option<(TimelineId, AbortOnDropHandle<()>)>,
    /// Scanned segments for which nothing more was to come.
    left: BTreeSet<SegmentName>,
    /// A segment that is not valid WAL: nothing from it on is stored.
    halted: Option<SegmentName>,
    /// When that segment is asked for again, and the asking.
    refetch_at: Instant,
    refetching: Option<AbortOnDropHandle<Result<()>>>,
}

impl Archiver {
    /// Stores WAL until `stop` is cancelled, then what is left, within `drain`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut run = Run {
            store: Store {
                spool: self.spool.clone(),
                repository: self.repository.clone(),
                board: self.board.clone(),
                alarms: Alarms::on(self.board.clone()),
                histories: Arc::new(Mutex::new(BTreeSet::new())),
            },
            cursor: None,
            held_at_start: self.spool.last().map(|(name, _)| name),
            done: None,
            exposure: Exposure::default(),
            queue: VecDeque::new(),
            uploading: FuturesOrdered::new(),
            tails: VecDeque::new(),
            tail_in_flight: None,
            last_tail: Instant::now(),
            tail_ends: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            history: None,
            left: BTreeSet::new(),
            halted: None,
            refetch_at: Instant::now(),
            refetching: None,
        };
        tokio::select! {
            () = self.skip_stored(&mut run) => {}
            () = stop.cancelled() => return,
        }
        let mut changed = self.spool.watch();
        let mut backoff = Backoff::up_to(STORE_AGAIN);
        let mut next_scan = Instant::now();
        let mut dirty = true;
        let mut next_tick = Instant::now();
        let mut deadline: Option<Instant> = None;
        loop {
            if deadline.is_none() && stop.is_cancelled() {
                deadline = Some(Instant::now() + self.drain);
                dirty = true;
                next_scan = Instant::now();
            }
            if dirty && Instant::now() >= next_scan {
                match self.scan(&mut run).await {
                    Ok(more) => {
                        dirty = more;
                        next_scan = if more { Instant::now() } else { Instant::now() + SCAN_EVERY };
                        backoff.reset();
                    }
                    Err(error) => {
                        self.scan_failed(&mut run, error);
                        next_scan = Instant::now() + backoff.pause(rand::random());
                    }
                }
            }
            self.start_uploads(&mut run);
            let tail_due = self.cut_tail(&mut run, deadline.is_some());
            self.start_tail(&mut run);
            self.start_refetch(&mut run);
            if let Some(deadline) = deadline {
                let nothing_left = !dirty && run.is_idle();
                if nothing_left || Instant::now() >= deadline {
                    break;
                }
            }
            tokio::select! {
                // What changes while it is already known that there is something to scan need not wake anybody.
                result = changed.changed(), if deadline.is_none() && !dirty => {
                    // The spool outlives the archiver, so its sender is never gone.
                    dirty = result.is_ok();
                }
                Some(stored) = run.uploading.next() => self.stored(&mut run, stored).await,
                piece = tail_done(&mut run.tail_in_flight) => self.tail_stored(&mut run, piece).await,
                () = sleep_until(next_scan), if dirty => {}
                () = sleep_until(tail_due.unwrap_or(next_tick)), if tail_due.is_some() => {}
                again = answered(&mut run.refetching) => dirty |= self.replaced(&mut run, again),
                () = sleep_until(next_tick) => next_tick = Instant::now() + TICK,
                () = stop.cancelled(), if deadline.is_none() => {}
            }
            self.tell_exposure(&run);
        }
        self.tell_exposure(&run);
    }

    /// Asks for the damaged segment again, when it is time.
    fn start_refetch(&self, run: &mut Run) {
        let Some(name) = run.halted else { return };
        if run.refetching.is_none() && Instant::now() >= run.refetch_at {
            run.refetching = Some(AbortOnDropHandle::new(tokio::spawn((self.refetch)(name))));
        }
    }

    /// Whether there is something to scan: the segment was received again, and is checked like any other.
    fn replaced(&self, run: &mut Run, again: Result<()>) -> bool {
        run.refetching = None;
        run.refetch_at = Instant::now() + REFETCH_EVERY;
        match again {
            Ok(()) => {
                tracing::info!(segment = ?run.halted, "a damaged segment was received again");
                if let Some(segment) = run.halted.take() {
                    run.store.alarms.over(segment, Doing::Reading);
                }
                true
            }
            Err(error) => {
                tracing::warn!(segment = ?run.halted, %error, "a damaged segment cannot be received again");
                false
            }
        }
    }
}

impl Run {
    /// A task that panicked confirmed nothing: everything after the confirmed prefix is scanned and stored again.
    fn begin_again(&mut self, spool: &Spool) {
        self.uploading = FuturesOrdered::new();
        self.queue.clear();
        self.tails.clear();
        self.tail_in_flight = None;
        self.cursor = None;
        // Not simply the last confirmed one: what was left is confirmed by its tail, perhaps before what comes before it.
        let held = spool.held().into_iter().map(|(name, _)| name);
        self.done = held.take_while(|name| self.confirmed.contains(name)).last();
    }

    fn is_idle(&self) -> bool {
        let history = self.history.as_ref().is_none_or(|(_, history)| history.is_finished());
        let tails = self.tails.is_empty() && self.tail_in_flight.is_none();
        self.queue.is_empty() && self.uploading.is_empty() && tails && history
    }
}

/// Waits for the server's answer; for ever when it was not asked. Cancel-safe.
async fn answered(asking: &mut Option<AbortOnDropHandle<Result<()>>>) -> Result<()> {
    match asking {
        Some(asking) => asking.await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string()).into())),
        None => std::future::pending().await,
    }
}

/// Waits for the tail in flight; for ever when there is none. Cancel-safe.
async fn tail_done(
    tail: &mut Option<(SegmentName, AbortOnDropHandle<TailPiece>)>,
) -> std::result::Result<TailPiece, tokio::task::JoinError> {
    match tail {
        Some((_, tail)) => tail.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
