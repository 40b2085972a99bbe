mod local;

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use wal::{Lsn, PgTime, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId, XactIndex};

use super::{
    Asker, FetchLimits, FetchOutcome, FetchRequest, LocalSegment, LocalSource, NoLocalSource, is_standby, lineage_of,
    run,
};
use crate::clock::SystemClock;
use crate::error::ErrorCode;
use crate::repository::{
    ClusterIdentity, ClusterName, ClusterRepository, LineageRepository, PlainSource, Repository, RepositoryId,
    RepositoryOptions, SegmentMeta,
};
use crate::storage::faulty::{Fault, Faulty, Operation, Rule};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Storage, StorageErrorKind};

pub(super) const MIB: u64 = 1 << 20;
const SYSTEM: u64 = 7_710_119_830_129_531_976;

pub(super) fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

pub(super) fn name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(tli(timeline), SegmentNumber::new(number), SegmentSize::new(MIB).unwrap())
}

/// A segment whose first page is right; the rest tells timeline and number.
pub(super) fn segment(timeline: u32, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&0xD110u16.to_le_bytes());
    bytes.extend_from_slice(&2u16.to_le_bytes());
    bytes.extend_from_slice(&timeline.to_le_bytes());
    bytes.extend_from_slice(&(number * MIB).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&SYSTEM.to_le_bytes());
    bytes.extend_from_slice(&(MIB as u32).to_le_bytes());
    bytes.extend_from_slice(&8192u32.to_le_bytes());
    bytes.resize(MIB as usize, 16 * timeline as u8 + number as u8);
    bytes
}

pub(super) struct Fixture {
    pub(super) faulty: Arc<Faulty>,
    cluster: ClusterRepository,
    pub(super) lineage: LineageRepository,
    pub(super) dir: TempDir,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        let faulty = Arc::new(Faulty::new(Arc::new(MemoryStorage::new())));
        let storage: Arc<dyn Storage> = faulty.clone();
        let now = PgTime::from_micros(0);
        let options = RepositoryOptions::default();
        let repository = Repository::create_or_open(storage, options, now, RepositoryId::new([7; 16])).await.unwrap();
        let cluster = repository.cluster(&ClusterName::new("main").unwrap());
        let identity = ClusterIdentity {
            system_identifier: SystemIdentifier::new(SYSTEM),
            postgres_version: 150_018,
            segment_size: SegmentSize::new(MIB).unwrap(),
            history: wal::TimelineHistory::root(tli(1)),
        };
        let lineage = cluster.lineage_for(&identity, false, now).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pg_wal")).unwrap();
        Self { faulty, cluster, lineage, dir }
    }

    pub(super) async fn put(&self, timeline: u32, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let meta = SegmentMeta { name: name(timeline, number), postgres_version: 150_018 };
            let plain = PlainSource::Bytes(Bytes::from(segment(timeline, number)));
            self.lineage.put_segment(&meta, &XactIndex::default(), plain).await.unwrap();
        }
    }

    pub(super) async fn put_tail(&self, timeline: u32, number: u64, len: u64) {
        let meta = SegmentMeta { name: name(timeline, number), postgres_version: 150_018 };
        let plain = Bytes::from(segment(timeline, number)[..len as usize].to_vec());
        self.lineage.put_tail(&meta, Lsn::new(number * MIB), plain, &XactIndex::default()).await.unwrap();
    }

    pub(super) async fn put_history(&self, timeline: u32, text: &str) {
        self.lineage.put_history(tli(timeline), text.as_bytes()).await.unwrap();
    }

    fn request(&self, file: &str) -> FetchRequest {
        FetchRequest {
            file: file.parse().unwrap(),
            destination: self.dir.path().join("pg_wal/RECOVERYXLOG"),
            timeline: None,
            until: None,
            standby: false,
            asker: Asker::default(),
        }
    }

    async fn fetch(&self, request: &FetchRequest) -> FetchOutcome {
        self.fetch_with(request, &NoLocalSource).await
    }

    async fn fetch_with(&self, request: &FetchRequest, local: &dyn LocalSource) -> FetchOutcome {
        self.fetch_within(request, local, Duration::from_millis(40)).await
    }

    async fn fetch_within(&self, request: &FetchRequest, local: &dyn LocalSource, patience: Duration) -> FetchOutcome {
        let open = async || Ok(self.lineage.clone());
        let limits = FetchLimits {
            patience,
            standby_segment: Duration::from_millis(20),
            standby_history: Duration::from_millis(30),
            first_pause: Duration::from_millis(1),
        };
        run(request, open, local, limits, &SystemClock).await
    }

    /// Exit code of a request for a segment; what was written must be exactly what the code says.
    async fn code(&self, request: &FetchRequest) -> u8 {
        let outcome = self.fetch(request).await;
        let files: Vec<_> =
            fs::read_dir(self.dir.path().join("pg_wal")).unwrap().map(|e| e.unwrap().file_name()).collect();
        let expected: &[&str] = if outcome.exit_code() == 0 { &["RECOVERYXLOG"] } else { &[] };
        assert_eq!(files, expected, "{outcome:?}");
        outcome.exit_code()
    }

    fn take(&self) -> Vec<u8> {
        let path = self.dir.path().join("pg_wal/RECOVERYXLOG");
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    }
}

