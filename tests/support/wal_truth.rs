//! What our reader finds in WAL beside what pg_waldump finds.

use std::fs;
use std::path::Path;

use wal::{Lsn, PgMajor, PgTime, RecordInfo, SegmentName, SegmentSize, WalEnd, WalEvent, WalReader, XactEnd};

use super::waldump::{self, Dumped};

/// The name of the first segment in the directory, and the bytes of all of them.
pub fn all_wal(dir: &Path, size: SegmentSize) -> (SegmentName, Vec<u8>) {
    let names = segment_names(dir);
    let numbers: Vec<u64> = names.iter().map(|name| name.number(size).unwrap().get()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{names:?}");
    (names[0], names.iter().flat_map(|name| fs::read(dir.join(name.to_string())).unwrap()).collect())
}

/// The segments in a directory, sorted by name.
pub fn segment_names(dir: &Path) -> Vec<SegmentName> {
    let mut names: Vec<SegmentName> = fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    names.sort_unstable();
    names
}

/// What our reader finds.
pub struct Read {
    pub records: Vec<RecordInfo>,
    pub events: Vec<WalEvent>,
    pub valid_end: Lsn,
    pub major: Option<u32>,
}

/// Reads in pieces of many sizes; every byte after the valid end must be zero.
pub fn read(bytes: &[u8], size: SegmentSize, start: Lsn) -> Read {
    let mut reader = WalReader::new(size, start).with_all_records();
    let (mut records, mut events) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    for piece in [1, 7, 100, 8192, 65536, 3, 131_072, 24].into_iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(piece));
        rest = later;
        reader
            .push(now, &mut |event| match event {
                WalEvent::Record(record) => records.push(record),
                event => events.push(event),
            })
            .unwrap();
        if rest.is_empty() {
            break;
        }
    }
    assert!(matches!(reader.end(), WalEnd::Zeros(_)), "{:?}", reader.end());
    let major = reader.page_info().map(|header| PgMajor::number(header.major));
    Read { records, events, valid_end: reader.valid_end(), major }
}

/// Every event of ours is one of pg_waldump's records of that kind with the same content, and the other way round.
pub fn assert_same_events(ours: &[WalEvent], truth: &[Dumped], kinds: &[&str]) {
    let truth: Vec<(Lsn, String)> = truth.iter().filter_map(|record| Some((record.lsn, truth_of(record)?))).collect();
    let ours: Vec<(Lsn, String)> = ours.iter().map(|event| (event.lsn(), ours_as_text(event))).collect();
    for (ours, truth) in ours.iter().zip(&truth) {
        assert_eq!(ours, truth);
    }
    assert_eq!(ours.len(), truth.len());
    for kind in kinds {
        let found = truth.iter().filter(|(_, text)| text.starts_with(*kind)).count();
        assert!(found > 0, "the load made no {kind}");
    }
}

fn ours_as_text(event: &WalEvent) -> String {
    let end = |kind: &str, xact: &XactEnd| {
        format!("{kind} {}{} {}", if xact.prepared { "prepared " } else { "" }, xact.xid, xact.time)
    };
    match event {
        WalEvent::Commit(xact) => end("commit", xact),
        WalEvent::Abort(xact) => end("abort", xact),
        WalEvent::Prepare(prepared) => format!("prepare {} {}", prepared.xid, prepared.time),
        WalEvent::RestorePoint(point) => format!("restore point {}", point.name),
        WalEvent::Switch { .. } => "switch".to_owned(),
        WalEvent::Checkpoint(c) => format!("checkpoint {} {} {}", c.redo, c.timeline, c.shutdown),
        WalEvent::Parameters(p) => format!(
            "parameters {} {} {} {} {}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction
        ),
        WalEvent::EndOfRecovery(e) => format!("end of recovery {} {}", e.timeline, e.previous_timeline),
        WalEvent::Overwrite { overwritten, .. } => format!("overwrite {overwritten}"),
        WalEvent::Record(_) => unreachable!(),
    }
}

/// What pg_waldump says of a record, in the words of `ours_as_text`; none for records that we do not tell of.
fn truth_of(record: &Dumped) -> Option<String> {
    let desc = record.description.as_str();
    let after = |prefix: &str| desc.strip_prefix(prefix).map(str::to_owned);
    let time = |text: &str| -> PgTime {
        let text = text.split(" UTC").next().unwrap().replacen(' ', "T", 1);
        format!("{text}Z").parse().unwrap_or_else(|error| panic!("{desc}: {error}"))
    };
    let of_prepared = |kind: &str, text: String| {
        let (xid, rest) = text.split_once(": ").unwrap();
        format!("{kind} prepared {xid} {}", time(rest))
    };
    let field = |name: &str| {
        let rest = &desc[desc.find(name).unwrap_or_else(|| panic!("no {name} in {desc}")) + name.len()..];
        rest.trim_start_matches([' ', '=']).split([' ', ';']).next().unwrap().to_owned()
    };
    match record.resource_manager.as_str() {
        "Transaction" => {
            if let Some(rest) = after("COMMIT_PREPARED ") {
                Some(of_prepared("commit", rest))
            } else if let Some(rest) = after("ABORT_PREPARED ") {
                Some(of_prepared("abort", rest))
            } else if let Some(rest) = after("COMMIT ") {
                Some(format!("commit {} {}", record.xid, time(&rest)))
            } else if let Some(rest) = after("ABORT ") {
                Some(format!("abort {} {}", record.xid, time(&rest)))
            } else if after("PREPARE ").is_some() {
                let prepared_at = waldump::prepared_at(desc);
                Some(format!("prepare {} {}", record.xid, time(&prepared_at)))
            } else {
                None
            }
        }
        "XLOG" => {
            if let Some(name) = after("RESTORE_POINT ") {
                Some(format!("restore point {name}"))
            } else if desc.starts_with("SWITCH") {
                Some("switch".to_owned())
            } else if desc.starts_with("CHECKPOINT_SHUTDOWN") || desc.starts_with("CHECKPOINT_ONLINE") {
                let redo: Lsn = field("redo").parse().unwrap();
                Some(format!("checkpoint {redo} {} {}", field("tli"), desc.contains("SHUTDOWN")))
            } else if desc.starts_with("END_OF_RECOVERY") {
                Some(format!("end of recovery {} {}", field("END_OF_RECOVERY tli"), field("prev tli")))
            } else if desc.starts_with("OVERWRITE_CONTRECORD") {
                Some(format!("overwrite {}", field("lsn").parse::<Lsn>().unwrap()))
            } else if desc.starts_with("PARAMETER_CHANGE") {
                let names = [
                    "max_connections",
                    "max_worker_processes",
                    "max_wal_senders",
                    "max_prepared_xacts",
                    "max_locks_per_xact",
                ];
                Some(format!("parameters {}", names.map(field).join(" ")))
            } else {
                None
            }
        }
        _ => None,
    }
}
