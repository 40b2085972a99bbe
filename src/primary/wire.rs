//! Protocol 3.0 over a transport: frames in, frames out, simple queries.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend::{self, CopyData};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::error::{PgError, ServerError};
use super::transport::Transport;

pub(super) mod body;
mod buffer;

pub(super) use body::Row;
pub(super) use buffer::{Frame, ReadBuffer};

/// While a server is not authenticated it gets little memory.
const STARTUP_LIMIT: usize = 64 << 10;
/// The longest message of a server that we trust so far: a timeline history of 100 000 lines would fit.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Room for commands and their answers.
const SMALL_BUFFER: usize = 64 << 10;
/// Room for streams: eight WAL messages of 128 KiB.
const STREAM_BUFFER: usize = 1 << 20;
/// Rows of one answer may take so much in all.
const ANSWER_LIMIT: usize = 64 << 20;
/// Notices kept for whoever asks.
const MAX_NOTICES: usize = 100;

/// A connection: the reading half, and the writing half shared with whoever reports while we read.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) reader: WireReader,
    pub(super) writer: Arc<Mutex<WireWriter>>,
    /// A command was sent and its answer is not read to the end: if its future was dropped, the next answer on the wire
    /// belongs to it, and nothing may be asked any more.
    busy: bool,
}

/// The reading half: all state of a read lives here, so that a dropped future loses nothing.
#[derive(Debug)]
pub(super) struct WireReader {
    io: ReadHalf<Transport>,
    buffer: ReadBuffer,
    /// What the server reported about itself: `server_version`, `in_hot_standby`, ….
    pub(super) parameters: HashMap<String, String>,
    /// Warnings and notices, the first hundred.
    pub(super) notices: Vec<ServerError>,
}

/// The writing half. What was queued and not yet sent stays here when a future is dropped, and goes first next time.
#[derive(Debug)]
pub(super) struct WireWriter {
    io: WriteHalf<Transport>,
    pending: BytesMut,
    /// Counts copy modes: a status writer of an earlier stream must not write into a later conversation.
    epoch: u64,
    /// Whether we may still send CopyData in this epoch.
    copy_open: bool,
}

impl Wire {
    /// A connection on a transport that nobody has written to.
    pub(super) fn new(transport: Transport) -> Self {
        let (read, write) = tokio::io::split(transport);
        let buffer = ReadBuffer::new(SMALL_BUFFER, STARTUP_LIMIT);
        Self {
            reader: WireReader { io: read, buffer, parameters: HashMap::new(), notices: Vec::new() },
            writer: Arc::new(Mutex::new(WireWriter {
                io: write,
                pending: BytesMut::new(),
                epoch: 0,
                copy_open: false,
            })),
            busy: false,
        }
    }

    /// Puts a message together and sends it.
    pub(super) async fn send(
        &mut self,
        limit: Duration,
        message: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), PgError> {
        self.writer.lock().await.send(limit, message).await
    }

    /// Runs a command of the simple protocol and returns the rows of its last result. After an error the connection is
    /// ready for the next command.
    pub(super) async fn query(&mut self, command: &str, limit: Duration) -> Result<Vec<Row>, PgError> {
        if self.busy {
            return Err(PgError::Protocol(
                "the connection still owes the answer to a command that was abandoned".to_owned(),
            ));
        }
        self.busy = true;
        let result = self.query_and_read(command, limit).await;
        // After an error of the server the answer was drained; after any other the connection is broken anyway.
        self.busy = matches!(result, Err(ref error) if !matches!(error, PgError::Server(_)));
        result
    }

    async fn query_and_read(&mut self, command: &str, limit: Duration) -> Result<Vec<Row>, PgError> {
        const DOING: &str = "waiting for the answer to a command";
        self.send(limit, |out| frontend::query(command, out)).await?;
        let mut rows: Vec<Row> = Vec::new();
        let mut size = 0;
        loop {
            let frame = self.reader.frame(limit, DOING).await?;
            let body = self.reader.body(&frame);
            match frame.tag {
                b'T' => rows.clear(),
                b'D' => {
                    size += body.len();
                    if size > ANSWER_LIMIT {
                        return Err(PgError::Protocol(format!("an answer of more than {ANSWER_LIMIT} bytes")));
                    }
                    rows.push(body::data_row(body).ok_or_else(|| PgError::Protocol("a torn row".to_owned()))?);
                }
                b'C' | b'I' => {}
                b'Z' => return Ok(rows),
                b'E' => {
                    let error = body::error_fields(body);
                    return Err(self.reader.drain(error, limit).await);
                }
                other => return Err(unexpected(other, DOING)),
            }
        }
    }

