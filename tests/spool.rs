//! Does the spool trust exactly what is valid, and does it publish only what is whole?

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pgvault::spool::{Held, HeldPrefix, KeptHistory, Spool, SpoolError, SpoolOptions, WriteError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use wal::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId, WalEvent, WalReader, read_segment_header};

use crate::support::LIMIT;
use crate::support::pg::{PgNode, test_dir};
use crate::support::wal_truth;

const SIZE: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

/// WAL of a real server, in segments of 1 MiB; the last one ends somewhere in zeros.
struct RealWal {
    first: SegmentName,
    bytes: Vec<u8>,
    system: SystemIdentifier,
    /// Ends of all records.
    ends: Vec<Lsn>,
}

impl RealWal {
    fn get() -> &'static Self {
        static WAL: OnceLock<RealWal> = OnceLock::new();
        WAL.get_or_init(|| {
            let dir = test_dir();
            let settings =
                [("wal_recycle", "off"), ("wal_keep_size", "512MB"), ("max_wal_size", "1GB"), ("wal_init_zero", "on")];
            let mut node = PgNode::init(dir.path(), "node", 15, &["--wal-segsize=1"], &settings);
            node.start();
            node.sql("CREATE TABLE t (n int, pad text)");
            for _ in 0..20 {
                node.sql("INSERT INTO t SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 400) n");
                // Records longer than pages, so that many span pages and some span segments.
                node.sql("SELECT pg_logical_emit_message(true, 'p', repeat('x', 90000))");
            }
            assert!(node.stop("fast", LIMIT));
            let (first, mut bytes) = wal_truth::all_wal(&node.data.join("pg_wal"), size());
            // What follows the end is of recycled segments: a stream never carries it.
            let start = first.number(size()).unwrap().start(size());
            let mut reader = WalReader::new(size(), start);
            let end = reader.push(&bytes, &mut |_| {}).map_or_else(|_| reader.valid_end(), |()| reader.valid_end());
            bytes[usize::try_from(end.bytes_since(start)).unwrap()..].fill(0);
            let whole = usize::try_from(SIZE).unwrap();
            bytes.truncate(usize::try_from(end.bytes_since(start)).unwrap().div_ceil(whole) * whole);
            let read = wal_truth::read(&bytes, size(), start);
            let system = read_segment_header(&bytes).unwrap().system_identifier;
            assert!(bytes.len() as u64 >= 7 * SIZE, "enough segments");
            Self { first, bytes, system, ends: read.records.iter().map(|record| record.end).collect() }
        })
    }

    fn start(&self) -> Lsn {
        self.first.number(size()).unwrap().start(size())
    }

    fn segment(&self, index: u64) -> &[u8] {
        let at = usize::try_from(index * SIZE).unwrap();
        &self.bytes[at..at + usize::try_from(SIZE).unwrap()]
    }

    fn lsn(&self, index: u64) -> Lsn {
        self.start().saturating_add(index * SIZE)
    }

    fn name(&self, index: u64) -> SegmentName {
        SegmentName::containing(TimelineId::FIRST, self.lsn(index), size())
    }

    /// The last record that ends at `cut` or before, if it ends after `from`.
    fn last_end(&self, from: Lsn, cut: Lsn) -> Option<Lsn> {
        self.ends.iter().copied().filter(|&end| from < end && end <= cut).max()
    }

    fn options(&self, dir: &Path) -> SpoolOptions {
        SpoolOptions { dir: dir.to_owned(), segment_size: size(), system_identifier: self.system, max_size: None }
    }

    fn open(&self, dir: &Path) -> Spool {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            match Spool::open(self.options(dir)) {
                // Other tests start programs: between fork and exec such a child holds the lock that was just given up.
                Err(SpoolError::InUse { .. }) if std::time::Instant::now() < deadline => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }
}

fn partial(dir: &Path, name: SegmentName) -> PathBuf {
    dir.join(name.partial())
}

/// What may lie after the last byte that reached the disk.
#[derive(Debug, Clone)]
enum After {
    Zeros,
    Garbage(u8),
    /// Later pages made it to the disk, one did not.
    LostPage,
}

