//! Receives WAL from a server into the spool, and tells the server what is durable.
//!
//! One receiver per cluster, on a thread of its own with a current-thread runtime: [`Receiver::run`] connects, compares
//! histories, decides where to go on, streams, and begins again after a pause when the stream ends, for ever.

mod backoff;
mod cadence;
mod contact;
mod errands;
mod follow;
mod group_commit;
mod identity;
mod intake;
mod oldest;
mod refetch;
mod resume;
mod session;
mod slot;
mod start;
mod syncer;
mod teller;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wal::{Lsn, SegmentName, TimelineId};

pub use backoff::Backoff;
pub(crate) use contact::{Contact, contact};
pub(crate) use errands::{Errands, drive};
pub use follow::Witness;
pub(crate) use follow::{Loyalty, meet};
pub(crate) use refetch::refetch;
use resume::{Elsewhere, Next};
pub(crate) use resume::{Removed, SlotMadeAnew};
pub(crate) use start::decide;
pub use start::{BeyondFork, Conflict, Position, ServerPosition, Start};

use self::cadence::Cadence;
use self::follow::{Follower, Source, elsewhere};
use self::intake::{Intake, Known};
use self::session::{Session, SessionEnd};
use self::trouble::{Pause, Trouble};
use crate::clock::Clock;
use crate::fault_point;
use crate::primary::{ConnectOptions, WalStream};
use crate::spool::{Spool, SpoolError};
use crate::wal_pipeline::{FollowedBranch, GapStore, StatusBoard, WalSettings, WalState};

/// How often a member is asked for what another has removed, when the connection breaks meanwhile.
const PATIENCE_WITH_A_LENDER: u32 = 3;
/// How soon the same trouble is logged again.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// How often a receiver whose spool is full looks for room.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(500);

/// The receiver of one cluster.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) settings: WalSettings,
    pub(crate) spool: Spool,
    pub(crate) gaps: GapStore,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) board: StatusBoard,
    /// Where the repository's WAL ends: counts while the spool holds nothing later.
    pub(crate) stored: Option<(TimelineId, Lsn)>,
    /// WAL that the server said it has no more, and how often it said so.
    pub(crate) removed: Option<Removed>,
    /// Where streaming goes on without the segment before being sent again: the server has removed it.
    pub(crate) unprovable: Option<(TimelineId, Lsn)>,
    /// The server would not stream from the slot.
    pub(crate) slot_refused: bool,
    /// What had become of the slot when it was last made anew.
    pub(crate) slot_fate: Option<SlotMadeAnew>,
    /// A write or fsync failed: the spool is verified before anything else is taken in.
    pub(crate) suspect: bool,
    /// Who else may say which member leads.
    pub(crate) witness: Witness,
    /// The member that we streamed from when another took writes beside it.
    pub(crate) loyal_to: Option<usize>,
    /// The same on disk.
    pub(crate) loyalty: Loyalty,
    /// The member that was streamed from last.
    pub(crate) last: Option<usize>,
    /// Since when no member could be streamed from.
    pub(crate) without_since: Option<Instant>,
    /// The newest timeline that was streamed, or held when we began.
    pub(crate) followed: Option<TimelineId>,
    /// Where commits wait for us: who runs this does the syncing that is short.
    pub(crate) errands: Option<Errands>,
    /// The trouble that was logged last, and when: it is not said again with every attempt.
    pub(crate) told: Option<(String, Instant)>,
}

/// A stream that is about to begin.
struct Ready {
    stream: WalStream,
    intake: Intake,
    timeline: TimelineId,
    /// Where streaming goes on: what comes before it is only compared.
    start: Lsn,
    server_end: Lsn,
    cadence: Cadence,
    source: Source,
    /// Streams without the slot, which its owner has to make.
    slot_missed: bool,
}

/// How an attempt ended when nothing went wrong.
enum Ended {
    /// The stream did.
    Session(SessionEnd),
    /// Another member is to be streamed from.
    Elsewhere,
}

impl Receiver {
    /// Streams until `stop` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let options = ConnectOptions::new(self.settings.conninfo.clone(), self.settings.application_name.clone());
        let mut follower = Follower::new(options, self.witness.clone());
        self.remember(&follower).await;
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let pause = match self.attempt(&mut follower, &stop).await {
                Ok(Ended::Session(SessionEnd::Asked)) => break,
                Ok(Ended::Session(SessionEnd::Timeline { next, switch_point })) => {
                    tracing::info!(%next, %switch_point, "timeline ended");
                    self.count_reconnect("timeline");
                    backoff.reset();
                    continue;
                }
                Ok(Ended::Session(SessionEnd::Lent)) => {
                    backoff.reset();
                    continue;
                }
                Ok(Ended::Elsewhere) => {
                    self.count_reconnect("elsewhere");
                    self.board.update(|status| status.state = WalState::Connecting);
                    backoff.reset();
                    continue;
                }
                Ok(Ended::Session(SessionEnd::ServerShutdown)) => {
                    self.count_reconnect("server_shutdown");
                    self.board.update(|status| status.state = WalState::Connecting);
                    backoff.reset();
                    backoff.pause(rand::random())
                }
                Err(trouble) => {
                    let was_streaming = self.board.read(|status| status.streaming());
                    self.note(&trouble);
                    if was_streaming {
                        backoff.reset_after(begun.elapsed());
                    }
                    match trouble.pause(follower.count() > 1) {
                        Pause::Growing => backoff.pause(rand::random()),
                        Pause::Longest => backoff.longest(rand::random()),
                        Pause::ForTheNext => backoff.short(rand::random()),
                        Pause::ForRoom => LOOK_FOR_ROOM,
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = follower.witness_changed() => {}
                () = stop.cancelled() => break,
            }
        }
        self.board.update(|status| status.state = WalState::Stopped);
    }

