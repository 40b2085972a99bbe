//! Single segments of a branch: their indexes, and reading them record by record.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::sync::atomic::Ordering;

use futures_util::{StreamExt, TryStreamExt, stream};
use recovery::SegmentSource;
use wal::{Lsn, PgTime, SegmentName, SegmentNumber, WalError, WalEvent, WalReader, XactIndex};

use super::WalSearch;
use crate::repository::header::WalPlace;
use crate::repository::header_cache::group;
use crate::repository::layout::{LineageObject, TailName};
use crate::repository::wal_object::ScratchFile;
use crate::repository::wal_read::read_header;
use crate::repository::{LineageRepository, RepositoryError, RepositoryResult, TailChain, TailSink, WalHeader};

/// How many headers are read at once.
pub(super) const PARALLEL: usize = 8;

/// Where one segment of the branch is stored, and how much of it counts.
#[derive(Clone, Copy, Debug)]
struct Source {
    name: SegmentName,
    start: Lsn,
    /// First byte that is not stored, or that the branch has left behind.
    end: Lsn,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Whole, and all of it belongs to the branch: its header is its index.
    Whole,
    /// As tails, and all of them belong to the branch.
    Tail,
    /// Its parent's file stands in up to where the branch left it: no header tells of that part alone.
    Cut,
}

/// What reading one segment came to.
#[derive(Debug)]
pub(super) struct Scanned<S> {
    /// What the caller made of its records.
    pub(super) state: S,
    /// End of the last whole record; the segment's start when none ends in it.
    pub(super) valid_end: Lsn,
}

