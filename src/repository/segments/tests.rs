use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use wal::{Lsn, PgTime, RestorePointMark, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, XactIndex};

use crate::codec::ContentHash;
use crate::codec::digest::sha256;
use crate::error::{Error, ErrorCode};
use crate::repository::layout::{LineageObject, ObjectName, Parsed};
use crate::repository::objects::READ_SIZE;
use crate::repository::test_wal::{
    Overwriting, SIZE, SYSTEM, VERSION, WalWriter, first_page, identity, lineage, meta, name, noise, replace, root,
    segment, timeline,
};
use crate::repository::{
    ClusterIdentity, ClusterName, LineageRepository, PlainSource, Repository, RepositoryError, RepositoryId,
    RepositoryOptions, SegmentMeta, Stored,
};
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{ObjectKey, Storage, StorageErrorKind};

async fn put(lineage: &LineageRepository, number: u64, plain: &Bytes) -> Result<Stored, RepositoryError> {
    lineage.put_segment(&meta(1, number), &XactIndex::start(None), PlainSource::Bytes(plain.clone())).await
}

async fn fetch(lineage: &LineageRepository, name: SegmentName) -> Result<Vec<u8>, RepositoryError> {
    let mut plain = Vec::new();
    lineage.fetch_segment(name, &mut plain).await.map(|_| plain)
}

fn key(lineage: &LineageRepository, number: u64) -> ObjectKey {
    lineage.keys().key(&LineageObject::Segment(name(1, number)))
}

async fn conflicts(storage: &dyn Storage) -> Vec<Bytes> {
    let mut kept = Vec::new();
    for object in storage.list("", None, None).await.unwrap() {
        if let Parsed::Known(ObjectName::InLineage(_, LineageObject::Conflict(digest, _))) =
            ObjectName::parse(object.key.as_str())
        {
            let bytes = storage.get(&object.key).await.unwrap();
            assert_eq!(sha256(&bytes), digest);
            kept.push(bytes);
        }
    }
    kept
}

#[tokio::test]
async fn a_segment_comes_back_byte_for_byte() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let plain = segment(1, 5, 10, 100);
    let stored = put(&lineage, 5, &plain).await.unwrap();
    let object = storage.get(&stored.key).await.unwrap();
    assert_eq!((stored.size, stored.sha256), (object.len() as u64, sha256(&object)));
    assert!(!stored.already_there);
    assert!(fetch(&lineage, name(1, 5)).await.unwrap() == plain);
    let file = tempfile::NamedTempFile::new().unwrap();
    lineage.fetch_segment_to_file(name(1, 5), file.as_file()).await.unwrap();
    assert!(fs::read(file.path()).unwrap() == plain);
    let header = lineage.segment_header(name(1, 5)).await.unwrap().unwrap();
    assert_eq!((header.blake3, header.length, header.postgres_version), (ContentHash::of(&plain), SIZE, VERSION));
    assert_eq!((header.system_identifier, header.start_lsn.as_u64()), (SYSTEM, 5 * SIZE));
}

#[tokio::test]
async fn a_segment_from_the_spool_is_the_same_object_as_one_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("000000010000000000000005");
    let plain = segment(1, 5, 10, 100);
    fs::write(&path, &plain).unwrap();
    let (one, other) = (lineage(Arc::new(MemoryStorage::new())).await, lineage(Arc::new(MemoryStorage::new())).await);
    let from_file = one.put_segment(&meta(1, 5), &XactIndex::start(None), PlainSource::File(path)).await.unwrap();
    assert_eq!(from_file, put(&other, 5, &plain).await.unwrap());
}

#[tokio::test]
async fn the_same_segment_twice_is_success_once() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let plain = segment(1, 5, 10, 100);
    let first = put(&lineage, 5, &plain).await.unwrap();
    // Another writer knows other commit times and compresses otherwise; the WAL is the same.
    let index = XactIndex::start(Some(PgTime::from_micros(7)));
    let again = lineage.put_segment(&meta(1, 5), &index, PlainSource::Bytes(plain)).await.unwrap();
    assert!(again.already_there);
    assert_eq!((again.size, again.sha256), (first.size, first.sha256));
}