#[test]
fn a_start_keeps_exactly_the_valid_records_of_a_torn_segment() {
    let wal = RealWal::get();
    let after = prop_oneof![Just(After::Zeros), any::<u8>().prop_map(After::Garbage), Just(After::LostPage)];
    let case = (1u64..6, 0..SIZE / 8, after, any::<bool>());
    let mut runner = TestRunner::new(ProptestConfig { cases: 96, ..ProptestConfig::default() });
    runner
        .run(&case, |(index, cut, after, with_previous)| {
            let dir = tempfile::tempdir().unwrap();
            let cut = usize::try_from(cut * 8).unwrap();
            let name = wal.name(index);
            let mut content = wal.segment(index).to_vec();
            match after {
                After::Zeros => content[cut..].fill(0),
                After::Garbage(seed) => {
                    let mut x = seed | 1;
                    for byte in &mut content[cut..] {
                        x = x.wrapping_mul(167).wrapping_add(13);
                        *byte = x | 1;
                    }
                }
                After::LostPage => {
                    let end = (cut + 4096).min(content.len());
                    content[cut..end].fill(0);
                }
            }
            fs::write(partial(dir.path(), name), &content).unwrap();
            if with_previous {
                fs::write(dir.path().join(wal.name(index - 1).to_string()), wal.segment(index - 1)).unwrap();
            }
            let spool = wal.open(dir.path());
            // Nothing beyond the cut may be believed, unless the true bytes there happened to be what follows the cut.
            let start = wal.lsn(index);
            let cut_lsn = start.saturating_add(cut as u64);
            let expected = wal.last_end(start, cut_lsn);
            match spool.get(name) {
                // The rest of a record whose beginning is nowhere has no checksum that could prove it. A difference shows when
                // the server sends it again.
                Some(Held::Open { .. }) if !with_previous && cut_lsn < first_own_record(wal, index) => {}
                Some(Held::Open { durable }) => {
                    prop_assert!(durable <= cut_lsn || content == wal.segment(index));
                    let spans = expected.is_some_and(|end| end <= first_own_record(wal, index));
                    prop_assert!(Some(durable) == expected || (!with_previous && spans), "{durable} {expected:?}");
                    let now = fs::read(partial(dir.path(), name)).unwrap();
                    let kept = usize::try_from(durable.bytes_since(start)).unwrap();
                    prop_assert_eq!(&now[..kept], &wal.segment(index)[..kept]);
                    prop_assert!(now[kept..].iter().all(|&byte| byte == 0), "zeros after the valid end");
                    prop_assert_eq!(now.len() as u64, SIZE);
                }
                None => {
                    prop_assert!(!partial(dir.path(), name).exists());
                    let unproven = expected.is_none_or(|end| !with_previous && end <= first_own_record(wal, index));
                    prop_assert!(unproven, "{expected:?} was valid and is gone");
                }
                other => prop_assert!(false, "{other:?}"),
            }
            // A second start finds the same.
            let durable = spool.durable();
            drop(spool);
            prop_assert_eq!(wal.open(dir.path()).durable(), durable);
            Ok(())
        })
        .unwrap();
}

/// Where the first record ends that begins before segment `index` and ends in it; the segment's start when none does.
fn first_own_record(wal: &RealWal, index: u64) -> Lsn {
    let mut reader = WalReader::new(size(), wal.lsn(index));
    reader.push(wal.segment(index), &mut |_| {}).unwrap();
    reader.skipped_to().unwrap_or(wal.lsn(index))
}

#[test]
fn a_start_removes_what_was_being_made_and_leaves_what_is_complete() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(0).to_string()), wal.segment(0)).unwrap();
    fs::write(dir.path().join(format!(".tmp-{}", wal.name(1))), b"half").unwrap();
    fs::write(dir.path().join("README"), b"not ours").unwrap();
    let spool = wal.open(dir.path());
    assert_eq!(spool.held(), [(wal.name(0), Held::Complete)]);
    assert_eq!(spool.durable(), Some((TimelineId::FIRST, wal.lsn(1))));
    assert!(!dir.path().join(format!(".tmp-{}", wal.name(1))).exists());
    assert!(dir.path().join("README").exists());
    assert_eq!(fs::read(dir.path().join(wal.name(0).to_string())).unwrap(), wal.segment(0));
}

