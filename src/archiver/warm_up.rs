//! What a scan must know before its first segment: the record that may span into it, and the latest commit time so far.

use std::io::{self, Read as _, Write};

use tokio::task::spawn_blocking;
use wal::{Lsn, PgTime, SegmentName, SegmentNumber, SegmentSize, TimelinePath, WalReader};

use super::scanner::ScanState;
use crate::codec::ContentHasher;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult};
use crate::spool::{Held, Spool, SpoolError};

/// Read at once.
const PIECE: usize = 1 << 20;
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
///
/// Read is from the nearest segment before it in which a record is known to begin: usually the one right before.
pub(super) async fn warm_up(
    spool: &Spool,
    repository: &LineageRepository,
    name: SegmentName,
) -> Result<ScanState, WarmUpError> {
    let size = spool.segment_size();
    let start = spool.start_of(name);
    let path = TimelinePath::new(&spool.history(name.timeline())?, size);
    let max_time = max_time_before(repository, &path, start, size).await?;
    let mut before: Vec<SegmentName> = Vec::new();
    let mut first = start;
    while before.len() < MOST_SEGMENTS_BACK {
        let Some(number) = SegmentNumber::containing(first, size).previous() else { break };
        first = number.start(size);
        before.push(SegmentName::new(path.timeline_at(first), number, size));
        let mut reader = Some(WalReader::new(size, first).expecting(spool.system_identifier()));
        for &name in before.iter().rev() {
            reader = match reader {
                Some(reader) => read_on(spool, repository, name, reader).await?,
                None => break,
            };
        }
        match reader {
            // Something was proven, so whatever spans into `name` began in what was read.
            Some(reader) if reader.valid_end() > first => return Ok(ScanState { reader, max_time }),
            Some(_) => {}
            None => break,
        }
    }
    let reader = WalReader::new(size, start).expecting(spool.system_identifier());
    Ok(ScanState { reader, max_time })
}

/// Whether the repository holds exactly the bytes of a complete segment of the spool.
pub(super) async fn is_stored(
    spool: &Spool,
    repository: &LineageRepository,
    name: SegmentName,
) -> Result<bool, WarmUpError> {
    let Some(header) = repository.segment_header(name).await? else { return Ok(false) };
    let spool = spool.clone();
    let hash = move || {
        let mut hash = ContentHasher::new();
        each_piece(&spool, name, |piece| {
            hash.update(piece);
            true
        })?;
        Ok::<_, SpoolError>(hash.finish())
    };
    let ours = spawn_blocking(hash).await.map_err(|error| SpoolError::Helper(error.to_string()))??;
    Ok(ours == header.blake3)
}

/// Pushes a complete segment, from the spool or else from the repository, into a reader. `None` when there is no such
/// segment, or when it is not valid WAL.
async fn read_on(
    spool: &Spool,
    repository: &LineageRepository,
    name: SegmentName,
    reader: WalReader,
) -> Result<Option<WalReader>, WarmUpError> {
    if spool.get(name) == Some(Held::Complete) {
        let spool = spool.clone();
        let read = move || {
            let mut reader = Some(reader);
            each_piece(&spool, name, |piece| {
                reader.take_if(|reader| reader.push(piece, &mut |_| {}).is_err());
                reader.is_some()
            })?;
            Ok::<_, SpoolError>(reader)
        };
        return Ok(spawn_blocking(read).await.map_err(|error| SpoolError::Helper(error.to_string()))??);
    }
    let mut sink = ReaderSink(Some(reader));
    match repository.fetch_segment(name, &mut sink).await {
        Ok(_) => Ok(sink.0),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Lets fetched bytes run through a reader, in place of holding a whole segment.
struct ReaderSink(Option<WalReader>);

impl Write for ReaderSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.take_if(|reader| reader.push(bytes, &mut |_| {}).is_err());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a segment of the spool piece by piece, for as long as `on_piece` wants more.
fn each_piece(spool: &Spool, name: SegmentName, mut on_piece: impl FnMut(&[u8]) -> bool) -> Result<(), SpoolError> {
    let io = |source| SpoolError::Io { path: spool.path(name), source };
    let mut file = spool.open_for_reading(name)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let count = file.read(&mut buffer).map_err(io)?;
        if count == 0 || !on_piece(&buffer[..count]) {
            return Ok(());
        }
    }
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
