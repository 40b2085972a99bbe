//! What a scan must know before its first segment: the record that may span into it, and the latest commit time so far.

use std::io::Read as _;

use sha2::{Digest as _, Sha256};
use wal::{Lsn, PgTime, SegmentName, SegmentNumber, SegmentSize, TimelinePath, WalReader};

use super::scanner::ScanState;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};
use crate::spool::{Held, Spool, SpoolError};

/// A record can span segments; one that spans more than this is not waited for.
const MOST_SEGMENTS_BACK: usize = 64;

/// Where a scan can begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum WarmUpError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// The state at the first byte of `name`.
pub(super) async fn warm_up(
    spool: &Spool,
    repository: &LineageRepository,
    name: SegmentName,
) -> Result<ScanState, WarmUpError> {
    let size = spool.segment_size();
    let start = spool.start_of(name);
    let path = TimelinePath::new(&spool.history(name.timeline())?, size);
    let max_time = max_time_before(repository, &path, start, size).await?;
    let fresh = || WalReader::new(size, start).expecting(spool.system_identifier());

    let mut segments = Vec::new();
    for _ in 0..MOST_SEGMENTS_BACK {
        let first = segments.last().map_or(start, |(_, first, _): &(SegmentName, Lsn, Vec<u8>)| *first);
        let Some(number) = SegmentNumber::containing(first, size).previous() else { break };
        let before = SegmentName::new(path.timeline_at(number.start(size)), number, size);
        let Some(bytes) = plain(spool, repository, before).await? else { break };
        segments.push((before, number.start(size), bytes));

        let mut reader = WalReader::new(size, number.start(size)).expecting(spool.system_identifier());
        let valid = segments.iter().rev().all(|(_, _, bytes)| reader.push(bytes, &mut |_| {}).is_ok());
        if !valid {
            break;
        }
        // Something was proven, so whatever spans into `name` began in what was read.
        if reader.valid_end() > number.start(size) {
            return Ok(ScanState { reader, max_time });
        }
    }
    Ok(ScanState { reader: fresh(), max_time })
}

/// Whether the repository holds exactly the bytes of a complete segment of the spool.
pub(super) async fn is_stored(
    spool: &Spool,
    repository: &LineageRepository,
    name: SegmentName,
) -> Result<bool, WarmUpError> {
    let Some(header) = repository.segment_header(name).await? else { return Ok(false) };
    Ok(match spooled(spool, name).await? {
        Some(bytes) => <[u8; 32]>::from(Sha256::digest(&bytes)) == header.sha256,
        None => false,
    })
}

/// A complete segment, from the spool or else from the repository.
async fn plain(
    spool: &Spool,
    repository: &LineageRepository,
    name: SegmentName,
) -> Result<Option<Vec<u8>>, WarmUpError> {
    if let Some(bytes) = spooled(spool, name).await? {
        return Ok(Some(bytes));
    }
    let mut bytes = Vec::new();
    match repository.fetch_segment(name, &mut bytes).await {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn spooled(spool: &Spool, name: SegmentName) -> Result<Option<Vec<u8>>, SpoolError> {
    if spool.get(name) != Some(Held::Complete) {
        return Ok(None);
    }
    let spool = spool.clone();
    let read = move || {
        let mut bytes = Vec::new();
        let mut file = spool.open_for_reading(name)?;
        file.read_to_end(&mut bytes).map_err(|source| SpoolError::Io { path: spool.path(name), source })?;
        Ok(Some(bytes))
    };
    tokio::task::spawn_blocking(read).await.map_err(|error| SpoolError::Helper(error.to_string()))?
}

/// The running maximum of commit times at `start`: from the last segment that is stored before it, on its path.
async fn max_time_before(
    repository: &LineageRepository,
    path: &TimelinePath,
    start: Lsn,
    size: SegmentSize,
) -> RepositoryResult<Option<PgTime>> {
    let Some(number) = SegmentNumber::containing(start, size).previous() else { return Ok(None) };
    let before = SegmentName::new(path.timeline_at(number.start(size)), number, size);
    if let Some(header) = repository.segment_header(before).await? {
        return Ok(header.index.max_time);
    }
    // A gap, or the first WAL ever.
    let catalog = repository.catalog().await?;
    let legs: Vec<_> = path.legs(Lsn::new(0), start).collect();
    let last = legs.iter().rev().find_map(|leg| {
        let ranges: Vec<_> = catalog.coverage.ranges(leg.timeline).filter(|range| range.start < leg.end).collect();
        ranges.last().map(|range| (leg.timeline, range.end.min(leg.end)))
    });
    let Some((timeline, end)) = last else { return Ok(None) };
    // The end may be a tail's: the whole segment before it is what has a header under its own name.
    let mut number = Some(SegmentNumber::containing_end(end, size));
    for _ in 0..2 {
        let Some(candidate) = number else { break };
        if let Some(header) = repository.segment_header(SegmentName::new(timeline, candidate, size)).await? {
            return Ok(header.index.max_time);
        }
        number = candidate.previous();
    }
    Ok(None)
}
