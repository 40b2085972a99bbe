//! Messages inside CopyData while WAL is streamed (walsender.c): pure decoding and encoding.

use wal::{Lsn, PgTime};

/// What a walsender sends inside CopyData.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMessage<'a> {
    /// XLogData (`w`): bytes of WAL.
    Wal {
        /// Position of the first byte of `data`.
        start: Lsn,
        /// End of WAL on the server when it sent this.
        server_end: Lsn,
        /// The server's clock when it sent this.
        time: PgTime,
        /// The WAL. May cross segment boundaries.
        data: &'a [u8],
    },
    /// Primary keepalive (`k`).
    Keepalive {
        /// End of WAL on the server.
        server_end: Lsn,
        /// The server's clock.
        time: PgTime,
        /// The server wants a status update now.
        reply_requested: bool,
    },
}

/// The bytes are not a message of a walsender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// A CopyData without content.
    #[error("an empty CopyData message")]
    Empty,
    /// Shorter than its kind must be.
    #[error("a '{kind}' message of {length} bytes")]
    Truncated {
        /// The first byte as a character.
        kind: char,
        /// Its length.
        length: usize,
    },
    /// A kind that we do not know.
    #[error("a message of unknown kind 0x{0:02x}")]
    UnknownKind(u8),
    /// WAL that would end after the last possible position.
    #[error("WAL at {0} that runs past the end of the log")]
    PastEnd(Lsn),
}

/// Bytes before the WAL in XLogData: kind, start, end, time.
const WAL_HEADER: usize = 1 + 8 + 8 + 8;
/// Bytes of a keepalive: kind, end, time, reply requested.
const KEEPALIVE: usize = 1 + 8 + 8 + 1;

/// Reads one CopyData payload of a walsender in copy mode.
pub fn decode(payload: &[u8]) -> Result<StreamMessage<'_>, BadMessage> {
    let truncated = |kind| BadMessage::Truncated { kind, length: payload.len() };
    match payload.first() {
        None => Err(BadMessage::Empty),
        Some(b'w') => {
            let (header, data) = payload.split_at_checked(WAL_HEADER).ok_or_else(|| truncated('w'))?;
            let start = Lsn::new(read_u64(header, 1).ok_or_else(|| truncated('w'))?);
            let server_end = Lsn::new(read_u64(header, 9).ok_or_else(|| truncated('w'))?);
            let time = read_time(header, 17).ok_or_else(|| truncated('w'))?;
            if start.checked_add(data.len() as u64).is_none() {
                return Err(BadMessage::PastEnd(start));
            }
            Ok(StreamMessage::Wal { start, server_end, time, data })
        }
        Some(b'k') => {
            let keepalive = payload.get(..KEEPALIVE).ok_or_else(|| truncated('k'))?;
            let server_end = Lsn::new(read_u64(keepalive, 1).ok_or_else(|| truncated('k'))?);
            let time = read_time(keepalive, 9).ok_or_else(|| truncated('k'))?;
            let reply_requested = keepalive.get(17).is_some_and(|&byte| byte != 0);
            Ok(StreamMessage::Keepalive { server_end, time, reply_requested })
        }
        Some(&kind) => Err(BadMessage::UnknownKind(kind)),
    }
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(eight.try_into().ok()?))
}

fn read_time(bytes: &[u8], at: usize) -> Option<PgTime> {
    // The wire carries a signed number in the same eight bytes.
    read_u64(bytes, at).map(|raw| PgTime::from_micros(raw.cast_signed()))
}

/// What a receiver reports: `write` and `flush` are ends (first byte not yet written or durable).
///
/// The server never checks these numbers: a `flush` ahead of what is durable here acknowledges commits that can be lost
/// and lets the slot drop WAL that we need. All three are sent as they are; [`Lsn::INVALID`] means "not reporting".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusUpdate {
    /// End of what was received and handed to the operating system.
    pub write: Lsn,
    /// End of what is durable here. The only position that acknowledges a commit.
    pub flush: Lsn,
    /// End of what was applied; `flush` for a server that never replays, [`Lsn::INVALID`] to say nothing.
    pub apply: Lsn,
    /// Asks the server for a keepalive in return.
    pub reply_requested: bool,
}

