//! The spool: raw WAL at its offsets, durable on local disk, waiting for the repository.
//!
//! ```text
//! <dir>/<cluster>/<lineage>/<segment>           complete and durable
//!                           <segment>.partial   of full size from the start; WAL up to somewhere, zeros after it
//!                           <segment>.left      says that nothing more comes for the `.partial`, though WAL goes on after it
//!                           <timeline>.history  as the server sent it, kept before any WAL of that timeline
//!                           .tmp-*              being made; removed at the next start
//!                           divergent/          what a server sent in place of what we hold
//! ```
//!
//! The only source of the position that is reported as flushed: [`Spool::durable`] says what a power loss would leave.
//! Files come into being complete in size and durable in name ([`SegmentFile`]), a start trusts nothing that it has not
//! checked ([`Spool::open`]), and a file goes only when the repository has confirmed what was in it.

mod disk;
mod error;
mod fill_rate;
mod histories;
mod limit;
mod look;
mod recover;
mod replacement;
mod segment_file;
mod sent_again;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use wal::{Gap, Lsn, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId};

pub use error::SpoolError;
pub use fill_rate::FillRate;
pub use histories::KeptHistory;
pub use limit::{LEAST_SEGMENTS, SpoolUsage};
pub use look::{SpoolView, Viewed};
pub use replacement::Replacement;
pub use segment_file::{CompleteSegment, HeldPrefix, SegmentFile, Space, SyncHandle, WriteError};
pub use sent_again::SentAgain;

use crate::durable::Written;
use crate::fault_point;

/// What the spool holds of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// All of it.
    Complete,
    /// From its start up to `durable`; more may come.
    Open {
        /// First byte that a power loss might take.
        durable: Lsn,
    },
    /// From its start up to `end`; nothing more will come: its timeline was left, or a gap follows.
    Left {
        /// First byte that is not there.
        end: Lsn,
    },
}

/// The spool of one lineage. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    segment_size: SegmentSize,
    system_identifier: SystemIdentifier,
    max_size: Option<u64>,
    files: Mutex<BTreeMap<SegmentName, Held>>,
    /// Files of full size that were made ahead of time and do not count as held yet.
    spares: Mutex<BTreeSet<SegmentName>>,
    holes: Vec<Gap>,
    changed: watch::Sender<()>,
    /// Held as long as the spool is open: a second process on the same directory is refused.
    _lock: File,
}

/// Which spool to open.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// The folder of the lineage, `<dir>/<cluster>/<lineage>`.
    pub dir: PathBuf,
    /// Size of the lineage's segments.
    pub segment_size: SegmentSize,
    /// Whose WAL it is.
    pub system_identifier: SystemIdentifier,
    /// Bytes that it may take at most; `None` leaves it to the file system.
    pub max_size: Option<u64>,
}

