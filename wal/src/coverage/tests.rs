use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn range(tli: u32, start: u64, end: u64) -> WalRange {
    WalRange { timeline: timeline(tli), start: Lsn::new(start), end: Lsn::new(end) }
}

fn path(number: u32, text: &str) -> TimelinePath {
    TimelinePath::new(&TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap(), size())
}

/// The legs as `(timeline, first MiB, MiB after the last)`.
fn legs(path: &TimelinePath, from: u64, to: u64) -> Vec<(u32, u64, u64)> {
    path.legs(Lsn::new(from * MIB), Lsn::new(to * MIB))
        .map(|leg| (leg.timeline.get(), leg.start.as_u64() / MIB, leg.end.as_u64() / MIB))
        .collect()
}

#[test]
fn a_root_has_one_leg() {
    assert_eq!(legs(&path(1, ""), 3, 9), [(1, 3, 9)]);
    assert_eq!(path(4, "").timeline_at(Lsn::new(0)), timeline(4));
}

#[test]
fn the_segment_of_a_switch_is_read_under_the_new_name() {
    let path = path(2, "1\t0/280000\n");
    assert_eq!(legs(&path, 0, 9), [(1, 0, 2), (2, 2, 9)]);
    assert_eq!(path.timeline_at(Lsn::new(2 * MIB - 1)), timeline(1));
    assert_eq!(path.timeline_at(Lsn::new(2 * MIB)), timeline(2));
}

#[test]
fn several_switches_in_one_segment_leave_only_the_newest() {
    let two = path(3, "1\t0/280000\n2\t0/2C0000\n");
    assert_eq!(legs(&two, 0, 9), [(1, 0, 2), (3, 2, 9)]);
    let three_then_one = path(9, "1\t0/280000\n2\t0/280000\n5\t0/2FFFFF\n8\t0/500000\n");
    assert_eq!(legs(&three_then_one, 0, 9), [(1, 0, 2), (8, 2, 5), (9, 5, 9)]);
    let first_segment = path(3, "1\t0/80000\n2\t0/C0000\n");
    assert_eq!(legs(&first_segment, 0, 9), [(3, 0, 9)]);
}

#[test]
fn a_switch_at_the_first_byte_of_a_segment_starts_there() {
    assert_eq!(legs(&path(2, "1\t0/300000\n"), 0, 9), [(1, 0, 3), (2, 3, 9)]);
}

#[test]
fn a_switch_that_goes_back_skips_the_timeline_between() {
    assert_eq!(legs(&path(3, "1\t0/680000\n2\t0/380000\n"), 0, 9), [(1, 0, 3), (3, 3, 9)]);
}

#[test]
fn legs_are_cut_to_what_is_asked_for() {
    let path = path(2, "1\t0/280000\n");
    assert_eq!(legs(&path, 3, 5), [(2, 3, 5)]);
    assert_eq!(legs(&path, 0, 1), [(1, 0, 1)]);
    assert_eq!(legs(&path, 5, 5), []);
    assert_eq!(legs(&path, 6, 5), []);
}

#[test]
fn a_gap_is_found_on_the_timeline_whose_segment_is_missing() {
    let path = path(2, "1\t0/280000\n");
    let mut coverage = Coverage::new();
    coverage.insert(range(1, 0, 3 * MIB));
    coverage.insert(range(2, 3 * MIB, 6 * MIB));
    let gap = coverage.first_gap(&path, Lsn::new(0), Lsn::new(6 * MIB));
    assert_eq!(gap, Some(Gap { timeline: timeline(2), start: Lsn::new(2 * MIB), end: Lsn::new(3 * MIB) }));
    assert_eq!(coverage.reachable_end(&path, Lsn::new(0)), Lsn::new(2 * MIB));
    coverage.insert(range(2, 2 * MIB, 3 * MIB));
    assert_eq!(coverage.first_gap(&path, Lsn::new(0), Lsn::new(6 * MIB)), None);
    assert_eq!(coverage.reachable_end(&path, Lsn::new(0)), Lsn::new(6 * MIB));
}

/// A small world: positions are MiB, two timelines, the bytes that are there are a set.
#[derive(Default)]
struct Model(BTreeSet<(u32, u64)>);

impl Model {
    fn first_gap(&self, path: &TimelinePath, from: u64, to: u64) -> Option<(u32, u64, u64)> {
        let on = |mib: u64| path.timeline_at(Lsn::new(mib * MIB)).get();
        let there = |mib: u64| self.0.contains(&(on(mib), mib));
        let start = (from..to).find(|&mib| !there(mib))?;
        let end = (start..to).find(|&mib| there(mib) || on(mib) != on(start)).unwrap_or(to);
        Some((on(start), start, end))
    }
}

proptest! {
    #[test]
    fn coverage_is_a_set_of_positions(
        ranges in prop::collection::vec((1..3_u32, 0..40_u64, 0..10_u64), 0..20),
        switch in 0..40_u64, from in 0..40_u64, length in 0..40_u64,
    ) {
        let mut coverage = Coverage::new();
        let mut model = Model::default();
        for (tli, start, length) in ranges {
            coverage.insert(range(tli, start * MIB, (start + length) * MIB));
            model.0.extend((start..start + length).map(|mib| (tli, mib)));
        }
        for tli in 1..3 {
            let ranges: Vec<WalRange> = coverage.ranges(timeline(tli)).collect();
            prop_assert!(ranges.iter().all(|r| r.start < r.end));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "they neither touch nor overlap");
            let covered: BTreeSet<(u32, u64)> =
                ranges.iter().flat_map(|r| (r.start.as_u64() / MIB..r.end.as_u64() / MIB).map(|mib| (tli, mib))).collect();
            prop_assert_eq!(&covered, &model.0.iter().copied().filter(|&(t, _)| t == tli).collect());
            let end = (from..).find(|&mib| !model.0.contains(&(tli, mib))).filter(|&end| end > from);
            prop_assert_eq!(coverage.contiguous_end(timeline(tli), Lsn::new(from * MIB)), end.map(|mib| Lsn::new(mib * MIB)));
        }
        let path = path(2, &format!("1\t0/{:X}\n", switch * MIB + 0x80000));
        let to = from + length;
        let gap = coverage.first_gap(&path, Lsn::new(from * MIB), Lsn::new(to * MIB));
        let gap = gap.map(|gap| (gap.timeline.get(), gap.start.as_u64() / MIB, gap.end.as_u64() / MIB));
        prop_assert_eq!(gap, model.first_gap(&path, from, to));
        let reachable = model.first_gap(&path, from, 200).map(|(_, start, _)| Lsn::new(start * MIB));
        prop_assert_eq!(Some(coverage.reachable_end(&path, Lsn::new(from * MIB))), reachable);
    }
}
