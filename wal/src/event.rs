//! What a reader of WAL finds in it.

use crate::{Lsn, PgTime, TimelineId};

/// Something in the WAL that pgvault needs to know. Each event stands for one whole record whose CRC was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// A transaction committed.
    Commit(XactEnd),
    /// A transaction rolled back.
    Abort(XactEnd),
    /// A transaction was prepared for two-phase commit; it has not ended yet.
    Prepare(Prepared),
    /// `pg_create_restore_point`.
    RestorePoint(RestorePoint),
    /// `pg_switch_wal`: the rest of the segment is empty, `end` is the start of the next one.
    Switch {
        /// Where the record starts.
        lsn: Lsn,
        /// First byte of the next segment.
        end: Lsn,
    },
    /// A checkpoint completed.
    Checkpoint(Checkpoint),
    /// Settings that a hot standby must not go below were changed.
    Parameters(ServerParameters),
    /// A standby was promoted without a checkpoint: first record of its new timeline.
    EndOfRecovery(EndOfRecovery),
    /// After a crash: a record that never arrived whole was given up (`XLOG_OVERWRITE_CONTRECORD`).
    Overwrite {
        /// Where the record starts.
        lsn: Lsn,
        /// First byte after it.
        end: Lsn,
        /// Where the record starts that was given up.
        overwritten: Lsn,
        /// When that was found out.
        time: PgTime,
    },
    /// Any record, before the event that it may also be; only from a reader made `with_all_records`.
    Record(RecordInfo),
}

impl WalEvent {
    /// Where the record starts.
    pub fn lsn(&self) -> Lsn {
        self.span().0
    }

    /// First byte after the record, padding included: where the next record starts, or the page header before it.
    pub fn end(&self) -> Lsn {
        self.span().1
    }

    fn span(&self) -> (Lsn, Lsn) {
        match self {
            Self::Commit(xact) | Self::Abort(xact) => (xact.lsn, xact.end),
            Self::Prepare(prepared) => (prepared.lsn, prepared.end),
            Self::RestorePoint(point) => (point.lsn, point.end),
            Self::Switch { lsn, end } | Self::Overwrite { lsn, end, .. } => (*lsn, *end),
            Self::Checkpoint(checkpoint) => (checkpoint.lsn, checkpoint.end),
            Self::Parameters(parameters) => (parameters.lsn, parameters.end),
            Self::EndOfRecovery(recovery) => (recovery.lsn, recovery.end),
            Self::Record(record) => (record.lsn, record.end),
        }
    }
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XactEnd {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record.
    pub end: Lsn,
    /// The transaction; zero when it ended without ever having had a number.
    pub xid: u32,
    /// When it ended, by the primary's clock: what `recovery_target_time` is compared with.
    pub time: PgTime,
    /// Whether it had been prepared (`COMMIT PREPARED`, `ROLLBACK PREPARED`).
    pub prepared: bool,
}

/// A transaction prepared for two-phase commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record.
    pub end: Lsn,
    /// The transaction.
    pub xid: u32,
    /// When it was prepared.
    pub time: PgTime,
}

/// A named restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record: what `pg_create_restore_point` returns.
    pub end: Lsn,
    /// When it was made.
    pub time: PgTime,
    /// Its name, at most 63 bytes. Bytes that are not UTF-8 are replaced.
    pub name: String,
}

/// A checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record.
    pub end: Lsn,
    /// Where replay from this checkpoint starts.
    pub redo: Lsn,
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// The timeline before, where this record begins a new one; else the same.
    pub previous_timeline: TimelineId,
    /// When it started, in whole seconds.
    pub time: PgTime,
    /// Written by a clean shutdown or at the end of recovery.
    pub shutdown: bool,
}

/// Settings as of one moment that a hot standby must not go below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerParameters {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record.
    pub end: Lsn,
    /// `max_connections`
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_transaction: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
}

/// The first record of a timeline that began without a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOfRecovery {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record.
    pub end: Lsn,
    /// When recovery ended.
    pub time: PgTime,
    /// The timeline that begins.
    pub timeline: TimelineId,
    /// The timeline that was left.
    pub previous_timeline: TimelineId,
}

/// What every record's header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// Where the record starts.
    pub lsn: Lsn,
    /// First byte after the record, padding included; after a switch the next segment.
    pub end: Lsn,
    /// Where the record before it starts (`xl_prev`).
    pub previous: Lsn,
    /// Its resource manager (rmgrlist.h): 0 XLOG, 1 Transaction, …
    pub resource_manager: u8,
    /// `xl_info`: the upper four bits are the resource manager's.
    pub info: u8,
    /// The transaction in whose name it was written; zero for none.
    pub xid: u32,
    /// Its length without padding and page headers (`xl_tot_len`).
    pub length: u32,
}
