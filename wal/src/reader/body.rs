//! What records say, of the two resource managers that matter: XLOG and Transaction.

use super::error::WalProblem;
use super::fields::{i32_at, i64_at, u32_at, u64_at};
use super::page::PgMajor;
use super::record::Record;
use super::xact::{XactBody, XactOperation};
use crate::{
    Checkpoint, EndOfRecovery, Lsn, PgTime, Prepared, RestorePoint, ServerParameters, TimelineId, WalEvent, XactEnd,
};

/// Resource manager XLOG (rmgrlist.h).
const RM_XLOG: u8 = 0;
/// Resource manager Transaction.
const RM_XACT: u8 = 1;
/// Longest beginning of a body that any decoder below looks at.
const HEAD: usize = 128;

/// The part of `xl_info` that belongs to the resource manager (`XLR_RMGR_INFO_MASK`).
const OPERATION: u8 = 0xF0;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const SWITCH: u8 = 0x40;
const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE_CONTRECORD: u8 = 0xD0;

/// As much of a record's body as its decoder needs.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// The record does not matter, beyond its checksum.
    Ignored,
    /// The beginning.
    Head { bytes: [u8; HEAD], length: usize },
    /// The end of a transaction.
    Xact(XactBody),
}

impl Body {
    /// What to keep of the body of a record.
    pub(crate) fn of(resource_manager: u8, info: u8, major: Option<PgMajor>) -> Self {
        let head = Self::Head { bytes: [0; HEAD], length: 0 };
        match resource_manager {
            RM_XLOG => match info & OPERATION {
                CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE | PARAMETER_CHANGE | RESTORE_POINT | END_OF_RECOVERY
                | OVERWRITE_CONTRECORD => head,
                _ => Self::Ignored,
            },
            RM_XACT => match XactOperation::from_info(info) {
                Some(XactOperation::Prepare) => head,
                Some(operation) => {
                    Self::Xact(XactBody::new(major.unwrap_or(PgMajor::V18), info, operation.is_of_prepared()))
                }
                None => Self::Ignored,
            },
            _ => Self::Ignored,
        }
    }

    /// Takes the next bytes of the body.
    pub(crate) fn feed(&mut self, body: &[u8]) {
        match self {
            Self::Ignored => {}
            Self::Head { bytes, length } => {
                let taken = (HEAD - *length).min(body.len());
                bytes[*length..*length + taken].copy_from_slice(&body[..taken]);
                *length += taken;
            }
            Self::Xact(xact) => xact.feed(body),
        }
    }

    /// The data behind the record's small headers; none when there is anything but data.
    fn main_data(&self) -> Option<&[u8]> {
        let Self::Head { bytes, length } = self else { return None };
        let mut rest = bytes.get(..*length)?;
        loop {
            let (&id, behind) = rest.split_first()?;
            rest = match id {
                // XLR_BLOCK_ID_DATA_SHORT, _LONG, _ORIGIN, _TOPLEVEL_XID (xlogrecord.h)
                255 => return behind.get(1..),
                254 => return behind.get(4..),
                253 => behind.get(2..)?,
                252 => behind.get(4..)?,
                _ => return None,
            };
        }
    }
}

/// Whether this record leaves the rest of its segment empty.
pub(crate) fn is_switch(record: &Record) -> bool {
    record.resource_manager() == RM_XLOG && record.info() & OPERATION == SWITCH
}

/// The event that a whole record is, if it matters.
pub(crate) fn event(record: &Record, end: Lsn) -> Result<Option<WalEvent>, WalProblem> {
    let decoded = match (record.resource_manager(), record.body()) {
        (RM_XLOG, _) if is_switch(record) => Some(WalEvent::Switch { lsn: record.lsn, end }),
        (_, Body::Ignored) => return Ok(None),
        (RM_XLOG, body) => body.main_data().and_then(|data| xlog_event(record, end, data)),
        (_, Body::Xact(body)) => xact_end(record, end, body),
        (_, body) => body.main_data().and_then(|data| prepare(record.lsn, end, data)),
    };
    let unknown = WalProblem::Layout { resource_manager: record.resource_manager(), info: record.info() };
    decoded.map(Some).ok_or(unknown)
}

