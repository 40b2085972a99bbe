//! WAL as it streams from a walsender.

use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::sync::Mutex;
use wal::{Lsn, PgTime, TimelineId};

use super::conninfo::Host;
use super::error::PgError;
use super::message::{self, StatusUpdate, StreamMessage};
use super::replication::{ReplicationConnection, field};
use super::wire::{Frame, WireWriter, body, unexpected};

/// What comes next in a stream of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent<'a> {
    /// Bytes of WAL, contiguous with those before; borrowed from the read buffer until the next call.
    Wal {
        /// Position of the first byte of `data`.
        start: Lsn,
        /// End of WAL on the server when it sent this.
        server_end: Lsn,
        /// The server's clock when it sent this.
        time: PgTime,
        /// The WAL, at most 128 KiB from today's servers; may cross segment boundaries.
        data: &'a [u8],
    },
    /// The server is alive, and may want a status update at once.
    Keepalive {
        /// End of WAL on the server.
        server_end: Lsn,
        /// The server's clock.
        time: PgTime,
        /// Answer at once, with `flush` brought up to what was received: a server that shuts down waits for it.
        reply_requested: bool,
    },
    /// The end of this timeline: the server went on to `next`, which left this one at `switch_point`. Terminal.
    EndOfTimeline {
        /// The timeline that the server continues on.
        next: TimelineId,
        /// First position that is no longer on the timeline streamed so far.
        switch_point: Lsn,
    },
    /// The stream ended because we asked for it. Terminal.
    Stopped,
    /// The server shuts down and has sent all it had. Terminal; the connection is gone.
    ServerShutdown,
}

/// A running stream: the reader and a writer for status updates in one.
#[derive(Debug)]
pub struct WalStream {
    reader: WalStreamReader,
    writer: StatusWriter,
}

impl WalStream {
    /// Sends START_REPLICATION and waits for the server to enter copy mode.
    pub(super) async fn start(mut connection: ReplicationConnection, command: &str) -> Result<Self, PgError> {
        const DOING: &str = "starting to stream WAL";
        let limit = connection.server.deadlines.reply;
        let wire = &mut connection.wire;
        wire.send(limit, |out| frontend::query(command, out)).await?;
        let frame = wire.reader.frame(limit, DOING).await?;
        let phase = match frame.tag {
            b'W' => Phase::Copying,
            // The timeline ends right where we asked to start: no copy, only the result set that names the next one.
            b'T' => Phase::Ending,
            b'E' => {
                let error = body::error_fields(wire.reader.body(&frame));
                return Err(wire.reader.drain(error, limit).await);
            }
            other => return Err(unexpected(other, DOING)),
        };
        wire.reader.expect_stream();
        let epoch = wire.writer.lock().await.begin_copy(phase == Phase::Copying);
        let writer = StatusWriter { writer: Arc::clone(&connection.wire.writer), epoch, limit };
        Ok(Self { reader: WalStreamReader { connection, phase, next: None }, writer })
    }

    /// The next event. Cancel-safe. After a terminal event or an error there is no further event; only after
    /// [`PgError::Timeout`] one may go on waiting.
    pub async fn next(&mut self) -> Result<StreamEvent<'_>, PgError> {
        self.reader.next().await
    }

    /// Reports positions to the server; `now` is our clock. Cancel-safe: what was not sent goes first next time.
    pub async fn send_status(&mut self, update: StatusUpdate, now: PgTime) -> Result<(), PgError> {
        self.writer.send_status(|| (update, now)).await
    }

    /// Asks the server to end the stream; go on calling [`WalStream::next`] until [`StreamEvent::Stopped`].
    pub async fn stop(&mut self) -> Result<(), PgError> {
        self.writer.stop().await
    }

    /// Divides the stream so that one task reads while another reports.
    pub fn split(self) -> (WalStreamReader, StatusWriter) {
        (self.reader, self.writer)
    }

    /// The host that streams.
    pub fn host(&self) -> &Host {
        self.reader.host()
    }

    /// The connection, for further commands; only after [`StreamEvent::EndOfTimeline`] or [`StreamEvent::Stopped`].
    pub fn into_connection(self) -> Option<ReplicationConnection> {
        self.reader.into_connection()
    }
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The server sends WAL.
    Copying,
    /// The server has sent CopyDone; it waits for ours.
    ServerDone,
    /// Both have; the rest of the answer is due.
    Ending,
    /// All was read: the connection is ready for commands.
    Ready,
    /// The connection is of no further use.
    Broken,
}

/// The reading half of a stream. Reads go into a buffer of 1 MiB that is used again and again.
#[derive(Debug)]
pub struct WalStreamReader {
    connection: ReplicationConnection,
    phase: Phase,
    /// What the server's last result set said, when there was one.
    next: Option<(TimelineId, Lsn)>,
}

