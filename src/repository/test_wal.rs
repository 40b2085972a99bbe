//! Synthetic WAL for tests: valid pages and records of PostgreSQL 15, and lineages that hold it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use wal::{
    Lsn, PgTime, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId, WalEvent,
    WalReader, XactEnd, XactIndex,
};

use crate::repository::{
    ClusterIdentity, ClusterName, LineageRepository, PlainSource, Repository, RepositoryId, RepositoryOptions,
    SegmentMeta,
};
use crate::storage::memory::MemoryStorage;
use crate::storage::{
    Body, Capabilities, ObjectInfo, ObjectKey, PutIfAbsent, PutOutcome, Sha256, Storage, StorageResult,
};

pub(crate) const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_000_000_000_000_000_001);
pub(crate) const VERSION: u32 = 150_018;
pub(crate) const SIZE: u64 = 1 << 20;
const PAGE: u64 = 8192;

pub(crate) fn segment_size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

pub(crate) fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

pub(crate) fn name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(self::timeline(timeline), SegmentNumber::new(number), segment_size())
}

/// A transaction end that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) xact: XactEnd,
    pub(crate) commit: bool,
}

/// Writes WAL from the start of a segment on.
#[derive(Clone, Debug)]
pub(crate) struct WalWriter {
    pub(crate) start: Lsn,
    pub(crate) bytes: Vec<u8>,
    timeline: u32,
    previous: u64,
    pub(crate) xacts: Vec<Written>,
}

impl WalWriter {
    pub(crate) fn new(timeline: u32, first_segment: u64) -> Self {
        let start = Lsn::new(first_segment * SIZE);
        Self { start, bytes: Vec::new(), timeline, previous: 0, xacts: Vec::new() }
    }

    /// The same WAL up to here, to be continued on another timeline.
    pub(crate) fn fork(&self, timeline: u32) -> Self {
        Self { timeline, ..self.clone() }
    }