    /// Sends a command that makes the server take data from us, and waits until it does.
    pub(super) async fn begin_copy_in(&mut self, command: &str, limit: Duration) -> Result<(), PgError> {
        const DOING: &str = "waiting for the server to take data";
        if self.busy {
            return Err(PgError::Protocol(
                "the connection still owes the answer to a command that was abandoned".to_owned(),
            ));
        }
        self.busy = true;
        self.send(limit, |out| frontend::query(command, out)).await?;
        let frame = self.reader.frame(limit, DOING).await?;
        match frame.tag {
            b'G' => Ok(()),
            b'E' => {
                let error = body::error_fields(self.reader.body(&frame));
                let error = self.reader.drain(error, limit).await;
                self.busy = false;
                Err(error)
            }
            other => Err(unexpected(other, DOING)),
        }
    }

    /// The next data, after [`Wire::begin_copy_in`].
    pub(super) async fn send_copy_data(&mut self, data: &[u8], limit: Duration) -> Result<(), PgError> {
        self.send(limit, |out| {
            CopyData::new(data)?.write(out);
            Ok(())
        })
        .await
    }

    /// All data was sent: what the server says to it.
    pub(super) async fn end_copy_in(&mut self, limit: Duration) -> Result<(), PgError> {
        const DOING: &str = "waiting for the server to have taken the data";
        self.send(limit, |out| {
            frontend::copy_done(out);
            Ok(())
        })
        .await?;
        loop {
            let frame = self.reader.frame(limit, DOING).await?;
            match frame.tag {
                b'C' => {}
                b'Z' => {
                    self.busy = false;
                    return Ok(());
                }
                b'E' => {
                    let error = body::error_fields(self.reader.body(&frame));
                    let error = self.reader.drain(error, limit).await;
                    self.busy = false;
                    return Err(error);
                }
                other => return Err(unexpected(other, DOING)),
            }
        }
    }

    /// The transport and the bytes that were read ahead; `None` while another half is still in use.
    pub(super) fn into_transport(self) -> Option<(Transport, Vec<u8>)> {
        let writer = Arc::try_unwrap(self.writer).ok()?.into_inner();
        let rest = self.reader.buffer.rest().to_vec();
        Some((self.reader.io.unsplit(writer.io), rest))
    }
}

/// The error for a message that has no place where it came.
pub(super) fn unexpected(tag: u8, doing: &str) -> PgError {
    PgError::Protocol(format!("a message of kind 0x{tag:02x} while {doing}"))
}

impl WireReader {
    /// The next message that is not an aside (parameter, notice, notification). Cancel-safe: bytes that were read stay in
    /// the buffer. `limit` bounds each wait for bytes.
    pub(super) async fn frame(&mut self, limit: Duration, doing: &'static str) -> Result<Frame, PgError> {
        loop {
            match self.buffer.next_frame().map_err(|error| PgError::Protocol(error.to_string()))? {
                Some(frame) if self.is_aside(&frame) => {}
                Some(frame) => return Ok(frame),
                None => self.fill(limit, doing).await?,
            }
        }
    }

    /// Whether a whole message was read and not yet taken.
    pub(super) fn has_frame(&self) -> bool {
        self.buffer.has_frame()
    }

    /// The bytes of the frame that was returned last.
    pub(super) fn body(&self, frame: &Frame) -> &[u8] {
        self.buffer.body(frame)
    }

    /// The server is authenticated: it may send longer messages.
    pub(super) fn trust(&mut self) {
        self.buffer.enlarge(SMALL_BUFFER, MESSAGE_LIMIT);
    }

    /// A stream is about to come: make room for long reads.
    pub(super) fn expect_stream(&mut self) {
        self.buffer.enlarge(STREAM_BUFFER, MESSAGE_LIMIT);
    }

    /// Reads until the server is ready again and gives the error back: the next answer must not be mistaken for the rest
    /// of this one. A server that closes instead (FATAL) leaves the error as it is.
    pub(super) async fn drain(&mut self, error: ServerError, limit: Duration) -> PgError {
        loop {
            match self.frame(limit, "waiting for the server to be ready again").await {
                Ok(frame) if frame.tag != b'Z' => {}
                // Ready, or gone: what the server said first matters more than how the connection ended.
                Ok(_) | Err(_) => return PgError::Server(Box::new(error)),
            }
        }
    }

