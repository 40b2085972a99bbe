//! One segment of WAL on its way to being complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use wal::{Lsn, SegmentName};

use super::{Held, Spool, SpoolError, disk, recover};
use crate::fault_point;

/// A segment that is being written. Only [`SegmentFile::complete`] leads to a file under the bare name.
#[derive(Debug)]
pub struct SegmentFile {
    spool: Spool,
    name: SegmentName,
    start: Lsn,
    position: Lsn,
    end: Lsn,
    file: Arc<File>,
    held: Option<HeldPrefix>,
    /// Up to here the file itself already has the bytes.
    written_before: Lsn,
    /// Before this the file has the rest of a record whose beginning was never received: no checksum proves it.
    proven_from: Lsn,
    /// What the server sent of that rest, until what follows it has proven to be what we hold.
    retaken: Vec<u8>,
    active: bool,
}

/// How a new segment gets its space on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Reserved: nothing is written in vain. The first sync after a block is written has to make known that it is.
    Reserved,
    /// Written with zeros ahead of time: later syncs have nothing but the bytes to write.
    Written,
}

/// Bytes that we hold already and that the server sends again: they must be the same.
#[derive(Debug)]
pub struct HeldPrefix {
    file: File,
    until: Lsn,
}

impl HeldPrefix {
    /// Bytes of a segment from its start up to `until`, in a file of the same layout.
    pub fn new(file: File, until: Lsn) -> Self {
        Self { file, until }
    }
}

/// Bytes could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system says no.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The server sends other bytes for positions that we hold: another history under the same timeline.
    #[error("the server's WAL differs from what we hold at {at} in segment {segment}")]
    Divergence {
        /// The segment.
        segment: SegmentName,
        /// First byte that differs.
        at: Lsn,
    },
}

impl SegmentFile {
    pub(super) fn create(spool: Spool, name: SegmentName, space: Space) -> Result<Self, SpoolError> {
        let usage = spool.usage()?;
        if !usage.has_room(spool.segment_size()) {
            return Err(SpoolError::Full { segment: name, used: usage.used, capacity: usage.capacity });
        }
        let new = spool.dir().join(format!(".tmp-{name}"));
        let partial = spool.partial_path(name);
        if spool.get(name).is_some() {
            return Err(SpoolError::Damaged {
                path: partial,
                what: "is held already and must not be begun anew".to_owned(),
            });
        }
        let file = disk::create_file(&new).map_err(SpoolError::io(&new))?;
        fault_point!("spool.created");
        if let Err(error) = Self::reserve_and_name(&spool, &file, &new, &partial, space) {
            // Half a reservation would only take space from the next attempt; under either name nothing depends on it.
            disk::remove_if_there(&new)?;
            disk::remove_if_there(&partial)?;
            return Err(error);
        }
        spool.spares().insert(name);
        Ok(Self::on(spool, name, file, None))
    }

    /// Size and space first, then the name, then the folder: a `.partial` is of full size whenever one sees it, and later
    /// fdatasyncs have no size to make durable.
    fn reserve_and_name(
        spool: &Spool,
        file: &File,
        new: &Path,
        partial: &Path,
        space: Space,
    ) -> Result<(), SpoolError> {
        let size = spool.segment_size().bytes();
        disk::reserve(file, size).map_err(SpoolError::io(new))?;
        if space == Space::Written {
            disk::zero_fill(file, size).map_err(SpoolError::io(new))?;
        }
        file.sync_all().map_err(SpoolError::io(new))?;
        fault_point!("spool.reserved");
        fs::rename(new, partial).map_err(SpoolError::io(partial))?;
        fault_point!("spool.named");
        disk::sync_dir(spool.dir())
    }

    pub(super) fn resume(spool: Spool, name: SegmentName, durable: Lsn) -> Result<Self, SpoolError> {
        let partial = spool.partial_path(name);
        let open = || OpenOptions::new().read(true).write(true).open(&partial).map_err(SpoolError::io(&partial));
        let mut segment = Self::on(spool, name, open()?, Some(HeldPrefix::new(open()?, durable)));
        segment.written_before = durable;
        segment.proven_from =
            recover::proven_from(&segment.spool, name, &segment.file).map_err(SpoolError::io(&partial))?;
        segment.active = true;
        Ok(segment)
    }

    fn on(spool: Spool, name: SegmentName, file: File, held: Option<HeldPrefix>) -> Self {
        let start = spool.start_of(name);
        let end = start.saturating_add(spool.segment_size().bytes());
        let file = Arc::new(file);
        Self {
            spool,
            name,
            start,
            position: start,
            end,
            file,
            held,
            written_before: start,
            proven_from: start,
            retaken: Vec::new(),
            active: false,
        }
    }

    /// From here on the spool counts the segment as held. `prefix` is what another timeline's file says of its beginning.
    pub fn activate(&mut self, prefix: Option<HeldPrefix>) {
        if !self.active {
            self.active = true;
            self.held = prefix;
            self.spool.spares().remove(&self.name);
            self.spool.note(self.name, Held::Open { durable: self.start });
        }
    }

