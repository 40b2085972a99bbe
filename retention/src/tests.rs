mod properties;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use recovery::{
    Backup, BackupId, BackupKind, BackupStatus, Branch, Catalog, FileSource, LineageId, UnreadableBackup, live_timeline,
};
use wal::{Coverage, Lsn, PgTime, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId, WalRange};

use super::*;
use crate::decide::before as before_now;

const MIB: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn days(count: u32) -> Duration {
    DAY * count
}

/// Midnight of day `day`, counted from 2026-01-01, which is a Thursday.
fn at(day: f64) -> PgTime {
    let first: PgTime = "2026-01-01T00:00:00Z".parse().unwrap();
    PgTime::from_micros(first.as_micros() + (day * 86_400e6) as i64)
}

/// A clean backup of an hour on day `day`, from `mib` of WAL to half a MiB later.
fn backup(number: u16, timeline: u32, day: f64, mib: u64) -> Backup {
    Backup {
        id: BackupId::new(at(day), number),
        status: BackupStatus::Ok,
        kind: BackupKind::Full,
        source: FileSource::Stream,
        system_identifier: SystemIdentifier::new(7),
        postgres_version: 170_000,
        timeline: tli(timeline),
        start_lsn: Lsn::new(mib * MIB),
        stop_lsn: Lsn::new(mib * MIB + MIB / 2),
        started_at: at(day),
        stopped_at: at(day + 1.0 / 24.0),
        size_bytes: 1,
        stored_bytes: 1,
        new_bytes: 1,
        files: 1,
        tablespaces: Vec::new(),
        keep: false,
        damaged: false,
        annotations: BTreeMap::new(),
        server_settings: BTreeMap::new(),
    }
}

fn catalog(backups: Vec<Backup>, stored: &[(u32, u64, u64)], histories: &[(u32, &str)]) -> Catalog {
    let mut coverage = Coverage::new();
    for &(timeline, start, end) in stored {
        coverage.insert(WalRange { timeline: tli(timeline), start: Lsn::new(start * MIB), end: Lsn::new(end * MIB) });
    }
    let parse =
        |&(number, text): &(u32, &str)| (tli(number), TimelineHistory::parse(tli(number), text.as_bytes()).unwrap());
    Catalog {
        cluster: "main".to_owned(),
        lineage: LineageId { system_identifier: SystemIdentifier::new(7), number: 1 },
        segment_size: SegmentSize::new(MIB).unwrap(),
        backups,
        unreadable: Vec::new(),
        coverage,
        tails: Vec::new(),
        histories: histories.iter().map(parse).collect(),
        lost: Vec::new(),
    }
}

/// A backup every night at the start of days 0 to 9, 10 MiB of WAL a day, on one timeline.
fn ten_nights() -> Catalog {
    let backups = (0..10).map(|night| backup(night, 1, f64::from(night), 10 + 10 * u64::from(night))).collect();
    catalog(backups, &[(1, 0, 120)], &[])
}

/// Indexes of the backups that stay.
fn kept(catalog: &Catalog, policy: Policy, now: PgTime) -> Vec<usize> {
    decide(catalog, &policy, now)
        .iter()
        .enumerate()
        .filter(|(_, verdict)| verdict.keep)
        .map(|(index, _)| index)
        .collect()
}

fn change(mut catalog: Catalog, index: usize, change: impl FnOnce(&mut Backup)) -> Catalog {
    change(&mut catalog.backups[index]);
    catalog
}