#[test]
fn a_spare_that_was_never_written_is_not_held() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(0).to_string()), wal.segment(0)).unwrap();
    let spool = wal.open(dir.path());
    let spare = spool.create(wal.name(1)).unwrap();
    assert_eq!(fs::metadata(partial(dir.path(), wal.name(1))).unwrap().len(), SIZE, "full size from the start");
    assert_eq!(spool.held().len(), 1);
    drop((spare, spool));
    assert_eq!(wal.open(dir.path()).held().len(), 1);
    assert!(!partial(dir.path(), wal.name(1)).exists());
}

#[test]
fn what_only_aligns_the_next_record_is_as_the_server_has_it_whatever_was_torn() {
    let wal = RealWal::get();
    let mut reader = WalReader::new(size(), wal.lsn(1)).with_all_records();
    let mut padded = None;
    let read = reader.push(wal.segment(1), &mut |event| {
        if let WalEvent::Record(record) = event
            && record.length % 8 != 0
        {
            padded = padded.max(Some((8 - record.length as usize % 8, record.end)));
        }
    });
    read.unwrap();
    let (padding, end) = padded.expect("some record has a length that is no multiple of 8");
    let used = usize::try_from(end.bytes_since(wal.lsn(1))).unwrap();
    for torn in 1..=padding {
        let dir = tempfile::tempdir().unwrap();
        let mut content = wal.segment(1).to_vec();
        content[used - torn..].fill(0xA5);
        fs::write(partial(dir.path(), wal.name(1)), &content).unwrap();
        let spool = wal.open(dir.path());
        assert_eq!(spool.get(wal.name(1)), Some(Held::Open { durable: end }));
        let now = fs::read(partial(dir.path(), wal.name(1))).unwrap();
        assert!(now[..used] == wal.segment(1)[..used], "{torn}");
    }
}

#[test]
fn an_incomplete_segment_that_was_cut_short_counts_for_what_is_there() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    let cut = usize::try_from(SIZE / 2).unwrap();
    fs::write(partial(dir.path(), wal.name(1)), &wal.segment(1)[..cut]).unwrap();
    let spool = wal.open(dir.path());
    let expected = wal.last_end(wal.lsn(1), wal.lsn(1).saturating_add(SIZE / 2)).unwrap();
    assert_eq!(spool.get(wal.name(1)), Some(Held::Open { durable: expected }));
    assert_eq!(fs::metadata(partial(dir.path(), wal.name(1))).unwrap().len(), SIZE);
}

#[test]
fn a_complete_segment_of_the_wrong_size_is_damage() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(0).to_string()), &wal.segment(0)[1..]).unwrap();
    assert!(matches!(Spool::open(wal.options(dir.path())), Err(SpoolError::Damaged { .. })));
}

#[test]
fn missing_wal_between_files_is_found_and_earlier_partials_are_left() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(partial(dir.path(), wal.name(1)), wal.segment(1)).unwrap();
    fs::write(dir.path().join(wal.name(3).to_string()), wal.segment(3)).unwrap();
    let spool = wal.open(dir.path());
    let Some(Held::Left { end }) = spool.get(wal.name(1)) else { panic!("{:?}", spool.held()) };
    assert_eq!(spool.holes().len(), 1);
    assert_eq!((spool.holes()[0].start, spool.holes()[0].end), (end, wal.lsn(3)));
}

#[test]
fn two_processes_cannot_work_in_one_spool() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    let first = wal.open(dir.path());
    assert!(matches!(Spool::open(wal.options(dir.path())), Err(SpoolError::InUse { .. })));
    drop(first);
    wal.open(dir.path());
}

#[test]
fn a_segment_gets_its_bare_name_with_its_last_byte_and_not_before() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    let spool = wal.open(dir.path());
    let mut segment = spool.create(wal.name(0)).unwrap();
    segment.activate(None);
    let bytes = wal.segment(0);
    assert_eq!(segment.write(&bytes[..1000]).unwrap(), 1000);
    assert_eq!(spool.durable(), Some((TimelineId::FIRST, wal.lsn(0))), "written is not durable");
    segment.sync_handle().sync().unwrap();
    assert_eq!(spool.durable(), Some((TimelineId::FIRST, wal.lsn(0).saturating_add(1000))));
    let mut segment = segment.complete().expect_err("it is not complete");
    let rest = [&bytes[1000..], b"of the next"].concat();
    assert_eq!(segment.write(&rest).unwrap(), bytes.len() - 1000, "no more than belongs to it");
    let complete = segment.complete().unwrap();
    assert!(!dir.path().join(wal.name(0).to_string()).exists());
    complete.publish().unwrap();
    assert_eq!(fs::read(dir.path().join(wal.name(0).to_string())).unwrap(), bytes);
    assert!(!partial(dir.path(), wal.name(0)).exists());
    assert_eq!(spool.held(), [(wal.name(0), Held::Complete)]);
}

