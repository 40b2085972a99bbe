//! The prefetcher itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wal::{Lsn, SegmentName, TimelineId};

use super::place::{Claim, PrefetchPlace};
use super::protocol::{self, Answer, MAX_LINE};
use super::window::Window;
use super::{Life, PrefetchLimits};
use crate::clock::Clock;
use crate::durable::remove_if_there;
use crate::fault_point;
use crate::repository::LineageRepository;
use crate::wal_fetch::attempt::{Fetched, attempt, fetch_if_whole};
use crate::wal_fetch::local::NoLocalSource;
use crate::wal_fetch::trouble::Trouble;
use crate::wal_fetch::{FetchName, FetchRequest, LocalSource};

/// How often whoever waits is told that somebody is at it.
const STILL_AT_IT: Duration = Duration::from_secs(1);

/// Name of a file that was fetched when it was asked for.
const ANSWER: &str = "answer";

/// What all requests of one recovery have in common: [`FetchRequest`] without the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefetchRequest {
    /// The branch that is being recovered.
    pub timeline: Option<TimelineId>,
    /// Where recovery will stop.
    pub until: Option<Lsn>,
    /// Whether a running standby asks.
    pub standby: bool,
}

/// What a prefetcher works with.
pub struct Parts<'a, Open, Listening, Stop> {
    /// Opens the lineage.
    pub open: Open,
    /// WAL of this machine.
    pub local: Arc<dyn LocalSource>,
    /// The recovery.
    pub life: &'a Life,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Called when it can be asked.
    pub listening: Listening,
    /// Completes when it is to stop.
    pub stop: Stop,
}

/// Answers at the claimed place until the recovery ends, nobody asks any more, or it is to stop; then takes everything
/// away.
pub async fn serve<Open, Listening, Stop>(
    claim: Claim,
    request: PrefetchRequest,
    limits: PrefetchLimits,
    parts: Parts<'_, Open, Listening, Stop>,
) -> io::Result<()>
where
    Open: AsyncFn() -> crate::error::Result<LineageRepository>,
    Listening: FnOnce() -> io::Result<()>,
    Stop: Future<Output = ()>,
{
    // Whatever ends it: who claimed the place and could not even begin takes it away as well. Nobody else lives to do it, when
    // the server that asked has stopped meanwhile.
    let served = serve_at(claim.place(), request, limits, parts).await;
    claim.release().and(served)
}

async fn serve_at<Open, Listening, Stop>(
    place: &PrefetchPlace,
    request: PrefetchRequest,
    limits: PrefetchLimits,
    parts: Parts<'_, Open, Listening, Stop>,
) -> io::Result<()>
where
    Open: AsyncFn() -> crate::error::Result<LineageRepository>,
    Listening: FnOnce() -> io::Result<()>,
    Stop: Future<Output = ()>,
{
    let Parts { open, local, life, clock, listening, stop } = parts;
    tokio::pin!(stop);
    let listener = UnixListener::bind(place.socket())?;
    listening()?;
    let mut prefetcher = Prefetcher {
        place: place.clone(),
        request,
        open,
        local,
        limits,
        life,
        clock,
        opened: None,
        window: None,
        ahead: BTreeMap::new(),
        handed_out: None,
        slots: Arc::new(Semaphore::new(limits.parallel.max(1))),
    };
    let ended = loop {
        let asked = tokio::select! {
            () = &mut stop => break Ok(()),
            () = life.ended() => break Ok(()),
            asked = tokio::time::timeout(limits.idle, listener.accept()) => asked,
        };
        let connection = match asked {
            Err(_) => break Ok(()),
            Ok(Err(error)) => break Err(error),
            Ok(Ok((connection, _))) => connection,
        };
        tokio::select! {
            () = &mut stop => break Ok(()),
            () = life.ended() => break Ok(()),
            told = prefetcher.converse(connection) => {
                if let Err(error) = told {
                    tracing::debug!(%error, "whoever asked went away");
                }
            }
        }
    };
    drop(listener);
    prefetcher.abandon_all().await;
    ended
}

