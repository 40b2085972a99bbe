//! One stream of WAL from its first byte to its end.
//!
//! The loop never waits for compression, upload or the disk: bytes are written to the page cache as they come, everything
//! else runs beside it. So a server that asks gets its answer at once, and a primary that shuts down gets its last flush
//! position as soon as the disk has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use wal::{Lsn, PgTime, TimelineId};

use super::cadence::Cadence;
use super::errands::Errands;
use super::intake::Intake;
use super::teller::Teller;
use super::trouble::Trouble;
use crate::clock::Clock;
use crate::primary::{PgError, StreamEvent, WalStream, WalStreamReader};
use crate::spool::{Spool, SpoolError, WriteError};
use crate::wal_pipeline::{StatusBoard, WalSettings, WalState};

/// Unless commits wait for it, received WAL may stay volatile for so long; then it is synced without being asked.
const LAZY_SYNC: Duration = Duration::from_secs(1);
/// While a sync runs that will tell more, a server that asks again and again is answered so often.
const ANSWER_EVERY: Duration = Duration::from_millis(100);
/// How long a server may take to end the stream that we asked it to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a stream ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// We were asked to stop.
    Asked,
    /// The server went on to another timeline.
    Timeline {
        /// The one it went on to.
        next: TimelineId,
        /// Where it left this one.
        switch_point: Lsn,
    },
    /// The server shut down; it has had everything acknowledged.
    ServerShutdown,
    /// The member lent what another one lacks; the rest is not its to send.
    Lent,
}

/// What a stream works with.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) settings: &'a WalSettings,
    pub(super) spool: &'a Spool,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) board: &'a StatusBoard,
    pub(super) cadence: Cadence,
    pub(super) stop: &'a CancellationToken,
    /// Where what we held before the session ends; a server that has less has lost it.
    pub(super) held_before: Lsn,
    /// Where the server's WAL ended before the session. What it tells in the stream begins lower: how far it has sent.
    pub(super) server_end: Lsn,
    /// A standby may still get what we hold.
    pub(super) standby: bool,
    /// Where the WAL ends that is wanted from this member; `None` for all that comes.
    pub(super) until: Option<Lsn>,
    /// Where commits wait for us: who syncs between two polls of this.
    pub(super) errands: Option<&'a Errands>,
}