#[tokio::test]
async fn a_stored_segment_is_served_whole_and_the_end_is_absent() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1, 2]).await;
    let request = fixture.request("000000010000000000000002");
    assert_eq!(fixture.code(&request).await, 0);
    assert_eq!(fixture.take(), segment(1, 2));
    assert_eq!(fixture.code(&fixture.request("000000010000000000000003")).await, 1);
    assert_eq!(fixture.code(&fixture.request("000000020000000000000002")).await, 1);
}

#[tokio::test]
async fn history_files_are_served_byte_for_byte_and_absent_only_when_the_store_says_so() {
    let fixture = Fixture::new().await;
    let text = "1\t0/280000\tno recovery target specified\n";
    fixture.put_history(2, text).await;
    assert_eq!(fixture.code(&fixture.request("00000002.history")).await, 0);
    assert_eq!(fixture.take(), text.as_bytes());
    assert_eq!(fixture.code(&fixture.request("00000003.history")).await, 1);
    fixture.faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)));
    assert_eq!(fixture.code(&fixture.request("00000003.history")).await, 255);
    let standby = FetchRequest { standby: true, ..fixture.request("00000003.history") };
    assert_eq!(fixture.code(&standby).await, 255, "a wrong \"absent\" would make a standby choose a taken timeline");
}

#[tokio::test]
async fn trouble_with_the_store_is_repeated_and_then_255() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    let request = fixture.request("000000010000000000000001");
    for kind in [StorageErrorKind::Transient, StorageErrorKind::Denied, StorageErrorKind::Corrupt] {
        fixture.faulty.add(Rule::new(Fault::Fail(kind)).calls(..=2));
        let patient = fixture.fetch_within(&request, &NoLocalSource, Duration::from_secs(300)).await;
        assert_eq!(patient.exit_code(), 0, "{kind:?} passes: {patient:?}");
        fixture.take();
        fixture.faulty.heal();
        fixture.faulty.add(Rule::new(Fault::Fail(kind)));
        assert_eq!(fixture.code(&request).await, 255, "{kind:?} stays");
        fixture.faulty.heal();
    }
    // A listing that fails must not turn a missing segment into the end.
    fixture.faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)).on(Operation::List));
    assert_eq!(fixture.code(&fixture.request("000000010000000000000002")).await, 255);
}

#[tokio::test]
async fn damaged_wal_is_never_served() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    fixture.faulty.add(Rule::new(Fault::FlipBit(400)).key(".zst"));
    let outcome = fixture.fetch(&fixture.request("000000010000000000000001")).await;
    let FetchOutcome::Failed(error) = &outcome else { panic!("{outcome:?}") };
    assert_eq!((error.code(), outcome.exit_code()), (ErrorCode::Damaged, 255));
    fixture.faulty.heal();
    fixture.faulty.add(Rule::new(Fault::Truncate(300)).key(".zst"));
    assert_eq!(fixture.code(&fixture.request("000000010000000000000001")).await, 255);
}

