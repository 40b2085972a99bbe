//! The WAL in pieces that are read independently of each other, so that memory and time stay bounded.

use std::io::{self, Write};

use tokio::sync::watch;
use wal::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalEvent, WalReader};

use super::survey::Survey;
use super::{Problem, VerifyProgress};
use crate::repository::layout::LineageObject;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult, TailSink};
use crate::storage::ObjectKey;

/// Plaintext of one unit, about.
const UNIT: u64 = 256 << 20;
/// How much of a tail is read back at a time.
const PIECE: usize = 1 << 20;

/// Which WAL is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) from: Option<Lsn>,
    pub(super) to: Option<Lsn>,
    pub(super) timeline: Option<TimelineId>,
}

impl Range {
    fn holds(&self, name: SegmentName, size: SegmentSize) -> bool {
        let Some(number) = name.number(size) else { return false };
        self.timeline.is_none_or(|timeline| timeline == name.timeline())
            && self.from.is_none_or(|from| number.end(size) > from)
            && self.to.is_none_or(|to| number.start(size) < to)
    }
}

/// Segments that follow each other, and the tail behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) timeline: TimelineId,
    /// Number of the first segment, and how many there are; none when there is only a tail.
    pub(super) first: u64,
    pub(super) count: u64,
    /// The incomplete segment behind them, and where it ends.
    pub(super) tail: Option<Lsn>,
}

impl Unit {
    pub(super) fn segments(&self) -> u64 {
        self.count
    }

    pub(super) fn bytes(&self, size: SegmentSize) -> u64 {
        let tail = self.tail.map_or(0, |end| end.bytes_since(SegmentNumber::new(self.first + self.count).start(size)));
        self.count * size.bytes() + tail
    }
}

/// Cuts what is stored into units, by timeline and position.
pub(super) fn units(survey: &Survey, range: Range, size: SegmentSize) -> Vec<Unit> {
    let most = (UNIT / size.bytes()).max(1);
    let mut units: Vec<Unit> = Vec::new();
    let wanted = survey.segments.iter().filter(|&&name| range.holds(name, size));
    for (name, number) in wanted.filter_map(|name| Some((name, name.number(size)?.get()))) {
        match units.last_mut() {
            Some(unit)
                if unit.timeline == name.timeline() && unit.first + unit.count == number && unit.count < most =>
            {
                unit.count += 1;
            }
            _ => units.push(Unit { timeline: name.timeline(), first: number, count: 1, tail: None }),
        }
    }
    let wanted = survey.tails.iter().filter(|(name, _)| range.holds(**name, size));
    for (name, number, &end) in wanted.filter_map(|(name, end)| Some((name, name.number(size)?.get(), end))) {
        let timeline = name.timeline();
        match units.iter_mut().find(|unit| unit.timeline == timeline && unit.first + unit.count == number) {
            Some(unit) => unit.tail = Some(end),
            None => units.push(Unit { timeline, first: number, count: 0, tail: Some(end) }),
        }
    }
    units.sort_by_key(|unit| (unit.timeline, unit.first));
    units
}

/// What reading a unit found.
#[derive(Clone, Debug)]
pub(super) struct UnitRead {
    pub(super) unit: Unit,
    pub(super) bytes: u64,
    pub(super) problems: Vec<Problem>,
    /// The first record that starts in it, and where it says that the one before it starts.
    pub(super) first: Option<(Lsn, Lsn)>,
    /// The last record that starts in its whole segments, proven to its end; `None` when the chain is broken.
    pub(super) last: Option<Lsn>,
}

/// Reads a unit: every object whole, every record, and the end of the record that reaches into what follows.
pub(super) async fn read(
    lineage: &LineageRepository,
    survey: &Survey,
    unit: Unit,
    progress: &watch::Sender<VerifyProgress>,
) -> RepositoryResult<UnitRead> {
    let size = lineage.segment_size();
    let number = |index: u64| SegmentNumber::new(unit.first + index);
    let name = |index: u64| SegmentName::new(unit.timeline, number(index), size);
    let boundary = number(unit.count).start(size);
    let mut reading = Reading::new(lineage, size, number(0).start(size), boundary);
    for index in 0..unit.count {
        reading.segment(lineage, name(index)).await?;
        progress.send_modify(|progress| progress.done_bytes += size.bytes());
    }
    if let Some(end) = unit.tail {
        reading.tail(lineage, name(unit.count)).await?;
        progress.send_modify(|progress| progress.done_bytes += end.bytes_since(boundary));
    } else if reading.is_inside_record()
        && let Some(next) = successor(survey, unit.timeline, number(unit.count), size)
    {
        reading.beginning_of(lineage, next, survey).await?;
    }
    let last = reading.proven_last();
    let Reading { bytes, problems, first, .. } = reading;
    Ok(UnitRead { unit, bytes, problems, first, last })
}

