//! What a start makes sure of before it trusts the spool.
//!
//! Bare names are complete and durable by the way they came into being. A `.partial` may end in anything after a power
//! loss: its records are checked one by one, everything after the last valid one is zeroed, and only then does its end
//! count as durable. Segments are published in order, so nothing after one that is not complete was ever acknowledged:
//! what was written of it is removed and received again, unless a `.left` says that WAL really goes on after it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use wal::{
    Gap, Lsn, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, WalError, WalEvent, WalProblem, WalReader,
};

use super::{Held, Spool, SpoolError, disk};

/// Read at once while scanning.
const PIECE: usize = 1 << 20;

/// What is in the spool, for certain.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: BTreeMap<SegmentName, Held>,
    pub(super) holes: Vec<Gap>,
}

/// Makes durable and checks what a folder holds.
pub(super) fn recover(dir: &Path, size: SegmentSize, system: SystemIdentifier) -> Result<Found, SpoolError> {
    let mut complete = Vec::new();
    let mut partial = Vec::new();
    let mut left = Vec::new();
    for entry in fs::read_dir(dir).map_err(SpoolError::io(dir))? {
        let entry = entry.map_err(SpoolError::io(dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(".tmp-") {
            fs::remove_file(entry.path()).map_err(SpoolError::io(&entry.path()))?;
        } else if let Some(Ok(segment)) = name.strip_suffix(".partial").map(str::parse::<SegmentName>) {
            partial.push(segment);
        } else if let Some(Ok(segment)) = name.strip_suffix(".left").map(str::parse::<SegmentName>) {
            left.push(segment);
        } else if let Ok(segment) = name.parse::<SegmentName>() {
            complete.push(segment);
        }
    }
    complete.sort_unstable();
    partial.sort_unstable();

    let mut found = Found::default();
    for name in complete {
        let path = dir.join(name.to_string());
        check_size(&path, name, size)?;
        // Renamed, perhaps, without the folder having been synced: the content was made durable before that.
        File::open(&path).and_then(|file| file.sync_all()).map_err(SpoolError::io(&path))?;
        found.files.insert(name, Held::Complete);
    }
    let mut unfinished: Option<SegmentName> = None;
    for name in partial {
        let follows = unfinished.is_some_and(|before| follows_directly(before, name, size));
        if found.files.contains_key(&name) || follows {
            // A spare of a segment that is complete by now, or what was written ahead of an unpublished one.
            discard(dir, name)?;
            unfinished = follows.then_some(name).or(unfinished);
            continue;
        }
        let is_left = left.contains(&name);
        match check_partial(dir, size, system, name, &found.files)? {
            Some(end) if is_left => found.files.insert(name, Held::Left { end }),
            Some(durable) => found.files.insert(name, Held::Open { durable }),
            None => None,
        };
        unfinished = (!is_left).then_some(name);
    }
    for name in left.into_iter().filter(|name| !matches!(found.files.get(name), Some(Held::Left { .. }))) {
        disk::remove_if_there(&dir.join(format!("{name}.left")))?;
    }
    disk::sync_dir(dir)?;
    mark_left(&mut found.files);
    found.holes = holes(&found.files, size);
    Ok(found)
}

fn follows_directly(before: SegmentName, name: SegmentName, size: SegmentSize) -> bool {
    before.timeline() == name.timeline() && before.number(size).map(SegmentNumber::next) == name.number(size)
}

/// Removes what there is of an incomplete segment.
pub(super) fn discard(dir: &Path, name: SegmentName) -> Result<(), SpoolError> {
    disk::remove_if_there(&dir.join(name.partial()))
}

/// Only the newest segment can go on: of all others that are not complete, nothing more will come.
fn mark_left(files: &mut BTreeMap<SegmentName, Held>) {
    for held in files.values_mut().rev().skip(1) {
        if let Held::Open { durable } = *held {
            *held = Held::Left { end: durable };
        }
    }
}

/// WAL that is missing between the files of one timeline.
fn holes(files: &BTreeMap<SegmentName, Held>, size: SegmentSize) -> Vec<Gap> {
    let spans: Vec<(SegmentName, Lsn, Lsn)> = files
        .iter()
        .filter_map(|(&name, &held)| {
            let number = name.number(size)?;
            let end = match held {
                Held::Complete => number.end(size),
                Held::Open { durable: end } | Held::Left { end } => end,
            };
            Some((name, number.start(size), end))
        })
        .collect();
    spans
        .windows(2)
        .filter(|pair| pair[0].0.timeline() == pair[1].0.timeline() && pair[0].2 < pair[1].1)
        .map(|pair| Gap { timeline: pair[0].0.timeline(), start: pair[0].2, end: pair[1].1 })
        .collect()
}

fn check_size(path: &Path, name: SegmentName, size: SegmentSize) -> Result<(), SpoolError> {
    let damaged = |what: String| SpoolError::Damaged { path: path.to_owned(), what };
    if name.number(size).is_none() {
        return Err(damaged(format!("no segment of {} bytes has this name", size.bytes())));
    }
    let len = fs::metadata(path).map_err(SpoolError::io(path))?.len();
    if len == size.bytes() { Ok(()) } else { Err(damaged(format!("{len} bytes long instead of {}", size.bytes()))) }
}

/// Checks an incomplete segment, zeroes what follows its last valid record and makes that durable. Returns where it ends;
/// one that proves nothing is removed.
fn check_partial(
    dir: &Path,
    size: SegmentSize,
    system: SystemIdentifier,
    name: SegmentName,
    others: &BTreeMap<SegmentName, Held>,
) -> Result<Option<Lsn>, SpoolError> {
    let path = dir.join(name.partial());
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(SpoolError::io(&path))?;
    if file.metadata().map_err(SpoolError::io(&path))?.len() < size.bytes() {
        // Never left so by us. What is there still counts for what it is; the rest is received again.
        tracing::warn!(path = %path.display(), "an incomplete segment of the spool was cut short");
        disk::reserve(&file, size.bytes()).map_err(SpoolError::io(&path))?;
    }
    check_size(&path, name, size)?;
    // What was written before a crash of this program alone is still in the cache: make it durable, then look at the disk.
    file.sync_all().and_then(|()| disk::drop_from_cache(&file)).map_err(SpoolError::io(&path))?;
    let before = previous(others.iter().map(|(&name, &held)| (name, held)), name, size);
    let Valid { start, end, padding } = valid_part(dir, size, system, name, &file, before)?;
    if end <= start {
        fs::remove_file(&path).map_err(SpoolError::io(&path))?;
        return Ok(None);
    }
    zero_from(&file, end.bytes_since(start) - padding, size)
        .and_then(|()| file.sync_all())
        .map_err(SpoolError::io(&path))?;
    Ok(Some(end))
}

/// Replaces an incomplete segment, of which a write or fsync failed, by a new file with what is valid of it.
pub(super) fn rewrite_partial(
    dir: &Path,
    size: SegmentSize,
    system: SystemIdentifier,
    name: SegmentName,
) -> Result<Option<Held>, SpoolError> {
    let complete = dir.join(name.to_string());
    if complete.exists() {
        // The rename had happened: what failed was the sync of the folder. Its content was durable before.
        disk::sync_dir(dir)?;
        return Ok(Some(Held::Complete));
    }
    let path = dir.join(name.partial());
    let old = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(SpoolError::io(&path))?,
    };
    disk::drop_from_cache(&old).map_err(SpoolError::io(&path))?;
    let before = name
        .number(size)
        .and_then(SegmentNumber::previous)
        .map(|number| SegmentName::new(name.timeline(), number, size))
        .filter(|name| dir.join(name.to_string()).exists());
    let Valid { start, end, padding } = valid_part(dir, size, system, name, &old, before)?;
    if end <= start {
        fs::remove_file(&path).map_err(SpoolError::io(&path))?;
        disk::sync_dir(dir)?;
        return Ok(None);
    }
    let new_path = dir.join(format!(".tmp-{name}"));
    let copy = || -> io::Result<()> {
        let new = disk::create_file(&new_path)?;
        disk::reserve(&new, size.bytes())?;
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        let len = end.bytes_since(start) - padding;
        while offset < len {
            let piece = usize::try_from(len - offset).unwrap_or(PIECE).min(PIECE);
            old.read_exact_at(&mut buffer[..piece], offset)?;
            new.write_all_at(&buffer[..piece], offset)?;
            offset += piece as u64;
        }
        new.sync_all()
    };
    let replaced = copy().and_then(|()| fs::rename(&new_path, &path));
    if let Err(error) = replaced {
        // The old file is as it was, and is looked at again.
        disk::remove_if_there(&new_path)?;
        return Err(SpoolError::io(&path)(error));
    }
    disk::sync_dir(dir)?;
    Ok(Some(Held::Open { durable: end }))
}

/// Where the first record begins whose checksum proves the bytes of a segment, when it begins with the rest of another one
/// whose segment is not held. Else the segment's start.
pub(super) fn proven_from(spool: &Spool, name: SegmentName, file: &File) -> io::Result<Lsn> {
    let (size, start) = (spool.segment_size(), spool.start_of(name));
    if previous(spool.held().into_iter(), name, size).is_some() {
        return Ok(start);
    }
    let mut reader = WalReader::new(size, start).expecting(spool.system_identifier());
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < size.bytes() && reader.skipped_to().is_none() && reader.valid_end() == start {
        file.read_exact_at(&mut buffer, offset)?;
        if reader.push(&buffer, &mut |_| {}).is_err() {
            break;
        }
        offset += PIECE as u64;
    }
    Ok(reader.skipped_to().unwrap_or(start))
}

/// The segment right before `name`: on its timeline, or on the nearest older one.
fn previous(
    files: impl DoubleEndedIterator<Item = (SegmentName, Held)>,
    name: SegmentName,
    size: SegmentSize,
) -> Option<SegmentName> {
    let number = name.number(size)?.previous()?;
    files
        .rev()
        .find(|(other, held)| {
            *held == Held::Complete && other.timeline() <= name.timeline() && other.number(size) == Some(number)
        })
        .map(|(other, _)| other)
}

/// What is valid of an incomplete segment.
pub(super) struct Valid {
    /// First byte of the segment.
    pub(super) start: Lsn,
    /// First byte after its last valid record; `start` when no record is proven.
    pub(super) end: Lsn,
    /// So many bytes before `end` only align the next record. No checksum covers them: in a segment that ended in torn
    /// bytes they can be anything, where the server has zeros (`CopyXLogRecordToWAL`, xlog.c).
    pub(super) padding: u64,
}

/// Finds out how much of a segment is valid.
///
/// The segment before it, when it is there, completes a record that spans the two. Without it that record's rest is skipped.
pub(super) fn valid_part(
    dir: &Path,
    size: SegmentSize,
    system: SystemIdentifier,
    name: SegmentName,
    file: &File,
    before: Option<SegmentName>,
) -> Result<Valid, SpoolError> {
    let number = name.number(size).unwrap_or(SegmentNumber::new(0));
    let (start, segment_end) = (number.start(size), number.end(size));
    let mut reader = WalReader::new(size, start).expecting(system).with_all_records();
    if let Some(before) = before {
        let path = dir.join(before.to_string());
        let previous = File::open(&path).map_err(SpoolError::io(&path))?;
        let mut spanning =
            WalReader::new(size, start.saturating_sub(size.bytes())).expecting(system).with_all_records();
        // A damaged predecessor is the archiver's to report; here it only cannot help.
        if feed(&previous, size, &mut spanning, &mut |_| {}).map_err(SpoolError::io(&path))?.is_none() {
            reader = spanning;
        }
    }
    let mut switch = None;
    // End and padding of the last two records: the last one may be a switch.
    let mut last = [(start, 0); 2];
    let path = dir.join(name.partial());
    let problem = feed(file, size, &mut reader, &mut |event| match event {
        WalEvent::Switch { lsn, .. } => switch = Some(lsn),
        WalEvent::Record(record) => last = [last[1], (record.end, u64::from(record.length.wrapping_neg() % 8))],
        _ => {}
    })
    .map_err(SpoolError::io(&path))?;
    if let Some(WalError { problem: WalProblem::Layout { .. }, .. }) = problem {
        // Whole and with the right checksum, but not understood: not torn, so not ours to cut off.
        return Err(SpoolError::Damaged { path, what: problem.map(|error| error.to_string()).unwrap_or_default() });
    }
    // A switch record ends at the segment's end, which the zeros after it cannot prove to have been received: it is
    // asked for again.
    let end = switch.filter(|_| reader.valid_end() >= segment_end).unwrap_or(reader.valid_end());
    let end = end.clamp(start, segment_end);
    let padding = last.iter().find(|(record_end, _)| *record_end == end).map_or(0, |&(_, padding)| padding);
    Ok(Valid { start, end, padding: padding.min(end.bytes_since(start)) })
}

/// Pushes a whole segment file into a reader; tells why it is not valid to its end.
pub(super) fn feed(
    file: &File,
    size: SegmentSize,
    reader: &mut WalReader,
    on_event: &mut dyn FnMut(WalEvent),
) -> io::Result<Option<WalError>> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < size.bytes() {
        file.read_exact_at(&mut buffer, offset)?;
        if let Err(error) = reader.push(&buffer, on_event) {
            return Ok(Some(error));
        }
        offset += PIECE as u64;
    }
    Ok(None)
}

fn zero_from(file: &File, offset: u64, size: SegmentSize) -> io::Result<()> {
    let zeros = vec![0; PIECE];
    let mut at = offset;
    while at < size.bytes() {
        let piece = usize::try_from(size.bytes() - at).unwrap_or(PIECE).min(PIECE);
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
