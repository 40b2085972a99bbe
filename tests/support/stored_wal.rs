//! Real WAL in a repository, stored as the archiver stores it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pgvault::repository::{
    ClusterIdentity, ClusterName, LineageRepository, PlainSource, Repository, RepositoryId, RepositoryOptions,
    SegmentMeta,
};
use pgvault::storage::{Storage, StorageContext, StorageOptions, open};
use wal::{
    Lsn, PgTime, RecordInfo, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, WalEvent, WalReader,
    XactIndex, read_segment_header,
};

/// A local directory as a store.
pub async fn local(dir: &Path) -> Arc<dyn Storage> {
    let url = format!("file://{}", dir.display());
    open(&StorageOptions::new(url), StorageContext::default()).await.unwrap()
}

/// A repository there, whose cluster `main` is the one that wrote this WAL.
pub async fn lineage(storage: Arc<dyn Storage>, first_segment: &[u8], major: u32) -> LineageRepository {
    let page = read_segment_header(first_segment).unwrap();
    let options = RepositoryOptions::default();
    let now = PgTime::from_micros(0);
    let repository = Repository::create_or_open(storage, options, now, RepositoryId::new([5; 16])).await.unwrap();
    let server = ClusterIdentity {
        system_identifier: page.system_identifier,
        history: TimelineHistory::root(page.timeline),
        postgres_version: major * 10_000,
        segment_size: page.segment_size,
    };
    repository.cluster(&ClusterName::new("main").unwrap()).lineage_for(&server, false, now).await.unwrap()
}

/// Stores WAL that starts with a segment: whole segments as such, the rest up to `end` as tails of `piece` bytes.
pub async fn store(
    lineage: &LineageRepository,
    timeline: TimelineId,
    start: Lsn,
    bytes: &[u8],
    end: Lsn,
    piece: usize,
) {
    let size: SegmentSize = lineage.segment_size();
    let version = lineage.document().postgres_version;
    let mut reader = WalReader::new(size, start);
    let mut max = None;
    let mut rest = &bytes[..usize::try_from(end.bytes_since(start)).unwrap()];
    while !rest.is_empty() {
        let position = reader.position();
        let segment_end = SegmentNumber::containing(position, size).end(size);
        let left = usize::try_from(segment_end.bytes_since(position)).unwrap();
        let (now, later) = rest.split_at(rest.len().min(if rest.len() >= left { left } else { piece }));
        let mut index = XactIndex::start(max);
        reader.push(now, &mut |event| index.record(&event)).unwrap();
        max = index.max_time;
        let name = SegmentName::containing(timeline, position, size);
        let (meta, plain) = (SegmentMeta { name, postgres_version: version }, Bytes::copy_from_slice(now));
        let stored = if now.len() == left {
            lineage.put_segment(&meta, &index, PlainSource::Bytes(plain)).await
        } else {
            lineage.put_tail(&meta, position, plain, &index).await
        };
        assert!(!stored.unwrap().already_there);
        rest = later;
    }
}

/// What a server's pg_wal holds, up to where valid WAL ends: behind that there may be pages that were only prepared.
pub struct Found {
    pub records: Vec<RecordInfo>,
    pub events: Vec<WalEvent>,
    pub end: Lsn,
}

pub fn read(bytes: &[u8], size: SegmentSize, start: Lsn) -> Found {
    let mut reader = WalReader::new(size, start).with_all_records();
    let (mut records, mut events) = (Vec::new(), Vec::new());
    let end = reader.push(bytes, &mut |event| match event {
        WalEvent::Record(record) => records.push(record),
        event => events.push(event),
    });
    if let Err(error) = end {
        assert!(error.lsn > reader.valid_end(), "{error}");
    }
    Found { records, events, end: reader.valid_end() }
}

/// Moves the times of commits and aborts about, as a clock does that is set again and again; checksums are made right.
/// Returns how many were moved.
pub fn disturb_clock(bytes: &mut [u8], start: Lsn, found: &Found) -> usize {
    let mut moved = 0;
    let mut jitter = 12_345u64;
    for event in &found.events {
        let (WalEvent::Commit(xact) | WalEvent::Abort(xact)) = event else { continue };
        let record = found.records.iter().find(|record| record.lsn == xact.lsn).unwrap();
        let at = usize::try_from(record.lsn.bytes_since(start)).unwrap();
        let end = at + record.length as usize;
        // Those that cross a page are left alone.
        if at / 8192 != (end - 1) / 8192 {
            continue;
        }
        let time_at = at + if bytes[at + 24] == 255 { 26 } else { 29 };
        assert_eq!(bytes[time_at..time_at + 8], xact.time.as_micros().to_le_bytes());
        jitter = jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let time = xact.time.as_micros() + i64::try_from(jitter >> 44).unwrap() - (1 << 19);
        bytes[time_at..time_at + 8].copy_from_slice(&time.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[at + 24..end]), &bytes[at..at + 20]);
        bytes[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
        moved += 1;
    }
    moved
}