#[tokio::test]
async fn other_wal_under_the_same_name_is_refused_and_kept() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let (ours, theirs) = (segment(1, 5, 10, 100), segment(1, 5, 11, 100));
    put(&lineage, 5, &ours).await.unwrap();
    for _ in 0..2 {
        let error = put(&lineage, 5, &theirs).await.unwrap_err();
        assert!(matches!(&error, RepositoryError::Conflict { key: k, .. } if *k == key(&lineage, 5)), "{error}");
        assert_eq!(Error::from(error).code(), ErrorCode::Conflict);
    }
    assert!(fetch(&lineage, name(1, 5)).await.unwrap() == ours);
    assert_eq!(conflicts(storage.as_ref()).await.len(), 1);
}

#[tokio::test]
async fn an_answer_lost_after_the_put_is_success_when_repeated() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage(Arc::<Faulty>::clone(&faulty)).await;
    faulty.add(Rule::new(Fault::LoseResponse).on(Operation::Put).key("/wal/").calls(1..=1));
    let plain = segment(1, 5, 10, 100);
    let error = put(&lineage, 5, &plain).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(put(&lineage, 5, &plain).await.unwrap().already_there);
}

#[tokio::test]
async fn absent_is_the_stores_own_word_and_trouble_is_not_absence() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
    let lineage = lineage(Arc::<Faulty>::clone(&faulty)).await;
    assert!(fetch(&lineage, name(1, 5)).await.unwrap_err().is_not_found());
    assert_eq!(lineage.segment_header(name(1, 5)).await.unwrap(), None);
    for kind in [StorageErrorKind::Transient, StorageErrorKind::Denied, StorageErrorKind::Other] {
        faulty.add(Rule::new(Fault::Fail(kind)).on(Operation::GetRange));
        assert!(!fetch(&lineage, name(1, 5)).await.unwrap_err().is_not_found());
        assert!(lineage.segment_header(name(1, 5)).await.is_err());
        faulty.heal();
    }
}

#[tokio::test]
async fn wal_that_is_not_this_segment_is_refused_before_anything_is_stored() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let plain = segment(1, 5, 10, 100);
    let mut other_system = plain.to_vec();
    other_system[24] ^= 1;
    let mut longer = plain.to_vec();
    longer.push(0);
    let cases = [
        ("another segment's bytes", segment(1, 6, 10, 100)),
        ("another timeline's", segment(2, 5, 10, 100)),
        ("another cluster's", Bytes::from(other_system)),
        ("a short one", plain.slice(..plain.len() - 1)),
        ("a long one", Bytes::from(longer)),
        ("zeros", Bytes::from(vec![0; plain.len()])),
        ("nothing", Bytes::new()),
    ];
    for (what, bytes) in cases {
        let error = put(&lineage, 5, &bytes).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Mismatch { .. }), "{what}: {error}");
    }
    let missing = PlainSource::File("/nowhere/at/all".into());
    let error = lineage.put_segment(&meta(1, 5), &XactIndex::start(None), missing).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Io { .. }));
    let stored = storage.list(&lineage.keys().wal_prefix(), None, None).await.unwrap();
    assert_eq!(stored, []);
}

#[tokio::test]
async fn the_first_segment_of_a_timeline_may_begin_with_its_parents_pages() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let mut parent = WalWriter::new(1, 5);
    parent.commit(10, 100);
    let switch = parent.end();
    let mut child = parent.fork(2);
    child.fill_segment();
    child.commit(11, 110);
    child.fill_segment();
    let first = child.slice(child.start, Lsn::new(6 * SIZE));
    let put = async |number: u64, bytes: Bytes| {
        lineage.put_segment(&meta(2, number), &XactIndex::start(None), PlainSource::Bytes(bytes)).await
    };
    // Without its history nothing says that the pages of timeline 1 belong there.
    assert!(matches!(put(5, first.clone()).await, Err(RepositoryError::Mismatch { .. })));
    let history = TimelineHistory::parse(timeline(2), format!("1\t{switch}\tpromoted\n").as_bytes()).unwrap();
    lineage.put_history(timeline(2), history.to_text().as_bytes()).await.unwrap();
    put(5, first).await.unwrap();
    // Behind the switch point they are refused.
    let mut stale = WalWriter::new(1, 6);
    stale.fill_segment();
    assert!(matches!(put(6, Bytes::from(stale.bytes)).await, Err(RepositoryError::Mismatch { .. })));
    put(6, child.slice(Lsn::new(6 * SIZE), child.end())).await.unwrap();
}

