use std::collections::BTreeMap;

use wal::{ClusterState, Coverage, SegmentNumber, SegmentSize, TimelineHistory};

use super::*;
use crate::LineageId;

const MIB: u64 = 1 << 20;
const SYSTEM: SystemIdentifier = SystemIdentifier::new(7);

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(tli(timeline), SegmentNumber::new(number), size())
}

/// Timeline 1 up to 8.5 MB is stored; timeline 2 left it at 5.5 MB and is stored up to 9 MB.
fn catalog() -> Catalog {
    let range = |timeline, start, end| WalRange { timeline: tli(timeline), start: Lsn::new(start), end: Lsn::new(end) };
    let mut coverage = Coverage::new();
    coverage.insert(range(1, 2 * MIB, 8 * MIB + MIB / 2));
    coverage.insert(range(2, 5 * MIB, 9 * MIB));
    let text = format!("1\t{}\tx\n", Lsn::new(5 * MIB + MIB / 2));
    let history = TimelineHistory::parse(tli(2), text.as_bytes()).unwrap();
    Catalog {
        cluster: "main".to_owned(),
        lineage: LineageId { system_identifier: SYSTEM, number: 1 },
        segment_size: size(),
        backups: Vec::new(),
        unreadable: Vec::new(),
        coverage,
        tails: Vec::new(),
        histories: BTreeMap::from([(tli(2), history)]),
        lost: Vec::new(),
    }
}

fn directory(state: ClusterState, timeline: u32, redo: u64, checkpoint: u64, min_recovery: u64) -> OldDirectory {
    OldDirectory {
        control: ControlFile {
            system_identifier: SYSTEM,
            version: 1700,
            state,
            checkpoint: Lsn::new(checkpoint),
            redo: Lsn::new(redo),
            checkpoint_timeline: tli(timeline),
            min_recovery: (min_recovery > 0).then(|| (Lsn::new(min_recovery), tli(timeline))),
            backup_start: None,
        },
        major: 17,
        standby_signal: state.is_recovery(),
        backup_label: false,
        wal: Vec::new(),
    }
}

fn standby(timeline: u32, redo: u64, min_recovery: u64) -> OldDirectory {
    directory(ClusterState::ShutDownInRecovery, timeline, redo, redo, min_recovery)
}

fn primary(checkpoint: u64) -> OldDirectory {
    directory(ClusterState::ShutDown, 1, checkpoint, checkpoint, 0)
}

fn way_of(directory: &OldDirectory) -> RefreshWay {
    refresh(directory, &catalog(), tli(2)).unwrap().way
}

#[test]
fn a_standby_that_fell_behind_replays_what_is_stored() {
    let to = Lsn::new(9 * MIB);
    for (timeline, redo, min) in [(1, 3 * MIB, 4 * MIB), (1, 3 * MIB, 5 * MIB + MIB / 2), (2, 6 * MIB, 8 * MIB)] {
        let expected = RefreshWay::Replay { from: Lsn::new(redo), to };
        assert_eq!(way_of(&standby(timeline, redo, min)), expected, "{timeline} {redo} {min}");
    }
    // Killed, it says as much.
    let killed = OldDirectory {
        control: ControlFile { state: ClusterState::InArchiveRecovery, ..standby(1, 3 * MIB, 4 * MIB).control },
        ..standby(1, 3 * MIB, 4 * MIB)
    };
    assert_eq!(way_of(&killed), RefreshWay::Replay { from: Lsn::new(3 * MIB), to });
}

#[test]
fn what_went_on_behind_the_fork_is_put_right() {
    let left = Some(Lsn::new(5 * MIB + MIB / 2));
    let reason =
        |position| RefreshWay::Delta(DeltaReason::Diverged { timeline: tli(1), position: Lsn::new(position), left });
    assert_eq!(way_of(&standby(1, 3 * MIB, 5 * MIB + MIB / 2 + 8)), reason(5 * MIB + MIB / 2 + 8));
    assert_eq!(way_of(&primary(6 * MIB)), reason(6 * MIB + 1));
    let elsewhere = way_of(&standby(3, 3 * MIB, 4 * MIB));
    assert!(matches!(elsewhere, RefreshWay::Delta(DeltaReason::Diverged { left: None, .. })), "{elsewhere:?}");
}

#[test]
fn an_old_primary_that_stopped_before_the_fork_only_replays() {
    let checkpoint = 5 * MIB + 100;
    assert_eq!(way_of(&primary(checkpoint)), RefreshWay::Replay { from: Lsn::new(checkpoint), to: Lsn::new(9 * MIB) });
    // The last byte before the switch point may be the checkpoint's; at the switch point it is another's.
    let fork = 5 * MIB + MIB / 2;
    assert!(matches!(way_of(&primary(fork - 1)), RefreshWay::Replay { .. }));
    assert!(matches!(way_of(&primary(fork)), RefreshWay::Delta(DeltaReason::Diverged { .. })));
    for state in [ClusterState::InProduction, ClusterState::ShuttingDown, ClusterState::InCrashRecovery] {
        let crashed = directory(state, 1, checkpoint, checkpoint, 0);
        assert_eq!(way_of(&crashed), RefreshWay::Delta(DeltaReason::Crashed), "{state:?}");
    }
}

