//! What no real server produces on demand: every cut, every damage, records over many pages, other block sizes.

use proptest::prelude::*;

use super::page::PageHeader;
use super::*;
use crate::{PgTime, RestorePoint};

mod builder;
use builder::{Builder, Piece};

const SYSTEM: SystemIdentifier = SystemIdentifier::new(0x6655_4433_2211_0001);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn start() -> Lsn {
    SegmentNumber::new(3).start(size())
}

fn builder() -> Builder {
    Builder::new(PgMajor::V17, SYSTEM, size(), start())
}

/// Everything that one push of all bytes tells.
fn read(bytes: &[u8]) -> (Vec<WalEvent>, WalReader, Result<(), WalError>) {
    let mut events = Vec::new();
    let mut reader = WalReader::new(size(), start()).with_all_records();
    let result = reader.push(bytes, &mut |event| events.push(event));
    (events, reader, result)
}

fn lsns(events: &[WalEvent]) -> Vec<Lsn> {
    events.iter().filter(|event| matches!(event, WalEvent::Record(_))).map(WalEvent::lsn).collect()
}

#[test]
fn empty_wal_is_open_and_proves_nothing() {
    let (events, reader, result) = read(&[]);
    assert_eq!((events.len(), result), (0, Ok(())));
    assert_eq!((reader.valid_end(), reader.position(), reader.end()), (start(), start(), &WalEnd::Open));
}

#[test]
fn every_kind_of_transaction_end_is_told_with_its_time_and_number() {
    for major in PgMajor::ALL {
        let mut wal = Builder::new(major, SYSTEM, size(), start());
        let time = PgTime::from_micros(800_000_000_000_123);
        let plain = wal.commit(700, time);
        let long = wal.xact(0x30 | 0x80, 0, &xact_body(major, time, 5000, 40_000, 701));
        let aborted = wal.xact(0x20 | 0x80, 702, &xact_body(major, time, 3, 2, 0));
        let rolled_back = wal.xact(0x40 | 0x80, 0, &xact_body(major, time, 0, 100, 703));
        let (events, reader, result) = read(&wal.bytes());
        assert_eq!(result, Ok(()));
        let ends: Vec<(Lsn, bool, u32, PgTime, bool)> = events
            .iter()
            .filter_map(|event| match event {
                WalEvent::Commit(end) => Some((end.lsn, true, end.xid, end.time, end.prepared)),
                WalEvent::Abort(end) => Some((end.lsn, false, end.xid, end.time, end.prepared)),
                _ => None,
            })
            .collect();
        assert_eq!(
            ends,
            [
                (plain, true, 700, time, false),
                (long, true, 701, time, true),
                (aborted, false, 702, time, false),
                (rolled_back, false, 703, time, true)
            ],
            "{major:?}"
        );
        assert_eq!(reader.page_info().unwrap().major, major);
        assert_eq!(reader.page_info().unwrap().system_identifier, SYSTEM);
    }
}

/// The data of a commit or abort record with all optional parts before the prepared transaction's number.
fn xact_body(major: PgMajor, time: PgTime, subtransactions: usize, relations: usize, prepared: u32) -> Vec<u8> {
    let mut data = time.as_micros().to_le_bytes().to_vec();
    let statistics = major >= PgMajor::V15;
    let flags: u32 = 0b1111 | if prepared == 0 { 0 } else { 0b1001_0000 } | if statistics { 1 << 8 } else { 0 };
    data.extend(flags.to_le_bytes());
    data.extend([7; 8]);
    let mut list = |count: usize, item: usize| {
        data.extend(u32::try_from(count).unwrap().to_le_bytes());
        data.extend(std::iter::repeat_n(0xA5, count * item));
    };
    list(subtransactions, 4);
    list(relations, 12);
    if statistics {
        list(11, if major == PgMajor::V18 { 16 } else { 12 });
    }
    list(9, 16);
    if prepared != 0 {
        data.extend(prepared.to_le_bytes());
        data.extend(b"gid\0");
    }
    data
}

#[test]
fn a_prepared_end_without_its_transaction_is_an_unknown_layout() {
    let mut wal = builder();
    let lsn = wal.xact(0x30, 5, &PgTime::from_micros(1).as_micros().to_le_bytes());
    let (_, reader, result) = read(&wal.bytes());
    assert_eq!(result, Err(WalError { lsn, problem: WalProblem::Layout { resource_manager: 1, info: 0x30 } }));
    assert_eq!(reader.valid_end(), lsn.saturating_sub(40), "the page header is not a record");
}