/// A segment that was not asked for yet.
enum Ahead {
    /// On its way.
    Coming(JoinHandle<Result<bool, Trouble>>),
    /// Whole, verified and synced under its name.
    There,
}

struct Prefetcher<'a, Open> {
    place: PrefetchPlace,
    request: PrefetchRequest,
    open: Open,
    local: Arc<dyn LocalSource>,
    limits: PrefetchLimits,
    life: &'a Life,
    clock: &'a dyn Clock,
    /// The lineage, and when it was opened.
    opened: Option<(LineageRepository, Instant)>,
    window: Option<Window>,
    /// What is fetched ahead. Only what is in here is ever handed out.
    ahead: BTreeMap<SegmentName, Ahead>,
    /// The file that somebody was told of last.
    handed_out: Option<String>,
    slots: Arc<Semaphore>,
}

impl<Open: AsyncFn() -> crate::error::Result<LineageRepository>> Prefetcher<'_, Open> {
    /// One question, one answer. Whoever goes away in between ends the work for the answer, not the work ahead.
    async fn converse(&mut self, connection: UnixStream) -> io::Result<()> {
        let (read, mut write) = connection.into_split();
        let mut line = String::new();
        let mut lines = BufReader::new(read.take(MAX_LINE));
        tokio::time::timeout(STILL_AT_IT, lines.read_line(&mut line)).await??;
        let file = protocol::asked(&line).map_err(io::Error::other)?;
        let answer = {
            let answer = self.answer(&file);
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    answer = &mut answer => break answer,
                    () = tokio::time::sleep(STILL_AT_IT) => write.write_all(Answer::Wait.to_line().as_bytes()).await?,
                }
            }
        };
        fault_point!("prefetch.answering");
        if let Answer::Found(name) = &answer {
            self.handed_out = Some(name.clone());
        }
        write.write_all(answer.to_line().as_bytes()).await?;
        write.shutdown().await?;
        // The next ones while this one is replayed.
        self.fetch_ahead().await;
        Ok(())
    }

    async fn answer(&mut self, file: &FetchName) -> Answer {
        if let Some(name) = self.handed_out.take() {
            // Whoever was told of it has taken it, or never will: PostgreSQL asks for one file at a time.
            if let Err(error) = remove_if_there(&self.place.file(&name)) {
                tracing::debug!(name, %error, "a file that nobody took is left");
            }
        }
        if let FetchName::Segment(segment) = file
            && self.is_there(*segment).await
        {
            self.note_found(*segment);
            return Answer::Found(segment.to_string());
        }
        match self.fetch_now(file).await {
            Ok(Fetched::Absent) => Answer::Absent,
            Ok(Fetched::Tail) => Answer::Found(ANSWER.to_owned()),
            Ok(Fetched::Whole) => {
                if let FetchName::Segment(segment) = file {
                    self.note_found(*segment);
                }
                Answer::Found(ANSWER.to_owned())
            }
            Err(trouble) => {
                tracing::debug!(%file, error = %trouble, "left to whoever asked");
                // The store is away, or the disk is full: what was fetched ahead must not be in the way.
                self.abandon_all().await;
                self.opened = None;
                Answer::Trouble
            }
        }
    }

    /// Whether the segment was fetched ahead; waits while it is on its way.
    async fn is_there(&mut self, segment: SegmentName) -> bool {
        let there = match self.ahead.get_mut(&segment) {
            None => return false,
            Some(Ahead::There) => true,
            // By reference: when whoever asked goes away, it stays on its way.
            Some(Ahead::Coming(task)) => came(segment, task).await,
        };
        self.ahead.remove(&segment);
        // Where it was not there a moment ago, it may be by now.
        there
    }

    /// The same attempt that `wal fetch` makes by itself.
    async fn fetch_now(&mut self, file: &FetchName) -> Result<Fetched, Trouble> {
        let now = self.clock.instant();
        let opened = self.opened.take();
        let fresh = opened.filter(|(_, since)| now.saturating_duration_since(*since) < self.limits.reopen);
        let since = fresh.as_ref().map_or(now, |(_, since)| *since);
        let mut lineage = fresh.map(|(lineage, _)| lineage);
        let request = self.request_for(file.clone(), ANSWER);
        let fetched = attempt(&request, &self.open, &mut lineage, self.local.as_ref()).await;
        self.opened = lineage.map(|lineage| (lineage, since));
        fetched
    }

    fn request_for(&self, file: FetchName, name: &str) -> FetchRequest {
        let PrefetchRequest { timeline, until, standby } = self.request;
        let asker = self.life.asker().clone();
        FetchRequest { file, destination: self.place.file(name), timeline, until, standby, asker }
    }

    fn note_found(&mut self, segment: SegmentName) {
        let Some((lineage, _)) = &self.opened else { return };
        let bytes = self.limits.bytes;
        self.window.get_or_insert_with(|| Window::new(bytes, lineage.segment_size())).found(segment);
    }

    /// Starts what the window wants and drops what it does not want any more.
    async fn fetch_ahead(&mut self) {
        self.note_what_came().await;
        let (Some(window), Some((lineage, _))) = (&mut self.window, &self.opened) else { return };
        if !has_room(&self.place, self.limits) {
            window.close();
        }
        let wanted = window.wanted();
        let lineage = lineage.clone();
        let unwanted: Vec<SegmentName> = self.ahead.keys().copied().filter(|name| !wanted.contains(name)).collect();
        for segment in unwanted {
            self.abandon(segment).await;
        }
        for segment in wanted {
            if self.ahead.contains_key(&segment) {
                continue;
            }
            let request = self.request_for(FetchName::Segment(segment), &segment.to_string());
            let (lineage, local, slots) = (lineage.clone(), Arc::clone(&self.local), Arc::clone(&self.slots));
            let task = tokio::spawn(async move {
                // Nobody closes it.
                let _slot = slots.acquire_owned().await.ok();
                let local: &dyn LocalSource =
                    if local.lineage() == Some(lineage.id()) { local.as_ref() } else { &NoLocalSource };
                let fetched = fetch_if_whole(&request, &lineage, segment, local).await;
                fault_point!("prefetch.ready");
                fetched
            });
            self.ahead.insert(segment, Ahead::Coming(task));
        }
    }

    /// Learns from what has ended: after a segment that could not be had nothing is fetched ahead.
    async fn note_what_came(&mut self) {
        let mut failed = Vec::new();
        for (&segment, ahead) in &mut self.ahead {
            if let Ahead::Coming(task) = ahead
                && task.is_finished()
            {
                match came(segment, task).await {
                    true => *ahead = Ahead::There,
                    false => failed.push(segment),
                }
            }
        }
        for segment in failed {
            self.ahead.remove(&segment);
            if let Some(window) = &mut self.window {
                window.missing(segment);
            }
        }
    }

    async fn abandon(&mut self, segment: SegmentName) {
        if let Some(Ahead::Coming(task)) = self.ahead.remove(&segment) {
            task.abort();
            // It ends at its next pause, and takes away what it has begun. After that its file does not come any more.
            drop(task.await);
        }
        if let Err(error) = remove_if_there(&self.place.file(&segment.to_string())) {
            tracing::debug!(%segment, %error, "a segment that is not needed is left");
        }
    }

    async fn abandon_all(&mut self) {
        self.window = None;
        let all: Vec<SegmentName> = self.ahead.keys().copied().collect();
        for segment in all {
            self.abandon(segment).await;
        }
    }
}

/// Whether a segment that was on its way came.
async fn came(segment: SegmentName, task: &mut JoinHandle<Result<bool, Trouble>>) -> bool {
    match task.await {
        Ok(Ok(came)) => came,
        Ok(Err(trouble)) => {
            tracing::debug!(%segment, error = %trouble, "not fetched ahead");
            false
        }
        Err(error) => {
            tracing::debug!(%segment, %error, "not fetched ahead");
            false
        }
    }
}

/// Whether the file system has so much room that what is fetched ahead is in nobody's way.
fn has_room(place: &PrefetchPlace, limits: PrefetchLimits) -> bool {
    let Ok(found) = statvfs(place.dir()) else { return false };
    found.f_bavail.saturating_mul(found.f_frsize) >= limits.bytes.saturating_add(limits.reserve_bytes)
}
