//! Reads what two sides of a replication connection tell each other, from the bytes that a proxy passes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use wal::Lsn;

use super::proxy::{Direction, Proxy};

/// A status update on its way to the server.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub at: Instant,
    pub connection: usize,
    pub write: Lsn,
    pub flush: Lsn,
    pub apply: Lsn,
}

/// A keepalive of the server.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    pub at: Instant,
    pub connection: usize,
    pub reply_requested: bool,
}

/// All that was told so far.
#[derive(Debug, Default)]
pub struct Told {
    pub updates: Vec<Update>,
    pub keepalives: Vec<Keepalive>,
    /// Where each connection that streams asked to start.
    pub starts: Vec<(usize, Lsn)>,
    /// When each connection said its first word.
    pub connected: Vec<Instant>,
    streams: HashMap<(usize, Direction), Stream>,
}

/// One direction of one connection, in messages.
#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    /// Behind the startup message, or the answer to a request for TLS.
    begun: bool,
}

impl Told {
    /// Takes in what passes; the status updates that are complete with it.
    pub fn pass(&mut self, connection: usize, direction: Direction, bytes: &[u8]) -> Vec<Update> {
        let stream = self.streams.entry((connection, direction)).or_default();
        if stream.bytes.is_empty() && !stream.begun && direction == Direction::ToServer {
            self.connected.push(Instant::now());
        }
        stream.bytes.extend_from_slice(bytes);
        let mut updates = Vec::new();
        while let Some(message) = stream.next(direction) {
            match (direction, &message[..]) {
                (Direction::ToServer, [b'Q', _, _, _, _, query @ ..]) if query.starts_with(b"START_REPLICATION") => {
                    let text = String::from_utf8_lossy(query).into_owned();
                    self.starts.push((connection, text.split(' ').find_map(|word| word.parse().ok()).unwrap()));
                }
                (Direction::ToServer, [b'd', _, _, _, _, b'r', positions @ ..]) => {
                    let lsn = |at: usize| Lsn::new(u64::from_be_bytes(positions[at..at + 8].try_into().unwrap()));
                    let (write, flush, apply) = (lsn(0), lsn(8), lsn(16));
                    updates.push(Update { at: Instant::now(), connection, write, flush, apply });
                }
                (Direction::ToClient, [b'd', _, _, _, _, b'k', body @ ..]) => {
                    let reply_requested = body[16] != 0;
                    self.keepalives.push(Keepalive { at: Instant::now(), connection, reply_requested });
                }
                _ => {}
            }
        }
        self.updates.extend(&updates);
        updates
    }
}

impl Stream {
    fn next(&mut self, direction: Direction) -> Option<Vec<u8>> {
        if !self.begun && direction == Direction::ToClient {
            // One byte without a length answers a request for TLS.
            self.begun = true;
            if matches!(self.bytes.first(), Some(b'N' | b'S')) && !looks_like_a_message(&self.bytes) {
                self.bytes.remove(0);
            }
        }
        let header = usize::from(self.begun);
        let length = self.bytes.get(header..header + 4)?;
        let end = header + u32::from_be_bytes(length.try_into().unwrap()) as usize;
        if self.bytes.len() < end {
            return None;
        }
        let message: Vec<u8> = self.bytes.drain(..end).collect();
        if !self.begun {
            // A request for TLS comes before the startup message.
            self.begun = message[4..8] == 196_608u32.to_be_bytes();
        }
        Some(message)
    }
}

fn looks_like_a_message(bytes: &[u8]) -> bool {
    bytes.get(1..3) == Some(&[0, 0])
}

/// A proxy in front of a server that notes all that is told.
pub fn tapped(port: u16) -> (Proxy, Arc<Mutex<Told>>) {
    let told = Arc::new(Mutex::new(Told::default()));
    let shared = Arc::clone(&told);
    let proxy = Proxy::start_tapped(port, move |connection, direction, bytes| {
        shared.lock().unwrap().pass(connection, direction, bytes);
    });
    (proxy, told)
}