#[test]
fn a_negative_count_in_a_commit_is_an_unknown_layout() {
    let mut data = PgTime::from_micros(1).as_micros().to_le_bytes().to_vec();
    data.extend(0b1_0010_u32.to_le_bytes());
    data.extend((-1_i32).to_le_bytes());
    data.extend(9_u32.to_le_bytes());
    let mut wal = builder();
    wal.xact(0x30 | 0x80, 0, &data);
    let (.., result) = read(&wal.bytes());
    assert!(matches!(result, Err(WalError { problem: WalProblem::Layout { .. }, .. })), "{result:?}");
}

#[test]
fn restore_points_are_told_by_name() {
    let mut wal = builder();
    let mut data = PgTime::from_micros(42).as_micros().to_le_bytes().to_vec();
    let mut name = [b'x'; 64];
    name[..14].copy_from_slice(b"before upgrade");
    name[14] = 0;
    data.extend(name);
    let lsn = wal.record(0, 0x70, 0, &data);
    let (events, ..) = read(&wal.bytes());
    let end = lsn.saturating_add(104);
    let point = RestorePoint { lsn, end, time: PgTime::from_micros(42), name: "before upgrade".to_owned() };
    assert_eq!(events.last(), Some(&WalEvent::RestorePoint(point)));
}

#[test]
fn the_rest_of_a_segment_after_a_switch_is_skipped() {
    let mut wal = builder();
    let switch = wal.switch();
    let commit = wal.commit(9, PgTime::from_micros(1));
    let next_segment = SegmentNumber::new(4).start(size());
    let (events, reader, result) = read(&wal.bytes());
    assert_eq!(result, Ok(()));
    assert!(events.contains(&WalEvent::Switch { lsn: switch, end: next_segment }));
    assert_eq!(commit, next_segment.saturating_add(40));
    assert_eq!(lsns(&events), [switch, commit]);
    assert_eq!(reader.valid_end(), reader.position());

    let (_, reader, _) = read(&wal.bytes()[..100_000]);
    assert_eq!(reader.valid_end(), start().saturating_add(100_000), "the empty rest is valid as far as it was pushed");
}

#[test]
fn zeros_after_a_record_are_the_end_and_no_error() {
    let mut wal = builder();
    wal.commit(9, PgTime::from_micros(1));
    let end = wal.position();
    let mut bytes = wal.bytes();
    bytes.resize(50_000, 0);
    let (events, reader, result) = read(&bytes);
    assert_eq!((events.len(), result), (2, Ok(())));
    assert_eq!((reader.valid_end(), reader.end()), (end, &WalEnd::Zeros(end)));
    assert_eq!(reader.position(), start().saturating_add(50_000));
}

#[test]
fn zeros_in_the_middle_of_a_record_end_the_wal_before_it() {
    let mut wal = builder();
    wal.commit(9, PgTime::from_micros(1));
    let end = wal.position();
    wal.filler(30_000);
    let mut bytes = wal.bytes();
    bytes[16384..].fill(0);
    let (_, reader, result) = read(&bytes);
    assert_eq!(result, Ok(()));
    assert_eq!((reader.valid_end(), reader.end()), (end, &WalEnd::Zeros(start().saturating_add(16384))));
}

#[test]
fn bytes_after_zeros_are_an_error() {
    let mut wal = builder();
    wal.commit(9, PgTime::from_micros(1));
    let end = wal.position();
    let mut bytes = wal.bytes();
    bytes.resize(50_000, 0);
    bytes[49_000] = 1;
    let (_, reader, result) = read(&bytes);
    let error = WalError { lsn: start().saturating_add(49_000), problem: WalProblem::DataAfterZeros(end) };
    assert_eq!(result, Err(error.clone()));
    assert_eq!(reader.valid_end(), end);
    assert_eq!(reader.clone().push(&[0], &mut |_| {}), Err(error), "an error stays");
}