impl Spool {
    /// Opens the spool and makes sure of what is in it: see `recover`. Blocks on disk.
    pub fn open(options: SpoolOptions) -> Result<Self, SpoolError> {
        let SpoolOptions { dir, segment_size, system_identifier, max_size } = options;
        disk::create_dir_all(&dir)?;
        let lock = disk::lock(&dir)?;
        let found = recover::recover(&dir, segment_size, system_identifier)?;
        let inner = Inner {
            dir,
            segment_size,
            system_identifier,
            max_size,
            files: Mutex::new(found.files),
            spares: Mutex::default(),
            holes: found.holes,
            changed: watch::Sender::new(()),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes sure again of what the segments hold that are not complete, after a failed write or fsync.
    ///
    /// An fsync that failed may have dropped the pages that it could not write and left them looking clean, so it is
    /// never repeated: what the disk gives back and what is valid WAL is copied into new files. Blocks on disk.
    pub fn verify_again(&self) -> Result<(), SpoolError> {
        let Inner { dir, segment_size, system_identifier, .. } = self.inner.as_ref();
        let is_open = |(_, held): &(SegmentName, Held)| matches!(held, Held::Open { .. });
        let mut names = self.held().into_iter().filter(is_open).map(|(name, _)| name);
        let mut ended = false;
        for name in names.by_ref() {
            // Nothing is known of it until it was looked at: nobody may take the new file's zeros for what was there.
            self.files().insert(name, Held::Open { durable: self.start_of(name) });
            let held = if ended {
                // Segments are published in order: nothing after one that is not complete was ever acknowledged.
                recover::discard(dir, name)?;
                None
            } else {
                recover::rewrite_partial(dir, *segment_size, *system_identifier, name)?
            };
            ended |= held != Some(Held::Complete);
            let mut files = self.files();
            match held {
                Some(held) => files.insert(name, held),
                None => files.remove(&name),
            };
        }
        self.inner.changed.send_replace(());
        Ok(())
    }

    /// What is held, by timeline and position.
    pub fn held(&self) -> Vec<(SegmentName, Held)> {
        self.files().iter().map(|(&name, &held)| (name, held)).collect()
    }

    /// What is held of one segment.
    pub fn get(&self, name: SegmentName) -> Option<Held> {
        self.files().get(&name).copied()
    }

    /// The first segment after `name`, or the first of all.
    pub fn next_after(&self, name: Option<SegmentName>) -> Option<(SegmentName, Held)> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.files().range((from, Bound::Unbounded)).next().map(|(&name, &held)| (name, held))
    }

    /// How many segments are held.
    pub fn count(&self) -> usize {
        self.files().len()
    }

    /// The newest segment: of the highest timeline, the last.
    pub fn last(&self) -> Option<(SegmentName, Held)> {
        self.files().last_key_value().map(|(&name, &held)| (name, held))
    }

    /// Timeline and first byte that is not durable: where the WAL that is held ends. `None` while nothing is held.
    pub fn durable(&self) -> Option<(TimelineId, Lsn)> {
        self.last().map(|(name, held)| (name.timeline(), self.end_of(name, held)))
    }

    /// Where what is held of a segment ends.
    pub fn end_of(&self, name: SegmentName, held: Held) -> Lsn {
        match held {
            Held::Complete => self.start_of(name).saturating_add(self.inner.segment_size.bytes()),
            Held::Open { durable } => durable,
            Held::Left { end } => end,
        }
    }

    /// First byte of a segment.
    pub fn start_of(&self, name: SegmentName) -> Lsn {
        // Names come from `recover`, which refuses impossible ones, or from arithmetic.
        name.number(self.inner.segment_size).unwrap_or(SegmentNumber::new(0)).start(self.inner.segment_size)
    }

    /// WAL that was missing between the files when the spool was opened.
    pub fn holes(&self) -> &[Gap] {
        &self.inner.holes
    }

    /// Size of the segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.inner.segment_size
    }

