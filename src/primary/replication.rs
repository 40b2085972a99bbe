//! A connection that speaks the physical replication protocol.

use bytes::Bytes;
use wal::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

use super::base_backup::{BaseBackupOptions, BaseBackupStream};
use super::connect::ConnectOptions;
use super::conninfo::Host;
use super::error::PgError;
use super::slot::{SlotName, SlotPosition};
use super::stream::WalStream;
use super::version::ServerVersion;

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifySystem {
    /// The cluster's number from initdb; restored clones share it.
    pub system_identifier: SystemIdentifier,
    /// The timeline that the server writes or, in recovery, replays.
    pub timeline: TimelineId,
    /// End of flushed WAL on a primary; of replayed or received WAL on a standby.
    pub flush_lsn: Lsn,
}

/// One walsender session. Commands take `&mut self`: one at a time.
#[derive(Debug)]
pub struct ReplicationConnection {}

impl ReplicationConnection {
    /// Connects with `replication=true` to the first suitable host.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, PgError> {
        todo!("{options:?}")
    }

    /// The host that answered.
    pub fn host(&self) -> &Host {
        todo!()
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        todo!()
    }

    /// What to warn about when the server is newer than this program.
    pub fn version_warning(&self) -> Option<&str> {
        todo!()
    }

    /// Whether the server is in recovery (`in_hot_standby`, as the server last reported it).
    pub fn in_recovery(&self) -> bool {
        todo!()
    }

    /// Asks who the server is (IDENTIFY_SYSTEM).
    pub async fn identify_system(&mut self) -> Result<IdentifySystem, PgError> {
        todo!()
    }

    /// The value of a setting, as SHOW prints it.
    pub async fn show(&mut self, name: &str) -> Result<String, PgError> {
        todo!("{name}")
    }

    /// `wal_segment_size`.
    pub async fn wal_segment_size(&mut self) -> Result<SegmentSize, PgError> {
        todo!()
    }

    /// Creates a permanent physical slot that reserves WAL at once. An error with [`PgError::is_duplicate_slot`] when it
    /// exists.
    pub async fn create_physical_slot(&mut self, name: &SlotName) -> Result<(), PgError> {
        todo!("{name}")
    }

    /// Where a slot stands: `None` when there is no such slot. PostgreSQL 15 and later; on 14 an error with SQLSTATE
    /// 0A000 (use SQL).
    pub async fn read_slot(&mut self, name: &SlotName) -> Result<Option<SlotPosition>, PgError> {
        todo!("{name}")
    }

    /// Drops a slot. Fails at once when it is in use.
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<(), PgError> {
        todo!("{name}")
    }

    /// The history file of a timeline: its name and bytes. [`PgError::is_wal_removed`] when the server has none.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<(String, Bytes), PgError> {
        todo!("{timeline}")
    }

    /// Starts streaming at `start` (a segment start, in practice) on `timeline`.
    ///
    /// WAL that is gone (58P01) or not there yet is an error of the first [`WalStream::next`], because the server
    /// answers before it looks.
    pub async fn start_replication(
        self,
        slot: Option<&SlotName>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<WalStream, PgError> {
        todo!("{slot:?} {start} {timeline}")
    }

    /// Starts a base backup. Waits for the server's checkpoint without a deadline: a spread one takes minutes.
    pub async fn base_backup(self, options: &BaseBackupOptions) -> Result<BaseBackupStream, PgError> {
        todo!("{options:?}")
    }
}
