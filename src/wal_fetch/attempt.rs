//! One attempt to fetch one file.

use wal::{SegmentName, SegmentNumber, TimelineId};

use super::absent::first_stored;
use super::destination::{Cut, Destination};
use super::local::{LocalSegment, LocalSource, NoLocalSource};
use super::trouble::Trouble;
use super::way::{Served, Way};
use super::{FetchName, FetchRequest};
use crate::repository::{LineageRepository, RepositoryError};

/// What an attempt found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The whole file is at its destination.
    Whole,
    /// What there is of a segment that is not complete is at its destination.
    Tail,
    /// There is no such file, and nothing that comes after it. Nothing was written.
    Absent,
}

/// One attempt, on a lineage that is opened when it is not open yet.
pub(super) async fn attempt(
    request: &FetchRequest,
    open: &impl AsyncFn() -> crate::error::Result<LineageRepository>,
    opened: &mut Option<LineageRepository>,
    local: &dyn LocalSource,
) -> Result<Fetched, Trouble> {
    let lineage = match opened {
        Some(lineage) => lineage,
        None => match open().await {
            Ok(lineage) => opened.insert(lineage),
            // What this machine's daemon holds whole needs no repository.
            Err(error) => return serve_alone(request, local)?.ok_or(Trouble::Opening(error)),
        },
    };
    // Another lineage of the same cluster is another history.
    let local = if local.lineage() == Some(lineage.id()) { local } else { &NoLocalSource };
    match request.file {
        FetchName::History(timeline) => fetch_history(request, lineage, timeline).await,
        FetchName::Segment(segment) => fetch_segment(request, lineage, segment, local).await,
        FetchName::Other(_) => Ok(Fetched::Absent),
    }
}

/// Serves a segment while the repository is out of reach.
fn serve_alone(request: &FetchRequest, local: &dyn LocalSource) -> Result<Option<Fetched>, Trouble> {
    let FetchName::Segment(segment) = request.file else { return Ok(None) };
    // How much of another timeline's segment belongs to the way only its history tells.
    if request.limit_timeline().is_some_and(|target| target != segment.timeline()) {
        return Ok(None);
    }
    let Some(found) = local.segment(segment).map_err(Trouble::Local)?.filter(|found| found.whole) else {
        return Ok(None);
    };
    let size = found.durable_bytes;
    serve_local(request, found, size, None).map(|()| Some(Fetched::Whole))
}

async fn fetch_history(
    request: &FetchRequest,
    lineage: &LineageRepository,
    timeline: TimelineId,
) -> Result<Fetched, Trouble> {
    let Some(bytes) = lineage.history_bytes(timeline).await? else { return Ok(Fetched::Absent) };
    let mut destination = Destination::open(&request.destination, &request.asker)?;
    destination.write_all(&bytes)?;
    destination.publish()?;
    Ok(Fetched::Whole)
}

/// A segment on the way of a recovery.
struct Wanted {
    segment: SegmentName,
    number: SegmentNumber,
    way: Way,
    /// What of it belongs to the way.
    cut: Option<Cut>,
}

impl Wanted {
    /// `None` when the way has left the segment's timeline before it: replaying it would be another history.
    async fn on_the_way(
        request: &FetchRequest,
        lineage: &LineageRepository,
        segment: SegmentName,
    ) -> Result<Option<Self>, Trouble> {
        let size = lineage.segment_size();
        let number = segment.number(size).ok_or(Trouble::ForeignName(segment, size.bytes()))?;
        let way = Way::to(request.limit_timeline(), size).knowing(lineage, segment.timeline()).await?;
        let cut = match way.serves(segment.timeline(), number) {
            Served::Whole => None,
            Served::UpTo(limit) => Some(Cut { keep: limit.bytes_since(number.start(size)), size: size.bytes() }),
            Served::Never => return Ok(None),
        };
        Ok(Some(Self { segment, number, way, cut }))
    }
}

/// Serves the segment if it is there whole, here or in the repository; else nothing is written. `false` says that it
/// was not there a moment ago, and no more.
pub(super) async fn fetch_if_whole(
    request: &FetchRequest,
    lineage: &LineageRepository,
    segment: SegmentName,
    local: &dyn LocalSource,
) -> Result<bool, Trouble> {
    match Wanted::on_the_way(request, lineage, segment).await? {
        Some(wanted) => fetch_whole(request, lineage, &wanted, local).await,
        None => Ok(false),
    }
}