impl StatusUpdate {
    /// The payload of the CopyData message ('r'), at the moment `now` of our clock.
    pub fn encode(&self, now: PgTime) -> [u8; 34] {
        let mut message = [0; 34];
        message[0] = b'r';
        message[1..9].copy_from_slice(&self.write.as_u64().to_be_bytes());
        message[9..17].copy_from_slice(&self.flush.as_u64().to_be_bytes());
        message[17..25].copy_from_slice(&self.apply.as_u64().to_be_bytes());
        message[25..33].copy_from_slice(&now.as_micros().to_be_bytes());
        message[33] = u8::from(self.reply_requested);
        message
    }
}

#[cfg(test)]
mod tests {
    use wal::{Lsn, PgTime};

    use super::{BadMessage, StatusUpdate, StreamMessage, decode};

    fn wal_message(start: u64, end: u64, time: i64, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'w'];
        bytes.extend(start.to_be_bytes());
        bytes.extend(end.to_be_bytes());
        bytes.extend(time.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn wal_is_decoded_in_place() {
        let bytes = wal_message(0x0100_0000, 0x0200_0000, -5, b"wal");
        let expected = StreamMessage::Wal {
            start: Lsn::new(0x0100_0000),
            server_end: Lsn::new(0x0200_0000),
            time: PgTime::from_micros(-5),
            data: b"wal",
        };
        assert_eq!(decode(&bytes), Ok(expected));
        let empty = wal_message(1, 1, 0, b"");
        assert!(matches!(decode(&empty), Ok(StreamMessage::Wal { data: b"", .. })));
    }

    #[test]
    fn a_keepalive_is_decoded_and_may_grow() {
        let mut bytes = vec![b'k'];
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(9_i64.to_be_bytes());
        bytes.push(1);
        let expected =
            StreamMessage::Keepalive { server_end: Lsn::new(7), time: PgTime::from_micros(9), reply_requested: true };
        assert_eq!(decode(&bytes), Ok(expected));
        bytes.push(99);
        assert_eq!(decode(&bytes), Ok(expected));
    }

    #[test]
    fn hostile_bytes_are_errors() {
        assert_eq!(decode(b""), Err(BadMessage::Empty));
        assert_eq!(decode(b"x123"), Err(BadMessage::UnknownKind(b'x')));
        let wal = wal_message(1, 2, 3, b"");
        for length in 1..wal.len() {
            assert_eq!(decode(&wal[..length]), Err(BadMessage::Truncated { kind: 'w', length }));
        }
        let keepalive = [b'k'; 17];
        for length in 1..=keepalive.len() {
            assert_eq!(decode(&keepalive[..length]), Err(BadMessage::Truncated { kind: 'k', length }));
        }
        let past = wal_message(u64::MAX, 0, i64::MIN, b"ab");
        assert_eq!(decode(&past), Err(BadMessage::PastEnd(Lsn::new(u64::MAX))));
    }

    #[test]
    fn a_status_update_carries_all_three_positions() {
        let update = StatusUpdate { write: Lsn::new(3), flush: Lsn::new(2), apply: Lsn::new(1), reply_requested: true };
        let bytes = update.encode(PgTime::from_micros(-1));
        assert_eq!(bytes[0], b'r');
        assert_eq!(bytes[1..9], 3_u64.to_be_bytes());
        assert_eq!(bytes[9..17], 2_u64.to_be_bytes());
        assert_eq!(bytes[17..25], 1_u64.to_be_bytes());
        assert_eq!(bytes[25..33], (-1_i64).to_be_bytes());
        assert_eq!(bytes[33], 1);
    }
}
