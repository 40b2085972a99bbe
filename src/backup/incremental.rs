//! What PostgreSQL 17 and later send in an incremental backup (`basebackup_incremental.c`): files of which only changed
//! pages come, and a `backup_label` that says so.

use recovery::DataPath;

use super::pages::{PageFacts, relation_segment};

#[cfg(test)]
mod tests;

/// `INCREMENTAL_MAGIC` of `basebackup_incremental.h`.
const MAGIC: u32 = 0xd3ae_1f0d;
/// `INCREMENTAL_PREFIX`.
const PREFIX: &[u8] = b"INCREMENTAL.";
/// Magic, number of blocks, truncation block length.
const FIXED: usize = 12;

/// Lines that turn a `backup_label` into one that no server starts from; `pg_combinebackup` leaves them out.
const LABEL_LINES: [&[u8]; 2] = [b"INCREMENTAL FROM LSN: ", b"INCREMENTAL FROM TLI: "];

/// A file that was sent incrementally is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum IncrementalError {
    #[error("it starts with {0:08x}, not with the magic number of an incremental file")]
    Magic(u32),
    #[error("it has {blocks} blocks and a truncation length of {truncation}, a file has at most {most}")]
    TooMany { blocks: u32, truncation: u32, most: u32 },
    #[error("it has {size} bytes, and its {blocks} blocks make {expected}")]
    Size { size: u64, blocks: u32, expected: u64 },
    #[error("its block numbers do not ascend within the file: {0}")]
    Order(u32),
}

/// What comes first in such a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IncrementalHeader {
    /// The file has at least so many blocks (`truncation_block_length`).
    truncation: u32,
    /// The blocks that follow.
    pub(super) blocks: Vec<u32>,
}

impl IncrementalHeader {
    /// How many blocks the file has now (`find_reconstructed_block_length` in reconstruct.c).
    pub(super) fn block_count(&self) -> u32 {
        self.blocks.last().map_or(self.truncation, |last| self.truncation.max(last.saturating_add(1)))
    }
}

/// Collects the header of a file: at most 4 bytes a block, and a page.
#[derive(Debug)]
pub(super) struct HeaderReader {
    facts: PageFacts,
    /// Length of the whole member.
    size: u64,
    bytes: Vec<u8>,
    need: usize,
}

impl HeaderReader {
    pub(super) const fn new(facts: PageFacts, size: u64) -> Self {
        Self { facts, size, bytes: Vec::new(), need: FIXED }
    }

    /// Takes bytes off the front of `bytes`; the header, once it is complete.
    pub(super) fn push(&mut self, bytes: &mut &[u8]) -> Result<Option<IncrementalHeader>, IncrementalError> {
        loop {
            let (now, rest) = bytes.split_at((self.need - self.bytes.len()).min(bytes.len()));
            self.bytes.extend_from_slice(now);
            *bytes = rest;
            if self.bytes.len() < self.need {
                return Ok(None);
            }
            let length = self.length()?;
            if length == self.need {
                return self.read().map(Some);
            }
            self.need = length;
        }
    }

    fn word(&self, index: usize) -> u32 {
        let word = self.bytes.get(index * 4..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// Length of the header (`GetIncrementalHeaderSize`): filled up to a page, when pages follow.
    fn length(&self) -> Result<usize, IncrementalError> {
        let (magic, blocks, truncation) = (self.word(0), self.word(1), self.word(2));
        if magic != MAGIC {
            return Err(IncrementalError::Magic(magic));
        }
        let most = self.facts.segment_blocks();
        if blocks > most || truncation > most {
            return Err(IncrementalError::TooMany { blocks, truncation, most });
        }
        let page = u64::from(self.facts.block_size());
        let plain = FIXED as u64 + 4 * u64::from(blocks);
        let length = if blocks == 0 { plain } else { plain.next_multiple_of(page) };
        let expected = length + u64::from(blocks) * page;
        if expected != self.size {
            return Err(IncrementalError::Size { size: self.size, blocks, expected });
        }
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn read(&self) -> Result<IncrementalHeader, IncrementalError> {
        let blocks: Vec<u32> = (0..self.word(1) as usize).map(|at| self.word(3 + at)).collect();
        let within = blocks.last().is_none_or(|&last| last < self.facts.segment_blocks());
        let ascend = blocks.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
        match ascend.or_else(|| blocks.last().copied().filter(|_| !within)) {
            Some(block) => Err(IncrementalError::Order(block)),
            None => Ok(IncrementalHeader { truncation: self.word(2), blocks }),
        }
    }
}

/// The file that an incremental one stands for; `None` when it is not one.
pub(super) fn original_path(path: &DataPath) -> Option<DataPath> {
    let bytes = path.as_bytes();
    let name_at = bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = bytes.split_at(name_at);
    let original = DataPath::new(&[folder, name.strip_prefix(PREFIX)?].concat()).ok()?;
    relation_segment(&original).is_some().then_some(original)
}

/// The `backup_label` that a full backup would have.
pub(super) fn full_label(label: &[u8]) -> Vec<u8> {
    let lines = label.split_inclusive(|&byte| byte == b'\n');
    lines.filter(|line| !LABEL_LINES.iter().any(|gone| line.starts_with(gone))).flatten().copied().collect()
}

/// Reads hostile bytes as the head of an incremental file; must not panic. For fuzzing.
pub fn fuzz_incremental(data: &[u8]) {
    let Some(facts) = PageFacts::new(8192, 1 << 30) else { return };
    for size in [data.len() as u64, 12, 8192 * 2] {
        let mut reader = HeaderReader::new(facts, size);
        if let Ok(Some(header)) = reader.push(&mut &*data) {
            assert!(header.block_count() <= facts.segment_blocks());
        }
    }
    drop(full_label(data));
}