#[test]
fn bytes_that_are_sent_again_must_be_the_same() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(0).to_string()), wal.segment(0)).unwrap();
    fs::write(partial(dir.path(), wal.name(1)), wal.segment(1)).unwrap();
    let spool = wal.open(dir.path());
    let (_, durable) = spool.durable().unwrap();
    let mut same = spool.resume(wal.name(1), durable).unwrap();
    for piece in wal.segment(1).chunks(7777) {
        assert_eq!(same.write(piece).unwrap(), piece.len());
    }
    let mut other = wal.segment(1).to_vec();
    other[54_321] ^= 1;
    let mut segment = spool.resume(wal.name(1), durable).unwrap();
    let differs = other.chunks(10_000).find_map(|piece| segment.write(piece).err());
    match differs {
        Some(WriteError::Divergence { segment, at }) => {
            assert_eq!((segment, at), (wal.name(1), wal.lsn(1).saturating_add(54_321)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(partial(dir.path(), wal.name(1))).unwrap()[..54_322], wal.segment(1)[..54_322], "ours is kept");
    let aside = spool.set_aside(wal.name(1), wal.lsn(1), b"theirs").unwrap();
    assert_eq!(fs::read(aside).unwrap(), b"theirs");
}

#[test]
fn what_no_checksum_proves_is_taken_from_the_server() {
    let wal = RealWal::get();
    let spans = |index: &u64| first_own_record(wal, *index) > wal.lsn(*index).saturating_add(200);
    let index = (1..6).find(spans).expect("a record spans two segments");
    let proven = usize::try_from(first_own_record(wal, index).bytes_since(wal.lsn(index))).unwrap();
    let name = wal.name(index);
    let send = |spool: &Spool, bytes: &[u8]| {
        let (_, durable) = spool.durable().unwrap();
        let mut segment = spool.resume(name, durable).unwrap();
        bytes.chunks(777).find_map(|piece| {
            let written = segment.write(piece);
            assert!(segment.is_settled() || segment.position() < durable, "proven by what follows");
            written.err()
        })
    };
    let dir = tempfile::tempdir().unwrap();
    let mut torn = wal.segment(index).to_vec();
    torn[100..proven.min(4000)].fill(0xEE);
    fs::write(partial(dir.path(), name), &torn).unwrap();
    let spool = wal.open(dir.path());
    assert!(send(&spool, wal.segment(index)).is_none(), "a difference where nothing is proven");
    let (_, durable) = spool.durable().unwrap();
    let end = usize::try_from(durable.bytes_since(wal.lsn(index))).unwrap();
    assert!(fs::read(partial(dir.path(), name)).unwrap()[..end] == wal.segment(index)[..end], "the server's bytes");
    // Another history shows in the first record that is proven, and until then has replaced nothing.
    let mut other = wal.segment(index).to_vec();
    other[proven + 30] ^= 1;
    other[150] ^= 1;
    assert!(matches!(send(&spool, &other), Some(WriteError::Divergence { .. })));
    assert!(fs::read(partial(dir.path(), name)).unwrap()[..end] == wal.segment(index)[..end], "ours stays");
    other[150] ^= 1;
    // With the segment before it everything is proven.
    drop(spool);
    fs::write(dir.path().join(wal.name(index - 1).to_string()), wal.segment(index - 1)).unwrap();
    let spool = wal.open(dir.path());
    other[proven + 30] ^= 1;
    other[150] ^= 1;
    assert!(matches!(send(&spool, &other), Some(WriteError::Divergence { .. })));
}

#[test]
fn a_complete_segment_that_is_sent_again_is_compared_and_not_written() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(1).to_string()), wal.segment(1)).unwrap();
    let spool = wal.open(dir.path());
    assert!(spool.sent_again(wal.name(2)).unwrap().is_none(), "not held");
    let send = |bytes: &[u8]| {
        let mut again = spool.sent_again(wal.name(1)).unwrap().expect("held whole");
        let mut left = bytes;
        while !again.is_over() {
            let taken = again.compare(&left[..left.len().min(777)])?;
            left = &left[taken..];
        }
        Ok::<usize, WriteError>(left.len())
    };
    let beyond = [wal.segment(1), wal.segment(2)].concat();
    assert_eq!(send(&beyond).unwrap(), wal.segment(2).len(), "what comes after it is not its own");
    let mut other = wal.segment(1).to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    let at = wal.lsn(1).saturating_add(last as u64);
    assert!(matches!(send(&other), Err(WriteError::Divergence { at: found, .. }) if found == at));
    assert!(fs::read(dir.path().join(wal.name(1).to_string())).unwrap() == wal.segment(1));
}