#[test]
fn wal_that_is_stored_no_more_means_other_files_unless_it_lies_in_pg_wal() {
    let old = standby(1, MIB, 2 * MIB + 500);
    let gap = Gap { timeline: tli(1), start: Lsn::new(MIB), end: Lsn::new(2 * MIB) };
    assert_eq!(way_of(&old), RefreshWay::Delta(DeltaReason::WalMissing(gap)));
    let own = OldDirectory { wal: vec![segment(1, 1), segment(1, 2)], ..old };
    assert_eq!(way_of(&own), RefreshWay::Replay { from: Lsn::new(MIB), to: Lsn::new(9 * MIB) });
    // It is ahead of what is stored, and has that itself.
    let ahead = OldDirectory { wal: vec![segment(2, 8), segment(2, 9)], ..standby(2, 8 * MIB, 9 * MIB + 77) };
    assert_eq!(way_of(&ahead), RefreshWay::Replay { from: Lsn::new(8 * MIB), to: Lsn::new(9 * MIB + 77) });
    let without = standby(2, 8 * MIB, 9 * MIB + 77);
    assert!(matches!(way_of(&without), RefreshWay::Delta(DeltaReason::WalMissing(_))));
    // A hole behind it would stop it for ever.
    let mut holed = catalog();
    holed.coverage.insert(WalRange { timeline: tli(2), start: Lsn::new(11 * MIB), end: Lsn::new(12 * MIB) });
    let gap = Gap { timeline: tli(2), start: Lsn::new(9 * MIB), end: Lsn::new(11 * MIB) };
    let found = refresh(&standby(2, 6 * MIB, 7 * MIB), &holed, tli(2)).unwrap().way;
    assert_eq!(found, RefreshWay::Delta(DeltaReason::WalMissing(gap)));
}

#[test]
fn a_backup_that_never_became_consistent_is_made_again() {
    let label = OldDirectory { backup_label: true, ..directory(ClusterState::InProduction, 2, 6 * MIB, 6 * MIB, 0) };
    assert_eq!(way_of(&label), RefreshWay::Delta(DeltaReason::NeverConsistent));
    let mut begun = standby(2, 6 * MIB, 7 * MIB);
    begun.control.backup_start = Some(Lsn::new(6 * MIB));
    assert_eq!(way_of(&begun), RefreshWay::Delta(DeltaReason::NeverConsistent));
    assert_eq!(way_of(&standby(2, 6 * MIB, 0)), RefreshWay::Delta(DeltaReason::NeverConsistent));
}

#[test]
fn wal_that_the_branch_left_behind_is_named_and_what_is_nowhere_else_too() {
    let wal =
        vec![segment(1, 3), segment(1, 4), segment(1, 5), segment(1, 7), segment(1, 8), segment(2, 6), segment(3, 1)];
    let found =
        refresh(&OldDirectory { wal: wal.clone(), ..standby(1, 3 * MIB, 4 * MIB) }, &catalog(), tli(2)).unwrap();
    assert_eq!(found.stray, [segment(1, 5), segment(1, 7), segment(1, 8), segment(3, 1)]);
    // Of segment 8 the repository has the first half; how far a standby received is not known.
    assert_eq!(found.only_here, [segment(1, 8), segment(3, 1)]);
    // A primary that stopped cleanly wrote nothing behind its checkpoint.
    let stopped = |checkpoint: u64| {
        let wal = wal[..5].iter().filter(|name| name.number(size()).unwrap().start(size()).as_u64() <= checkpoint);
        OldDirectory { wal: wal.copied().collect(), ..primary(checkpoint) }
    };
    let only_here = |checkpoint| refresh(&stopped(checkpoint), &catalog(), tli(2)).unwrap().only_here;
    assert_eq!(only_here(8 * MIB + 100), []);
    assert_eq!(only_here(5 * MIB + 100), [], "nothing lies behind the switch point");
    assert_eq!(only_here(8 * MIB + MIB / 2 + 100), [segment(1, 8)]);
}

#[test]
fn what_is_no_old_member_of_the_cluster_is_refused() {
    let mut foreign = standby(1, 3 * MIB, 4 * MIB);
    foreign.control.system_identifier = SystemIdentifier::new(8);
    let refused = NoRefresh::Foreign { found: SystemIdentifier::new(8), stored: SYSTEM };
    assert_eq!(refresh(&foreign, &catalog(), tli(2)), Err(refused));
    let stopped = directory(ClusterState::ShutDown, 2, 7 * MIB, 7 * MIB, 0);
    assert_eq!(refresh(&stopped, &catalog(), tli(2)), Err(NoRefresh::IsPrimary(tli(2))));
    let signalled = OldDirectory { standby_signal: true, ..stopped };
    assert!(refresh(&signalled, &catalog(), tli(2)).is_ok(), "somebody has decided that it is a standby");
}
