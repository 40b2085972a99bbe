//! Memory that can be written past the page cache.

/// What the plaintext of a chunk begins at a multiple of: as much as any file system asks for (`O_DIRECT` in open(2)).
pub const ALIGNMENT: usize = 4096;

/// Bytes that begin at a multiple of [`ALIGNMENT`]; the memory is kept for the next use.
#[derive(Debug, Default)]
pub(super) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Makes it so long. What it holds then is of no meaning.
    pub(super) fn with_len(&mut self, len: usize) -> &mut [u8] {
        let needed = len.saturating_add(ALIGNMENT);
        if self.memory.len() < needed {
            self.memory = vec![0; needed.next_power_of_two()];
            // `align_offset` may say that it does not know: then the bytes begin anywhere, and are copied on their way.
            self.start = Some(self.memory.as_ptr().align_offset(ALIGNMENT)).filter(|&at| at < ALIGNMENT).unwrap_or(0);
        }
        self.len = len;
        self.bytes_mut()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_at_a_page_however_long_they_are() {
        let mut buffer = AlignedBuffer::default();
        assert!(buffer.bytes().is_empty());
        for len in [0, 1, 8192, 100, 1 << 20, (1 << 20) + 1, 5] {
            assert_eq!(buffer.with_len(len).len(), len);
            assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGNMENT), 0, "{len}");
        }
    }
}