impl WalSearch<'_> {
    /// The segment that holds the byte at `lsn`.
    pub(super) fn containing(&self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber::containing(lsn, self.lineage.segment_size())
    }

    /// The segment that holds the byte before `end`.
    pub(super) fn containing_end(&self, end: Lsn) -> SegmentNumber {
        SegmentNumber::containing_end(end, self.lineage.segment_size())
    }

    /// Whether anything of the segment is stored for this branch.
    pub(super) fn is_stored(&self, number: SegmentNumber) -> bool {
        self.branch.source_of(number).is_some()
    }

    fn source(&self, number: SegmentNumber) -> RepositoryResult<Source> {
        let size = self.lineage.segment_size();
        let start = number.start(size);
        let timeline = self.branch.timeline();
        let Some(SegmentSource { name, limit }) = self.branch.source_of(number) else {
            return Err(RepositoryError::NotFound(format!("WAL at {start} on the way to timeline {timeline}")));
        };
        let tail = self.catalog.tails.iter().find(|tail| tail.timeline == name.timeline() && tail.start == start);
        let stored_end = tail.map_or(number.end(size), |tail| tail.end);
        let form = match limit {
            Some(limit) if limit < stored_end => Form::Cut,
            _ if tail.is_some() => Form::Tail,
            _ => Form::Whole,
        };
        let end = limit.map_or(stored_end, |limit| limit.min(stored_end));
        Ok(Source { name, start, end, form })
    }

    /// First byte of the segment that is not stored, or does not belong to the branch.
    pub(super) fn stored_end(&self, number: SegmentNumber) -> RepositoryResult<Lsn> {
        Ok(self.source(number)?.end)
    }

    /// The running maximum of transaction end times at the end of the segment.
    pub(super) async fn max_time_of(&self, number: SegmentNumber) -> RepositoryResult<Option<PgTime>> {
        let source = self.source(number)?;
        if source.form == Form::Tail
            && let Some(last) = self.chain(&source).await?.and_then(|chain| chain.last_piece())
        {
            return Ok(self.header(&WalPlace::tail(self.lineage, last)?, source.name).await?.index.max_time);
        }
        Ok(self.index(number).await?.max_time)
    }

    /// What is known of the segment's transaction ends. Those of a tail are added up from its pieces.
    pub(super) async fn index(&self, number: SegmentNumber) -> RepositoryResult<XactIndex> {
        let source = self.source(number)?;
        if source.form == Form::Whole {
            return self.segment_index(&source).await;
        }
        if let Some(known) = self.indexes.lock().await.get(&number) {
            return Ok(known.clone());
        }
        let index = match source.form {
            Form::Cut => self.index_by_reading(number, source.end).await?,
            _ => match self.chain(&source).await? {
                Some(chain) => self.index_of_chain(&chain).await?,
                None => self.segment_index(&source).await?,
            },
        };
        self.indexes.lock().await.insert(number, index.clone());
        Ok(index)
    }

    async fn segment_index(&self, source: &Source) -> RepositoryResult<XactIndex> {
        Ok(self.header(&WalPlace::segment(self.lineage, source.name)?, source.name).await?.index)
    }

    /// A header, remembered or read.
    async fn header(&self, place: &WalPlace, name: SegmentName) -> RepositoryResult<WalHeader> {
        if let Some(known) = self.lineage.inner.headers.get(&place.key, &group(name)) {
            return Ok(known);
        }
        let header = read_header(self.lineage.objects(), place).await.map_err(listed_but_gone)?;
        self.lineage.inner.headers.remember(&place.key, &header);
        Ok(header)
    }

    /// The tails of a segment; none when the segment was completed since the catalog was read, and its tails are gone.
    async fn chain(&self, source: &Source) -> RepositoryResult<Option<TailChain>> {
        let mut chains = self.chains.lock().await;
        if let Some(known) = chains.get(&source.name) {
            return Ok(known.clone());
        }
        let chain = self.lineage.tail_chain(source.name).await?.filter(|chain| chain.end >= source.end);
        chains.insert(source.name, chain.clone());
        Ok(chain)
    }

    async fn index_of_chain(&self, chain: &TailChain) -> RepositoryResult<XactIndex> {
        let mut headers =
            stream::iter(chain.cover())
                .map(|piece: TailName| async move {
                    self.header(&WalPlace::tail(self.lineage, piece)?, chain.segment).await
                })
                .buffered(PARALLEL);
        let mut sum = XactIndex::start(None);
        while let Some(WalHeader { index, .. }) = headers.try_next().await? {
            sum.max_time = sum.max_time.max(index.max_time);
            sum.commits += index.commits;
            sum.xid_min = [sum.xid_min, index.xid_min].into_iter().flatten().min();
            sum.xid_max = sum.xid_max.max(index.xid_max);
            // Pieces come by their first byte, but overlapping ones may end in any order.
            sum.first = [sum.first, index.first].into_iter().flatten().min_by_key(|mark| mark.lsn);
            sum.last = [sum.last, index.last].into_iter().flatten().max_by_key(|mark| mark.lsn);
            sum.last_commit = [sum.last_commit, index.last_commit].into_iter().flatten().max_by_key(|mark| mark.lsn);
            sum.restore_points.extend(index.restore_points);
        }
        Ok(sum)
    }

    async fn index_by_reading(&self, number: SegmentNumber, until: Lsn) -> RepositoryResult<XactIndex> {
        let before = match number.previous().filter(|&previous| self.is_stored(previous)) {
            Some(previous) => Box::pin(self.max_time_of(previous)).await?,
            None => None,
        };
        let start = || XactIndex::start(before);
        Ok(self.scan(number, until, false, start, |index, event| index.record(&event)).await?.state)
    }

    /// Reads a segment up to `until` and folds the events of the records that end in that part of it.
    ///
    /// A record that began in an earlier segment is told only by a reader that saw its beginning: where the segment's
    /// first page goes on with one, reading starts anew one segment earlier, and so on.
    pub(super) async fn scan<S: Send>(
        &self,
        number: SegmentNumber,
        until: Lsn,
        all_records: bool,
        start: impl Fn() -> S + Send + Sync,
        mut fold: impl FnMut(&mut S, WalEvent) + Send,
    ) -> RepositoryResult<Scanned<S>> {
        let size = self.lineage.segment_size();
        let source = self.source(number)?;
        let mut first = number;
        loop {
            let mut reader = WalReader::new(size, first.start(size)).expecting(self.lineage.system_identifier());
            if all_records {
                reader = reader.with_all_records();
            }
            let mut earlier = first;
            while earlier < number {
                let source = self.source(earlier)?;
                reader = self.read(&source, source.end, reader, &mut |_| {}).await?;
                earlier = earlier.next();
            }
            let mut state = start();
            let reader =
                self.read(&source, until.min(source.end), reader, &mut |event| fold(&mut state, event)).await?;
            let began_earlier = reader.skipped_to().is_some_and(|lsn| lsn > source.start);
            match first.previous() {
                Some(previous) if began_earlier && self.is_stored(previous) => first = previous,
                _ => return Ok(Scanned { state, valid_end: reader.valid_end().max(source.start) }),
            }
        }
    }

    /// The segment's tails put together; none when they do not reach far enough: it was completed meanwhile.
    async fn tail(&self, source: &Source) -> RepositoryResult<Option<Tail>> {
        let mut tail = Tail::of(self.lineage, source.name)?;
        let end = self.lineage.fetch_sound_tail(source.name, tail.sink()).await?;
        Ok(end.is_some_and(|end| end >= source.end).then_some(tail))
    }

    /// Pushes one segment's bytes up to `until` through the reader.
    async fn read(
        &self,
        source: &Source,
        until: Lsn,
        reader: WalReader,
        on_event: &mut (dyn FnMut(WalEvent) + Send),
    ) -> RepositoryResult<WalReader> {
        let mut sink = ReaderSink { reader, until, on_event, error: None };
        let key = self.lineage.keys().key(&LineageObject::Segment(source.name));
        let whole = self.catalog.tails.iter().all(|t| t.timeline != source.name.timeline() || t.start != source.start);
        let tail = if whole { None } else { self.tail(source).await? };
        let read = match tail {
            Some(mut tail) => tail.copy_to(&mut sink).map_err(RepositoryError::Sink),
            None => self.lineage.fetch_segment(source.name, &mut sink).await.map(|fetched| {
                let known = self.lineage.inner.headers.get(&key, &group(source.name));
                if known.is_some_and(|known| known != fetched.header) {
                    self.cache_was_wrong.store(true, Ordering::Relaxed);
                }
            }),
        };
        if let Some(error) = sink.error {
            return Err(RepositoryError::damaged(&key, format!("its bytes are as stored, but not valid WAL: {error}")));
        }
        read.map_err(listed_but_gone)?;
        Ok(sink.reader)
    }
}