#[tokio::test]
async fn damage_behind_the_target_holds_nobody_up() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1, 2]).await;
    fixture.put_tail(1, 3, 5000).await;
    fixture.faulty.add(Rule::new(Fault::Truncate(100)).key(".zst"));
    for (file, number) in [("000000010000000000000002", 2), ("000000010000000000000003", 3)] {
        let before = FetchRequest { until: Some(Lsn::new(number * MIB)), ..fixture.request(file) };
        assert_eq!(fixture.code(&before).await, 1, "PostgreSQL looks ahead: {file}");
        let inside = FetchRequest { until: Some(Lsn::new(number * MIB + 1)), ..fixture.request(file) };
        assert_eq!(fixture.code(&inside).await, 255, "{file}");
    }
}

#[tokio::test]
async fn a_hole_is_an_error_and_not_an_end() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1, 2, 4]).await;
    let request = fixture.request("000000010000000000000003");
    let outcome = fixture.fetch(&request).await;
    let FetchOutcome::Failed(error) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(outcome.exit_code(), 255);
    assert!(error.message().contains("000000010000000000000004, which comes after it"), "{error}");
    let standby = FetchRequest { standby: true, ..request.clone() };
    assert_eq!(fixture.code(&standby).await, 1, "a standby can stream over the hole");
    let behind_target = FetchRequest { until: Some(Lsn::new(3 * MIB)), ..request.clone() };
    assert_eq!(fixture.code(&behind_target).await, 1, "recovery stops before the hole");
    let across = FetchRequest { until: Some(Lsn::new(3 * MIB + 1)), ..request };
    assert_eq!(fixture.code(&across).await, 255);
}

#[tokio::test]
async fn the_tail_before_a_gap_is_served_to_a_recovery_that_stops_in_it() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    fixture.put_tail(1, 2, 5000).await;
    fixture.put(1, [5]).await;
    let request = fixture.request("000000010000000000000002");
    assert_eq!(fixture.code(&request).await, 255, "a recovery without an end must not take the gap for it");
    let in_tail = FetchRequest { until: Some(Lsn::new(2 * MIB + 5000)), ..request.clone() };
    assert_eq!(fixture.code(&in_tail).await, 0);
    fixture.take();
    let behind_it = FetchRequest { until: Some(Lsn::new(2 * MIB + 5001)), ..request };
    assert_eq!(fixture.code(&behind_it).await, 255);
}

#[tokio::test]
async fn a_hole_before_a_later_timeline_is_an_error() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    fixture.put_history(2, "1\t0/480000\tx\n").await;
    fixture.put(2, [4]).await;
    for timeline in [None, Some(tli(2))] {
        let request = FetchRequest { timeline, ..fixture.request("000000010000000000000002") };
        assert_eq!(fixture.code(&request).await, 255);
    }
    // The end of timeline 1 itself lies behind the switch: that is no hole.
    let own_end = FetchRequest { timeline: Some(tli(1)), ..fixture.request("000000010000000000000005") };
    assert_eq!(fixture.code(&own_end).await, 1);
}

#[tokio::test]
async fn the_newest_tail_is_served_padded_where_nothing_comes_behind_it() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    fixture.put_tail(1, 2, 5000).await;
    let request = fixture.request("000000010000000000000002");
    assert_eq!(fixture.code(&request).await, 0);
    let bytes = fixture.take();
    assert_eq!(bytes.len() as u64, MIB);
    assert_eq!(bytes[..5000], segment(1, 2)[..5000]);
    assert!(bytes[5000..].iter().all(|&b| b == 0));
    fixture.put(1, [3]).await;
    assert_eq!(fixture.code(&request).await, 255, "a tail with WAL behind it is a hole");
    fixture.put(1, [2]).await;
    assert_eq!(fixture.code(&request).await, 0);
    assert_eq!(fixture.take(), segment(1, 2), "once complete, the segment itself is served");
}