fn xlog_event(record: &Record, end: Lsn, data: &[u8]) -> Option<WalEvent> {
    let lsn = record.lsn;
    match record.info() & OPERATION {
        operation @ (CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => {
            checkpoint(lsn, end, data, operation == CHECKPOINT_SHUTDOWN)
        }
        PARAMETER_CHANGE => parameters(lsn, end, data),
        RESTORE_POINT => restore_point(lsn, end, data),
        END_OF_RECOVERY => end_of_recovery(lsn, end, data),
        OVERWRITE_CONTRECORD => overwrite(lsn, end, data),
        _ => None,
    }
}

/// `CheckPoint` (pg_control.h); its time stands at the same place in all supported majors.
fn checkpoint(lsn: Lsn, end: Lsn, data: &[u8], shutdown: bool) -> Option<WalEvent> {
    Some(WalEvent::Checkpoint(Checkpoint {
        lsn,
        end,
        redo: Lsn::new(u64_at(data, 0)?),
        timeline: TimelineId::new(u32_at(data, 8)?)?,
        previous_timeline: TimelineId::new(u32_at(data, 12)?)?,
        time: PgTime::from_unix_micros(i64_at(data, 64)?.saturating_mul(1_000_000)),
        shutdown,
    }))
}

/// `xl_parameter_change` (xlog_internal.h).
fn parameters(lsn: Lsn, end: Lsn, data: &[u8]) -> Option<WalEvent> {
    Some(WalEvent::Parameters(ServerParameters {
        lsn,
        end,
        max_connections: i32_at(data, 0)?,
        max_worker_processes: i32_at(data, 4)?,
        max_wal_senders: i32_at(data, 8)?,
        max_prepared_transactions: i32_at(data, 12)?,
        max_locks_per_transaction: i32_at(data, 16)?,
        wal_level: i32_at(data, 20)?,
    }))
}

/// `xl_restore_point` (xlog_internal.h): a time and a name of at most 63 bytes and a zero.
fn restore_point(lsn: Lsn, end: Lsn, data: &[u8]) -> Option<WalEvent> {
    let name = data.get(8..72)?;
    let name = name.split(|&byte| byte == 0).next()?;
    Some(WalEvent::RestorePoint(RestorePoint {
        lsn,
        end,
        time: PgTime::from_micros(i64_at(data, 0)?),
        name: String::from_utf8_lossy(name).into_owned(),
    }))
}

/// `xl_end_of_recovery` (xlog_internal.h).
fn end_of_recovery(lsn: Lsn, end: Lsn, data: &[u8]) -> Option<WalEvent> {
    Some(WalEvent::EndOfRecovery(EndOfRecovery {
        lsn,
        end,
        time: PgTime::from_micros(i64_at(data, 0)?),
        timeline: TimelineId::new(u32_at(data, 8)?)?,
        previous_timeline: TimelineId::new(u32_at(data, 12)?)?,
    }))
}

/// `xl_overwrite_contrecord` (xlog_internal.h).
fn overwrite(lsn: Lsn, end: Lsn, data: &[u8]) -> Option<WalEvent> {
    Some(WalEvent::Overwrite {
        lsn,
        end,
        overwritten: Lsn::new(u64_at(data, 0)?),
        time: PgTime::from_micros(i64_at(data, 8)?),
    })
}

/// `xl_xact_prepare` (xact.h).
fn prepare(lsn: Lsn, end: Lsn, data: &[u8]) -> Option<WalEvent> {
    Some(WalEvent::Prepare(Prepared { lsn, end, xid: u32_at(data, 8)?, time: PgTime::from_micros(i64_at(data, 16)?) }))
}

fn xact_end(record: &Record, end: Lsn, body: &XactBody) -> Option<WalEvent> {
    let operation = XactOperation::from_info(record.info())?;
    let prepared = operation.is_of_prepared();
    let (time, prepared_xid) = body.finish()?;
    let xid = if prepared { prepared_xid } else { record.xid() };
    let xact = XactEnd { lsn: record.lsn, end, xid, time, prepared };
    match operation {
        XactOperation::Commit | XactOperation::CommitPrepared => Some(WalEvent::Commit(xact)),
        XactOperation::Abort | XactOperation::AbortPrepared => Some(WalEvent::Abort(xact)),
        XactOperation::Prepare => None,
    }
}