/// The catalog named it, so its absence is no answer that anybody may build on.
fn listed_but_gone(error: RepositoryError) -> RepositoryError {
    match error {
        RepositoryError::NotFound(key) => {
            RepositoryError::Mismatch { what: key, problem: "it was listed, and is not there any more".to_owned() }
        }
        other => other,
    }
}

/// A tail on its way to a reader of WAL: in memory, or in a file where segments are large.
enum Tail {
    Memory(Vec<u8>),
    File {
        file: File,
        /// Removes the file.
        _scratch: ScratchFile,
    },
}

impl Tail {
    fn of(lineage: &LineageRepository, name: SegmentName) -> RepositoryResult<Self> {
        let options = lineage.repository().options();
        if lineage.segment_size().bytes() <= options.max_in_memory {
            return Ok(Self::Memory(Vec::new()));
        }
        let (scratch, file) = ScratchFile::create(&options.scratch_dir, &format!("{name}.tail"))?;
        Ok(Self::File { file, _scratch: scratch })
    }

    fn sink(&mut self) -> &mut dyn TailSink {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File { file, .. } => file,
        }
    }

    fn copy_to(&mut self, sink: &mut ReaderSink<'_>) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => sink.write_all(bytes),
            Self::File { file, .. } => {
                file.seek(SeekFrom::Start(0))?;
                io::copy(file, sink).map(|_| ())
            }
        }
    }
}

/// Pushes what is written through a reader of WAL, up to a position.
struct ReaderSink<'a> {
    reader: WalReader,
    until: Lsn,
    on_event: &'a mut (dyn FnMut(WalEvent) + Send),
    error: Option<WalError>,
}

impl Write for ReaderSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.until.bytes_since(self.reader.position())).unwrap_or(usize::MAX);
        let wanted = bytes.get(..wanted).unwrap_or(bytes);
        if let Err(error) = self.reader.push(wanted, self.on_event) {
            self.error = Some(error.clone());
            return Err(io::Error::other(error));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
