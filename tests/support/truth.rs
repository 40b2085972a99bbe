//! What really happened, in the order of the log: read from the reference's WAL.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use wal::{
    Lsn, PgTime, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, TimelinePath, WalEvent,
    WalReader,
};

/// Where a recovery stops, in PostgreSQL's words (`recoveryStopsBefore`, `recoveryStopsAfter` in xlogrecovery.c).
#[derive(Clone, Debug)]
pub enum Target {
    /// Before the first transaction end that is later (inclusive), or not earlier (exclusive).
    Time { time: PgTime, inclusive: bool },
    /// After (inclusive) or before (exclusive) the first record that starts at the position or later.
    Lsn { lsn: Lsn, inclusive: bool },
    /// After (inclusive) or before (exclusive) the end of this transaction.
    Xid { xid: u32, inclusive: bool },
    /// At the first restore point of this name.
    Name(String),
    /// As soon as the backup that stopped here is consistent.
    Immediate { backup_stop: Lsn },
    /// At the end of the WAL before this position.
    EndOfWal(Lsn),
}

impl Target {
    /// The settings that ask PostgreSQL for it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let inclusive = |inclusive: &bool| ("recovery_target_inclusive", inclusive.to_string());
        match self {
            Self::Time { time, inclusive: i } => {
                let text = time.to_string().replace('T', " ").replace('Z', "+00");
                vec![("recovery_target_time", text), inclusive(i)]
            }
            Self::Lsn { lsn, inclusive: i } => vec![("recovery_target_lsn", lsn.to_string()), inclusive(i)],
            Self::Xid { xid, inclusive: i } => vec![("recovery_target_xid", xid.to_string()), inclusive(i)],
            Self::Name(name) => vec![("recovery_target_name", name.clone())],
            Self::Immediate { .. } => vec![("recovery_target", "immediate".to_owned())],
            Self::EndOfWal(_) => Vec::new(),
        }
    }
}

/// The end of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub lsn: Lsn,
    pub end: Lsn,
    pub xid: u32,
    pub time: PgTime,
    pub committed: bool,
}

/// All transaction ends, restore points and records of the reference's WAL along one path of timelines.
#[derive(Debug)]
pub struct Truth {
    pub ends: Vec<End>,
    /// Name and start of each restore point's record.
    pub restore_points: Vec<(String, Lsn)>,
    /// Where each record starts.
    pub records: Vec<Lsn>,
    /// Where the valid WAL ends.
    pub valid_end: Lsn,
}

impl Truth {
    /// Reads what pg_receivewal received of timeline `timeline` and its ancestors, from the first segment on.
    pub fn read(reference: &Path, timeline: TimelineId, size: SegmentSize) -> Self {
        let history = match fs::read(reference.join(timeline.history_file_name())) {
            Ok(text) => TimelineHistory::parse(timeline, &text).unwrap(),
            Err(_) => TimelineHistory::root(timeline),
        };
        let path = TimelinePath::new(&history, size);
        let first = fs::read_dir(reference)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.get(..24)?.parse::<SegmentName>().ok())
            .filter_map(|name| name.number(size))
            .min()
            .expect("the reference has received nothing");
        let mut reader = WalReader::new(size, first.start(size)).with_all_records();
        let (mut ends, mut restore_points, mut records) = (Vec::new(), Vec::new(), Vec::new());
        let mut number = first;
        while let Some(bytes) = segment(reference, &path, number, size) {
            reader
                .push(&bytes, &mut |event| match event {
                    WalEvent::Record(record) => records.push(record.lsn),
                    WalEvent::Commit(xact) | WalEvent::Abort(xact) => {
                        let (lsn, end, xid, time) = (xact.lsn, xact.end, xact.xid, xact.time);
                        ends.push(End { lsn, end, xid, time, committed: matches!(event, WalEvent::Commit(_)) });
                    }
                    WalEvent::RestorePoint(point) => restore_points.push((point.name, point.lsn)),
                    _ => {}
                })
                .unwrap_or_else(|error| panic!("the reference's own WAL: {error}"));
            number = number.next();
        }
        Self { ends, restore_points, records, valid_end: reader.valid_end() }
    }

    /// Reads what a server's pg_wal holds before `end` on its first timeline; behind it there may be pages of segments that
    /// were used before. `scratch` is filled for it.
    pub fn of_pg_wal(end: Lsn, pg_wal: &Path, scratch: &Path, size: SegmentSize) -> Self {
        fs::create_dir_all(scratch).unwrap();
        for entry in fs::read_dir(pg_wal).unwrap() {
            let entry = entry.unwrap();
            let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<SegmentName>) else { continue };
            let start = name.number(size).unwrap().start(size);
            if start < end {
                let mut bytes = fs::read(entry.path()).unwrap();
                let valid = usize::try_from(end.bytes_since(start)).unwrap().min(bytes.len());
                bytes[valid..].fill(0);
                fs::write(scratch.join(entry.file_name()), bytes).unwrap();
            }
        }
        Self::read(scratch, TimelineId::FIRST, size)
    }

    /// The transactions that are there after recovery to `target`; none when recovery would not find the target.
    pub fn committed_at(&self, target: &Target) -> Option<BTreeSet<u32>> {
        let before = self.stop(target)?;
        Some(self.ends.iter().filter(|end| end.committed && end.lsn < before).map(|end| end.xid).collect())
    }

    /// The position such that exactly the records that start before it are replayed.
    pub fn stop(&self, target: &Target) -> Option<Lsn> {
        let just_after = |lsn: Lsn| lsn.saturating_add(1);
        match *target {
            Target::Time { time, inclusive } => {
                let stops = |end: &&End| if inclusive { end.time > time } else { end.time >= time };
                self.ends.iter().find(stops).map(|end| end.lsn)
            }
            Target::Lsn { lsn, inclusive } => {
                let record = self.records.iter().copied().find(|&record| record >= lsn)?;
                Some(if inclusive { just_after(record) } else { record })
            }
            Target::Xid { xid, inclusive } => {
                let end = self.ends.iter().find(|end| end.xid == xid)?;
                Some(if inclusive { just_after(end.lsn) } else { end.lsn })
            }
            Target::Name(ref name) => {
                self.restore_points.iter().find(|(found, _)| found == name).map(|&(_, lsn)| just_after(lsn))
            }
            Target::Immediate { backup_stop } => Some(backup_stop),
            Target::EndOfWal(end) => Some(end.min(self.valid_end)),
        }
    }
}

/// A segment of the path, complete or not; a `.partial` is zeros from where the stream stopped.
fn segment(reference: &Path, path: &TimelinePath, number: SegmentNumber, size: SegmentSize) -> Option<Vec<u8>> {
    let name = SegmentName::new(path.timeline_at(number.start(size)), number, size);
    [name.to_string(), name.partial()].iter().find_map(|file| fs::read(reference.join(file)).ok())
}