#[tokio::test]
async fn damage_of_any_kind_is_detected_and_named() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    put(&lineage, 5, &segment(1, 5, 10, 100)).await.unwrap();
    put(&lineage, 6, &segment(1, 6, 11, 100)).await.unwrap();
    let good = storage.get(&key(&lineage, 5)).await.unwrap().to_vec();
    let other = storage.get(&key(&lineage, 6)).await.unwrap().to_vec();
    let header_len = good.windows(4).position(|bytes| bytes == [0x28, 0xB5, 0x2F, 0xFD]).unwrap();
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for at in [0, 4, 9, 20, header_len - 1, header_len, header_len + 4, good.len() / 2, good.len() - 1] {
        let mut flipped = good.clone();
        // 0x10 alone is a bit that zstd leaves without meaning in a frame's descriptor.
        flipped[at] ^= 0x21;
        cases.push((format!("bits flipped in byte {at}"), flipped));
    }
    for len in [0, 7, 100, header_len, good.len() / 2, good.len() - 1] {
        cases.push((format!("cut to {len} bytes"), good[..len].to_vec()));
    }
    cases.push(("another segment in its place".to_owned(), other.clone()));
    cases.push(("garbage behind it".to_owned(), [good.as_slice(), b"garbage"].concat()));
    cases.push(("twice its content".to_owned(), [good.as_slice(), &good[header_len..]].concat()));
    let swapped = [&good[..header_len], &other[header_len..]].concat();
    cases.push(("its header, another segment's frames".to_owned(), swapped));
    // Frames that are whole and begin with the same page: only the hash of the content tells.
    let elsewhere = Arc::new(MemoryStorage::new());
    let another = self::lineage(Arc::<MemoryStorage>::clone(&elsewhere)).await;
    put(&another, 5, &segment(1, 5, 12, 100)).await.unwrap();
    let history = elsewhere.get(&key(&another, 5)).await.unwrap();
    let frames = history.windows(4).position(|bytes| bytes == [0x28, 0xB5, 0x2F, 0xFD]).unwrap();
    let swapped = [&good[..header_len], &history[frames..]].concat();
    cases.push(("its header, the frames of another history".to_owned(), swapped));
    for (what, bytes) in cases {
        replace(storage.as_ref(), &key(&lineage, 5), bytes).await;
        let fetched = fetch(&lineage, name(1, 5)).await.map(|plain| plain.len());
        let Err(error) = fetched else { panic!("{what}: not noticed") };
        let RepositoryError::Damaged { key: named, .. } = &error else { panic!("{what}: {error}") };
        assert_eq!(*named, key(&lineage, 5), "{what}");
        assert_eq!(Error::from(error).code(), ErrorCode::Damaged);
        // The way of `wal fetch`.
        let into_file = lineage.fetch_segment_to_file(name(1, 5), &tempfile::tempfile().unwrap()).await;
        assert!(matches!(into_file, Err(RepositoryError::Damaged { .. })), "{what}: {into_file:?}");
    }
    storage.delete(&[key(&lineage, 5)]).await.unwrap();
    assert!(fetch(&lineage, name(1, 5)).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_damaged_object_does_not_count_as_stored_and_ours_is_kept() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    let plain = segment(1, 5, 10, 100);
    put(&lineage, 5, &plain).await.unwrap();
    let mut bytes = storage.get(&key(&lineage, 5)).await.unwrap().to_vec();
    let good = bytes.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    replace(storage.as_ref(), &key(&lineage, 5), bytes).await;
    let error = put(&lineage, 5, &plain).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
    assert!(conflicts(storage.as_ref()).await == [Bytes::from(good)]);
}

#[tokio::test]
async fn a_newer_format_is_refused_with_its_name() {
    let storage = Arc::new(MemoryStorage::new());
    let lineage = lineage(Arc::<MemoryStorage>::clone(&storage)).await;
    put(&lineage, 5, &segment(1, 5, 10, 100)).await.unwrap();
    let header = lineage.segment_header(name(1, 5)).await.unwrap().unwrap();
    for (format, features) in [(2, vec![]), (1, vec!["page-patch".to_owned()])] {
        let newer = crate::repository::WalHeader { format, features, ..header.clone() };
        replace(storage.as_ref(), &key(&lineage, 5), newer.to_bytes().unwrap()).await;
        let error = fetch(&lineage, name(1, 5)).await.unwrap_err();
        assert!(matches!(error, RepositoryError::TooNew { .. }), "{error}");
        assert_eq!(Error::from(error).code(), ErrorCode::FormatTooNew);
    }
}

