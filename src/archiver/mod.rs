//! From the spool to the repository: complete segments in parallel, completed in order; the tail of the open one by time.
//!
//! The spool is the queue. [`Archiver::run`] scans what became durable, in order, stores every segment that was found
//! valid, and removes a file from the spool only after the repository has confirmed its bytes and a later segment has
//! been confirmed as well: the last one is kept, so that a record that spans into the next can be read after a restart.

mod exposure;
mod scanner;
mod store;
mod warm_up;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wal::{Lsn, PgTime, SegmentName, WalRange, XactIndex};

use self::exposure::Exposure;
use self::scanner::{Cursor, ScanError};
use self::store::{Store, TailPiece};
use crate::clock::Clock;
use crate::error::{Error, ErrorCode};
use crate::fault_point;
use crate::receiver::Backoff;
use crate::repository::LineageRepository;
use crate::spool::{Held, Spool, SpoolError};
use crate::wal_pipeline::{Fact, GapStore, StatusBoard};

/// At most so often is it looked for new durable bytes: a synchronous standby has thousands of syncs a second.
const SCAN_EVERY: Duration = Duration::from_millis(25);
/// How often what changes by itself is told: ages, free space.
const TICK: Duration = Duration::from_millis(500);
/// Scanned at once, and the largest tail, roughly: bounds memory whatever the size of segments.
const STRIDE: u64 = 16 << 20;

/// How often a damaged segment is asked for again.
const REFETCH_EVERY: Duration = Duration::from_secs(30);

/// Asks the server again for a segment of the spool, and puts it in place of the damaged one.
pub(crate) type Refetch = Box<dyn Fn(SegmentName) -> BoxFuture<'static, crate::error::Result<()>> + Send + Sync>;

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
    /// A segment that is not valid WAL: nothing from it on is stored.
    halted: Option<SegmentName>,
    /// When that segment is asked for again, and the asking.
    refetch_at: Instant,
    refetching: Option<AbortOnDropHandle<crate::error::Result<()>>>,
}

