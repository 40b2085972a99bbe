//! WAL as it streams from a walsender.

use wal::{Lsn, PgTime, TimelineId};

use super::error::PgError;
use super::message::StatusUpdate;
use super::replication::ReplicationConnection;

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
pub struct WalStream {}

impl WalStream {
    /// The next event. Cancel-safe. After a terminal event or an error there is no further event.
    pub async fn next(&mut self) -> Result<StreamEvent<'_>, PgError> {
        todo!()
    }

    /// Reports positions to the server; `now` is our clock. Cancel-safe: what was not sent goes first next time.
    pub async fn send_status(&mut self, update: StatusUpdate, now: PgTime) -> Result<(), PgError> {
        todo!("{update:?} {now}")
    }

    /// Asks the server to end the stream; go on calling [`WalStream::next`] until [`StreamEvent::Stopped`].
    pub async fn stop(&mut self) -> Result<(), PgError> {
        todo!()
    }

    /// Divides the stream so that one task reads while another reports.
    pub fn split(self) -> (WalStreamReader, StatusWriter) {
        todo!()
    }

    /// The connection, for further commands; only after [`StreamEvent::EndOfTimeline`] or [`StreamEvent::Stopped`].
    pub fn into_connection(self) -> Option<ReplicationConnection> {
        todo!()
    }
}

/// The reading half of a stream.
#[derive(Debug)]
pub struct WalStreamReader {}

impl WalStreamReader {
    /// As [`WalStream::next`].
    pub async fn next(&mut self) -> Result<StreamEvent<'_>, PgError> {
        todo!()
    }

    /// As [`WalStream::into_connection`].
    pub fn into_connection(self) -> Option<ReplicationConnection> {
        todo!()
    }
}

/// The writing half of a stream; cheap to clone. Does nothing once the stream has ended.
#[derive(Clone, Debug)]
pub struct StatusWriter {}

impl StatusWriter {
    /// As [`WalStream::send_status`].
    pub async fn send_status(&self, update: StatusUpdate, now: PgTime) -> Result<(), PgError> {
        todo!("{update:?} {now}")
    }

    /// As [`WalStream::stop`].
    pub async fn stop(&self) -> Result<(), PgError> {
        todo!()
    }
}