/// What holds the WAL right behind a unit: the next segment, or that of a timeline that begins in it.
fn successor(survey: &Survey, timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> Option<SegmentName> {
    let is_there = |name: &SegmentName| survey.segments.contains(name) || survey.tails.contains_key(name);
    let own = SegmentName::new(timeline, number, size);
    if is_there(&own) {
        return Some(own);
    }
    let start = number.start(size);
    let begins_here = survey.catalog.histories.keys().filter(|&&other| {
        let path = survey.catalog.path_to(other);
        path.timeline_at(start) == other && path.timeline_at(start.saturating_sub(1)) == timeline
    });
    begins_here.map(|&other| SegmentName::new(other, number, size)).find(is_there)
}

/// A reader on its way through a unit.
struct Reading {
    size: SegmentSize,
    system_identifier: wal::SystemIdentifier,
    reader: WalReader,
    bytes: u64,
    problems: Vec<Problem>,
    first: Option<(Lsn, Lsn)>,
    /// Where the unit's whole segments end, and the last record that starts before.
    boundary: Lsn,
    last: Option<Lsn>,
    /// The unit's first record could not be read.
    first_is_lost: bool,
    /// What follows could not be read, and the last record ends there.
    last_is_lost: bool,
}

impl Reading {
    fn new(lineage: &LineageRepository, size: SegmentSize, start: Lsn, boundary: Lsn) -> Self {
        let system_identifier = lineage.system_identifier();
        Self {
            size,
            system_identifier,
            reader: reader(size, start, system_identifier),
            bytes: 0,
            problems: Vec::new(),
            first: None,
            boundary,
            last: None,
            first_is_lost: false,
            last_is_lost: false,
        }
    }

    async fn segment(&mut self, lineage: &LineageRepository, name: SegmentName) -> RepositoryResult<()> {
        let key = lineage.keys().key(&LineageObject::Segment(name));
        let (start, end) = self.span(name);
        let mut sink = ReaderSink { reading: self, error: None, until: None };
        let fetched = lineage.fetch_segment(name, &mut sink).await;
        let invalid = sink.error.take();
        match fetched {
            Ok(_) => self.bytes += self.size.bytes(),
            Err(error) => {
                self.object_problem(&key, name, (start, end), error)?;
                self.begin_again(end);
                return Ok(());
            }
        }
        if let Some(invalid) = invalid {
            self.problem(
                &key,
                name.timeline(),
                (start, end),
                format!("its objects are whole, but not valid WAL: {invalid}"),
            );
            self.begin_again(end);
        } else if self.reader.valid_end() < end && !self.is_inside_record() {
            let from = self.reader.valid_end();
            self.problem(&key, name.timeline(), (from, end), "its WAL ends before the segment does".to_owned());
            self.begin_again(end);
        }
        Ok(())
    }

    async fn tail(&mut self, lineage: &LineageRepository, name: SegmentName) -> RepositoryResult<()> {
        let key = lineage.keys().key(&LineageObject::Segment(name));
        let (start, whole_end) = self.span(name);
        let mut bytes: Box<dyn TailSink> = tail_sink(lineage, self.size)?;
        let end = match lineage.fetch_tail(name, bytes.as_mut()).await {
            Ok(Some(end)) => end,
            // It was completed, and removed, since it was listed.
            Ok(None) => return Ok(()),
            Err(error) => return self.object_problem(&key, name, (start, whole_end), error),
        };
        let mut piece = vec![0; PIECE];
        let mut offset = 0;
        while offset < end.bytes_since(start) {
            let length = usize::try_from(end.bytes_since(start) - offset).unwrap_or(PIECE).min(PIECE);
            bytes.read_back(offset, &mut piece[..length]).map_err(RepositoryError::Sink)?;
            if let Err(error) = self.push(&piece[..length]) {
                self.problem(&key, name.timeline(), (start, end), format!("its tail is not valid WAL: {error}"));
                break;
            }
            offset += length as u64;
        }
        self.bytes += end.bytes_since(start);
        Ok(())
    }

    /// Reads on until the record at hand is whole.
    async fn beginning_of(
        &mut self,
        lineage: &LineageRepository,
        name: SegmentName,
        survey: &Survey,
    ) -> RepositoryResult<()> {
        let (start, end) = self.span(name);
        let key = lineage.keys().key(&LineageObject::Segment(name));
        let invalid = if survey.segments.contains(&name) {
            let mut sink = ReaderSink { reading: self, error: None, until: Some(start) };
            let fetched = lineage.fetch_segment(name, &mut sink).await;
            let invalid = sink.error.take();
            match fetched {
                Ok(_) | Err(RepositoryError::Sink(_)) => invalid,
                // The unit that it belongs to tells of it.
                Err(
                    RepositoryError::Damaged { .. } | RepositoryError::NotFound(_) | RepositoryError::TooNew { .. },
                ) => {
                    self.last_is_lost = true;
                    None
                }
                Err(error) => return Err(error),
            }
        } else {
            let mut bytes: Box<dyn TailSink> = tail_sink(lineage, self.size)?;
            match lineage.fetch_tail(name, bytes.as_mut()).await {
                Ok(Some(stored)) => self.push_until(bytes.as_ref(), start, stored)?,
                Ok(None) | Err(RepositoryError::Damaged { .. } | RepositoryError::TooNew { .. }) => {
                    self.last_is_lost = true;
                    None
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(invalid) = invalid {
            let what = format!("it does not go on with the record that the segment before it begins: {invalid}");
            self.problem(&key, name.timeline(), (start, end), what);
            self.last_is_lost = true;
        }
        Ok(())
    }

    fn push_until(&mut self, bytes: &dyn TailSink, start: Lsn, end: Lsn) -> RepositoryResult<Option<String>> {
        let mut piece = vec![0; 8192];
        let mut offset = 0;
        while offset < end.bytes_since(start) && self.reader.valid_end() <= start {
            let length = usize::try_from(end.bytes_since(start) - offset).unwrap_or(8192).min(8192);
            bytes.read_back(offset, &mut piece[..length]).map_err(RepositoryError::Sink)?;
            if let Err(error) = self.push(&piece[..length]) {
                return Ok(Some(error));
            }
            offset += length as u64;
        }
        Ok(None)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (first, last) = (&mut self.first, &mut self.last);
        let (first_is_lost, boundary) = (self.first_is_lost, self.boundary);
        let mut on_event = |event| {
            if let WalEvent::Record(record) = event {
                if !first_is_lost {
                    first.get_or_insert((record.lsn, record.previous));
                }
                if record.lsn < boundary {
                    *last = Some(record.lsn);
                }
            }
        };
        self.reader.push(bytes, &mut on_event).map_err(|error| error.to_string())
    }

    fn is_inside_record(&self) -> bool {
        self.reader.valid_end() < self.reader.position() && matches!(self.reader.end(), wal::WalEnd::Open)
    }

    /// The last record of the whole segments, if it was read to its end.
    fn proven_last(&self) -> Option<Lsn> {
        self.last.filter(|_| !self.last_is_lost && self.reader.valid_end() >= self.boundary)
    }

    /// After what could not be read: from here on as if nothing had come before.
    fn begin_again(&mut self, at: Lsn) {
        self.reader = reader(self.size, at, self.system_identifier);
        self.last = None;
        self.first_is_lost |= self.first.is_none();
    }

    fn span(&self, name: SegmentName) -> (Lsn, Lsn) {
        let number = name.number(self.size).unwrap_or(SegmentNumber::new(0));
        (number.start(self.size), number.end(self.size))
    }

    /// Damage of an object is a problem; a store that fails ends the verification.
    fn object_problem(
        &mut self,
        key: &ObjectKey,
        name: SegmentName,
        span: (Lsn, Lsn),
        error: RepositoryError,
    ) -> RepositoryResult<()> {
        let (object, what) = match error {
            RepositoryError::Damaged { key, what } => (key, what),
            RepositoryError::TooNew { key, what } => (key, format!("it needs a newer pgvault: {what}")),
            RepositoryError::NotFound(_) => (key.clone(), "it is listed, but not there".to_owned()),
            other => return Err(other),
        };
        self.problem(&object, name.timeline(), span, what);
        Ok(())
    }

    fn problem(&mut self, key: &ObjectKey, timeline: TimelineId, (from, to): (Lsn, Lsn), what: String) {
        self.problems.push(Problem {
            timeline: Some(timeline),
            from_lsn: Some(from),
            to_lsn: Some(to),
            object: key.to_string(),
            what,
        });
    }
}

fn reader(size: SegmentSize, start: Lsn, system_identifier: wal::SystemIdentifier) -> WalReader {
    WalReader::new(size, start).with_all_records().expecting(system_identifier)
}

/// Where a tail is put together: in memory where segments are small.
fn tail_sink(lineage: &LineageRepository, size: SegmentSize) -> RepositoryResult<Box<dyn TailSink>> {
    let options = lineage.repository().options();
    if size.bytes() <= options.max_in_memory {
        return Ok(Box::new(Vec::new()));
    }
    let path = options.scratch_dir.join(format!("pgvault-verify-{:016x}.tmp", rand::random::<u64>()));
    let failed = |source| RepositoryError::Io { path: path.clone(), source };
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    // Without a name it goes with this process, however that ends.
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(Box::new(file))
}

/// Hands bytes to the reader; its error does not end the fetch, whose checksums are worth having.
struct ReaderSink<'a> {
    reading: &'a mut Reading,
    error: Option<String>,
    /// Only until the record that reaches beyond this position is whole.
    until: Option<Lsn>,
}

impl Write for ReaderSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.chunks(8192) {
            if self.until.is_some_and(|until| self.error.is_some() || self.reading.reader.valid_end() > until) {
                return Err(io::Error::other("enough was read"));
            }
            if self.error.is_none() {
                self.error = self.reading.push(piece).err();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
