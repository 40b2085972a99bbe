//! Base backups over the replication protocol: both wire forms (14, and 15 and later) as one stream of events.

use wal::{Lsn, TimelineId};

mod command;
mod run;

pub use run::BaseBackupStream;

/// How the checkpoint that starts a backup is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CheckpointMode {
    /// At once, with its burst of writes.
    Fast,
    /// Spread over `checkpoint_completion_target`, easy on the server; takes minutes.
    #[default]
    Spread,
}

/// The checksum of each file in the server's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ManifestChecksums {
    /// Catches accidents, costs next to nothing.
    #[default]
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A limit that the server keeps, in KiB per second: 32 to 1048576 (`MAX_RATE_LOWER`, `MAX_RATE_UPPER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxRate(u32);

impl MaxRate {
    /// The nearest limit that the server accepts to so many bytes per second.
    pub fn from_bytes_per_second(bytes: u64) -> Self {
        Self(u32::try_from((bytes / 1024).clamp(32, 1_048_576)).unwrap_or(1_048_576))
    }

    /// KiB per second.
    pub const fn kib_per_second(self) -> u32 {
        self.0
    }
}

/// What to ask BASE_BACKUP for. Always with a manifest, a tablespace map, without WAL and without waiting for its
/// archival: we stream it ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Goes into `backup_label`.
    pub label: String,
    /// How to checkpoint.
    pub checkpoint: CheckpointMode,
    /// Sizes of tablespaces at the start and progress on the way (15+); costs the server a walk over its files.
    pub progress: bool,
    /// Limit of the transfer.
    pub max_rate: Option<MaxRate>,
    /// Checksums in the manifest.
    pub manifest_checksums: ManifestChecksums,
    /// The server verifies page checksums while it reads (where data checksums are on); with a failure the backup ends
    /// with SQLSTATE XX001 after everything was sent, and the warnings name the pages.
    pub verify_checksums: bool,
    /// Only what changed since the backup whose manifest was uploaded before on this connection (17+).
    pub incremental: bool,
}

impl BaseBackupOptions {
    /// The usual options: spread checkpoint, progress, CRC-32C manifest, page checksums verified, no limit.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            checkpoint: CheckpointMode::default(),
            progress: true,
            max_rate: None,
            manifest_checksums: ManifestChecksums::default(),
            verify_checksums: true,
            incremental: false,
        }
    }
}

/// A tablespace of the backup, `base` excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its oid.
    pub oid: u32,
    /// Its directory on the server, as bytes: file names need not be text.
    pub location: Vec<u8>,
    /// Its estimated size in bytes, with `progress`.
    pub size: Option<u64>,
}

/// What comes next in a base backup. Data are borrowed from the read buffer until the next call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent<'a> {
    /// The backup begins: redo starts at `start_lsn`.
    Started {
        /// WAL from here on is needed.
        start_lsn: Lsn,
        /// On this timeline.
        timeline: TimelineId,
        /// The tablespaces, without the data directory itself.
        tablespaces: Vec<Tablespace>,
        /// Estimated size of the data directory in bytes, with `progress`.
        base_size: Option<u64>,
    },
    /// A tar archive begins, and the one before has ended. The data directory comes last.
    Archive {
        /// Oid of the tablespace; `None` for the data directory.
        tablespace: Option<u32>,
    },
    /// Bytes of the archive, never empty. Every archive is terminated (14 leaves that to us).
    Data(&'a [u8]),
    /// Bytes of `backup_manifest`, after the last archive; in several pieces.
    Manifest(&'a [u8]),
    /// Bytes done so far in all archives, as the server counts (15+).
    Progress(u64),
    /// The backup is complete and the server confirmed it; usable once WAL up to `stop_lsn` is kept. Terminal.
    Finished {
        /// WAL up to here is needed.
        stop_lsn: Lsn,
        /// On this timeline.
        timeline: TimelineId,
    },
}