#[test]
fn a_new_timelines_first_segment_must_begin_as_its_parents() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(1).to_string()), wal.segment(1)).unwrap();
    let spool = wal.open(dir.path());
    let name = SegmentName::containing(TimelineId::new(2).unwrap(), wal.lsn(1), size());
    let fork = wal.lsn(1).saturating_add(5000);
    let prefix = HeldPrefix::new(spool.open_for_reading(wal.name(1)).unwrap(), fork);
    let mut segment = spool.create(name).unwrap();
    segment.activate(Some(prefix));
    let mut bytes = wal.segment(1)[..6000].to_vec();
    bytes[5500] ^= 1;
    assert_eq!(segment.write(&bytes).unwrap(), 6000, "beyond the fork everything may differ");
    let prefix = HeldPrefix::new(spool.open_for_reading(wal.name(1)).unwrap(), fork);
    let mut segment = spool.create(SegmentName::containing(TimelineId::new(3).unwrap(), wal.lsn(1), size())).unwrap();
    segment.activate(Some(prefix));
    bytes[4000] ^= 1;
    assert!(matches!(segment.write(&bytes), Err(WriteError::Divergence { .. })));
}

#[test]
fn a_full_spool_takes_no_further_segment_and_loses_nothing() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolOptions { max_size: Some(3 * SIZE), ..wal.options(dir.path()) }).unwrap();
    for index in 0..2 {
        let mut segment = spool.create(wal.name(index)).unwrap();
        segment.activate(None);
        segment.write(wal.segment(index)).unwrap();
        segment.complete().unwrap().publish().unwrap();
    }
    let error = spool.create(wal.name(2)).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(spool.held().len(), 2);
    spool.remove(wal.name(0)).unwrap();
    spool.create(wal.name(2)).unwrap();
}

#[test]
fn after_a_failed_fsync_only_what_the_disk_gives_back_counts() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(0).to_string()), wal.segment(0)).unwrap();
    let spool = wal.open(dir.path());
    let mut segment = spool.create(wal.name(1)).unwrap();
    segment.activate(None);
    segment.write(&wal.segment(1)[..500_000]).unwrap();
    drop(segment);
    // As if the disk had lost a page that was written.
    let mut content = fs::read(partial(dir.path(), wal.name(1))).unwrap();
    content[200_000..204_096].fill(0);
    fs::write(partial(dir.path(), wal.name(1)), &content).unwrap();
    spool.verify_again().unwrap();
    let (_, durable) = spool.durable().unwrap();
    assert!(durable <= wal.lsn(1).saturating_add(200_000), "{durable}");
    assert!(durable > wal.lsn(1));
    let now = fs::read(partial(dir.path(), wal.name(1))).unwrap();
    let kept = usize::try_from(durable.bytes_since(wal.lsn(1))).unwrap();
    assert_eq!(now[..kept], wal.segment(1)[..kept]);
    assert!(now[kept..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_history_file_is_kept_once_and_never_replaced() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    let spool = wal.open(dir.path());
    let two = TimelineId::new(2).unwrap();
    assert_eq!(spool.keep_history(two, b"1\t0/3000000\tbecause\n").unwrap(), KeptHistory::New);
    assert_eq!(spool.keep_history(two, b"1\t0/3000000\tbecause\n").unwrap(), KeptHistory::Same);
    let other = spool.keep_history(two, b"1\t0/4000000\tbecause\n").unwrap();
    assert_eq!(other, KeptHistory::Other(b"1\t0/3000000\tbecause\n".to_vec()));
    assert_eq!(spool.history(two).unwrap().switch_point_of(TimelineId::FIRST), Some(Lsn::new(0x300_0000)));
}

#[test]
fn what_was_written_ahead_of_an_unpublished_segment_is_received_again() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(wal.name(0).to_string()), wal.segment(0)).unwrap();
    for index in 1..4 {
        fs::write(partial(dir.path(), wal.name(index)), wal.segment(index)).unwrap();
    }
    let spool = wal.open(dir.path());
    assert_eq!(spool.holes(), []);
    assert_eq!(spool.held().len(), 2, "{:?}", spool.held());
    assert!(matches!(spool.get(wal.name(1)), Some(Held::Open { durable }) if durable > wal.lsn(1)));
    assert!(!partial(dir.path(), wal.name(2)).exists() && !partial(dir.path(), wal.name(3)).exists());
}

