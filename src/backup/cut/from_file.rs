//! Files whose bytes are not read here: chunks name the file, and whoever works on them reads it.

use std::sync::Arc;

use super::{CutChunk, Cutter, EntryHead, FileSum, Item, is_comparable};
use crate::backup::error::CopyError;
use crate::backup::opened::{FromFile, OpenedFile};
use crate::backup::pages::relation_segment;
use crate::backup::reference::OldFile;
use crate::repository::file_table::CHUNK_SIZE;

/// So many files may a batch hold open.
const MAX_OPEN: usize = 32;

impl Cutter {
    /// A file of `size` bytes, to be read later.
    pub(in crate::backup) async fn file_to_read(
        &mut self,
        head: EntryHead,
        size: u64,
        file: OpenedFile,
    ) -> Result<(), CopyError> {
        self.nothing_is_open()?;
        let file = Arc::new(file);
        let segment = relation_segment(&head.path);
        let old = match &self.reference {
            Some(reference) if is_comparable(&head.path, size) => reference.find(&head.path)?,
            _ => None,
        };
        let old = old.map(|file| file.chunks).unwrap_or_default();
        self.push(Item::File(head, size)).await?;
        self.open_files += 1;
        let mut position = 0;
        for index in 0.. {
            let len = (size - position).min(u64::from(CHUNK_SIZE));
            if len == 0 {
                break;
            }
            let len = usize::try_from(len).expect("a chunk fits into memory");
            self.make_room(len).await?;
            let batch = self.batch().await;
            let start = batch.bytes.len() + batch.to_read;
            batch.to_read += len;
            let (bytes, from) = (start..start + len, Some(FromFile(Arc::clone(&file))));
            let old = old.get(index).copied();
            self.push(Item::Chunk(CutChunk { bytes, position, segment, old, pages: None, from })).await?;
            position += len as u64;
        }
        self.totals.files += 1;
        self.totals.bytes += size;
        self.push(Item::FileEnd(FileSum::OfChunks)).await?;
        if self.open_files >= MAX_OPEN { self.send().await } else { Ok(()) }
    }

    /// A file that is as the reference has it.
    pub(in crate::backup) async fn same_file(&mut self, head: EntryHead, old: OldFile) -> Result<(), CopyError> {
        self.nothing_is_open()?;
        self.push(Item::File(head, old.size)).await?;
        for chunk in old.chunks {
            self.push(Item::Same(chunk)).await?;
        }
        self.totals.files += 1;
        self.totals.bytes += old.size;
        self.push(Item::FileEnd(FileSum::Known(old.crc32c))).await
    }

    /// A small file whose content is known. `file_to_read` lays its ranges behind what the batch has, so this one starts anew.
    pub(in crate::backup) async fn known_file(&mut self, head: EntryHead, content: &[u8]) -> Result<(), CopyError> {
        self.send().await?;
        self.begin_file(head, content.len() as u64).await?;
        self.data(content).await?;
        self.send().await
    }

    /// Hands on what was cut so far.
    pub(in crate::backup) async fn flush(&mut self) -> Result<(), CopyError> {
        self.send().await
    }

    fn nothing_is_open(&self) -> Result<(), CopyError> {
        if self.file.is_some() || self.rebuilt.is_some() {
            return Err(CopyError::OutOfTurn("a file inside a file"));
        }
        Ok(())
    }
}