    async fn fill(&mut self, limit: Duration, doing: &'static str) -> Result<(), PgError> {
        let spare = self.buffer.spare().map_err(|error| PgError::Protocol(error.to_string()))?;
        let lost = |source| PgError::Io { doing, source };
        // Dropping this future drops a read that has not happened: `read` takes bytes only when it is ready.
        let count = match timeout(limit, self.io.read(spare)).await {
            Ok(result) => result.map_err(lost)?,
            Err(_) => return Err(PgError::Timeout { doing: doing.to_owned(), limit }),
        };
        if count == 0 {
            return Err(lost(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")));
        }
        self.buffer.filled(count);
        Ok(())
    }

    /// Takes in what may come at any time.
    fn is_aside(&mut self, frame: &Frame) -> bool {
        match frame.tag {
            b'S' => {
                if let Some((name, value)) = body::parameter_status(self.buffer.body(frame)) {
                    // PostgreSQL reports about fifteen; a hostile server could send names without end.
                    if self.parameters.len() < 64 || self.parameters.contains_key(&name) {
                        self.parameters.insert(name, value);
                    }
                }
                true
            }
            b'N' => {
                let notice = body::error_fields(self.buffer.body(frame));
                tracing::debug!(%notice, "notice from the server");
                if self.notices.len() < MAX_NOTICES {
                    self.notices.push(notice);
                }
                true
            }
            b'A' => true,
            _ => false,
        }
    }
}

impl WireWriter {
    /// Queues a message and sends everything that is queued.
    pub(super) async fn send(
        &mut self,
        limit: Duration,
        message: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), PgError> {
        message(&mut self.pending).map_err(|error| bad_message(&error))?;
        self.flush(limit).await
    }

    /// Enters copy mode; the number tells this one from others.
    pub(super) fn begin_copy(&mut self, open: bool) -> u64 {
        self.epoch += 1;
        self.copy_open = open;
        self.epoch
    }

    /// Whether copy mode number `epoch` is the present one.
    pub(super) fn is_in(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    /// Sends CopyData, if copy mode `epoch` is still open on our side.
    pub(super) async fn copy_data(&mut self, epoch: u64, payload: &[u8; 34], limit: Duration) -> Result<(), PgError> {
        if self.queue_copy_data(epoch, payload)? { self.flush(limit).await } else { Ok(()) }
    }

    /// As [`WireWriter::copy_data`], without waiting; whether nothing is left to be sent.
    pub(super) fn try_copy_data(&mut self, epoch: u64, payload: &[u8; 34]) -> Result<bool, PgError> {
        if !self.queue_copy_data(epoch, payload)? {
            return Ok(true);
        }
        // Nobody is to be woken: what is left over is sent by the next flush, which asks again.
        let mut context = Context::from_waker(Waker::noop());
        while !self.pending.is_empty() {
            match Pin::new(&mut self.io).poll_write(&mut context, &self.pending) {
                Poll::Ready(Ok(0)) => return Err(lost(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.pending.advance(count),
                Poll::Ready(Err(error)) => return Err(lost(error)),
                Poll::Pending => return Ok(false),
            }
        }
        match Pin::new(&mut self.io).poll_flush(&mut context) {
            Poll::Ready(flushed) => flushed.map(|()| true).map_err(lost),
            Poll::Pending => Ok(false),
        }
    }

    /// Queues CopyData; false when copy mode `epoch` is over on our side.
    fn queue_copy_data(&mut self, epoch: u64, payload: &[u8; 34]) -> Result<bool, PgError> {
        if !self.copy_open || !self.is_in(epoch) {
            return Ok(false);
        }
        let message = CopyData::new(&payload[..]).map_err(|error| bad_message(&error))?;
        message.write(&mut self.pending);
        Ok(true)
    }

    /// Sends CopyDone, once: asked again, it sends what is left of it.
    pub(super) async fn end_copy(&mut self, limit: Duration) -> Result<(), PgError> {
        if self.copy_open {
            self.copy_open = false;
            frontend::copy_done(&mut self.pending);
        }
        self.flush(limit).await
    }

    /// Sends what is queued. Cancel-safe: `pending` is shortened only by what the transport took.
    async fn flush(&mut self, limit: Duration) -> Result<(), PgError> {
        let sending = async {
            while !self.pending.is_empty() {
                let count = self.io.write(&self.pending).await.map_err(lost)?;
                if count == 0 {
                    return Err(lost(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(count);
            }
            self.io.flush().await.map_err(lost)
        };
        timeout(limit, sending)
            .await
            .unwrap_or_else(|_| Err(PgError::Timeout { doing: "sending to the server".to_owned(), limit }))
    }
}

fn lost(source: io::Error) -> PgError {
    PgError::Io { doing: "sending to the server", source }
}

fn bad_message(error: &io::Error) -> PgError {
    PgError::Protocol(format!("cannot encode a message: {error}"))
}
