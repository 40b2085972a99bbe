//! Page checksums of what passes by.

use wal::Lsn;

use crate::backup::cut::{CutChunk, CutPages};
use crate::backup::pages::PageFacts;

/// Which pages to verify, and against what.
#[derive(Clone, Copy, Debug)]
pub(in crate::backup) struct PageCheck {
    pub(in crate::backup) facts: PageFacts,
    /// Where the backup began.
    pub(in crate::backup) start: Lsn,
}

impl PageCheck {
    pub(super) fn damaged_pages(&self, bytes: &[u8], cut: &CutChunk) -> u64 {
        cut.segment.map_or(0, |segment| self.facts.damaged_pages(bytes, segment, cut.position, self.start))
    }

    /// The same of single pages of a chunk.
    pub(super) fn damaged_of(&self, bytes: &[u8], cut: &CutChunk, of: &CutPages) -> u64 {
        let Some(segment) = cut.segment else { return 0 };
        let pages = bytes.chunks_exact(of.page_size as usize).zip(&of.numbers);
        pages
            .map(|(page, &number)| {
                let position = cut.position + u64::from(number) * u64::from(of.page_size);
                self.facts.damaged_pages(page, segment, position, self.start)
            })
            .sum()
    }
}