    pub(crate) fn end(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    fn position(&self) -> u64 {
        self.end().as_u64()
    }

    fn page_header(&mut self, remaining: u32) {
        let position = self.position();
        let long = position.is_multiple_of(SIZE);
        let flags = u16::from(remaining > 0) | u16::from(long) << 1;
        self.bytes.extend_from_slice(&0xD110u16.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.to_le_bytes());
        self.bytes.extend_from_slice(&position.to_le_bytes());
        self.bytes.extend_from_slice(&remaining.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&SYSTEM.get().to_le_bytes());
            self.bytes.extend_from_slice(&(SIZE as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    fn align(&mut self) {
        while !self.position().is_multiple_of(8) {
            self.bytes.push(0);
        }
    }

    pub(crate) fn record(&mut self, manager: u8, info: u8, xid: u32, data: &[u8]) -> (Lsn, Lsn) {
        let mut body = Vec::new();
        match u8::try_from(data.len()) {
            Ok(0) => {}
            Ok(short) => body.extend_from_slice(&[255, short]),
            Err(_) => {
                body.push(254);
                body.extend_from_slice(&(data.len() as u32).to_le_bytes());
            }
        }
        body.extend_from_slice(data);
        self.align();
        if self.position().is_multiple_of(PAGE) {
            self.page_header(0);
        }
        let lsn = self.position();
        let mut record = Vec::new();
        record.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&self.previous.to_le_bytes());
        record.extend_from_slice(&[info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(&body);
        for (index, &byte) in record.iter().enumerate() {
            if self.position().is_multiple_of(PAGE) {
                self.page_header((record.len() - index) as u32);
            }
            self.bytes.push(byte);
        }
        self.align();
        self.previous = lsn;
        (Lsn::new(lsn), self.end())
    }

    fn xact(&mut self, info: u8, xid: u32, micros: i64, more: &[u8]) {
        let time = PgTime::from_micros(micros);
        let (lsn, end) = self.record(1, info, xid, &[&micros.to_le_bytes(), more].concat());
        let xact = XactEnd { lsn, end, xid, time, prepared: false };
        self.xacts.push(Written { xact, commit: info & 0x70 == 0 });
    }

    pub(crate) fn commit(&mut self, xid: u32, micros: i64) {
        self.xact(0, xid, micros, &[]);
    }

    pub(crate) fn abort(&mut self, xid: u32, micros: i64) {
        self.xact(0x20, xid, micros, &[]);
    }

    /// A commit with so many subtransactions: a record of any length.
    pub(crate) fn long_commit(&mut self, xid: u32, micros: i64, subtransactions: u32) {
        let mut more = (1u32 << 1).to_le_bytes().to_vec();
        more.extend_from_slice(&subtransactions.to_le_bytes());
        (0..subtransactions).for_each(|sub| more.extend_from_slice(&sub.to_le_bytes()));
        self.xact(0x80, xid, micros, &more);
    }

    pub(crate) fn restore_point(&mut self, name: &str, micros: i64) -> (Lsn, Lsn) {
        let mut data = micros.to_le_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.resize(8 + 64, 0);
        self.record(0, 0x70, 0, &data)
    }

    /// A record that means nothing, of about this length.
    pub(crate) fn noop(&mut self, length: usize) {
        self.record(0, 0x20, 0, &vec![0x5A; length]);
    }

    /// Meaningless records up to the start of the next segment.
    pub(crate) fn fill_segment(&mut self) {
        let target = (self.position() / SIZE + 1) * SIZE;
        while self.position() + 20_000 < target {
            self.noop(10_000);
        }
        self.record(0, 0x40, 0, &[]);
        while !self.position().is_multiple_of(SIZE) {
            self.bytes.push(0);
        }
    }

    /// Bytes `from` up to `to`.
    pub(crate) fn slice(&self, from: Lsn, to: Lsn) -> Bytes {
        let at = |lsn: Lsn| lsn.bytes_since(self.start) as usize;
        Bytes::copy_from_slice(&self.bytes[at(from)..at(to)])
    }

    /// Stores it as the archiver does: whole segments, and what is left as tails of `piece` bytes.
    pub(crate) async fn store(&self, lineage: &LineageRepository, piece: u64) {
        self.store_from(lineage, self.start, None, piece).await;
    }

    /// Stores it from a segment on, with the running maximum so far.
    pub(crate) async fn store_from(&self, lineage: &LineageRepository, from: Lsn, before: Option<PgTime>, piece: u64) {
        let mut reader = WalReader::new(segment_size(), self.start);
        reader.push(&self.slice(self.start, from), &mut |_| {}).unwrap();
        let (mut position, mut max) = (from, before);
        while position < self.end() {
            let segment = position.as_u64() / SIZE;
            let segment_end = Lsn::new((segment + 1) * SIZE);
            let whole = segment_end <= self.end();
            let to = if whole { segment_end } else { position.saturating_add(piece).min(self.end()) };
            let mut index = XactIndex::start(max);
            let plain = self.slice(position, to);
            reader.push(&plain, &mut |event: WalEvent| index.record(&event)).unwrap();
            max = index.max_time;
            let meta = SegmentMeta { name: name(self.timeline, segment), postgres_version: VERSION };
            let stored = if whole {
                lineage.put_segment(&meta, &index, PlainSource::Bytes(plain)).await
            } else {
                lineage.put_tail(&meta, position, plain, &index).await
            };
            assert!(!stored.unwrap().already_there);
            position = to;
        }
    }
}

/// The first page of a segment of any size.
pub(crate) fn first_page(size: SegmentSize, number: u64) -> Vec<u8> {
    let mut wal = WalWriter::new(1, 0);
    wal.record(0, 0x20, 0, &[]);
    let mut page = wal.bytes;
    page[8..16].copy_from_slice(&(number * size.bytes()).to_le_bytes());
    page[32..36].copy_from_slice(&(size.bytes() as u32).to_le_bytes());
    page.resize(PAGE as usize, 0);
    page
}

/// Noise that does not compress, the same at every call.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A segment with these transactions and noise up to its end.
pub(crate) fn segment(timeline: u32, number: u64, xid: u32, micros: i64) -> Bytes {
    let mut wal = WalWriter::new(timeline, number);
    wal.record(0, 0x20, 0, &noise(300_000));
    wal.commit(xid, micros);
    wal.fill_segment();
    Bytes::from(wal.bytes)
}

pub(crate) fn meta(timeline: u32, number: u64) -> SegmentMeta {
    SegmentMeta { name: name(timeline, number), postgres_version: VERSION }
}

pub(crate) fn identity(history: TimelineHistory) -> ClusterIdentity {
    ClusterIdentity { system_identifier: SYSTEM, history, postgres_version: VERSION, segment_size: segment_size() }
}

pub(crate) fn root() -> TimelineHistory {
    TimelineHistory::root(timeline(1))
}

pub(crate) async fn repository(storage: Arc<dyn Storage>, cache: Option<&Path>) -> Repository {
    let options = RepositoryOptions { header_cache_dir: cache.map(Path::to_owned), ..RepositoryOptions::default() };
    Repository::create_or_open(storage, options, PgTime::from_micros(0), RepositoryId::new([7; 16])).await.unwrap()
}

pub(crate) async fn lineage(storage: Arc<dyn Storage>) -> LineageRepository {
    lineage_with_cache(storage, None).await
}

pub(crate) async fn lineage_with_cache(storage: Arc<dyn Storage>, cache: Option<&Path>) -> LineageRepository {
    let cluster = repository(storage, cache).await.cluster(&ClusterName::new("main").unwrap());
    cluster.lineage_for(&identity(root()), false, PgTime::from_micros(1)).await.unwrap()
}

/// Replaces the bytes of a stored object behind the repository's back.
pub(crate) async fn replace(storage: &dyn Storage, key: &ObjectKey, bytes: Vec<u8>) {
    storage.delete(std::slice::from_ref(key)).await.unwrap();
    let digest = crate::codec::digest::sha256(&bytes);
    storage.put_new(key, Body::Bytes(Bytes::from(bytes)), digest).await.unwrap();
}

/// A store that takes every put, as some do in spite of `If-None-Match`, and says so.
#[derive(Debug, Default)]
pub(crate) struct Overwriting {
    inner: MemoryStorage,
    /// Puts this under the key of the next put, right after it: another writer.
    pub(crate) intruder: std::sync::Mutex<Option<Bytes>>,
}

#[async_trait::async_trait]
impl Storage for Overwriting {
    async fn put_new(&self, key: &ObjectKey, body: Body, sha256: Sha256) -> StorageResult<PutOutcome> {
        self.inner.delete(std::slice::from_ref(key)).await?;
        let outcome = self.inner.put_new(key, body, sha256).await;
        let intruder = self.intruder.lock().unwrap().take();
        if let Some(bytes) = intruder {
            replace(&self.inner, key, bytes.to_vec()).await;
        }
        outcome
    }

    async fn get(&self, key: &ObjectKey) -> StorageResult<Bytes> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &ObjectKey, range: std::ops::Range<u64>) -> StorageResult<Bytes> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &ObjectKey) -> StorageResult<Option<u64>> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: Option<usize>) -> StorageResult<Vec<ObjectInfo>> {
        self.inner.list(prefix, after, limit).await
    }

    async fn list_folders(&self, prefix: &str) -> StorageResult<Vec<String>> {
        self.inner.list_folders(prefix).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        self.inner.delete(keys).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { put_if_absent: PutIfAbsent::Unreliable }
    }

    fn location(&self) -> String {
        "memory://overwriting".to_owned()
    }
}