#[test]
fn rules_keep_what_they_need() {
    let none = Policy::default();
    let window = |span| Policy { recovery_window: Some(span), ..none };
    let redundancy = |redundancy| Policy { redundancy, ..none };
    let cases: [(&str, Policy, &[usize]); 14] = [
        ("no rule", none, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (
            "wal window alone forgets no backup",
            Policy { wal_window: Some(days(1)), ..none },
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        ),
        ("redundancy 1", redundancy(1), &[9]),
        ("redundancy 3", redundancy(3), &[7, 8, 9]),
        ("redundancy above what there is", redundancy(99), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("the window keeps the backup that finished before it starts", window(days(3)), &[6, 7, 8, 9]),
        ("a window of nothing keeps the newest", window(Duration::ZERO), &[9]),
        ("a window longer than everything", window(days(400)), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("a window beyond all time", window(Duration::MAX), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("all rules must agree", Policy { redundancy: 2, ..window(days(3)) }, &[6, 7, 8, 9]),
        ("all rules must agree, the other way", Policy { redundancy: 6, ..window(days(3)) }, &[4, 5, 6, 7, 8, 9]),
        ("daily", Policy { keep_daily: 3, ..none }, &[7, 8, 9]),
        // Days 0 to 3 are in ISO week 1, 4 to 9 in week 2; all in January.
        ("weekly", Policy { keep_weekly: 4, ..none }, &[3, 9]),
        ("monthly, yearly", Policy { keep_monthly: 12, keep_yearly: 5, ..none }, &[9]),
    ];
    for (name, policy, expected) in cases {
        assert_eq!(kept(&ten_nights(), policy, at(9.5)), expected, "{name}");
    }
}

#[test]
fn the_window_is_anchored_by_the_end_of_a_backup_not_by_its_start() {
    let policy = Policy { recovery_window: Some(days(3)), ..Policy::default() };
    // The backup of day 6 runs from 0:00 to 1:00. At 0:30 three days later it had not finished when the window starts.
    assert_eq!(kept(&ten_nights(), policy, at(9.0 + 0.5 / 24.0)), [5, 6, 7, 8, 9]);
    assert_eq!(kept(&ten_nights(), policy, at(9.0 + 1.0 / 24.0)), [6, 7, 8, 9]);
}

#[test]
fn what_cannot_be_restored_cleanly_never_counts() {
    let policy = Policy { redundancy: 2, ..Policy::default() };
    let cases: [(&str, Catalog, &[usize]); 6] = [
        ("newest damaged", change(ten_nights(), 9, |b| b.damaged = true), &[7, 8, 9]),
        ("newest waits for WAL", change(ten_nights(), 9, |b| b.status = BackupStatus::WaitingForWal), &[7, 8, 9]),
        ("newest runs", change(ten_nights(), 9, |b| b.status = BackupStatus::Running), &[7, 8, 9]),
        ("second damaged", change(ten_nights(), 8, |b| b.damaged = true), &[7, 8, 9]),
        ("old damaged", change(ten_nights(), 3, |b| b.damaged = true), &[8, 9]),
        ("old failed", change(ten_nights(), 3, |b| b.status = BackupStatus::Failed), &[8, 9]),
    ];
    for (name, catalog, expected) in cases {
        assert_eq!(kept(&catalog, policy, at(9.5)), expected, "{name}");
    }
    let window = Policy { recovery_window: Some(days(3)), ..Policy::default() };
    let damaged_anchor = change(ten_nights(), 6, |b| b.damaged = true);
    assert_eq!(kept(&damaged_anchor, window, at(9.5)), [5, 6, 7, 8, 9], "a damaged backup is no anchor");
    let daily = Policy { keep_daily: 2, ..Policy::default() };
    let waiting = change(ten_nights(), 9, |b| b.status = BackupStatus::WaitingForWal);
    assert_eq!(kept(&waiting, daily, at(9.5)), [7, 8, 9], "a fresh backup waits for its WAL in peace");
}

#[test]
fn pinned_running_and_used_backups_stay() {
    let policy = Policy { redundancy: 1, ..Policy::default() };
    assert_eq!(kept(&change(ten_nights(), 2, |b| b.keep = true), policy, at(9.5)), [2, 9]);
    assert_eq!(kept(&change(ten_nights(), 2, |b| b.status = BackupStatus::Running), policy, at(9.5)), [2, 9]);
    let catalog = ten_nights();
    let mut verdicts = decide(&catalog, &policy, at(9.5));
    hold(&mut verdicts, &[catalog.backups[4].id.clone()]);
    assert!(verdicts[4].keep && verdicts[4].reasons == [Reason::InUse]);
}

#[test]
fn without_a_clean_backup_nothing_goes() {
    let mut catalog = ten_nights();
    for backup in &mut catalog.backups {
        backup.damaged = true;
    }
    let policy = Policy { redundancy: 1, recovery_window: Some(Duration::ZERO), ..Policy::default() };
    let verdicts = decide(&catalog, &policy, at(900.0));
    assert!(verdicts.iter().all(|verdict| verdict.keep));
    assert_eq!(plan(&catalog, &policy, &verdicts, at(900.0)), ExpirePlan::default());
    let empty = catalog_without_backups();
    assert_eq!(plan(&empty, &policy, &decide(&empty, &policy, at(900.0)), at(900.0)), ExpirePlan::default());
}

fn catalog_without_backups() -> Catalog {
    catalog(Vec::new(), &[(1, 0, 120)], &[])
}

#[test]
fn the_newest_clean_backup_stays_however_old_it_is() {
    let policy = Policy { recovery_window: Some(days(7)), ..Policy::default() };
    assert_eq!(kept(&ten_nights(), policy, at(4000.0)), [9]);
    let damaged = change(ten_nights(), 9, |b| b.damaged = true);
    assert_eq!(kept(&damaged, policy, at(4000.0)), [8, 9]);
}

#[test]
fn reasons_are_told_in_words() {
    let policy =
        Policy { redundancy: 2, recovery_window: Some(days(3)), keep_daily: 1, keep_weekly: 1, ..Policy::default() };
    let verdicts = decide(&ten_nights(), &policy, at(9.5));
    let words = |index: usize| verdicts[index].reasons.iter().map(Reason::to_string).collect::<Vec<_>>();
    assert_eq!(
        words(9),
        ["newest usable backup", "redundancy 2", "recovery window 3d", "daily 2026-01-10", "weekly 2026-W02"]
    );
    assert_eq!(words(8), ["redundancy 2", "recovery window 3d"]);
    assert_eq!(words(6), ["recovery window 3d"]);
    assert_eq!(
        words(0),
        [
            "2 newer usable backups",
            "before the recovery window 3d",
            "not the newest of a kept day, week, month or year"
        ]
    );
    let odd = Policy { recovery_window: Some(Duration::from_secs(90)), ..Policy::default() };
    assert!(decide(&ten_nights(), &odd, at(9.5))[9].reasons.contains(&Reason::RecoveryWindow(Duration::from_secs(90))));
    assert_eq!(Reason::RecoveryWindow(Duration::from_secs(36 * 3600)).to_string(), "recovery window 36h");
}

/// Timeline 1 with nights 0 to 4; after night 4 a recovery back to the middle of day 1 began timeline 2 at 35 MiB, with
/// nights 5 to 9.
fn recovered_back() -> Catalog {
    let mut backups: Vec<Backup> =
        (0..5).map(|night| backup(night, 1, f64::from(night), 10 + 10 * u64::from(night))).collect();
    backups.extend((5..10).map(|night| backup(night, 2, f64::from(night), 40 + 10 * u64::from(night - 5))));
    catalog(backups, &[(1, 0, 60), (2, 35, 100)], &[(2, "1\t0/2300000\twhy\n")])
}

#[test]
fn a_branch_that_was_left_is_kept_while_its_moments_are_in_the_window() {
    let policy = Policy { recovery_window: Some(days(3)), ..Policy::default() };
    // Day 5.5: the window starts on day 2.5. On the live branch night 2 (30 MiB, before the fork at 35) is the anchor; on
    // timeline 1 the nights 2, 3 and 4 reach moments in the window.
    let mut young = recovered_back();
    young.backups.truncate(6);
    assert_eq!(kept(&young, policy, at(5.5)), [2, 3, 4, 5]);
    // Day 9.5: the anchor of the live branch is night 6, on timeline 2: timeline 1 was left before the window.
    assert_eq!(kept(&recovered_back(), policy, at(9.5)), [6, 7, 8, 9]);
    let redundancy = Policy { redundancy: 2, ..Policy::default() };
    let mut just_recovered = recovered_back();
    just_recovered.backups.truncate(5);
    assert_eq!(kept(&just_recovered, redundancy, at(4.5)), [1, 2, 3, 4], "two on the live branch and two by the clock");
}

#[test]
fn wal_goes_up_to_the_oldest_kept_backup() {
    let policy = Policy { redundancy: 2, ..Policy::default() };
    let catalog = ten_nights();
    let plan = plan(&catalog, &policy, &decide(&catalog, &policy, at(9.5)), at(9.5));
    assert_eq!(plan.backups, catalog.backups[..8].iter().map(|b| b.id.clone()).collect::<Vec<_>>());
    assert_eq!(plan.wal, [WalRange { timeline: tli(1), start: Lsn::new(0), end: Lsn::new(90 * MIB) }]);
    assert_eq!(plan.wal_keep_from, [WalKeepFrom { timeline: tli(1), lsn: Lsn::new(90 * MIB) }]);
}

#[test]
fn a_shorter_wal_window_leaves_older_backups_their_own_wal() {
    let policy = Policy { redundancy: 9, wal_window: Some(days(2)), ..Policy::default() };
    let catalog = ten_nights();
    let plan = plan(&catalog, &policy, &decide(&catalog, &policy, at(9.5)), at(9.5));
    let free: Vec<(u64, u64)> = plan.wal.iter().map(|r| (r.start.as_u64() / MIB, r.end.as_u64() / MIB)).collect();
    assert_eq!(free, [(0, 20), (21, 30), (31, 40), (41, 50), (51, 60), (61, 70), (71, 80)]);
    assert_eq!(plan.wal_keep_from, [WalKeepFrom { timeline: tli(1), lsn: Lsn::new(80 * MIB) }]);
    let promised = Policy { recovery_window: Some(days(4)), ..policy };
    let kept_by_window = super::plan(&catalog, &promised, &decide(&catalog, &promised, at(9.5)), at(9.5));
    assert_eq!(kept_by_window.wal_keep_from[0].lsn, Lsn::new(60 * MIB), "the recovery window is a promise");
}

#[test]
fn wal_of_a_timeline_that_was_left_goes_with_its_last_backup() {
    let policy = Policy { redundancy: 2, ..Policy::default() };
    let catalog = recovered_back();
    let plan = plan(&catalog, &policy, &decide(&catalog, &policy, at(9.5)), at(9.5));
    let free: Vec<(u32, u64, u64)> =
        plan.wal.iter().map(|r| (r.timeline.get(), r.start.as_u64() / MIB, r.end.as_u64() / MIB)).collect();
    assert_eq!(free, [(1, 0, 60), (2, 35, 70)]);
    assert_eq!(plan.wal_keep_from, [WalKeepFrom { timeline: tli(2), lsn: Lsn::new(70 * MIB) }]);
}

#[test]
fn wal_of_a_timeline_whose_history_is_missing_stays() {
    let mut catalog = ten_nights();
    catalog.coverage.insert(WalRange { timeline: tli(4), start: Lsn::new(50 * MIB), end: Lsn::new(60 * MIB) });
    let policy = Policy { redundancy: 1, keep_daily: 2, ..Policy::default() };
    let verdicts = decide(&catalog, &policy, at(9.5));
    assert!(verdicts[8].keep && verdicts[9].keep, "a timeline that we do not understand takes nothing away");
    let plan = plan(&catalog, &policy, &verdicts, at(9.5));
    assert!(plan.wal.iter().all(|range| range.timeline == tli(1)));
}

#[test]
fn the_parent_s_copy_of_the_segment_of_a_switch_stays() {
    let backups = vec![backup(0, 1, 0.0, 10)];
    let catalog = catalog(backups, &[(1, 0, 36), (2, 36, 50)], &[(2, "1\t0/2380000\twhy\n")]);
    let policy = Policy { redundancy: 1, ..Policy::default() };
    let plan = plan(&catalog, &policy, &decide(&catalog, &policy, at(1.0)), at(1.0));
    assert_eq!(plan.wal, [WalRange { timeline: tli(1), start: Lsn::new(0), end: Lsn::new(10 * MIB) }]);
}

#[test]
fn while_a_manifest_cannot_be_read_nothing_is_free() {
    let policy = Policy { redundancy: 2, recovery_window: Some(days(1)), ..Policy::default() };
    let mut catalog = ten_nights();
    let planned = |catalog: &Catalog| plan(catalog, &policy, &decide(catalog, &policy, at(9.5)), at(9.5));
    assert!(!planned(&catalog).backups.is_empty() && !planned(&catalog).wal.is_empty());
    let id = "20261119T020512-3f2a".parse().unwrap();
    catalog.unreadable.push(UnreadableBackup { id, keep: false, reason: "damaged".to_owned() });
    assert_eq!(planned(&catalog), ExpirePlan::default());
}

#[test]
fn by_hand_anything_goes_but_what_is_pinned_and_the_last_clean_one() {
    let may = |catalog: &Catalog, index: usize| may_delete(catalog, &catalog.backups[index].id.clone(), |_| true);
    let catalog = ten_nights();
    assert!((0..10).all(|index| may(&catalog, index).is_ok()), "the newest, too");
    assert_eq!(may(&change(ten_nights(), 3, |backup| backup.keep = true), 3), Err(DeleteRefused::Pinned));
    let mut hurt = ten_nights();
    for (index, backup) in hurt.backups.iter_mut().enumerate().filter(|(index, _)| *index != 4) {
        (backup.damaged, backup.status) =
            (index % 2 == 0, if index % 2 == 0 { BackupStatus::Ok } else { BackupStatus::WaitingForWal });
    }
    assert_eq!(may(&hurt, 4), Err(DeleteRefused::LastClean));
    assert!(may(&hurt, 5).is_ok() && may(&hurt, 6).is_ok(), "a clean one stays");
    let without = may_delete(&hurt, &hurt.backups[5].id, |id| *id != hurt.backups[4].id);
    assert_eq!(without, Err(DeleteRefused::LastClean), "what the one that stays is made of is gone");
    hurt.backups[4].damaged = true;
    assert!((0..10).all(|index| may(&hurt, index) == Err(DeleteRefused::LastClean)), "it may be all that can be saved");

    let unreadable = |keep| {
        let id: BackupId = "20261119T020512-3f2a".parse().unwrap();
        let mut catalog = ten_nights();
        catalog.unreadable.push(UnreadableBackup { id: id.clone(), keep, reason: "damaged".to_owned() });
        may_delete(&catalog, &id, |_| true)
    };
    assert_eq!((unreadable(false), unreadable(true)), (Ok(()), Err(DeleteRefused::Pinned)));
}

#[test]
fn what_only_one_backup_leads_to_is_told() {
    let lost = |catalog: &Catalog, index: usize| lost_without(catalog, &catalog.backups[index].id);
    let catalog = ten_nights();
    let stop = |index: usize| catalog.backups[index].stop_lsn;
    let first = LostMoments { timeline: tli(1), from_lsn: stop(0), to_lsn: stop(1) };
    assert_eq!(lost(&catalog, 0), [first]);
    assert_eq!(lost(&catalog, 5), [], "the one before it leads there");
    // Between two gaps it is the only one.
    let mut holed = catalog.clone();
    holed.coverage = Coverage::new();
    for (from, to) in [(0, 55), (59, 65), (69, 120)] {
        let (start, end) = (Lsn::new(from * MIB), Lsn::new(to * MIB));
        holed.coverage.insert(WalRange { timeline: tli(1), start, end });
    }
    assert_eq!(lost(&holed, 5), [LostMoments { timeline: tli(1), from_lsn: stop(5), to_lsn: Lsn::new(65 * MIB) }]);
}