#[test]
fn a_record_that_began_before_the_start_is_skipped_over_whole_pages_and_segments() {
    let mut wal = builder();
    wal.commit(1, PgTime::from_micros(1));
    wal.filler(2_500_000);
    let after = wal.position();
    let commit = wal.commit(2, PgTime::from_micros(1));
    let bytes = wal.bytes();
    for from in [8192, 5 * 8192, 1 << 20, (1 << 20) + 8192, 2 << 20] {
        let mut events = Vec::new();
        let mut reader = WalReader::new(size(), start().saturating_add(from as u64)).with_all_records();
        assert_eq!(reader.push(&bytes[from..], &mut |event| events.push(event)), Ok(()));
        assert_eq!(lsns(&events), [commit], "from {from}");
        assert_eq!(reader.skipped_to(), Some(after));
        assert_eq!(reader.valid_end(), wal.position());
    }
}

#[test]
fn a_start_at_a_record_in_the_middle_of_a_page_works() {
    let mut wal = builder();
    wal.commit(1, PgTime::from_micros(1));
    let from = wal.position();
    let commit = wal.commit(2, PgTime::from_micros(1));
    wal.filler(20_000);
    let mut events = Vec::new();
    let mut reader = WalReader::new(size(), from).with_all_records();
    let bytes = wal.bytes();
    reader.push(&bytes[from.bytes_since(start()) as usize..], &mut |event| events.push(event)).unwrap();
    assert_eq!(lsns(&events).first(), Some(&commit));
    assert_eq!((reader.valid_end(), reader.skipped_to()), (wal.position(), None));
}

#[test]
fn a_record_given_up_after_a_crash_is_replaced_by_the_one_that_says_so() {
    let mut wal = builder();
    wal.commit(1, PgTime::from_micros(1));
    let given_up = wal.filler(30_000);
    wal.cut_to_pages(2);
    let mut data = given_up.as_u64().to_le_bytes().to_vec();
    data.extend(77_i64.to_le_bytes());
    let replacement = wal.overwrite(&data);
    let commit = wal.commit(2, PgTime::from_micros(1));
    let bytes = wal.bytes();
    let (events, reader, result) = read(&bytes);
    assert_eq!(result, Ok(()));
    assert_eq!(lsns(&events)[1..], [replacement, commit]);
    assert!(
        events.iter().any(|event| matches!(event,
        WalEvent::Overwrite { overwritten, time, .. } if *overwritten == given_up && *time == PgTime::from_micros(77)))
    );
    assert_eq!(reader.valid_end(), wal.position());

    let mut reader = WalReader::new(size(), start().saturating_add(8192)).with_all_records();
    let mut events = Vec::new();
    reader.push(&bytes[8192..], &mut |event| events.push(event)).unwrap();
    assert_eq!(lsns(&events), [replacement, commit], "also when the reader starts inside the record that was given up");
    assert_eq!(reader.skipped_to(), Some(replacement));
}

#[test]
fn a_fork_of_the_reader_goes_on_alone() {
    let mut wal = builder();
    wal.commit(1, PgTime::from_micros(1));
    let (_, mut one, _) = read(&wal.bytes());
    let mut other = one.clone();
    let mut branch = wal.clone();
    wal.commit(2, PgTime::from_micros(1));
    branch.turn_to(TimelineId::new(7).unwrap());
    branch.filler(20_000);
    let from = one.position().bytes_since(start()) as usize;
    one.push(&wal.bytes()[from..], &mut |_| {}).unwrap();
    other.push(&branch.bytes()[from..], &mut |_| {}).unwrap();
    assert_eq!((one.valid_end(), one.timeline()), (wal.position(), Some(TimelineId::FIRST)));
    assert_eq!((other.valid_end(), other.timeline()), (branch.position(), TimelineId::new(7)));
}

type Expected = fn(&WalProblem) -> bool;

