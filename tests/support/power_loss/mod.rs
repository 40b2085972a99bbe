//! Power losses, as many as one likes, of a pgvault that ran once.
//!
//! The daemon runs under strace, which records every change of a file and every position told to the server in one order
//! ([`trace`]). Afterwards a model of the strictest disk ([`disk`]) is taken through the record, and at any moment says what a
//! power loss would have left. From that a spool is opened, as the next start would, and must hold, with the server's bytes,
//! everything that had been acknowledged at that moment.

pub mod disk;
mod file;
pub mod trace;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgvault::spool::{Held, Spool, SpoolOptions};
use wal::{Lsn, SegmentName, SegmentNumber, SystemIdentifier, TimelineId, WalEvent, WalReader};

use self::disk::{Disk, Doctored, Survives};
use self::trace::{Call, Event};
use super::attacked::{Dice, size};
use super::pg::give_to_server_user;
use super::pgvault::{Daemon, Pgvault};
use super::wal_truth::segment_names;
use crate::support::LIMIT;

/// A daemon whose every step is recorded.
pub struct Traced {
    pub daemon: Daemon,
    trace: PathBuf,
}

impl Traced {
    /// Starts it; `name` is the record's, `injected` what strace does to it besides (`inject=fdatasync:error=EIO:when=9`).
    pub fn serve(pgvault: &Pgvault, name: &str, injected: &[&str]) -> Self {
        let folder = pgvault.dir.join("traces");
        fs::create_dir_all(&folder).unwrap();
        give_to_server_user(&folder);
        let trace = folder.join(name);
        let calls = format!("trace={}", trace::CALLS);
        let mut strace = vec![
            "strace",
            "-D",
            "-f",
            "--seccomp-bpf",
            "-xx",
            "-s",
            "8000000",
            "-o",
            trace.to_str().unwrap(),
            "-e",
            &calls,
        ];
        strace.extend(injected.iter().flat_map(|inject| ["-e", inject]));
        Self { daemon: pgvault.serve_below(&strace), trace }
    }

    /// kill -9; what it did until then.
    pub fn kill(self) -> Vec<Event> {
        let pid = self.daemon.pid().to_string();
        let ended = |line: &str| {
            line.strip_prefix(&pid).is_some_and(|rest| rest.trim_start().starts_with("+++ killed by SIGKILL"))
        };
        self.daemon.kill();
        let deadline = Instant::now() + LIMIT;
        // Written by the tracer, which ends a moment later.
        while !String::from_utf8_lossy(&fs::read(&self.trace).unwrap()).lines().rev().take(20).any(ended) {
            assert!(Instant::now() < deadline, "the trace has no end");
            std::thread::sleep(Duration::from_millis(50));
        }
        trace::read(&self.trace)
    }
}

/// What a recorded run is judged by.
pub struct Record {
    pub events: Vec<Event>,
    pub state: PathBuf,
    pub repository: PathBuf,
    /// The server's WAL, all of it.
    pub pg_wal: PathBuf,
    pub system: SystemIdentifier,
}

/// What an audit came to.
#[derive(Debug, Default)]
pub struct Findings {
    /// Moments that were looked at.
    pub moments: usize,
    /// Disks that were looked at.
    pub images: usize,
    /// The last position that was acknowledged.
    pub acknowledged: Lsn,
    pub faults: Vec<String>,
}

impl Record {
    fn roots(&self) -> [PathBuf; 2] {
        [self.state.clone(), self.repository.clone()]
    }

    /// The model of the disk at the end, and how it differs from the real one.
    pub fn disk_at_the_end(&self) -> Disk {
        let mut disk = Disk::new(&self.roots(), Doctored::No);
        self.events.iter().for_each(|event| disk.happens(event));
        disk
    }