    /// Removes a spare that was made ahead of time and is not needed. Blocks on disk.
    pub fn discard(self) -> Result<(), SpoolError> {
        if self.active {
            return Ok(());
        }
        let path = self.spool.partial_path(self.name);
        fs::remove_file(&path).map_err(SpoolError::io(&path))?;
        self.spool.spares().remove(&self.name);
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> SegmentName {
        self.name
    }

    /// First byte that the server has not sent (again) in this session.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// First byte after the segment.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// Takes in the next bytes, as many as belong to this segment, and returns their number.
    ///
    /// Bytes that are held already are compared; those in the file itself are not written again. But the rest of a record
    /// whose beginning is nowhere is taken from the server: after a power loss it can be anything, so a difference in it
    /// says nothing, and another history shows in the first record of its own. So it replaces what is in the file only when
    /// everything that is held after it was sent again and is the same ([`SegmentFile::is_settled`]): until then neither is
    /// known to be right, and ours stays.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        let take = self.end.bytes_since(self.position).min(bytes.len() as u64);
        let take = usize::try_from(take).unwrap_or(bytes.len());
        let bytes = &bytes[..take];
        self.compare(bytes)?;
        let skip = usize::try_from(self.written_before.bytes_since(self.position)).unwrap_or(take).min(take);
        self.retaken.extend_from_slice(&bytes[..self.unproven(skip)]);
        let offset = self.position.bytes_since(self.start) + skip as u64;
        self.file.write_all_at(&bytes[skip..], offset).map_err(|error| self.io(error))?;
        let position = self.position.saturating_add(take as u64);
        if position >= self.written_before {
            self.file.write_all_at(&self.retaken, 0).map_err(|error| self.io(error))?;
            self.retaken = Vec::new();
        }
        fault_point!("spool.written");
        self.position = position;
        Ok(take)
    }

    /// Whether everything in the file is proven, by its records or by the server. Until then nothing may be synced or
    /// reported of it in this session.
    pub fn is_settled(&self) -> bool {
        self.proven_from <= self.start || self.position >= self.written_before
    }

    /// How many of the next `count` bytes are not proven by anything.
    fn unproven(&self, count: usize) -> usize {
        usize::try_from(self.proven_from.bytes_since(self.position)).unwrap_or(count).min(count)
    }

    fn compare(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let Some(held) = &self.held else { return Ok(()) };
        let overlap = held.until.bytes_since(self.position).min(bytes.len() as u64);
        let overlap = usize::try_from(overlap).unwrap_or(bytes.len());
        if overlap == 0 {
            self.held = None;
            return Ok(());
        }
        let mut ours = vec![0; overlap];
        held.file.read_exact_at(&mut ours, self.position.bytes_since(self.start)).map_err(|error| self.io(error))?;
        let proven = self.unproven(overlap);
        let differs = ours[proven..].iter().zip(&bytes[proven..]).position(|(ours, theirs)| ours != theirs);
        match differs.map(|index| index + proven) {
            None => Ok(()),
            Some(index) => {
                Err(WriteError::Divergence { segment: self.name, at: self.position.saturating_add(index as u64) })
            }
        }
    }

    /// What has to be synced to make everything durable that was written so far.
    pub fn sync_handle(&self) -> SyncHandle {
        SyncHandle {
            spool: self.spool.clone(),
            name: self.name,
            file: Arc::clone(&self.file),
            // What a resumed file held was durable before this session began.
            end: self.position.max(self.written_before),
        }
    }

    /// The segment once its last byte was written; itself again before that.
    pub fn complete(self) -> Result<CompleteSegment, Self> {
        if self.position == self.end { Ok(CompleteSegment { segment: self }) } else { Err(self) }
    }

    fn io(&self, error: io::Error) -> SpoolError {
        SpoolError::io(&self.spool.partial_path(self.name))(error)
    }
}

/// A segment whose every byte was written, not yet durable under its bare name.
#[derive(Debug)]
pub struct CompleteSegment {
    segment: SegmentFile,
}

impl CompleteSegment {
    /// Its name.
    pub fn name(&self) -> SegmentName {
        self.segment.name
    }

    /// First byte after it: durable once [`CompleteSegment::publish`] has returned.
    pub fn end(&self) -> Lsn {
        self.segment.end
    }

    /// Makes it durable under its bare name. Blocks on disk.
    ///
    /// Content, then name, then folder: at no moment does the bare name stand for less than the whole segment.
    pub fn publish(self) -> Result<(), SpoolError> {
        let SegmentFile { spool, name, file, .. } = self.segment;
        let partial = spool.partial_path(name);
        let complete = spool.path(name);
        file.sync_data().map_err(SpoolError::io(&partial))?;
        fault_point!("spool.full_synced");
        fs::rename(&partial, &complete).map_err(SpoolError::io(&complete))?;
        fault_point!("spool.renamed");
        disk::sync_dir(spool.dir())?;
        fault_point!("spool.published");
        spool.note(name, Held::Complete);
        Ok(())
    }
}

/// A segment that is still being written, as seen at one moment by whoever makes it durable.
#[derive(Debug)]
pub struct SyncHandle {
    spool: Spool,
    name: SegmentName,
    file: Arc<File>,
    end: Lsn,
}

impl SyncHandle {
    /// First byte that this sync says nothing about.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// The same of something that cannot be synced.
    #[cfg(test)]
    pub fn that_fails(self) -> Self {
        let (read, _) = io::pipe().expect("a pipe");
        Self { file: Arc::new(File::from(std::os::fd::OwnedFd::from(read))), ..self }
    }

    /// Makes durable what was written when the handle was taken. Blocks on disk.
    pub fn sync(self) -> Result<(), SpoolError> {
        let path = self.spool.partial_path(self.name);
        self.file.sync_data().map_err(SpoolError::io(&path))?;
        fault_point!("spool.synced");
        // Only now is it true.
        self.spool.note(self.name, Held::Open { durable: self.end });
        Ok(())
    }
}