#[test]
fn pages_that_do_not_belong_here_are_refused() {
    let good = {
        let mut wal = builder();
        wal.filler(1_100_000);
        wal.bytes()
    };
    let other = PgMajor::V14.page_magic().to_le_bytes();
    let cases: [(&str, usize, &[u8], Expected); 12] = [
        ("magic of no version", 0, &[1, 2], |p| matches!(p, WalProblem::PageMagic(0x0201))),
        ("other version", 8192, &other, |p| matches!(p, WalProblem::PageMajor { found: 14, expected: 17 })),
        ("unknown flag", 2, &[0x12], |p| matches!(p, WalProblem::PageFlags(0x12))),
        ("short header first", 2, &[0], |p| matches!(p, WalProblem::PageFlags(0))),
        ("timeline 0", 4, &[0], |p| matches!(p, WalProblem::PageWithoutTimeline)),
        ("address", 8192 + 9, &[0xEE], |p| matches!(p, WalProblem::PageAddress(_))),
        ("segment size", 34, &[0x20], |p| matches!(p, WalProblem::SegmentSize { found: 0x20_0000, .. })),
        ("impossible segment size", 32, &[1], |p| matches!(p, WalProblem::SegmentSize { .. })),
        ("impossible block size", 36, &[1], |p| matches!(p, WalProblem::BlockSize(_))),
        ("other block size later", (1 << 20) + 37, &[0x40], |p| matches!(p, WalProblem::BlockSize(0x4000))),
        ("other cluster later", (1 << 20) + 24, &[9], |p| matches!(p, WalProblem::SystemIdentifier { .. })),
        ("remaining length", 8192 + 16, &[9], |p| matches!(p, WalProblem::Continuation { .. })),
    ];
    for (name, at, patch, expected) in cases {
        let mut bytes = good.clone();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        let (.., result) = read(&bytes);
        let error = result.expect_err(name);
        assert!(expected(&error.problem), "{name}: {error}");
    }
    let mut expecting = WalReader::new(size(), start()).expecting(SystemIdentifier::new(1));
    let error = expecting.push(&good, &mut |_| {}).unwrap_err();
    assert!(matches!(error.problem, WalProblem::SystemIdentifier { .. }));
}

#[test]
fn a_lower_timeline_after_a_higher_one_is_refused() {
    let mut wal = builder();
    wal.turn_to(TimelineId::new(3).unwrap());
    wal.filler(9_000);
    wal.turn_to(TimelineId::new(2).unwrap());
    wal.filler(9_000);
    let (.., result) = read(&wal.bytes());
    assert!(matches!(result.unwrap_err().problem, WalProblem::PageTimeline { .. }));
}

#[test]
fn records_out_of_bounds_are_refused() {
    let refuse = |length: u32, resource_manager: u8, previous: Option<Lsn>| {
        let mut wal = builder();
        wal.commit(1, PgTime::from_micros(1));
        wal.raw_header(length, resource_manager, previous);
        let (.., result) = read(&wal.bytes());
        result.unwrap_err().problem
    };
    assert_eq!(refuse(23, 1, None), WalProblem::RecordLength(23));
    assert_eq!(refuse(0x4000_0000, 1, None), WalProblem::RecordLength(0x4000_0000));
    assert_eq!(refuse(u32::MAX, 1, None), WalProblem::RecordLength(u32::MAX));
    assert_eq!(refuse(100, 22, None), WalProblem::ResourceManager(22));
    assert!(matches!(refuse(100, 1, Some(start())), WalProblem::Previous { .. }));
}

#[test]
fn a_record_that_claims_a_gigabyte_costs_no_memory() {
    let mut wal = builder();
    wal.raw_header(0x3FFF_FFFF, 1, None);
    let (_, reader, result) = read(&wal.bytes());
    assert_eq!(result, Ok(()));
    assert_eq!(reader.end(), &WalEnd::Open);
    assert!(size_of::<WalReader>() < 1024);
}

#[test]
fn other_block_sizes_are_read_from_the_long_header() {
    for block_size in [1024_u32, 4096, 16384, 65536] {
        let mut wal = builder().with_block_size(block_size);
        let lsns_written =
            [wal.commit(1, PgTime::from_micros(1)), wal.filler(1_500_000), wal.commit(2, PgTime::from_micros(1))];
        let (events, reader, result) = read(&wal.bytes());
        assert_eq!((lsns(&events), result), (lsns_written.to_vec(), Ok(())), "{block_size}");
        assert_eq!(reader.page_info().unwrap().block_size, block_size);
    }
}

#[test]
fn the_header_of_a_segment_is_read_alone() {
    let mut wal = builder();
    wal.filler(100);
    let header = read_segment_header(&wal.bytes()).unwrap();
    assert_eq!((header.system_identifier, header.page_address, header.segment_size), (SYSTEM, start(), size()));
    assert_eq!((header.block_size, header.major, header.timeline), (8192, PgMajor::V17, TimelineId::FIRST));
    assert!(read_segment_header(&wal.bytes()[..39]).is_err());
    assert!(read_segment_header(&[]).is_err());
    assert!(read_segment_header(&[0; 40]).is_err());
}

