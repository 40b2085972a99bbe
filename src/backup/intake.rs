//! What is done with each member of the archives: cut as it is, or, in an incremental backup, made whole again.

use std::sync::Arc;

use recovery::DataPath;

use super::cut::{Cutter, EntryHead, Rebuilt};
use super::error::CopyError;
use super::incremental::{HeaderReader, IncrementalError, full_label, original_path};
use super::members::{Archive, Members};
use super::pages::PageFacts;
use super::reference::Reference;
use super::tar::{Member, MemberKind};

/// A `backup_label` is shorter than this: a dozen lines, of which the label itself is the longest.
const MAX_LABEL_FILE: u64 = 64 << 10;

/// Between the archives and the cutter.
#[derive(Debug)]
pub(super) struct Intake {
    members: Members,
    pub(super) cutter: Cutter,
    /// Only what changed since this backup is sent.
    incremental: Option<(PageFacts, Arc<Reference>)>,
    open: Open,
}

/// Where the data of the present member go.
#[derive(Debug)]
enum Open {
    /// To the cutter, as they come.
    File,
    /// `backup_label`, until it is complete.
    Label { head: EntryHead, size: u64, content: Vec<u8> },
    /// Pages of a file.
    Pages(Box<Pages>),
}

#[derive(Debug)]
struct Pages {
    /// As it was sent.
    path: DataPath,
    size: u64,
    received: u64,
    crc32c: u32,
    /// Until the header is complete.
    header: Option<(EntryHead, HeaderReader)>,
}

impl Intake {
    pub(super) fn new(members: Members, cutter: Cutter, incremental: Option<(PageFacts, Arc<Reference>)>) -> Self {
        Self { members, cutter, incremental, open: Open::File }
    }

    /// A member begins.
    pub(super) async fn member(&mut self, archive: Archive, member: Member) -> Result<(), CopyError> {
        let Some(Member { path, kind, size, mode, mtime }) = self.members.place(archive, member)? else {
            return Ok(());
        };
        self.open = Open::File;
        let head = EntryHead { path, mode, mtime };
        if kind != MemberKind::File {
            return self.cutter.directory(head).await;
        }
        let Some((facts, _)) = &self.incremental else { return self.cutter.begin_file(head, size).await };
        if let Some(original) = original_path(&head.path) {
            if size == 0 {
                return Err(CopyError::Doubt(format!("\"{}\" is empty", head.path)));
            }
            // Whole and in pages: which of the two would count?
            self.members.once(&original)?;
            let header = HeaderReader::new(*facts, size);
            let sent = head.path;
            let head = EntryHead { path: original, mode, mtime };
            let pages = Pages { path: sent, size, received: 0, crc32c: 0, header: Some((head, header)) };
            self.open = Open::Pages(Box::new(pages));
        } else if head.path.as_bytes() == b"backup_label" && size > 0 {
            if size > MAX_LABEL_FILE {
                return Err(CopyError::OutOfTurn("its backup_label is too long"));
            }
            self.open = Open::Label { head, size, content: Vec::new() };
        } else {
            self.cutter.begin_file(head, size).await?;
        }
        Ok(())
    }

    /// The next bytes of the member.
    pub(super) async fn data(&mut self, data: &[u8]) -> Result<(), CopyError> {
        match &mut self.open {
            Open::File => self.cutter.data(data).await,
            Open::Label { size, content, .. } => {
                content.extend_from_slice(data);
                if (content.len() as u64) < *size { Ok(()) } else { self.end_label().await }
            }
            Open::Pages(_) => self.pages(data).await,
        }
    }

    async fn end_label(&mut self) -> Result<(), CopyError> {
        let Open::Label { head, size, content } = std::mem::replace(&mut self.open, Open::File) else { return Ok(()) };
        let arrived = (size, crc32c::crc32c(&content));
        self.cutter.edited_file(head, &full_label(&content), arrived).await
    }

    async fn pages(&mut self, mut data: &[u8]) -> Result<(), CopyError> {
        let Open::Pages(pages) = &mut self.open else { return Ok(()) };
        pages.received += data.len() as u64;
        pages.crc32c = crc32c::crc32c_append(pages.crc32c, data);
        let ended = pages.received == pages.size;
        if let Some((head, mut reader)) = pages.header.take() {
            let doubt = |error: IncrementalError| CopyError::Doubt(format!("\"{}\": {error}", pages.path));
            match reader.push(&mut data).map_err(doubt)? {
                None if ended => return Err(CopyError::Doubt(format!("\"{}\" ends in its header", pages.path))),
                None => pages.header = Some((head, reader)),
                Some(header) => self.begin_pages(head, header.block_count(), header.blocks).await?,
            }
        }
        self.cutter.pages(data).await?;
        if ended && let Open::Pages(pages) = std::mem::replace(&mut self.open, Open::File) {
            self.cutter.end_rebuilt(&pages.path, pages.size, pages.crc32c).await?;
        }
        Ok(())
    }

    async fn begin_pages(&mut self, head: EntryHead, count: u32, blocks: Vec<u32>) -> Result<(), CopyError> {
        let Some((facts, reference)) = &self.incremental else { return Ok(()) };
        let old = reference.find(&head.path)?.ok_or_else(|| {
            CopyError::Doubt(format!(
                "the server sent changes of \"{}\", which backup {} does not have",
                head.path,
                reference.id()
            ))
        })?;
        let page_size = facts.block_size();
        let size = u64::from(count) * u64::from(page_size);
        self.cutter.begin_rebuilt(head, Rebuilt { old, size, page_size, blocks }).await
    }
}
