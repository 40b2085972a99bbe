//! A file of the data directory, read chunk by chunk by whoever works on the chunk.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use recovery::DataPath;
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, pread};
use tokio::sync::mpsc;

use super::cut::CutChunk;
use super::error::CopyError;
use super::work::PageCheck;

/// How long a page whose checksum is wrong is waited for before it is read again. A page is torn for as long as the server's
/// `pwrite` takes, which may lose the processor in the middle.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(50)];

/// A file with so many pages that stayed as they were is damaged, not torn: it is waited for no more.
const MANY: u64 = 64;

/// An open file.
#[derive(Debug)]
pub(super) struct OpenedFile {
    path: DataPath,
    file: File,
    damaged: AtomicU64,
    /// Tells by its end that the file is closed.
    _reading: mpsc::Sender<()>,
}

/// The file whose bytes a chunk is made of.
#[derive(Clone, Debug)]
pub(super) struct FromFile(pub(super) Arc<OpenedFile>);

impl PartialEq for FromFile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for FromFile {}

impl OpenedFile {
    pub(super) const fn new(path: DataPath, file: File, reading: mpsc::Sender<()>) -> Self {
        Self { path, file, damaged: AtomicU64::new(0), _reading: reading }
    }

    /// Has the kernel begin to read what lies there, without waiting for it.
    pub(super) fn begin_to_read(&self, position: u64, len: usize) {
        let len = NonZeroU64::new(len as u64);
        if let Err(errno) = fadvise(&self.file, position, len, Advice::WillNeed) {
            // Then reading takes longer.
            tracing::trace!(%errno, "nothing is read ahead");
        }
    }

    /// Appends `len` bytes that lie at `position`, into memory that `into` has already.
    pub(super) fn append(&self, position: u64, len: usize, into: &mut Vec<u8>) -> Result<(), CopyError> {
        let (from, end) = (into.len(), into.len() + len);
        into.reserve(len);
        while into.len() < end {
            let done = (into.len() - from) as u64;
            match pread(&self.file, spare_capacity(into), position + done) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(CopyError::File { path: self.path.to_string(), source: errno.into() }),
            }
        }
        // A file that has grown gives more, one that was truncated less: see `read`.
        into.resize(end, 0);
        Ok(())
    }

    /// Fills `into` with what lies at `position`. A file that was truncated meanwhile goes on with zeros, as in BASE_BACKUP
    /// (`sendFile`): what was there is of no account, since WAL has the truncation.
    pub(super) fn read(&self, position: u64, into: &mut [u8]) -> Result<(), CopyError> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], position + done as u64) {
                Ok(0) => {
                    into[done..].fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(CopyError::File { path: self.path.to_string(), source }),
            }
        }
        Ok(())
    }

    /// How many pages of a chunk are damaged. Those that look it are read again: one that was caught while it was written
    /// then has its checksum, or an LSN after the backup's start, and counts for neither (`sendFile` does so once).
    pub(super) fn judge(&self, bytes: &mut [u8], cut: &CutChunk, check: PageCheck) -> Result<u64, CopyError> {
        let Some(segment) = cut.segment else { return Ok(0) };
        let page = check.facts.block_size() as usize;
        let is_damaged = |bytes: &[u8], at: usize| {
            let range = at * page..(at + 1) * page;
            let position = cut.position + range.start as u64;
            check.facts.damaged_pages(&bytes[range], segment, position, check.start) > 0
        };
        let mut damaged: Vec<usize> = (0..bytes.len() / page).filter(|&at| is_damaged(bytes, at)).collect();
        for pause in PAUSES {
            if damaged.is_empty() || self.damaged.load(Ordering::Relaxed) >= MANY {
                break;
            }
            sleep(pause);
            for &at in &damaged {
                self.read(cut.position + (at * page) as u64, &mut bytes[at * page..(at + 1) * page])?;
            }
            damaged.retain(|&at| is_damaged(bytes, at));
        }
        let count = damaged.len() as u64;
        self.damaged.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use wal::Lsn;

    use super::*;
    use crate::backup::pages::{PageFacts, tests::page};

    const PAGE: usize = 8192;

    fn opened(pages: &[Vec<u8>]) -> (tempfile::NamedTempFile, OpenedFile) {
        let mut temp = tempfile::NamedTempFile::new().unwrap();
        temp.write_all(&pages.concat()).unwrap();
        let path = DataPath::new(b"base/5/16384").unwrap();
        let file = OpenedFile::new(path, File::open(temp.path()).unwrap(), mpsc::channel(1).0);
        (temp, file)
    }

    fn judge(file: &OpenedFile, bytes: &mut [u8]) -> u64 {
        let cut = CutChunk { bytes: 0..bytes.len(), position: 0, segment: Some(0), old: None, pages: None, from: None };
        let facts = PageFacts::new(8192, 1 << 30).unwrap();
        file.judge(bytes, &cut, PageCheck { facts, start: Lsn::new(0x200_0000) }).unwrap()
    }

    #[test]
    fn a_page_that_was_caught_half_written_is_read_again_and_a_damaged_one_is_told() {
        let good: Vec<Vec<u8>> = (0..4).map(|block| page(block, 0x100_0000)).collect();
        let mut torn = good.clone();
        torn[1][4096..].fill(0x55);
        torn[2][4096..].fill(0x55);
        torn[3][4096..].fill(0x55);
        let (temp, file) = opened(&torn);
        let writer = File::options().write(true).open(temp.path()).unwrap();
        let newer = page(3, 0x300_0000);
        let mut bytes = vec![0; 4 * PAGE];
        file.read(0, &mut bytes).unwrap();
        // The second half of one arrives, and another as it was written after the backup's start.
        writer.write_all_at(&good[1], PAGE as u64).unwrap();
        writer.write_all_at(&newer, 3 * PAGE as u64).unwrap();
        assert_eq!(judge(&file, &mut bytes), 1);
        assert!(bytes == [good[0].clone(), good[1].clone(), torn[2].clone(), newer].concat());
    }

    #[test]
    fn a_file_is_appended_as_long_as_it_was_to_be() {
        let pages: Vec<Vec<u8>> = (0..4).map(|block| page(block, 0x100_0000)).collect();
        let (temp, file) = opened(&pages);
        for (len, is_there) in [(4 * PAGE, 4 * PAGE), (2 * PAGE, 4 * PAGE), (4 * PAGE, PAGE + 100)] {
            File::options().write(true).open(temp.path()).unwrap().set_len(is_there as u64).unwrap();
            let mut bytes = Vec::with_capacity(8 * PAGE);
            bytes.extend_from_slice(b"before");
            file.append(0, len, &mut bytes).unwrap();
            let mut expected = pages.concat();
            expected.truncate(is_there.min(len));
            expected.resize(len, 0);
            assert!(bytes[..6] == *b"before" && bytes[6..] == expected, "{len} of {is_there}");
        }
    }

    #[test]
    fn what_was_cut_off_a_file_meanwhile_is_zeros() {
        let pages: Vec<Vec<u8>> = (0..4).map(|block| page(block, 0x100_0000)).collect();
        let (temp, file) = opened(&pages);
        File::options().write(true).open(temp.path()).unwrap().set_len(PAGE as u64 + 100).unwrap();
        let mut bytes = vec![7; 4 * PAGE];
        file.read(0, &mut bytes).unwrap();
        assert!(bytes[..PAGE] == pages[0] && bytes[PAGE..PAGE + 100] == pages[1][..100]);
        assert!(bytes[PAGE + 100..].iter().all(|&byte| byte == 0));
    }
}
