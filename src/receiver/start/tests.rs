use super::*;

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const SEG: u64 = 16 << 20;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

fn history(timeline: u32, entries: &[(u32, u64)]) -> TimelineHistory {
    let text: String = entries.iter().map(|&(parent, at)| format!("{parent}\t{}\tbecause\n", lsn(at))).collect();
    TimelineHistory::parse(tli(timeline), text.as_bytes()).unwrap()
}

fn held(timeline: u32, end: u64) -> Option<Position> {
    let end = lsn(end);
    Some(Position { timeline: tli(timeline), end, segment_start: SegmentNumber::containing(end, SIZE).start(SIZE) })
}

fn server(timeline: u32, entries: &[(u32, u64)], end: u64) -> ServerPosition {
    ServerPosition { history: history(timeline, entries), end: lsn(end) }
}

fn at(timeline: u32, start: u64) -> Start {
    Start::At { timeline: tli(timeline), start: lsn(start), beyond_fork: None }
}

#[test]
fn the_first_start_is_the_servers_to_say() {
    let root = history(1, &[]);
    assert_eq!(decide(None, &root, &server(3, &[(1, SEG), (2, 2 * SEG)], 9 * SEG), SIZE), Start::First);
}

#[test]
fn on_the_same_timeline_we_go_on_at_the_start_of_our_segment() {
    let root = history(1, &[]);
    let now = server(1, &[], 9 * SEG);
    assert_eq!(decide(held(1, 3 * SEG + 77), &root, &now, SIZE), at(1, 3 * SEG));
    assert_eq!(decide(held(1, 3 * SEG), &root, &now, SIZE), at(1, 3 * SEG));
}

#[test]
fn a_server_whose_wal_ends_before_our_segment_is_behind() {
    let root = history(1, &[]);
    let now = server(1, &[], 3 * SEG - 8);
    assert_eq!(decide(held(1, 3 * SEG + 77), &root, &now, SIZE), Start::Ahead { server_end: lsn(3 * SEG - 8) });
    // Idle at a segment's end: nothing is missing and nothing is ahead.
    assert_eq!(decide(held(1, 3 * SEG), &root, &server(1, &[], 3 * SEG), SIZE), at(1, 3 * SEG));
}

#[test]
fn after_a_promotion_the_old_timeline_is_streamed_to_its_end_first() {
    let root = history(1, &[]);
    let now = server(2, &[(1, 5 * SEG + 100)], 6 * SEG);
    assert_eq!(decide(held(1, 3 * SEG + 77), &root, &now, SIZE), at(1, 3 * SEG));
    assert_eq!(decide(held(1, 5 * SEG + 99), &root, &now, SIZE), at(1, 5 * SEG));
    assert_eq!(decide(held(1, 5 * SEG + 100), &root, &now, SIZE), at(2, 5 * SEG));
}

#[test]
fn numbers_of_timelines_may_be_skipped() {
    let root = history(1, &[]);
    let now = server(7, &[(1, 5 * SEG + 100)], 6 * SEG);
    assert_eq!(decide(held(1, 5 * SEG + 100), &root, &now, SIZE), at(7, 5 * SEG));
    let twice = server(9, &[(1, 5 * SEG + 100), (4, 8 * SEG)], 9 * SEG);
    assert_eq!(decide(held(1, 5 * SEG + 100), &root, &twice, SIZE), at(4, 5 * SEG));
}

#[test]
fn of_two_forks_in_one_segment_the_last_has_the_segment() {
    let root = history(1, &[]);
    let now = server(3, &[(1, 5 * SEG + 100), (2, 5 * SEG + 900)], 6 * SEG);
    assert_eq!(decide(held(1, 5 * SEG + 100), &root, &now, SIZE), at(3, 5 * SEG));
}

#[test]
fn wal_beyond_the_fork_is_kept_and_told() {
    let root = history(1, &[]);
    let now = server(2, &[(1, 5 * SEG + 100)], 6 * SEG);
    let beyond = BeyondFork { timeline: tli(1), fork: lsn(5 * SEG + 100), end: lsn(6 * SEG + 8) };
    assert_eq!(
        decide(held(1, 6 * SEG + 8), &root, &now, SIZE),
        Start::At { timeline: tli(2), start: lsn(5 * SEG), beyond_fork: Some(beyond) }
    );
}

#[test]
fn a_former_primary_that_comes_back_is_not_followed() {
    let ours = history(2, &[(1, 5 * SEG)]);
    let lower = Conflict::LowerTimeline { server: tli(1), ours: tli(2) };
    assert_eq!(decide(held(2, 6 * SEG), &ours, &server(1, &[], 99 * SEG), SIZE), Start::Conflict(lower));
}

#[test]
fn another_history_is_not_joined() {
    // We are on timeline 2 which left 1 at segment 5; the server's 3 came from 1 without 2.
    let ours = history(2, &[(1, 5 * SEG)]);
    let conflict = Conflict::NotAnAncestor { server: tli(3), ours: tli(2), end: lsn(6 * SEG) };
    assert_eq!(decide(held(2, 6 * SEG), &ours, &server(3, &[(1, 7 * SEG)], 9 * SEG), SIZE), Start::Conflict(conflict));
    // The same number with another fork.
    let conflict = Conflict::NotAnAncestor { server: tli(2), ours: tli(2), end: lsn(6 * SEG) };
    assert_eq!(decide(held(2, 6 * SEG), &ours, &server(2, &[(1, 4 * SEG)], 9 * SEG), SIZE), Start::Conflict(conflict));
}

#[test]
fn after_a_gap_streaming_goes_on_at_the_segment_that_the_server_keeps() {
    let now = server(2, &[(1, 5 * SEG + 100)], 9 * SEG);
    assert_eq!(after_gap(&now, lsn(3 * SEG + 5), SIZE), (tli(1), lsn(3 * SEG)));
    assert_eq!(after_gap(&now, lsn(5 * SEG + 5), SIZE), (tli(2), lsn(5 * SEG)));
    assert_eq!(after_gap(&now, lsn(7 * SEG + 5), SIZE), (tli(2), lsn(7 * SEG)));
}