    /// Loses power at about so many moments, in two ways each.
    pub fn audit(&self, doctored: Doctored, moments: usize, dice: &mut Dice) -> Findings {
        let chosen = chosen(&self.events, moments);
        let mut disk = Disk::new(&self.roots(), doctored);
        let mut findings = Findings::default();
        let judge = Judge::new(self);
        let mut base = None;
        for (index, event) in self.events.iter().enumerate() {
            disk.happens(event);
            match event {
                Event::Asked { start } if base.is_none() => {
                    base = Some(*start);
                    findings.acknowledged = *start;
                }
                Event::Told { flush, .. } => findings.acknowledged = findings.acknowledged.max(*flush),
                _ => {}
            }
            let Some(base) = base.filter(|_| chosen.contains(&index)) else { continue };
            findings.moments += 1;
            let other = Survives::ALL[1 + findings.moments % (Survives::ALL.len() - 1)];
            for survives in [Survives::Nothing, other] {
                findings.images += 1;
                let files = disk.after_power_loss(survives, dice);
                if let Err(fault) = judge.judge(&files, base, findings.acknowledged) {
                    findings.faults.push(format!("event {index}, {survives:?} survives: {fault}"));
                }
            }
            // Enough to tell; of a doctored record one is.
            if findings.faults.len() > if doctored == Doctored::No { 20 } else { 0 } {
                break;
            }
        }
        findings
    }
}

/// Indexes of events after which power is lost: acknowledgements, and whatever changes or syncs something.
fn chosen(events: &[Event], moments: usize) -> BTreeSet<usize> {
    let mut flushed = Lsn::INVALID;
    let (mut told, mut changed) = (Vec::new(), Vec::new());
    let mut naming = BTreeSet::new();
    for (index, event) in events.iter().enumerate() {
        match event {
            Event::Told { flush, .. } if *flush > flushed => {
                flushed = *flush;
                told.push(index);
            }
            Event::Begin(number, call) => {
                if matches!(
                    call,
                    Call::Rename { .. }
                        | Call::Link { .. }
                        | Call::Unlink { .. }
                        | Call::Sync { .. }
                        | Call::Allocate { .. }
                ) {
                    naming.insert(*number);
                }
            }
            Event::End(number, _) if naming.remove(number) => changed.push(index),
            _ => {}
        }
    }
    let spread = |all: Vec<usize>| {
        let step = (all.len() * 2).div_ceil(moments.max(1)).max(1);
        all.into_iter().rev().step_by(step)
    };
    spread(told).chain(spread(changed)).collect()
}

struct Judge<'a> {
    record: &'a Record,
    /// Where the server's records end.
    ends: Vec<Lsn>,
    reference: RefCell<BTreeMap<SegmentName, Rc<Vec<u8>>>>,
    stored: RefCell<BTreeMap<PathBuf, Rc<Vec<u8>>>>,
}

impl<'a> Judge<'a> {
    fn new(record: &'a Record) -> Self {
        let names = segment_names(&record.pg_wal);
        let mut reader = WalReader::new(size(), names[0].number(size()).unwrap().start(size())).with_all_records();
        let mut ends = Vec::new();
        for name in names {
            let bytes = fs::read(record.pg_wal.join(name.to_string())).unwrap();
            let read = reader.push(&bytes, &mut |event| {
                if let WalEvent::Record(record) = event {
                    ends.push(record.end);
                }
            });
            if read.is_err() {
                // The end: segments that were used before, or made ahead.
                break;
            }
        }
        Self { record, ends, reference: RefCell::default(), stored: RefCell::default() }
    }