    /// One connection: choose, connect, compare, decide, stream.
    async fn attempt(&mut self, follower: &mut Follower, stop: &CancellationToken) -> Result<Ended, Trouble> {
        if !self.wait_for_room(stop).await? {
            return Ok(Ended::Session(SessionEnd::Asked));
        }
        self.verify_suspect()?;
        let ready = tokio::select! {
            ready = self.prepare(follower) => ready?,
            () = stop.cancelled() => return Ok(Ended::Session(SessionEnd::Asked)),
        };
        let Ready { stream, intake, timeline, start, server_end, cadence, source, slot_missed } = ready;
        let compared_from = intake.position();
        tracing::info!(cluster = %self.settings.cluster, %timeline, %start, host = follower.host(source.member), "streaming");
        self.stream_begins(source).await;
        let leave = stop.child_token();
        let session = Session {
            settings: &self.settings,
            spool: &self.spool,
            clock: &self.clock,
            board: &self.board,
            cadence,
            stop: &leave,
            held_before: intake.held(),
            server_end,
            standby: source.standby,
            until: source.until,
            errands: self.errands.as_ref(),
        };
        let mut loyal = self.loyal_to == Some(source.member);
        let missed = self.settings.slot.clone().filter(|_| slot_missed);
        let to_watch = follower.options_to_watch(source.member);
        let slot_is_there = async {
            match &missed {
                Some(name) => slot::made_by_its_owner(&to_watch, name).await,
                None => std::future::pending().await,
            }
        };
        let ended = {
            let streaming = session.run(stream, intake);
            tokio::pin!(streaming);
            tokio::select! {
                ended = &mut streaming => ended,
                () = elsewhere(self, follower, source, &mut loyal) => {
                    // Cleanly, as at a stop: what was received is made durable and told.
                    leave.cancel();
                    streaming.await
                }
                () = slot_is_there => {
                    leave.cancel();
                    streaming.await
                }
            }
        };
        self.loyal_to = source.stays_with(self.loyal_to, loyal);
        self.after_session(timeline, (compared_from, start), source, &ended)?;
        match ended? {
            SessionEnd::Asked if !stop.is_cancelled() => Ok(Ended::Elsewhere),
            ended => Ok(Ended::Session(ended)),
        }
    }

    /// Everything before the first byte. May be dropped at any time: nothing is acknowledged before it is done.
    async fn prepare(&mut self, follower: &mut Follower) -> Result<Ready, Trouble> {
        let source = self.find_source(follower).await?;
        let options = follower.options_for(source.member);
        let met = contact(&options).await?;
        let source = Source { standby: met.in_recovery || source.until.is_some(), ..source };
        self.check_identity(&met)?;
        self.compare_histories(&met)?;
        self.check_continues(&met.position)?;
        let Contact { mut connection, position: server, cadence, host, version, history_files, .. } = met;
        // A lender keeps what it has for a moment without any.
        let slot = self.settings.slot.clone().filter(|_| source.until.is_none());
        let (slot, kept_from, missed) = match slot {
            Some(name) => {
                let found = slot::ensure(&mut connection, &options, &name, self.slot_use()).await?;
                let kept_from = self.note_slot(&found);
                (found.missed.is_none().then_some(name), kept_from, found.missed)
            }
            None => (None, None, None),
        };
        let gaps = self.board.read(|status| status.gaps.len());
        let next = self.decide(&server, kept_from, source).map_err(|trouble| match trouble {
            Trouble::Held { server_end, held } if source.standby => Trouble::Behind { server_end, held },
            other => other,
        })?;
        let (timeline, start) = match next {
            Next::At(timeline, start) => (timeline, start),
            Next::After(removed, held) => {
                let silent = follower.silent(source.member);
                let elsewhere = Elsewhere { options: follower.options_to_watch(source.member), silent };
                self.go_on_without((removed, held), &server, kept_from, elsewhere).await?
            }
        };
        for (timeline, bytes) in &history_files {
            self.spool.keep_history(*timeline, bytes)?;
        }
        self.leave_all_but(SegmentName::containing(timeline, start, self.spool.segment_size()))?;
        let gap = self.board.read(|status| status.gaps.len()) > gaps;
        self.note_source(source, &host, version, timeline, &server, gap);
        let slot_missed = missed.is_some();
        self.board.update(|status| status.slot_lost = missed.map(|error| error.message().to_owned()));
        let prefix = self.prefix_of(&server, timeline, start)?;
        let known = Known { prefix, again: self.sent_again_before(timeline, start)? };
        let intake = Intake::open(self.spool.clone(), timeline, start, known, self.settings.synchronous).await?;
        let history = self.spool.history(timeline)?;
        let durable = intake.held();
        self.board.update(|status| status.followed = Some(FollowedBranch { history, durable }));
        let started = connection.start_replication(slot.as_ref(), intake.position(), timeline).await;
        self.slot_refused = matches!(&started, Err(error) if error.is_invalidated_slot());
        let stream = started?;
        self.without_since = None;
        Ok(Ready { stream, intake, timeline, start, server_end: server.end, cadence, source, slot_missed })
    }

