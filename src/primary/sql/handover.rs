//! Hands a connection that is already authenticated to tokio-postgres, so that SQL sessions and replication share one way
//! to connect: hosts, TLS, `require_auth`, channel binding, error texts.
//!
//! tokio-postgres begins with a startup message and expects the server's greeting. The stream swallows the former and
//! replays the latter.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::primary::transport::Transport;

/// The stream that tokio-postgres gets.
pub(super) struct Handover {
    transport: Transport,
    /// What is read before the transport is.
    greeting: Bytes,
    /// The startup message, as far as it has come; `None` once it was swallowed.
    startup: Option<Vec<u8>>,
}

impl Handover {
    /// A stream on which the server seems to greet with its key data (empty when it gave none), and where `rest` was
    /// read from the server already.
    pub(super) fn new(transport: Transport, key: &[u8], rest: &[u8]) -> Self {
        let mut greeting = BytesMut::new();
        put_message(&mut greeting, b'R', &[0; 4]);
        if key.len() == 8 {
            put_message(&mut greeting, b'K', key);
        }
        put_message(&mut greeting, b'Z', b"I");
        greeting.put_slice(rest);
        Self { transport, greeting: greeting.freeze(), startup: Some(Vec::new()) }
    }

    /// How many of these bytes belong to the startup message, which starts with its own length.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        let Some(startup) = self.startup.as_mut() else { return 0 };
        let before = startup.len();
        for &byte in bytes {
            startup.push(byte);
            let length = startup.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
            if length.is_some_and(|length| startup.len() >= length) {
                let taken = startup.len() - before;
                self.startup = None;
                return taken;
            }
        }
        bytes.len()
    }
}

fn put_message(out: &mut BytesMut, tag: u8, body: &[u8]) {
    out.put_u8(tag);
    out.put_u32(u32::try_from(body.len() + 4).expect("bodies of a greeting have at most eight bytes"));
    out.put_slice(body);
}

impl AsyncRead for Handover {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.greeting.has_remaining() {
            let count = self.greeting.remaining().min(buf.remaining());
            buf.put_slice(&self.greeting.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.transport).poll_read(cx, buf)
    }
}

impl AsyncWrite for Handover {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.swallow(buf) {
            0 => Pin::new(&mut self.transport).poll_write(cx, buf),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
