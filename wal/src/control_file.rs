//! `global/pg_control`: where a data directory stands (pg_control.h).

use crate::{Lsn, SystemIdentifier, TimelineId};

/// Where each field lies on 64-bit little-endian machines, the same in all supported majors. What a later major adds lies behind.
mod at {
    pub(super) const SYSTEM_IDENTIFIER: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const STATE: usize = 16;
    pub(super) const CHECKPOINT: usize = 32;
    pub(super) const REDO: usize = 40;
    pub(super) const CHECKPOINT_TIMELINE: usize = 48;
    pub(super) const MIN_RECOVERY_POINT: usize = 136;
    pub(super) const MIN_RECOVERY_TIMELINE: usize = 144;
    pub(super) const BACKUP_START: usize = 152;
    /// Of the CRC-32C over everything before it, by `pg_control_version` (1300: PostgreSQL 13 to 16, 1700, 1800).
    pub(super) const CRC: &[(u32, usize)] = &[(1300, 288), (1700, 288), (1800, 292)];
}

/// What a server was doing when it wrote the file (`DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Never run since initdb.
    Starting,
    /// A primary that was stopped cleanly.
    ShutDown,
    /// A server in recovery that was stopped cleanly.
    ShutDownInRecovery,
    /// A primary that was being stopped.
    ShuttingDown,
    /// A primary that recovered from a crash.
    InCrashRecovery,
    /// A standby, or a server in archive recovery.
    InArchiveRecovery,
    /// A primary.
    InProduction,
}

impl ClusterState {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Starting,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// Whether the server was a standby, or recovered from an archive.
    pub const fn is_recovery(self) -> bool {
        matches!(self, Self::ShutDownInRecovery | Self::InArchiveRecovery)
    }
}

/// The content of `pg_control`, as far as it says from where and how far WAL must be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// `pg_control_version`: 1300 for PostgreSQL 13 to 16, 1700, 1800.
    pub version: u32,
    /// What the server was doing.
    pub state: ClusterState,
    /// Where the last checkpoint's record starts.
    pub checkpoint: Lsn,
    /// Where its replay starts.
    pub redo: Lsn,
    /// The timeline of the checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// First byte of WAL that need not be replayed before the files fit together, and its timeline; in recovery only.
    pub min_recovery: Option<(Lsn, TimelineId)>,
    /// Set while a restored base backup has not been replayed to its end.
    pub backup_start: Option<Lsn>,
}

/// The bytes are not a `pg_control` that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// Too few bytes.
    #[error("it has only {0} bytes")]
    TooShort(usize),
    /// Of a major version that is not known, or of another byte order.
    #[error("its version {0} is not one of PostgreSQL 14 to 18 on this kind of machine")]
    UnknownVersion(u32),
    /// The checksum is wrong.
    #[error("its checksum is wrong")]
    Checksum,
    /// A field has a value that it cannot have.
    #[error("its {0} is {1}")]
    Value(&'static str, u64),
}

impl ControlFile {
    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlFileError> {
        let short = || ControlFileError::TooShort(bytes.len());
        let version = u32_at(bytes, at::VERSION).ok_or_else(short)?;
        let &(_, crc_at) =
            at::CRC.iter().find(|&&(known, _)| known == version).ok_or(ControlFileError::UnknownVersion(version))?;
        let crc = u32_at(bytes, crc_at).ok_or_else(short)?;
        if crc32c::crc32c(bytes.get(..crc_at).ok_or_else(short)?) != crc {
            return Err(ControlFileError::Checksum);
        }
        let word = |offset| u64_at(bytes, offset).ok_or_else(short);
        let half = |offset| u32_at(bytes, offset).ok_or_else(short);
        let position = |offset| word(offset).map(Lsn::new);
        let state = half(at::STATE)?;
        let timeline = half(at::CHECKPOINT_TIMELINE)?;
        let min_recovery = position(at::MIN_RECOVERY_POINT)?;
        let backup_start = position(at::BACKUP_START)?;
        Ok(Self {
            system_identifier: SystemIdentifier::new(word(at::SYSTEM_IDENTIFIER)?),
            version,
            state: ClusterState::from_number(state).ok_or(ControlFileError::Value("state", state.into()))?,
            checkpoint: position(at::CHECKPOINT)?,
            redo: position(at::REDO)?,
            checkpoint_timeline: TimelineId::new(timeline)
                .ok_or(ControlFileError::Value("timeline", timeline.into()))?,
            min_recovery: TimelineId::new(half(at::MIN_RECOVERY_TIMELINE)?)
                .filter(|_| min_recovery.is_valid())
                .map(|timeline| (min_recovery, timeline)),
            backup_start: backup_start.is_valid().then_some(backup_start),
        })
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with these fields, as a server of the given control version writes it.
    fn file(version: u32, fields: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[at::VERSION..at::VERSION + 4].copy_from_slice(&version.to_le_bytes());
        for &(offset, value) in fields {
            bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc_at = at::CRC.iter().find(|(known, _)| *known == version).map_or(288, |(_, at)| *at);
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn what_a_server_wrote_is_read() {
        let fields = [
            (at::SYSTEM_IDENTIFIER, 77),
            (at::STATE, 5),
            (at::CHECKPOINT, 0x2000),
            (at::REDO, 0x1000),
            (at::CHECKPOINT_TIMELINE, 3),
            (at::MIN_RECOVERY_POINT, 0x3000),
            (at::MIN_RECOVERY_TIMELINE, 4),
        ];
        for version in [1300, 1700, 1800] {
            let control = ControlFile::parse(&file(version, &fields)).unwrap();
            assert_eq!((control.state, control.redo), (ClusterState::InArchiveRecovery, Lsn::new(0x1000)));
            assert_eq!(control.checkpoint_timeline.get(), 3);
            assert_eq!(control.min_recovery.map(|(lsn, timeline)| (lsn.as_u64(), timeline.get())), Some((0x3000, 4)));
            assert_eq!(control.backup_start, None);
        }
    }

    #[test]
    fn what_cannot_be_believed_is_refused() {
        let good = file(1300, &[(at::CHECKPOINT_TIMELINE, 1)]);
        assert!(ControlFile::parse(&good).is_ok());
        assert_eq!(ControlFile::parse(&good[..100]), Err(ControlFileError::TooShort(100)));
        assert_eq!(ControlFile::parse(&[]), Err(ControlFileError::TooShort(0)));
        let mut torn = good.clone();
        torn[40] ^= 1;
        assert_eq!(ControlFile::parse(&torn), Err(ControlFileError::Checksum));
        assert_eq!(ControlFile::parse(&file(1900, &[])), Err(ControlFileError::UnknownVersion(1900)));
        assert_eq!(ControlFile::parse(&file(1300, &[])), Err(ControlFileError::Value("timeline", 0)));
        let odd = file(1300, &[(at::CHECKPOINT_TIMELINE, 1), (at::STATE, 9)]);
        assert_eq!(ControlFile::parse(&odd), Err(ControlFileError::Value("state", 9)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(ControlFile::parse(&bytes));
        }
    }
}