#[tokio::test]
async fn what_a_branch_has_left_behind_is_not_served_to_it() {
    let fixture = Fixture::new().await;
    fixture.put(1, 1..=5).await;
    fixture.put_history(2, "1\t0/480000\tx\n").await;
    let to = |timeline: u32, file: &str| FetchRequest { timeline: Some(tli(timeline)), ..fixture.request(file) };
    // Nothing of timeline 2 is stored yet: in the segment of the switch the old timeline stands in, up to the switch.
    assert_eq!(fixture.code(&to(2, "000000020000000000000004")).await, 1);
    assert_eq!(fixture.code(&to(2, "000000010000000000000004")).await, 0);
    let bytes = fixture.take();
    assert_eq!(bytes[..0x80000], segment(1, 4)[..0x80000]);
    assert!(bytes.len() as u64 == MIB && bytes[0x80000..].iter().all(|&b| b == 0));
    assert_eq!(fixture.code(&to(2, "000000010000000000000005")).await, 1);
    assert_eq!(fixture.code(&to(1, "000000010000000000000005")).await, 0);
    assert_eq!(fixture.take(), segment(1, 5), "who wants the abandoned end gets it");
}

#[tokio::test]
async fn a_standby_is_not_held_to_the_limits_of_the_recovery_that_wrote_them() {
    let fixture = Fixture::new().await;
    fixture.put(1, 1..=5).await;
    fixture.put_history(2, "1\t0/480000\tx\n").await;
    let request = FetchRequest { timeline: Some(tli(2)), standby: true, ..fixture.request("000000010000000000000005") };
    assert_eq!(fixture.code(&request).await, 0);
    fixture.take();
    fixture.faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)));
    assert_eq!(fixture.code(&request).await, 1, "it can stream");
    assert!(!is_standby(fixture.dir.path()));
    fs::write(fixture.dir.path().join("standby.signal"), "").unwrap();
    assert!(is_standby(fixture.dir.path()));
}

#[tokio::test]
async fn names_that_recovery_never_needs_are_absent_without_asking() {
    let fixture = Fixture::new().await;
    fixture.faulty.add(Rule::new(Fault::Fail(StorageErrorKind::Transient)));
    for file in ["000000010000000000000001.partial", "000000010000000000000001.00000028.backup"] {
        assert_eq!(fixture.code(&fixture.request(file)).await, 1);
    }
}

#[tokio::test]
async fn an_unwritable_destination_is_an_error() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    let mut request = fixture.request("000000010000000000000001");
    request.destination = fixture.dir.path().join("nowhere/RECOVERYXLOG");
    assert_eq!(fixture.fetch(&request).await.exit_code(), 255);
}

#[tokio::test]
async fn the_lineage_is_that_of_the_data_directory() {
    let fixture = Fixture::new().await;
    assert_eq!(lineage_of(&fixture.cluster, fixture.dir.path()).await.unwrap().id(), fixture.lineage.id());
    fs::create_dir_all(fixture.dir.path().join("global")).unwrap();
    let control = fixture.dir.path().join("global/pg_control");
    fs::write(&control, [SYSTEM.to_ne_bytes(), [0; 8]].concat()).unwrap();
    assert_eq!(lineage_of(&fixture.cluster, fixture.dir.path()).await.unwrap().id(), fixture.lineage.id());
    fs::write(&control, [1; 100]).unwrap();
    let error = lineage_of(&fixture.cluster, fixture.dir.path()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ForeignCluster);
}

#[tokio::test]
async fn who_was_forgotten_puts_nothing_where_the_next_server_waits() {
    let fixture = Fixture::new().await;
    fixture.put(1, [1]).await;
    let lock = fixture.dir.path().join("postmaster.pid");
    let write = |start: u32| fs::write(&lock, format!("{}\n/data\n{start}\n", std::process::id())).unwrap();
    write(1);
    let asker = Asker::in_directory(fixture.dir.path());
    let request = FetchRequest { asker, ..fixture.request("000000010000000000000001") };
    assert_eq!(fixture.code(&request).await, 0);
    fixture.take();
    write(2);
    assert_eq!(fixture.code(&request).await, 255);
    // Nor does it touch what the next one is writing.
    let theirs = fs::File::create(fixture.dir.path().join("pg_wal/.RECOVERYXLOG.pgvault")).unwrap();
    theirs.lock().unwrap();
    io::Write::write_all(&mut &theirs, b"theirs").unwrap();
    assert_eq!(fixture.fetch(&request).await.exit_code(), 255);
    assert_eq!(fs::read(fixture.dir.path().join("pg_wal/.RECOVERYXLOG.pgvault")).unwrap(), b"theirs");
    write(1);
    assert_eq!(fixture.fetch(&request).await.exit_code(), 0);
    assert_eq!(fixture.take(), segment(1, 1));
}