#[test]
fn the_log_cannot_pass_its_last_position() {
    let mut reader = WalReader::new(size(), Lsn::new(u64::MAX - 7));
    let error = reader.push(&[0x20; 64], &mut |_| {}).unwrap_err();
    assert!(matches!(error.problem, WalProblem::PastTheEnd | WalProblem::RecordLength(_)), "{error}");
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        4 => (any::<u32>(), any::<i32>()).prop_map(|(xid, time)| Piece::Commit(xid, PgTime::from_micros(time.into()))),
        4 => (1..300_usize).prop_map(Piece::Filler),
        2 => (7000..40_000_usize).prop_map(Piece::Filler),
        1 => (1_000_000..1_200_000_usize).prop_map(Piece::Filler),
        1 => Just(Piece::Switch),
    ];
    prop::collection::vec(piece, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_tells_the_same(pieces in pieces(), cuts in prop::collection::vec(1..20_000_usize, 1..50)) {
        let mut wal = builder();
        let written: Vec<Lsn> = pieces.iter().map(|piece| wal.piece(piece)).collect();
        let bytes = wal.bytes();
        let (whole, reader, result) = read(&bytes);
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(lsns(&whole), written);
        prop_assert_eq!(reader.valid_end(), wal.position());

        let mut split = Vec::new();
        let mut piecewise = WalReader::new(size(), start()).with_all_records();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            piecewise.push(now, &mut |event| split.push(event)).unwrap();
            prop_assert!(piecewise.valid_end() <= piecewise.position());
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(split, whole);
        prop_assert_eq!(piecewise.valid_end(), reader.valid_end());
    }

    #[test]
    fn wal_cut_anywhere_is_valid_up_to_its_last_whole_record(pieces in pieces(), cut in any::<prop::sample::Index>(), padded in any::<bool>()) {
        let mut wal = builder();
        let ends: Vec<Lsn> = pieces.iter().map(|piece| { wal.piece(piece); wal.position() }).collect();
        let bytes = wal.bytes();
        let cut = cut.index(bytes.len() + 1);
        let mut kept = bytes[..cut].to_vec();
        let position = start().saturating_add(cut as u64);
        let (_, reader, result) = read(&kept);
        prop_assert_eq!(result, Ok(()));
        let proven = ends.iter().copied().filter(|&end| end <= position).max().unwrap_or(start());
        prop_assert!(reader.valid_end() >= proven, "{} < {}", reader.valid_end(), proven);
        prop_assert!(reader.valid_end() <= position);
        if padded {
            // As a spool finds it after a crash: what was written, then zeros. The record that was cut may fail its checksum.
            kept.resize(bytes.len().max(cut) + 100, 0);
            let (_, reader, _) = read(&kept);
            prop_assert!(reader.valid_end() >= proven);
            prop_assert!(reader.end() != &WalEnd::Open || matches!(pieces.last(), Some(Piece::Switch)));
        }
    }

    #[test]
    fn a_flipped_bit_in_a_record_is_always_found(pieces in pieces(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut wal = builder();
        for piece in &pieces {
            wal.piece(piece);
        }
        wal.filler(50);
        let mut bytes = wal.bytes();
        let at = at.index(bytes.len());
        prop_assume!(wal.is_covered(at));
        bytes[at] ^= 1 << bit;
        let (_, reader, result) = read(&bytes);
        let ended_early = reader.valid_end() < wal.position();
        prop_assert!(result.is_err() || ended_early, "flip at {}", at);
        prop_assert!(reader.valid_end() <= start().saturating_add(at as u64), "{} beyond the damage at {}", reader.valid_end(), at);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..20_000), at in any::<u64>()) {
        let mut reader = WalReader::new(size(), Lsn::new(at));
        let result = reader.push(&bytes, &mut |_| {});
        prop_assert_eq!(result.is_err(), matches!(reader.end(), WalEnd::Invalid(_)));
        if let Ok(header) = read_segment_header(&bytes) {
            prop_assert!(PageHeader::parse(&bytes, header.page_address).is_ok());
        }
        prop_assert!(reader.valid_end() <= reader.position());
    }
}
