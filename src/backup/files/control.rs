//! `global/pg_control`, as `pg_control.h` lays it out.

use wal::{Lsn, SystemIdentifier, TimelineId};

/// Bytes of the file (`PG_CONTROL_FILE_SIZE`); what follows the data is zeros.
pub(super) const CONTROL_FILE_SIZE: usize = 8192;

/// `pg_control_version` of PostgreSQL 14 to 16, and where its CRC lies.
const VERSION_13: (u32, usize) = (1300, 288);
/// That of PostgreSQL 17: `wal_level` of the checkpoint lies in what was padding.
const VERSION_17: (u32, usize) = (1700, 288);
/// That of PostgreSQL 18, which added `default_char_signedness`.
const VERSION_18: (u32, usize) = (1800, 292);

/// `DB_IN_ARCHIVE_RECOVERY` and `DB_IN_PRODUCTION` of `DBState`.
const IN_ARCHIVE_RECOVERY: u32 = 5;
const IN_PRODUCTION: u32 = 6;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) system_identifier: SystemIdentifier,
    /// Part of the name of a tablespace's directory.
    pub(super) catalog_version: u32,
    /// Of a server that runs, as far as the file knows.
    pub(super) is_running: bool,
    /// Unix seconds of its last change.
    pub(super) changed_at: i64,
    pub(super) checkpoint: Lsn,
    pub(super) redo: Lsn,
    pub(super) timeline: TimelineId,
    /// The timeline up to whose minimum recovery point a standby has replayed; `None` on a primary.
    pub(super) recovery_timeline: Option<TimelineId>,
}

/// The bytes are no control file that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ControlError {
    #[error("it has {0} bytes")]
    Size(usize),
    #[error("its version is {0}, which is not known")]
    Version(u32),
    /// Caught while it was being written, or damaged.
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it names timeline 0")]
    Timeline,
}

impl Control {
    /// Reads the file's content, and proves it by its CRC.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
        let long = |at: usize| bytes.get(at..)?.first_chunk().map(|long| u64::from_le_bytes(*long));
        let short = || ControlError::Size(bytes.len());
        let version = word(8).ok_or_else(short)?;
        let Some((_, crc_at)) = [VERSION_13, VERSION_17, VERSION_18].into_iter().find(|(known, _)| *known == version)
        else {
            return Err(ControlError::Version(version));
        };
        let covered = bytes.get(..crc_at).ok_or_else(short)?;
        if word(crc_at) != Some(crc32c::crc32c(covered)) {
            return Err(ControlError::Checksum);
        }
        // Everything below lies before the CRC.
        let word = |at| word(at).ok_or_else(short);
        let long = |at| long(at).ok_or_else(short);
        Ok(Self {
            system_identifier: SystemIdentifier::new(long(0)?),
            catalog_version: word(12)?,
            is_running: [IN_ARCHIVE_RECOVERY, IN_PRODUCTION].contains(&word(16)?),
            changed_at: long(24)?.cast_signed(),
            checkpoint: Lsn::new(long(32)?),
            redo: Lsn::new(long(40)?),
            timeline: TimelineId::new(word(48)?).ok_or(ControlError::Timeline)?,
            recovery_timeline: TimelineId::new(word(144)?),
        })
    }

    /// Name of the directory that holds this cluster's files in a tablespace (`TABLESPACE_VERSION_DIRECTORY`).
    pub(super) fn tablespace_directory(&self, major: u32) -> String {
        format!("PG_{major}_{}", self.catalog_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u32, crc_at: usize) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_SIZE];
        bytes[..8].copy_from_slice(&7_000_000_000_000_000_001_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[12..16].copy_from_slice(&202_209_061_u32.to_le_bytes());
        bytes[16..20].copy_from_slice(&6_u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&1_700_000_000_u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x500_0060_u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0x500_0028_u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&3_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn every_known_version_is_read() {
        for (version, crc_at) in [VERSION_13, VERSION_17, VERSION_18] {
            let control = Control::parse(&file(version, crc_at)).unwrap();
            assert_eq!(control.system_identifier.get(), 7_000_000_000_000_000_001);
            assert_eq!((control.is_running, control.changed_at), (true, 1_700_000_000));
            assert_eq!((control.checkpoint, control.redo), (Lsn::new(0x500_0060), Lsn::new(0x500_0028)));
            assert_eq!((control.timeline.get(), control.recovery_timeline), (3, None));
            assert_eq!(control.tablespace_directory(15), "PG_15_202209061");
        }
    }

    #[test]
    fn a_file_that_was_caught_half_written_is_not_believed() {
        let good = file(1300, 288);
        for at in [0, 40, 200, 287, 288, 291] {
            let mut torn = good.clone();
            torn[at] ^= 1;
            assert_eq!(Control::parse(&torn), Err(ControlError::Checksum), "byte {at}");
        }
        for len in [0, 8, 11] {
            assert_eq!(Control::parse(&good[..len]), Err(ControlError::Size(len)));
        }
        assert_eq!(Control::parse(&good[..200]), Err(ControlError::Size(200)));
        assert_eq!(Control::parse(&good[..290]), Err(ControlError::Checksum));
        assert_eq!(Control::parse(&file(1201, 288)), Err(ControlError::Version(1201)));
    }
}