    /// Opens a spool on what is left, and compares it with what was acknowledged: every whole record before that position
    /// must be there.
    fn judge(&self, files: &BTreeMap<PathBuf, Vec<u8>>, base: Lsn, acknowledged: Lsn) -> Result<(), String> {
        let image = if Path::new("/dev/shm").exists() { "/dev/shm" } else { "/tmp" };
        let image = tempfile::Builder::new().prefix("pgvault-image-").tempdir_in(image).unwrap();
        let spools = self.record.state.join("spool/main");
        for (path, bytes) in files {
            if let Ok(inside) = path.strip_prefix(&spools) {
                let inside: PathBuf = inside.components().skip(1).collect();
                let place = image.path().join(inside);
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                fs::write(place, bytes).unwrap();
            }
        }
        let options = SpoolOptions {
            dir: image.path().to_owned(),
            segment_size: size(),
            system_identifier: self.record.system,
            max_size: None,
        };
        let spool = Spool::open(options).map_err(|error| format!("the spool does not open: {error}"))?;
        // A server that sends much cuts it at pages. The beginning of a record that never arrived whole is worth nothing to
        // anybody, and a start cuts it off, as PostgreSQL's own does.
        let acknowledged = self.ends[..self.ends.partition_point(|&end| end <= acknowledged)].last().copied();
        let acknowledged = acknowledged.unwrap_or(base).max(base);
        if acknowledged > base {
            let last = SegmentNumber::containing_end(acknowledged, size());
            let mut number = SegmentNumber::containing(base, size());
            while number <= last {
                let name = SegmentName::new(TimelineId::FIRST, number, size());
                let needed = acknowledged.min(number.end(size()));
                let held = spool.get(name).map(|held| spool.end_of(name, held));
                if held.is_none_or(|end| end < needed) && !self.is_stored(files, name) {
                    return Err(format!("{acknowledged} is acknowledged, of {name} there is {held:?}"));
                }
                number = number.next();
            }
        }
        for (name, held) in spool.held() {
            let file = match held {
                Held::Complete => name.to_string(),
                Held::Open { .. } | Held::Left { .. } => name.partial(),
            };
            let ours = fs::read(image.path().join(file)).unwrap();
            let start = spool.start_of(name);
            let valid = usize::try_from(spool.end_of(name, held).bytes_since(start)).unwrap();
            let theirs = self.reference(name);
            // No checksum proves the rest of a record whose beginning was never received.
            let unproven = if start == base && acknowledged <= start { rest_of_a_record(&theirs) } else { 0 };
            let from = unproven.min(valid);
            if ours[from..valid] != theirs[from..valid] {
                let at = (from..valid).find(|&at| ours[at] != theirs[at]).unwrap();
                return Err(format!("{name} {held:?} differs from the server's at byte {at}"));
            }
            if ours[valid..] != vec![0; ours.len() - valid] {
                return Err(format!("{name} {held:?} has something behind its end"));
            }
        }
        Ok(())
    }

    fn reference(&self, name: SegmentName) -> Rc<Vec<u8>> {
        let read = || Rc::new(fs::read(self.record.pg_wal.join(name.to_string())).unwrap());
        Rc::clone(self.reference.borrow_mut().entry(name).or_insert_with(read))
    }

    /// Whether the repository has the whole segment after the power loss.
    fn is_stored(&self, files: &BTreeMap<PathBuf, Vec<u8>>, name: SegmentName) -> bool {
        let object = format!("wal/{}/{:08X}/{name}.zst", name.timeline().hex(), name.log());
        files.iter().filter(|(path, _)| path.starts_with(&self.record.repository) && path.ends_with(&object)).any(
            |(path, bytes)| {
                let read = || Rc::new(fs::read(path).unwrap());
                **self.stored.borrow_mut().entry(path.clone()).or_insert_with(read) == *bytes
            },
        )
    }
}

/// How far a segment begins with the rest of a record (`XLogLongPageHeaderData`, xlog_internal.h).
fn rest_of_a_record(segment: &[u8]) -> usize {
    let goes_on = u16::from_le_bytes([segment[2], segment[3]]) & 1 != 0;
    let rest = u32::from_le_bytes(segment[16..20].try_into().unwrap()) as usize;
    // Each page after the first has a short header.
    if goes_on { 40 + rest + rest / 8000 * 24 + 24 } else { 0 }
}