impl WalStreamReader {
    /// As [`WalStream::next`].
    pub async fn next(&mut self) -> Result<StreamEvent<'_>, PgError> {
        // Cancel-safe: between two awaits nothing is held outside `self`, and each step can be repeated.
        loop {
            match self.phase {
                Phase::Copying => {
                    let limit = self.connection.server.deadlines.silence;
                    let frame = self.frame(limit, "streaming WAL").await?;
                    match frame.tag {
                        b'd' => return event(self.connection.wire.reader.body(&frame)),
                        b'c' => self.phase = Phase::ServerDone,
                        // A server that shuts down says CommandComplete without CopyDone, and closes (walsender.c,
                        // WalSndDone).
                        b'C' => {
                            self.phase = Phase::Broken;
                            return Ok(StreamEvent::ServerShutdown);
                        }
                        _ => return Err(self.give_up(&frame, "streaming WAL")),
                    }
                }
                Phase::ServerDone => {
                    let limit = self.connection.server.deadlines.reply;
                    self.connection.wire.writer.lock().await.end_copy(limit).await?;
                    self.phase = Phase::Ending;
                }
                Phase::Ending => {
                    let limit = self.connection.server.deadlines.reply;
                    let frame = self.frame(limit, "ending the stream").await?;
                    match frame.tag {
                        b'T' | b'C' => {}
                        b'D' => self.next = Some(next_timeline(self.connection.wire.reader.body(&frame))?),
                        b'Z' => {
                            self.phase = Phase::Ready;
                            return Ok(match self.next {
                                Some((next, switch_point)) => StreamEvent::EndOfTimeline { next, switch_point },
                                None => StreamEvent::Stopped,
                            });
                        }
                        _ => return Err(self.give_up(&frame, "ending the stream")),
                    }
                }
                Phase::Ready | Phase::Broken => {
                    return Err(PgError::Protocol("the stream has ended, and was asked for more".to_owned()));
                }
            }
        }
    }

    /// Whether the next event is here already.
    pub fn has_more(&self) -> bool {
        self.connection.wire.reader.has_frame()
    }

    /// The host that streams.
    pub fn host(&self) -> &Host {
        self.connection.host()
    }

    /// As [`WalStream::into_connection`].
    pub fn into_connection(self) -> Option<ReplicationConnection> {
        (self.phase == Phase::Ready).then_some(self.connection)
    }

    async fn frame(&mut self, limit: Duration, doing: &'static str) -> Result<Frame, PgError> {
        let result = self.connection.wire.reader.frame(limit, doing).await;
        // Whoever waited in vain may wait on; any other failure is final.
        if result.as_ref().is_err_and(|error| !matches!(error, PgError::Timeout { .. })) {
            self.phase = Phase::Broken;
        }
        result
    }

    /// An error of the server, or a message that has no place here. The server may have sent it in the middle of the
    /// copy: the connection is not used again.
    fn give_up(&mut self, frame: &Frame, doing: &str) -> PgError {
        self.phase = Phase::Broken;
        match frame.tag {
            b'E' => PgError::Server(Box::new(body::error_fields(self.connection.wire.reader.body(frame)))),
            other => unexpected(other, doing),
        }
    }
}

fn event(payload: &[u8]) -> Result<StreamEvent<'_>, PgError> {
    match message::decode(payload) {
        Ok(StreamMessage::Wal { start, server_end, time, data }) => {
            Ok(StreamEvent::Wal { start, server_end, time, data })
        }
        Ok(StreamMessage::Keepalive { server_end, time, reply_requested }) => {
            Ok(StreamEvent::Keepalive { server_end, time, reply_requested })
        }
        Err(error) => Err(PgError::Protocol(format!("{error} while streaming WAL"))),
    }
}

/// `next_tli` and `next_tli_startpos`.
fn next_timeline(body: &[u8]) -> Result<(TimelineId, Lsn), PgError> {
    let row = body::data_row(body).ok_or_else(|| PgError::Protocol("a torn row".to_owned()))?;
    Ok((field(&row, 0, "the next timeline")?, field(&row, 1, "the switch point")?))
}

/// The writing half of a stream; cheap to clone. Does nothing once the stream has ended.
#[derive(Clone, Debug)]
pub struct StatusWriter {
    writer: Arc<Mutex<WireWriter>>,
    epoch: u64,
    limit: Duration,
}

impl StatusWriter {
    /// As [`WalStream::send_status`]. The positions are asked for when it is their turn to be written: of two reports the
    /// later one on the wire is the younger one.
    pub async fn send_status(&self, report: impl FnOnce() -> (StatusUpdate, PgTime)) -> Result<(), PgError> {
        let mut writer = self.writer.lock().await;
        let (update, now) = report();
        writer.copy_data(self.epoch, &update.encode(now), self.limit).await
    }

    /// As [`StatusWriter::send_status`], without waiting; false when not all of it could be sent. The next report that
    /// waits sends the rest first.
    pub fn try_send_status(&self, report: impl FnOnce() -> (StatusUpdate, PgTime)) -> Result<bool, PgError> {
        let Ok(mut writer) = self.writer.try_lock() else { return Ok(false) };
        let (update, now) = report();
        writer.try_copy_data(self.epoch, &update.encode(now))
    }

    /// As [`WalStream::stop`].
    pub async fn stop(&self) -> Result<(), PgError> {
        let mut writer = self.writer.lock().await;
        if writer.is_in(self.epoch) { writer.end_copy(self.limit).await } else { Ok(()) }
    }
}