impl Session<'_> {
    /// Receives until the stream ends, for whatever reason, and leaves everything received durable.
    pub(super) async fn run(&self, stream: WalStream, mut intake: Intake) -> Result<SessionEnd, Trouble> {
        if let Some(errands) = self.errands {
            intake.run_errands_of(errands.clone());
        }
        let (mut reader, writer) = stream.split();
        let teller = Teller {
            writer,
            positions: intake.positions(),
            from: intake.from(),
            report_apply: self.settings.report_apply,
            clock: Arc::clone(self.clock),
            board: self.board.clone(),
        };
        intake.tell_through(Arc::new(teller.clone()));
        let ended = self.receive(&mut reader, &teller, &mut intake).await;
        let ended = match ended {
            Ok(SessionEnd::Asked) => self.farewell(&mut reader, &teller, &mut intake).await.map(|()| SessionEnd::Asked),
            Err(Trouble::Spool(error)) if error.is_no_space() => {
                // Cleanly, at once: a receiver that only stops reading can hang the primary's checkpoint.
                self.farewell(&mut reader, &teller, &mut intake).await.and(Err(Trouble::Spool(error)))
            }
            other => other,
        };
        // What was received before the end, good or bad, is worth keeping; after a failed sync nothing is known.
        let kept = if matches!(&ended, Err(Trouble::Spool(error)) if !error.is_no_space()) {
            Ok(())
        } else {
            intake.flush().await
        };
        teller.note();
        let closed = intake.close().await;
        // A failed sync says more than anything else: the spool has to be verified before it is used again.
        kept.and(closed)?;
        ended
    }

    async fn receive(
        &self,
        reader: &mut WalStreamReader,
        teller: &Teller,
        intake: &mut Intake,
    ) -> Result<SessionEnd, Trouble> {
        let lazy_sync = match self.settings.max_rpo {
            Duration::ZERO => LAZY_SYNC,
            max_rpo => LAZY_SYNC.min(max_rpo / 4).max(Duration::from_millis(20)),
        };
        let mut last_message = Instant::now();
        let mut next_status = last_message + self.cadence.status;
        let mut next_sync = None;
        let mut asked = false;
        let mut answered = None;
        // Says where we are, and makes an idle server say that it is there.
        teller.tell(true).await?;
        loop {
            // Commits wait for it: but first everything that is here already, so that one sync does for all.
            if self.settings.synchronous && !reader.has_more() && !intake.is_clean() {
                intake.want_durable();
            }
            let patience = last_message + if asked { self.cadence.silence } else { self.cadence.ask };
            let wake =
                [Some(next_status), next_sync, Some(patience)].into_iter().flatten().min().unwrap_or(next_status);
            tokio::select! {
                event = reader.next() => {
                    last_message = Instant::now();
                    asked = false;
                    match event? {
                        StreamEvent::Wal { start, server_end, time, data } => {
                            if start != intake.position() {
                                let expected = intake.position();
                                return Err(PgError::Protocol(format!("WAL at {start} instead of {expected}")).into());
                            }
                            let data = self.wanted(start, data);
                            if let Err(error) = intake.write(data).await {
                                return Err(self.refused_bytes(error, start, data));
                            }
                            if self.until.is_some_and(|until| intake.position() >= until) {
                                return Ok(SessionEnd::Lent);
                            }
                            self.heard(intake, data.len(), server_end, time);
                            next_sync = next_sync.or_else(|| (!intake.is_clean()).then(|| last_message + lazy_sync));
                        }
                        StreamEvent::Keepalive { server_end, time, reply_requested } => {
                            self.heard(intake, 0, server_end, time);
                            if reply_requested {
                                // A server that shuts down waits until all it sent is flushed here, and asks again after each
                                // answer that says less: answer with what is true now, and again as soon as the sync that
                                // starts now has succeeded. What it asks meanwhile is answered with that, or soon.
                                intake.want_durable();
                                if intake.is_clean() || answered.is_none_or(|at| last_message >= at + ANSWER_EVERY) {
                                    teller.tell(false).await?;
                                    answered = Some(last_message);
                                    next_status = last_message + self.cadence.status;
                                } else {
                                    next_status = next_status.min(last_message + ANSWER_EVERY);
                                }
                            }
                        }
                        StreamEvent::EndOfTimeline { next, switch_point } => {
                            return self.end_of_timeline(intake, next, switch_point);
                        }
                        StreamEvent::ServerShutdown => return Ok(SessionEnd::ServerShutdown),
                        StreamEvent::Stopped => return Err(PgError::Protocol("the stream ended unasked".to_owned()).into()),
                    }
                }
                untold = intake.untold() => {
                    untold?;
                    teller.tell(false).await?;
                    next_status = Instant::now() + self.cadence.status;
                }
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= last_message + self.cadence.silence {
                        return Err(Trouble::Silent(self.cadence.silence));
                    }
                    if next_sync.is_some_and(|due| now >= due) {
                        next_sync = None;
                        intake.want_durable();
                    }
                    let ask = !asked && now >= patience;
                    if ask || now >= next_status {
                        asked |= ask;
                        teller.tell(ask).await?;
                        next_status = now + self.cadence.status;
                    }
                }
                () = self.stop.cancelled() => return Ok(SessionEnd::Asked),
            }
        }
    }

    /// What a member lends ends where another one goes on: beyond that it may have another history.
    fn wanted<'d>(&self, start: Lsn, data: &'d [u8]) -> &'d [u8] {
        let wanted = self.until.map_or(u64::MAX, |until| until.bytes_since(start));
        data.get(..usize::try_from(wanted).unwrap_or(usize::MAX)).unwrap_or(data)
    }

    /// Ends the stream as the protocol wants it: everything received durable and reported, then CopyDone, then what the
    /// server still had on its way.
    async fn farewell(
        &self,
        reader: &mut WalStreamReader,
        teller: &Teller,
        intake: &mut Intake,
    ) -> Result<(), Trouble> {
        intake.flush().await?;
        // Before CopyDone: a walsender takes no status after it. What still comes is kept, but reported only next time.
        teller.tell(false).await?;
        teller.writer.stop().await?;
        let drain = async {
            loop {
                match reader.next().await? {
                    StreamEvent::Wal { start, data, .. } if start == intake.position() => {
                        match intake.write(data).await {
                            Err(WriteError::Spool(error)) if error.is_no_space() => {}
                            other => other?,
                        }
                    }
                    StreamEvent::Wal { .. } | StreamEvent::Keepalive { .. } => {}
                    StreamEvent::Stopped | StreamEvent::EndOfTimeline { .. } | StreamEvent::ServerShutdown => {
                        return Ok::<(), Trouble>(());
                    }
                }
            }
        };
        match timeout(FAREWELL, drain).await {
            Ok(result) => result,
            // The server is slow to let go; everything that it knows to be flushed is.
            Err(_) => Ok(()),
        }
    }

    fn end_of_timeline(&self, intake: &Intake, next: TimelineId, switch_point: Lsn) -> Result<SessionEnd, Trouble> {
        let (timeline, position) = (intake.timeline(), intake.position());
        if next <= timeline || switch_point > position {
            let said = format!("timeline {timeline} ends at {switch_point} for {next}, but we are at {position}");
            return Err(PgError::Protocol(said).into());
        }
        Ok(SessionEnd::Timeline { next, switch_point })
    }

    /// What becomes of bytes that the spool did not take.
    fn refused_bytes(&self, error: WriteError, start: Lsn, data: &[u8]) -> Trouble {
        let WriteError::Divergence { segment, at } = error else { return error.into() };
        let from = usize::try_from(at.bytes_since(start)).unwrap_or(0).min(data.len());
        let kept_as: Result<_, SpoolError> = self.spool.set_aside(segment, at, &data[from..]);
        match kept_as {
            Ok(path) => Trouble::Diverged { segment, at, kept_as: Some(path) },
            Err(error) => {
                tracing::error!(%segment, %at, %error, "diverging bytes could not be kept");
                Trouble::Diverged { segment, at, kept_as: None }
            }
        }
    }

    /// A message came: the server lives, and this is where its WAL ends.
    fn heard(&self, intake: &Intake, bytes: usize, server_end: Lsn, time: PgTime) {
        let now = PgTime::from(self.clock.now());
        let before = self.board.read(|status| status.state);
        let server_end = server_end.max(self.server_end);
        let state = if server_end < self.held_before && !self.standby {
            WalState::Held
        } else if intake.position() < self.held_before {
            // What we hold is being compared, or waited for: it is not known yet whether the server's WAL continues it.
            before
        } else {
            WalState::Streaming
        };
        let timeline = intake.timeline();
        let position = intake.position().max(intake.held());
        let change = |status: &mut crate::wal_pipeline::WalStatus| {
            status.state = state;
            status.timeline = Some(timeline);
            status.counters.received_bytes += bytes as u64;
            status.server_end = Some(server_end);
            status.received = Some(position);
            status.last_message = Some(now);
            status.clock_offset_micros = Some(now.as_micros().saturating_sub(time.as_micros()));
            match state {
                WalState::Streaming => status.error = None,
                // Whoever reads the state finds its reason beside it.
                WalState::Held if before != WalState::Held => {
                    let held = self.held_before;
                    status.error = Some(Trouble::Held { server_end, held }.explain(self.settings.cluster.as_str()));
                }
                _ => {}
            }
        };
        if before == state {
            self.board.update_quietly(change);
        } else {
            self.board.update(change);
        }
    }
}