async fn fetch_segment(
    request: &FetchRequest,
    lineage: &LineageRepository,
    segment: SegmentName,
    local: &dyn LocalSource,
) -> Result<Fetched, Trouble> {
    let Some(wanted) = Wanted::on_the_way(request, lineage, segment).await? else { return Ok(Fetched::Absent) };
    let target = request.limit_until().map(|until| SegmentNumber::containing_end(until, lineage.segment_size()));
    let beyond_target = target.is_some_and(|target| wanted.number > target);
    match fetch_wanted(request, lineage, wanted, beyond_target, local).await {
        // PostgreSQL only looks ahead there (xlogprefetcher.c): recovery stops before it, whatever became of it.
        Err(Trouble::Repository(RepositoryError::Damaged { .. })) if beyond_target => Ok(Fetched::Absent),
        fetched => fetched,
    }
}

async fn fetch_wanted(
    request: &FetchRequest,
    lineage: &LineageRepository,
    mut wanted: Wanted,
    beyond_target: bool,
    local: &dyn LocalSource,
) -> Result<Fetched, Trouble> {
    let segment = wanted.segment;
    if fetch_whole(request, lineage, &wanted, local).await? {
        return Ok(Fetched::Whole);
    }
    // Not stored whole. What comes behind it tells an end from a hole.
    let (number, size) = (wanted.number, lineage.segment_size());
    wanted.way = wanted.way.knowing_all(lineage).await?;
    let ends_in_tail = !beyond_target && target_is_in_tail(request, lineage, segment).await?;
    if !beyond_target
        && !ends_in_tail
        && let Some(later) = first_later(lineage, &wanted, local).await?
    {
        // It may have been completed while we looked.
        let completed = fetch_whole(request, lineage, &wanted, local).await?;
        return if completed { Ok(Fetched::Whole) } else { Err(Trouble::Hole { missing: segment, later }) };
    }
    let mut destination = Destination::open(&request.destination, &request.asker)?;
    let stored = match lineage.fetch_sound_tail(segment, destination.file()).await {
        Err(RepositoryError::Sink(source)) => return Err(destination.trouble(source)),
        fetched => fetched?,
    };
    let stored_bytes = stored.map_or(0, |end| end.bytes_since(number.start(size)));
    if let Some(found) = local.segment(segment).map_err(Trouble::Local)?.filter(|f| f.durable_bytes > stored_bytes) {
        // One temporary file at a time.
        drop(destination);
        return serve_local(request, found, size.bytes(), wanted.cut).map(|()| Fetched::Tail);
    }
    if stored_bytes == 0 {
        return Ok(Fetched::Absent);
    }
    destination.pad(stored_bytes, size.bytes())?;
    destination.cut(wanted.cut)?;
    destination.publish()?;
    Ok(Fetched::Tail)
}

/// Serves the segment if it is there whole.
async fn fetch_whole(
    request: &FetchRequest,
    lineage: &LineageRepository,
    wanted: &Wanted,
    local: &dyn LocalSource,
) -> Result<bool, Trouble> {
    let size = lineage.segment_size().bytes();
    if let Some(found) = local.segment(wanted.segment).map_err(Trouble::Local)?.filter(|found| found.whole) {
        return serve_local(request, found, size, wanted.cut).map(|()| true);
    }
    let mut destination = Destination::open(&request.destination, &request.asker)?;
    match lineage.fetch_segment_to_file(wanted.segment, destination.file()).await {
        Ok(_) => {
            destination.cut(wanted.cut)?;
            destination.publish()?;
            Ok(true)
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(RepositoryError::Sink(source)) => Err(destination.trouble(source)),
        Err(error) => Err(error.into()),
    }
}

/// Serves what this machine's daemon holds, zeros after it.
fn serve_local(request: &FetchRequest, found: LocalSegment, size: u64, cut: Option<Cut>) -> Result<(), Trouble> {
    let mut destination = Destination::open(&request.destination, &request.asker)?;
    destination.copy_padded(found, size)?;
    destination.cut(cut)?;
    destination.publish()
}

/// Whether recovery stops before the stored part of an incomplete segment ends: right before a gap, say. What comes behind
/// the gap is of no interest then.
async fn target_is_in_tail(
    request: &FetchRequest,
    lineage: &LineageRepository,
    segment: SegmentName,
) -> Result<bool, Trouble> {
    let Some(until) = request.limit_until() else { return Ok(false) };
    Ok(lineage.tail_chain(segment).await?.is_some_and(|chain| until <= chain.end))
}

/// The first WAL that is there behind a missing segment, on any way that leads over it.
async fn first_later(
    lineage: &LineageRepository,
    wanted: &Wanted,
    local: &dyn LocalSource,
) -> Result<Option<SegmentName>, Trouble> {
    let Wanted { segment, number, way, .. } = wanted;
    if local.has_later(*segment).map_err(Trouble::Local)? {
        return Ok(Some(SegmentName::new(segment.timeline(), number.next(), lineage.segment_size())));
    }
    for leg in way.legs_behind(segment.timeline(), *number) {
        if let Some(later) = first_stored(lineage, leg).await? {
            return Ok(Some(later));
        }
    }
    Ok(None)
}