impl Archiver {
    /// Stores WAL until `stop` is cancelled, then what is left, within `drain`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut run = Run {
            store: Store {
                spool: self.spool.clone(),
                repository: self.repository.clone(),
                board: self.board.clone(),
                histories: Arc::new(Mutex::new(BTreeSet::new())),
            },
            cursor: None,
            done: None,
            exposure: Exposure::default(),
            queue: VecDeque::new(),
            uploading: FuturesOrdered::new(),
            tails: VecDeque::new(),
            tail_in_flight: None,
            last_tail: Instant::now(),
            tail_ends: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            halted: None,
            refetch_at: Instant::now(),
            refetching: None,
        };
        tokio::select! {
            () = self.skip_stored(&mut run) => {}
            () = stop.cancelled() => return,
        }
        let mut changed = self.spool.watch();
        let mut backoff = Backoff::default();
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
                result = changed.changed(), if deadline.is_none() => {
                    // The spool outlives the archiver, so its sender is never gone.
                    dirty = result.is_ok();
                }
                Some(stored) = run.uploading.next() => self.stored(&mut run, stored).await,
                piece = tail_done(&mut run.tail_in_flight) => self.tail_stored(&mut run, piece).await,
                () = sleep_until(next_scan), if dirty => {}
                () = sleep_until(tail_due.unwrap_or(next_tick)), if tail_due.is_some() => {}
                again = answered(&mut run.refetching) => dirty |= self.replaced(&mut run, again),
                () = sleep_until(next_tick) => {
                    self.tell_usage().await;
                    next_tick = Instant::now() + TICK;
                }
                () = stop.cancelled(), if deadline.is_none() => {}
            }
            self.tell_exposure(&run);
        }
        self.tell_exposure(&run);
        self.tell_usage().await;
    }

    /// After a restart: complete segments that the repository already has are only kept for reading on.
    async fn skip_stored(&self, run: &mut Run) {
        let mut backoff = Backoff::default();
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
    async fn scan(&self, run: &mut Run) -> Result<bool, Failure> {
        if run.halted.is_some() {
            return Ok(false);
        }
        let held = self.spool.held();
        let Some(&(name, held)) = held.iter().find(|(name, _)| run.done.is_none_or(|done| *name > done)) else {
            return Ok(false);
        };
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
        let previous = run.cursor.as_ref().filter(|cursor| run.done == Some(cursor.name()));
        let state = match previous {
            Some(cursor) if cursor.position() == self.spool.start_of(name) => cursor.after(),
            // The new timeline's version of the segment in which the old one was left.
            Some(cursor) if cursor.name().number(size) == name.number(size) => cursor.before().clone(),
            _ => warm_up::warm_up(&self.spool, &self.repository, name).await?,
        };
        let mut cursor = Cursor::new(&self.spool, name, state);
        if self.spool.get(name) != Some(Held::Complete)
            && let Some(chain) = self.repository.tail_chain(name).await.map_err(warm_up::WarmUpError::from)?
        {
            cursor.skip_tail(chain.end);
            run.tail_ends.insert(name, chain.end);
            self.tell_shipped(run);
        }
        Ok(cursor)
    }

    /// Nothing more will come for a segment: what there is of it is stored as its last tail, wanted or not.
    fn leave(&self, run: &mut Run, cursor: &Cursor, name: SegmentName) {
        let (from, index) = cursor.tail();
        if from < cursor.position() {
            run.tails.push_back(TailPiece { segment: name, from, to: cursor.position(), index: index.clone() });
        } else {
            run.confirmed.insert(name);
        }
    }

    fn start_uploads(&self, run: &mut Run) {
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
    fn cut_tail(&self, run: &mut Run, stopping: bool) -> Option<Instant> {
        let cursor = run.cursor.as_mut()?;
        let name = cursor.name();
        let (from, index) = cursor.tail();
        let to = cursor.position();
        let large = to.bytes_since(from) >= STRIDE;
        let wanted = match self.spool.get(name) {
            Some(Held::Open { .. }) => !self.max_rpo.is_zero(),
            // The rest of it comes with `leave`.
            Some(Held::Left { .. }) => large,
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
        run.tails.push_back(TailPiece { segment: name, from, to, index: index.clone() });
        run.last_tail = Instant::now();
        cursor.cut_tail();
        None
    }

    fn start_tail(&self, run: &mut Run) {
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
    async fn stored(&self, run: &mut Run, stored: Result<(SegmentName, Option<Fact>), tokio::task::JoinError>) {
        let (name, last_commit) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                let error =
                    Error::new(ErrorCode::Unclassified, "storing a segment ended without an answer").because(error);
                self.told("other", error);
                run.begin_again();
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

    async fn tail_stored(&self, run: &mut Run, piece: Result<TailPiece, tokio::task::JoinError>) {
        run.tail_in_flight = None;
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                self.told(
                    "other",
                    Error::new(ErrorCode::Unclassified, "storing a tail ended without an answer").because(error),
                );
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
        let held = self.spool.held();
        let front: Vec<(SegmentName, Held)> =
            held.into_iter().take_while(|(name, _)| run.confirmed.contains(name)).collect();
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

    /// Asks for the damaged segment again, when it is time.
    fn start_refetch(&self, run: &mut Run) {
        let Some(name) = run.halted else { return };
        if run.refetching.is_none() && Instant::now() >= run.refetch_at {
            run.refetching = Some(AbortOnDropHandle::new(tokio::spawn((self.refetch)(name))));
        }
    }

    /// Whether there is something to scan: the segment was received again, and is checked like any other.
    fn replaced(&self, run: &mut Run, again: crate::error::Result<()>) -> bool {
        run.refetching = None;
        run.refetch_at = Instant::now() + REFETCH_EVERY;
        match again {
            Ok(()) => {
                tracing::info!(segment = ?run.halted, "a damaged segment was received again");
                run.halted = None;
                true
            }
            Err(error) => {
                tracing::warn!(segment = ?run.halted, %error, "a damaged segment cannot be received again");
                false
            }
        }
    }

    fn scan_failed(&self, run: &mut Run, failure: Failure) {
        match failure {
            Failure::Scan(ScanError::Damaged { segment, error }) => {
                run.halted = Some(segment);
                tracing::error!(%segment, %error, "WAL in the spool is damaged: nothing from it on is stored");
                let error = Error::new(ErrorCode::Damaged, format!("segment {segment} in the spool is not valid WAL"))
                    .because(error)
                    .because("nothing from it on is stored, so that no recovery is silently wrong")
                    .because("the server is asked for it again by itself, as long as it still has it")
                    .help("look at the disk of the spool; when the server has it no more, take a new base backup");
                self.told("damaged", error);
            }
            Failure::Scan(ScanError::Spool(error)) | Failure::Spool(error) => self.told("spool", error.into()),
            Failure::WarmUp(error) => {
                let error =
                    Error::new(ErrorCode::RepositoryDenied, "cannot read what was stored last").caused_by(&error);
                self.told("other", error);
            }
        }
    }

    fn told(&self, reason: &'static str, error: Error) {
        self.board.update(|status| {
            *status.counters.archive_errors.entry(reason).or_default() += 1;
            status.archive_error = Some(error);
        });
    }

    /// What the repository holds without a hole: whole segments, and the tail right after them.
    fn tell_shipped(&self, run: &mut Run) {
        let mut shipped = self.board.read(|status| status.archived);
        for (name, held) in self.spool.held() {
            if run.confirmed.contains(&name) {
                shipped = Some(self.spool.end_of(name, held));
                continue;
            }
            shipped = run.tail_ends.get(&name).copied().or(shipped);
            break;
        }
        if let Some(shipped) = shipped {
            run.exposure.shipped(shipped);
            self.board.update(|status| status.shipped = Some(shipped));
        }
    }

    fn tell_exposure(&self, run: &Run) {
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

    async fn tell_usage(&self) {
        let spool = self.spool.clone();
        match spawn_blocking(move || (spool.usage(), spool.held().len() as u64)).await {
            Ok((Ok(usage), files)) => self.board.update(|status| {
                status.spool_segments = files;
                status.spool_bytes = usage.used;
                status.spool_free_bytes = Some(usage.free());
                status.spool_level = usage.level();
            }),
            Ok((Err(error), _)) => self.told("spool", error.into()),
            Err(error) => self.told("spool", SpoolError::Helper(error.to_string()).into()),
        }
    }
}

impl Run {
    /// A task that panicked confirmed nothing: everything after the confirmed prefix is scanned and stored again.
    fn begin_again(&mut self) {
        self.uploading = FuturesOrdered::new();
        self.queue.clear();
        self.tails.clear();
        self.cursor = None;
        self.done = self.confirmed.last().copied();
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.uploading.is_empty() && self.tails.is_empty() && self.tail_in_flight.is_none()
    }
}

/// Why scanning did not get on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    WarmUp(#[from] warm_up::WarmUpError),
}

/// Waits for the server's answer; for ever when it was not asked. Cancel-safe.
async fn answered(asking: &mut Option<AbortOnDropHandle<crate::error::Result<()>>>) -> crate::error::Result<()> {
    match asking {
        Some(asking) => asking.await.unwrap_or_else(|error| Err(SpoolError::Helper(error.to_string()).into())),
        None => std::future::pending().await,
    }
}

/// Waits for the tail in flight; for ever when there is none. Cancel-safe.
async fn tail_done(
    tail: &mut Option<(SegmentName, AbortOnDropHandle<TailPiece>)>,
) -> Result<TailPiece, tokio::task::JoinError> {
    match tail {
        Some((_, tail)) => tail.await,
        None => std::future::pending().await,
    }
}
