//! Writing a file table, part by part.

use super::{TableEntry, line};

/// A part is finished when it has this many bytes of plaintext; compressed it is about half.
pub const PART_PLAIN_BYTES: usize = 8 << 20;

/// Collects entries until a part is full.
#[derive(Debug, Default)]
pub struct PartWriter {
    plain: Vec<u8>,
    entries: u64,
}

/// The lines of one part, to be compressed and stored.
#[derive(Debug)]
pub struct PlainPart {
    /// JSON lines.
    pub plain: Vec<u8>,
    /// How many.
    pub entries: u64,
}

impl PartWriter {
    /// Adds an entry; returns the part when it is full.
    pub fn push(&mut self, entry: &TableEntry) -> Option<PlainPart> {
        line::write(entry, &mut self.plain);
        self.plain.push(b'\n');
        self.entries += 1;
        if self.plain.len() >= PART_PLAIN_BYTES { self.finish() } else { None }
    }

    /// The last part, if there is anything in it.
    pub fn finish(&mut self) -> Option<PlainPart> {
        let part = PlainPart { plain: std::mem::take(&mut self.plain), entries: std::mem::take(&mut self.entries) };
        (part.entries > 0).then_some(part)
    }
}