    /// Whose WAL it is.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.inner.system_identifier
    }

    /// Wakes whenever something became durable, complete, left or removed.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// Opens what is held of a segment for reading, whether or not it is complete.
    ///
    /// A file that is renamed meanwhile stays readable through what this returns.
    pub fn open_for_reading(&self, name: SegmentName) -> Result<File, SpoolError> {
        let complete = self.path(name);
        match File::open(&complete) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Between the two looks it may have become complete: then the first name is there now.
                File::open(self.partial_path(name))
                    .or_else(|_| File::open(&complete))
                    .map_err(SpoolError::io(&complete))
            }
            Err(error) => Err(SpoolError::io(&complete)(error)),
        }
    }

    /// Where a complete segment lies.
    pub fn path(&self, name: SegmentName) -> PathBuf {
        self.inner.dir.join(name.to_string())
    }

    /// Makes the file of a segment that is not held yet: full size on disk and durable under its `.partial` name. It
    /// counts as held once [`SegmentFile::activate`]d, so that a spare can be made ahead of time. Blocks on disk.
    pub fn create(&self, name: SegmentName) -> Result<SegmentFile, SpoolError> {
        self.create_in(name, Space::Reserved)
    }

    /// As [`Spool::create`], with its space taken in this way. Blocks on disk.
    pub fn create_in(&self, name: SegmentName, space: Space) -> Result<SegmentFile, SpoolError> {
        SegmentFile::create(self.clone(), name, space)
    }

    /// Opens a segment that is held in part, to go on with it. Bytes that are sent again are compared. Blocks on disk.
    pub fn resume(&self, name: SegmentName, durable: Lsn) -> Result<SegmentFile, SpoolError> {
        if matches!(self.get(name), Some(Held::Left { .. })) {
            // More comes for it after all. Gone for good before that: a start would else trust what was written after it.
            disk::remove_if_there(&self.left_path(name))?;
            disk::sync_dir(&self.inner.dir)?;
            self.note(name, Held::Open { durable });
        }
        SegmentFile::resume(self.clone(), name, durable)
    }

    /// Declares, durably, that nothing more will come for a segment that is held in part. Blocks on disk.
    ///
    /// To be called before anything after it is taken in: a start would else take what follows for bytes that were never
    /// acknowledged.
    pub fn leave(&self, name: SegmentName) -> Result<(), SpoolError> {
        let Some(Held::Open { durable }) = self.get(name) else { return Ok(()) };
        match disk::write_new(&self.left_path(name), durable.to_string().as_bytes())? {
            Written::Created => {}
            // Of an attempt whose last step failed, perhaps: its name need not be durable.
            Written::AlreadyExists => disk::sync_dir(&self.inner.dir)?,
        }
        self.note(name, Held::Left { end: durable });
        Ok(())
    }

    /// Removes a file whose content the repository has confirmed. Blocks on disk.
    ///
    /// The caller's proof: a complete segment is stored under its name with the same length and checksum, or all bytes
    /// of one that was left are stored as tails. A crash after this leaves nothing that is only here.
    pub fn remove(&self, name: SegmentName) -> Result<(), SpoolError> {
        let path = match self.get(name) {
            Some(Held::Complete) => self.path(name),
            Some(Held::Left { .. }) => self.partial_path(name),
            Some(Held::Open { .. }) | None => return Ok(()),
        };
        fs::remove_file(&path).map_err(SpoolError::io(&path))?;
        disk::remove_if_there(&self.left_path(name))?;
        fault_point!("spool.removed");
        // The directory is not synced: a file that comes back after a crash is archived again, to the same bytes.
        self.files().remove(&name);
        self.inner.changed.send_replace(());
        Ok(())
    }

    /// What the spool takes and may take. Blocks on disk.
    ///
    /// Every file of a segment has its full size and space from the start, so they are counted, not looked at: there can
    /// be a hundred thousand. What else lies in the folder is small.
    pub fn usage(&self) -> Result<SpoolUsage, SpoolError> {
        let files = self.count() + self.spares().len();
        let used = self.inner.segment_size.bytes().saturating_mul(files as u64);
        let available = disk::available_bytes(&self.inner.dir)?;
        Ok(SpoolUsage::new(used, self.inner.max_size, available, self.inner.segment_size))
    }

    /// Keeps what a server sent in place of what we hold, for a person to compare. Returns where. Blocks on disk.
    pub fn set_aside(&self, name: SegmentName, at: Lsn, bytes: &[u8]) -> Result<PathBuf, SpoolError> {
        let dir = self.inner.dir.join("divergent");
        disk::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}.{}", at.to_sortable()));
        // The same place again after a reconnect: what was kept first is as good.
        match disk::write_new(&path, bytes)? {
            Written::Created | Written::AlreadyExists => Ok(path),
        }
    }

    fn partial_path(&self, name: SegmentName) -> PathBuf {
        self.inner.dir.join(name.partial())
    }

    fn left_path(&self, name: SegmentName) -> PathBuf {
        self.inner.dir.join(format!("{name}.left"))
    }

    fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Notes what became durable. Called only after the fsync that makes it true.
    fn note(&self, name: SegmentName, held: Held) {
        self.files().insert(name, held);
        self.inner.changed.send_replace(());
    }

    fn spares(&self) -> MutexGuard<'_, BTreeSet<SegmentName>> {
        // As with `files`.
        self.inner.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<SegmentName, Held>> {
        // Nothing panics while the lock is held, and every change is a single insert or remove.
        self.inner.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
