//! Files of which only the changed pages come: which chunks stay, and which are made anew from pages and the old chunk.

use super::{CutChunk, CutPages, Cutter, EntryHead, FileSum, Item};
use crate::backup::error::CopyError;
use crate::backup::pages::relation_segment;
use crate::backup::reference::OldFile;
use crate::repository::file_table::CHUNK_SIZE;
use recovery::DataPath;

/// What is known of such a file before its pages come.
#[derive(Debug)]
pub(in crate::backup) struct Rebuilt {
    /// The file as the reference has it.
    pub(in crate::backup) old: OldFile,
    /// Its length now.
    pub(in crate::backup) size: u64,
    /// Bytes of a page.
    pub(in crate::backup) page_size: u32,
    /// Which pages come, in ascending order, all within `size`.
    pub(in crate::backup) blocks: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct OpenRebuilt {
    file: Rebuilt,
    segment: Option<u32>,
    /// Blocks that were given to chunks.
    given: usize,
    /// The next chunk.
    next: u64,
    filling: Option<Filling>,
}

/// A chunk whose pages are coming.
#[derive(Debug)]
struct Filling {
    index: u64,
    pages: CutPages,
    start: usize,
    left: usize,
}

impl OpenRebuilt {
    /// Shorter than before: its checksum cannot be told from what changed, so every chunk is read.
    fn shrank(&self) -> bool {
        self.file.size < self.file.old.size
    }

    /// The numbers of the pages that come of a chunk, counted in it.
    fn pages_of(&mut self, chunk: u64) -> Vec<u32> {
        let per_chunk = u64::from(CHUNK_SIZE / self.file.page_size);
        let rest = self.file.blocks.get(self.given..).unwrap_or_default();
        let count = rest.partition_point(|&block| u64::from(block) < (chunk + 1) * per_chunk);
        self.given += count;
        let first = chunk * per_chunk;
        rest[..count].iter().filter_map(|&block| u32::try_from(u64::from(block).checked_sub(first)?).ok()).collect()
    }
}

impl Cutter {
    /// A file begins of which only pages come: exactly those of `file.blocks`, one after another.
    pub(in crate::backup) async fn begin_rebuilt(&mut self, head: EntryHead, file: Rebuilt) -> Result<(), CopyError> {
        if self.file.is_some() || self.rebuilt.is_some() {
            return Err(CopyError::OutOfTurn("a file inside a file"));
        }
        let segment = relation_segment(&head.path);
        self.push(Item::File(head, file.size)).await?;
        self.rebuilt = Some(OpenRebuilt { file, segment, given: 0, next: 0, filling: None });
        self.advance().await
    }

    /// The next bytes of its pages.
    pub(in crate::backup) async fn pages(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            let open = self.rebuilt.as_mut().and_then(|open| open.filling.as_mut()).zip(self.batch.as_mut());
            let Some((filling, batch)) = open else {
                return Err(CopyError::OutOfTurn("pages that belong to no file"));
            };
            let (now, rest) = bytes.split_at(filling.left.min(bytes.len()));
            bytes = rest;
            batch.bytes.extend_from_slice(now);
            filling.left -= now.len();
            if filling.left == 0 {
                self.end_chunk().await?;
                self.advance().await?;
            }
        }
        Ok(())
    }

    /// All pages came. `path`, `size` and `crc32c` are those of what was sent.
    pub(in crate::backup) async fn end_rebuilt(
        &mut self,
        path: &DataPath,
        size: u64,
        crc32c: u32,
    ) -> Result<(), CopyError> {
        let Some(open) = self.rebuilt.take().filter(|open| open.filling.is_none()) else {
            return Err(CopyError::OutOfTurn("the end of a file whose pages have not come"));
        };
        self.totals.files += 1;
        self.totals.bytes += open.file.size;
        self.check_file(path, size, crc32c)?;
        let old = &open.file.old;
        let sum =
            if open.shrank() { FileSum::OfChunks } else { FileSum::Changed { crc32c: old.crc32c, size: old.size } };
        self.push(Item::FileEnd(sum)).await
    }

    /// Hands on the chunks of which nothing comes, up to the first whose pages do.
    async fn advance(&mut self) -> Result<(), CopyError> {
        loop {
            let Some(open) = &mut self.rebuilt else { return Ok(()) };
            let (index, size) = (open.next, open.file.size);
            let position = index.saturating_mul(u64::from(CHUNK_SIZE));
            if position >= size {
                return Ok(());
            }
            open.next += 1;
            let plain = u32::try_from((size - position).min(u64::from(CHUNK_SIZE))).expect("a chunk's length");
            let numbers = open.pages_of(index);
            let old = usize::try_from(index).ok().and_then(|index| open.file.old.chunks.get(index)).copied();
            if let Some(same) = old.filter(|old| numbers.is_empty() && old.plain() == plain && !open.shrank()) {
                self.push(Item::Same(same)).await?;
                continue;
            }
            let page_size = open.file.page_size;
            let left = numbers.len() * page_size as usize;
            self.make_room(left).await?;
            let start = self.batch().await.bytes.len();
            if let Some(open) = &mut self.rebuilt {
                let pages = CutPages { plain, page_size, numbers };
                open.filling = Some(Filling { index, pages, start, left });
            }
            if left > 0 {
                return Ok(());
            }
            self.end_chunk().await?;
        }
    }

    async fn end_chunk(&mut self) -> Result<(), CopyError> {
        let Some(open) = &mut self.rebuilt else { return Ok(()) };
        let Some(Filling { index, pages, start, .. }) = open.filling.take() else { return Ok(()) };
        let old = usize::try_from(index).ok().and_then(|index| open.file.old.chunks.get(index)).copied();
        let segment = open.segment;
        let end = self.batch().await.bytes.len();
        let position = index * u64::from(CHUNK_SIZE);
        self.push(Item::Chunk(CutChunk { bytes: start..end, position, segment, old, pages: Some(pages), from: None }))
            .await
    }
}