    /// A spool that is full must have room again before a connection is worth its while. Waits for it in silence, since
    /// all was said when it became full; `false` when we are asked to stop.
    async fn wait_for_room(&self, stop: &CancellationToken) -> Result<bool, Trouble> {
        if self.board.read(|status| status.state) != WalState::Stalled {
            return Ok(true);
        }
        while !self.spool.usage()?.has_room_again(self.spool.segment_size()) {
            tokio::select! {
                () = tokio::time::sleep(LOOK_FOR_ROOM) => {}
                () = stop.cancelled() => return Ok(false),
            }
        }
        tracing::info!(cluster = %self.settings.cluster, "the spool has room again");
        Ok(true)
    }

    /// After a failed write or fsync: until this has succeeded, nothing is resumed and nothing is acknowledged.
    ///
    /// A segment that could not be published is still open while the one after it exists already; to go on with that one
    /// would acknowledge bytes of the first that no fsync has covered.
    fn verify_suspect(&mut self) -> Result<(), Trouble> {
        if self.suspect {
            self.spool.verify_again()?;
            self.suspect = false;
        }
        Ok(())
    }

    /// Draws the consequences of how a stream ended.
    fn after_session(
        &mut self,
        timeline: TimelineId,
        (compared_from, start): (Lsn, Lsn),
        source: Source,
        ended: &Result<SessionEnd, Trouble>,
    ) -> Result<(), Trouble> {
        match ended {
            Ok(SessionEnd::Timeline { .. }) => {
                if let Some((name, _)) = self.spool.last() {
                    self.spool.leave(name)?;
                }
                fault_point!("receiver.timeline_left");
            }
            Err(Trouble::Postgres(error)) if error.is_wal_removed() && compared_from < start => {
                // It was only to be compared: what is needed next may be there all the same.
                self.unprovable = Some((timeline, start));
            }
            Err(Trouble::Postgres(error)) if error.is_wal_removed() => {
                let known =
                    self.removed.take().filter(|removed| (removed.timeline, removed.start) == (timeline, start));
                let mut removed = known.unwrap_or(Removed {
                    timeline,
                    start,
                    times: 0,
                    since: Instant::now(),
                    asked: BTreeMap::new(),
                });
                // A member that could have lent it says nothing of the slot on the one that we follow.
                removed.times += u32::from(source.until.is_none());
                removed.asked.insert(source.member, PATIENCE_WITH_A_LENDER);
                self.removed = Some(removed);
            }
            // A disk can also say at an fsync that it is full: all that is known of no failure is our own limit.
            Err(Trouble::Spool(error)) if !matches!(error, SpoolError::Full { .. }) => {
                tracing::error!(%error, "the spool failed: what it holds is verified again");
                self.suspect = true;
            }
            Ok(_) | Err(_) => {}
        }
        Ok(())
    }

    fn note(&mut self, trouble: &Trouble) {
        let error = trouble.explain(self.settings.cluster.as_str());
        let text = trouble.to_string();
        if self.told.as_ref().is_none_or(|(told, at)| *told != text || at.elapsed() > TELL_AGAIN) {
            tracing::warn!(cluster = %self.settings.cluster, reason = trouble.reason(), error = %text, "not streaming");
            self.told = Some((text.clone(), Instant::now()));
        }
        let lost = matches!(trouble, Trouble::Removed(_)).then_some(text);
        let was_connected = !matches!(trouble, Trouble::NoSource(_));
        self.board.update(|status| {
            if was_connected || status.streaming() {
                *status.counters.reconnects.entry(trouble.reason()).or_default() += 1;
            }
            status.state = trouble.state();
            status.error = Some(error);
            status.slot_lost = lost;
        });
    }

    fn count_reconnect(&self, reason: &'static str) {
        self.board.update(|status| *status.counters.reconnects.entry(reason).or_default() += 1);
    }
}
