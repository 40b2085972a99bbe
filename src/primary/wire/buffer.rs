//! One reused buffer that messages are parsed out of in place. Pure: bytes go in at one end, frames come out.

use std::ops::Range;

/// A message: its kind and where its body stands in the buffer, until more bytes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Range<usize>,
}

/// A message whose length cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of kind 0x{tag:02x} with length {length}, the limit is {limit}")]
pub(crate) struct BadLength {
    tag: u8,
    length: i32,
    limit: usize,
}

/// Kind (1) and length (4) before the body.
const HEADER: usize = 5;

/// Bytes that were read and not yet taken. Grows only for a message that does not fit, never past the limit.
#[derive(Debug)]
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
}

impl ReadBuffer {
    /// A buffer of `capacity` bytes for messages with bodies of up to `limit` bytes.
    pub(crate) fn new(capacity: usize, limit: usize) -> Self {
        Self { bytes: vec![0; capacity.max(HEADER)], start: 0, end: 0, limit }
    }

    /// Allows bodies of up to `limit` bytes and holds at least `capacity` bytes.
    pub(crate) fn enlarge(&mut self, capacity: usize, limit: usize) {
        self.limit = limit;
        if self.bytes.len() < capacity {
            self.bytes.resize(capacity, 0);
        }
    }

    /// Takes the next whole message.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, BadLength> {
        let Some((tag, total)) = self.peek()? else { return Ok(None) };
        if self.end - self.start < total {
            return Ok(None);
        }
        let body = self.start + HEADER..self.start + total;
        self.start += total;
        Ok(Some(Frame { tag, body }))
    }

    /// Whether [`ReadBuffer::next_frame`] has something to say.
    pub(crate) fn has_frame(&self) -> bool {
        match self.peek() {
            Ok(Some((_, total))) => self.end - self.start >= total,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Kind and whole length of the message at the front, once its header is there.
    fn peek(&self) -> Result<Option<(u8, usize)>, BadLength> {
        let Some(&[tag, a, b, c, d]) = self.bytes.get(self.start..self.end).and_then(|bytes| bytes.first_chunk())
        else {
            return Ok(None);
        };
        // The length counts itself, not the kind.
        let length = i32::from_be_bytes([a, b, c, d]);
        match usize::try_from(length).ok().and_then(|length| length.checked_sub(4)) {
            Some(body) if body <= self.limit => Ok(Some((tag, HEADER + body))),
            _ => Err(BadLength { tag, length, limit: self.limit }),
        }
    }

    /// The bytes of a frame that was taken last.
    pub(crate) fn body(&self, frame: &Frame) -> &[u8] {
        self.bytes.get(frame.body.clone()).unwrap_or_default()
    }

    /// Room for more bytes, never empty; frames taken before are gone.
    pub(crate) fn spare(&mut self) -> Result<&mut [u8], BadLength> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let needed = self.peek()?.map_or(HEADER, |(_, total)| total);
        if self.start + needed > self.bytes.len() || self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if needed > self.bytes.len() {
                self.bytes.resize(needed, 0);
            }
        }
        Ok(self.bytes.get_mut(self.end..).unwrap_or_default())
    }

    /// `count` bytes were put into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end + count);
    }

    /// What was read and not taken.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::ReadBuffer;

    /// Feeds `bytes` in pieces of `step` and returns what came out.
    fn feed(buffer: &mut ReadBuffer, bytes: &[u8], step: usize) -> Result<Vec<(u8, Vec<u8>)>, String> {
        let mut frames = Vec::new();
        let mut rest = bytes;
        loop {
            while let Some(frame) = buffer.next_frame().map_err(|error| error.to_string())? {
                frames.push((frame.tag, buffer.body(&frame).to_vec()));
            }
            if rest.is_empty() {
                return Ok(frames);
            }
            let spare = buffer.spare().map_err(|error| error.to_string())?;
            assert!(!spare.is_empty(), "a read into nothing looks like the end of the connection");
            let count = step.min(rest.len()).min(spare.len());
            spare[..count].copy_from_slice(&rest[..count]);
            buffer.filled(count);
            rest = &rest[count..];
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
            step in 1_usize..300,
            capacity in 0_usize..64,
        ) {
            let bytes: Vec<u8> = bodies.iter().flat_map(|body| message(b'd', body)).collect();
            let frames = feed(&mut ReadBuffer::new(capacity, 1000), &bytes, step).unwrap();
            let expected: Vec<_> = bodies.into_iter().map(|body| (b'd', body)).collect();
            assert_eq!(frames, expected);
        }

        #[test]
        fn any_bytes_are_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1_usize..50) {
            if let Ok(frames) = feed(&mut ReadBuffer::new(16, 100), &bytes, step) {
                assert!(frames.iter().all(|(_, body)| body.len() <= 100));
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused_before_anything_is_allocated() {
        for length in [0_i32, 3, -1, i32::MIN, i32::MAX, 1005] {
            let mut bytes = vec![b'd'];
            bytes.extend(length.to_be_bytes());
            assert!(feed(&mut ReadBuffer::new(16, 1000), &bytes, 5).is_err(), "{length}");
        }
        assert!(feed(&mut ReadBuffer::new(16, 1000), &message(b'd', &[7; 1000]), 99).is_ok());
    }
}