#[tokio::test]
async fn a_store_that_overwrites_is_looked_at_before_and_read_after() {
    let storage = Arc::new(Overwriting::default());
    let lineage = lineage(Arc::<Overwriting>::clone(&storage)).await;
    let (ours, theirs) = (segment(1, 5, 10, 100), segment(1, 5, 11, 100));
    put(&lineage, 5, &ours).await.unwrap();
    assert!(put(&lineage, 5, &ours).await.unwrap().already_there);
    assert!(matches!(put(&lineage, 5, &theirs).await, Err(RepositoryError::Conflict { .. })));
    assert!(fetch(&lineage, name(1, 5)).await.unwrap() == ours);
    // Another writer's segment arrives between our put and its answer.
    let object = storage.get(&key(&lineage, 5)).await.unwrap();
    storage.delete(&[key(&lineage, 5)]).await.unwrap();
    *storage.intruder.lock().unwrap() = Some(object);
    assert!(matches!(put(&lineage, 5, &theirs).await, Err(RepositoryError::Conflict { .. })));
    assert!(fetch(&lineage, name(1, 5)).await.unwrap() == ours);
}

#[tokio::test]
async fn a_sink_that_fails_is_its_own_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    put(&lineage, 5, &segment(1, 5, 10, 100)).await.unwrap();
    let error = lineage.fetch_segment(name(1, 5), &mut Full).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Sink(_)), "{error}");
}

#[tokio::test]
async fn a_segment_too_large_for_memory_is_built_in_a_file_that_goes_again() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let size = SegmentSize::new(32 << 20).unwrap();
    let options =
        RepositoryOptions { scratch_dir: scratch.clone(), max_in_memory: 4 << 20, ..RepositoryOptions::default() };
    let store = Arc::<MemoryStorage>::clone(&storage);
    let now = PgTime::from_micros(0);
    let repository = Repository::create_or_open(store, options, now, RepositoryId::new([1; 16])).await.unwrap();
    let server = ClusterIdentity { segment_size: size, ..identity(root()) };
    let cluster = repository.cluster(&ClusterName::new("main").unwrap());
    let lineage = cluster.lineage_for(&server, false, now).await.unwrap();
    let mut plain = first_page(size, 5);
    plain.extend(noise(1 << 20));
    plain.resize(32 << 20, 0);
    let path = dir.path().join("segment");
    fs::write(&path, &plain).unwrap();
    let name = SegmentName::new(timeline(1), SegmentNumber::new(5), size);
    let meta = SegmentMeta { name, postgres_version: VERSION };
    for already_there in [false, true] {
        let source = PlainSource::File(path.clone());
        let stored = lineage.put_segment(&meta, &XactIndex::start(None), source).await.unwrap();
        assert_eq!(stored.already_there, already_there);
        assert_eq!(stored.sha256, sha256(&storage.get(&stored.key).await.unwrap()));
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    }
    assert!(fetch(&lineage, name).await.unwrap() == plain);
    // Frames of 2 MiB, so that neither a writer nor a reader needs much memory.
    let object = storage.get(&lineage.keys().key(&LineageObject::Segment(name))).await.unwrap();
    assert_eq!(object.windows(4).filter(|bytes| *bytes == [0x28, 0xB5, 0x2F, 0xFD]).count(), 16);
}

#[tokio::test]
async fn a_header_of_any_size_is_read_again() {
    let lineage = lineage(Arc::new(MemoryStorage::new())).await;
    let plain = segment(1, 5, 10, 100);
    let point = |number: u64| RestorePointMark {
        name: format!("{number:063}"),
        lsn: Lsn::new(number),
        time: PgTime::from_micros(0),
    };
    // More than one ranged read takes, as somebody can do who makes restore points all day.
    let index = XactIndex { restore_points: (0..70_000).map(point).collect(), ..XactIndex::default() };
    let stored = lineage.put_segment(&meta(1, 5), &index, PlainSource::Bytes(plain.clone())).await.unwrap();
    assert!(stored.size > READ_SIZE, "{}", stored.size);
    assert!(fetch(&lineage, name(1, 5)).await.unwrap() == plain);
    assert_eq!(lineage.segment_header(name(1, 5)).await.unwrap().map(|header| header.index), Some(index));
}