#[test]
fn what_follows_a_segment_that_was_left_is_kept() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    fs::write(partial(dir.path(), wal.name(1)), wal.segment(1)).unwrap();
    let spool = wal.open(dir.path());
    let (_, end) = spool.durable().unwrap();
    spool.leave(wal.name(1)).unwrap();
    let mut next = spool.create(wal.name(2)).unwrap();
    next.activate(None);
    next.write(&wal.segment(2)[..300_000]).unwrap();
    next.sync_handle().sync().unwrap();
    drop((next, spool));
    let spool = wal.open(dir.path());
    assert_eq!(spool.get(wal.name(1)), Some(Held::Left { end }));
    assert!(matches!(spool.get(wal.name(2)), Some(Held::Open { durable }) if durable > wal.lsn(2)));
}

#[test]
fn after_a_failed_sync_nothing_later_than_the_first_incomplete_segment_is_believed() {
    let wal = RealWal::get();
    let dir = tempfile::tempdir().unwrap();
    let spool = wal.open(dir.path());
    for index in 0..2 {
        let mut segment = spool.create(wal.name(index)).unwrap();
        segment.activate(None);
        segment.write(wal.segment(index)).unwrap();
    }
    // The publishing of the first failed, so neither is durable.
    spool.verify_again().unwrap();
    let (_, durable) = spool.durable().unwrap();
    assert!(durable <= wal.lsn(1), "{durable}");
    assert_eq!(spool.held().len(), 1);
}

#[test]
fn a_spool_of_many_segments_begins_another_as_quickly_as_a_small_one() {
    let wal = RealWal::get();
    let begin_beside = |segments: u64| {
        let dir = tempfile::tempdir().unwrap();
        // Nothing looks into complete segments before they are stored, so these need no bytes, and take no space.
        for index in 0..segments {
            fs::File::create(dir.path().join(wal.name(index).to_string())).unwrap().set_len(SIZE).unwrap();
        }
        let begun = std::time::Instant::now();
        let spool = wal.open(dir.path());
        let opened = begun.elapsed();
        assert_eq!(spool.usage().unwrap().used, segments * SIZE);
        let mut times: Vec<_> = (0..15)
            .map(|index| {
                let begun = std::time::Instant::now();
                let made = spool.create(wal.name(segments + index)).unwrap();
                let took = begun.elapsed();
                assert_eq!(spool.usage().unwrap().used, (segments + 1) * SIZE, "a spare counts");
                made.discard().unwrap();
                took
            })
            .collect();
        times.sort();
        println!("{segments} segments: opened in {opened:?}, the next one is begun in {:?}", times[7]);
        assert_eq!(spool.usage().unwrap().used, segments * SIZE);
        assert_eq!(spool.next_after(Some(wal.name(segments / 2))), Some((wal.name(segments / 2 + 1), Held::Complete)));
    };
    begin_beside(10);
    begin_beside(std::env::var("PGVAULT_TEST_SPOOL_SEGMENTS").map_or(5000, |text| text.parse().unwrap()));
}
