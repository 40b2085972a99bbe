use std::sync::Arc;

use super::*;
use crate::daemon::view::samples;
use crate::wal_pipeline::GapRecord;

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

fn record(from: u64, to: u64) -> GapRecord {
    GapRecord {
        timeline: TimelineId::FIRST,
        from: lsn(from),
        to: lsn(to),
        reason: "the replication slot was dropped".to_owned(),
        at: samples::at("2026-11-20T11:00:00Z"),
    }
}

/// What a listing shows, from 0/3000000 on.
fn hole(to: u64, reason: &str) -> WindowGap {
    WindowGap { timeline: TimelineId::FIRST, from_lsn: lsn(0x300_0000), to_lsn: lsn(to), reason: reason.to_owned() }
}

/// The sample's only backup starts at 0/2000028.
fn with_gap(from: u64, to: u64) -> ClusterView {
    let mut view = samples::well();
    if let Some(wal) = &mut view.wal {
        wal.gaps = vec![record(from, to)];
    }
    view
}

#[test]
fn a_recorded_gap_is_open_until_a_backup_starts_behind_it() {
    let mut view = with_gap(0x300_0000, 0x400_0000);
    assert_eq!(all(&view).len(), 1);
    let gap = open(&view).unwrap();
    assert_eq!((gap.from, gap.to), (lsn(0x300_0000), lsn(0x400_0000)));
    assert_eq!(gap.found_at, samples::at("2026-11-20T11:00:00Z"));
    let started = |start: u64, timeline: u32| {
        let mut backup = samples::backup("2026-11-20T11:30:00Z");
        (backup.start_lsn, backup.timeline) = (lsn(start), TimelineId::new(timeline).unwrap());
        Some(backup)
    };
    view.last_committed = started(0x3FF_FFFF, 1);
    assert!(open(&view).is_some(), "it started in the gap");
    view.last_committed = started(0x400_0000, 1);
    assert_eq!(open(&view), None);
    assert_eq!(all(&view).len(), 1, "the gap stays");
}

#[test]
fn what_lies_before_the_oldest_backup_is_of_no_interest() {
    let view = with_gap(0x100_0000, 0x200_0000);
    assert_eq!((all(&view).len(), open(&view)), (0, None));
}

#[test]
fn without_a_backup_a_gap_is_told_and_starts_nothing() {
    let mut view = with_gap(0x100_0000, 0x200_0000);
    view.stored = Some(samples::stored(Vec::new()));
    assert_eq!((all(&view).len(), open(&view)), (1, None));
}

#[test]
fn a_hole_that_a_listing_shows_is_open_only_in_what_counts_as_archived() {
    let mut view = samples::well();
    let mut stored = (*samples::stored(vec![samples::backup("2026-11-20T03:05:00Z")])).clone();
    stored.window.gaps = vec![hole(0x600_0000, "not in the repository")];
    view.stored = Some(Arc::new(stored.clone()));
    assert_eq!(open(&view), None, "segments are stored side by side: it may be filled in a moment");
    stored.window.gaps = vec![hole(0x400_0000, "not in the repository")];
    view.stored = Some(Arc::new(stored));
    assert!(open(&view).is_some());
}

#[test]
fn a_hole_that_was_filled_while_the_listing_went_on_is_none() {
    let mut view = samples::well();
    let mut listed = (*samples::stored(vec![samples::backup("2026-11-20T03:05:00Z")])).clone();
    listed.window.gaps = vec![hole(0x400_0000, "not in the repository")];
    let mut seen_by = |archived: Option<u64>, listed: &Stored| {
        view.stored = Some(Arc::new(without_what_is_on_its_way(listed.clone(), archived.map(lsn))));
        (all(&view).len(), open(&view).is_some())
    };
    // By now everything up to 0/5000000 is archived.
    assert_eq!(seen_by(Some(0x3FF_FFFF), &listed), (0, false), "its segment was on its way");
    assert_eq!(seen_by(None, &listed), (0, false));
    assert_eq!(seen_by(Some(0x400_0000), &listed), (1, true), "all before was stored when the listing began");
    let gap = wal::Gap { timeline: TimelineId::FIRST, start: lsn(0x300_0000), end: lsn(0x400_0000) };
    listed.catalog.lost = vec![recovery::LostWal { gap, reason: "dropped".to_owned(), found_at: None }];
    assert_eq!(seen_by(Some(0x300_0000), &listed).0, 1, "it is written down that it is lost");
}

#[test]
fn a_gap_is_told_once_though_the_listing_and_the_pipeline_know_it() {
    let mut view = with_gap(0x300_0000, 0x400_0000);
    let mut stored = (*samples::stored(vec![samples::backup("2026-11-20T03:05:00Z")])).clone();
    stored.window.gaps = vec![hole(0x400_0000, "in the repository's words")];
    view.stored = Some(Arc::new(stored));
    assert_eq!(all(&view).len(), 1);
    assert_eq!(open(&view).unwrap().reason, "in the repository's words");
}
