//! What holds of every plan, whatever the past and the policy are.

use proptest::prelude::*;

use super::*;

/// What the catalog is after the plan was applied.
fn applied(catalog: &Catalog, plan: &ExpirePlan) -> Catalog {
    let mut after = catalog.clone();
    after.backups.retain(|backup| !plan.backups.contains(&backup.id));
    after.coverage = Coverage::new();
    for timeline in catalog.coverage.timelines() {
        let gone = |mib: u64| {
            let lsn = Lsn::new(mib * MIB);
            plan.wal.iter().any(|range| range.timeline == timeline && range.start <= lsn && lsn < range.end)
        };
        for range in catalog.coverage.ranges(timeline) {
            for mib in (range.start.as_u64() / MIB..range.end.as_u64() / MIB).filter(|&mib| !gone(mib)) {
                let (start, end) = (Lsn::new(mib * MIB), Lsn::new((mib + 1) * MIB));
                after.coverage.insert(WalRange { timeline, start, end });
            }
        }
    }
    after
}

fn policies() -> impl Strategy<Value = Policy> {
    let span = || prop::option::of((0..12_u32).prop_map(days));
    (span(), 0..5_u32, 0..4_u32, 0..3_u32, 0..3_u32, span()).prop_map(
        |(recovery_window, redundancy, keep_daily, keep_weekly, keep_monthly, wal_window)| Policy {
            recovery_window,
            redundancy,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly: 0,
            wal_window,
        },
    )
}

/// A past on up to three timelines, with damage, holes and backups that are not usable.
fn catalogs() -> impl Strategy<Value = Catalog> {
    let night = (0..12_u8, 0..40_u32, any::<bool>());
    (prop::collection::vec(night, 1..12), prop::collection::vec(0..140_u64, 0..3), 20..120_u64, 10..130_u64).prop_map(
        |(nights, holes, fork, second_fork)| {
            let fork_text = format!("1\t0/{:X}\n", fork * MIB + 17);
            let second_text = format!("{fork_text}2\t0/{:X}\n", second_fork * MIB + 17);
            let mut catalog = catalog(
                Vec::new(),
                &[(1, 0, fork + 9), (2, fork, second_fork.max(fork) + 5), (3, second_fork, 150)],
                &[(2, &fork_text), (3, &second_text)],
            );
            let mut thinned = Coverage::new();
            for timeline in (1..=3).map(tli) {
                for range in catalog.coverage.ranges(timeline) {
                    for mib in range.start.as_u64() / MIB..range.end.as_u64() / MIB {
                        let (start, end) = (Lsn::new(mib * MIB), Lsn::new((mib + 1) * MIB));
                        if !holes.contains(&mib) {
                            thinned.insert(WalRange { timeline, start, end });
                        }
                    }
                }
            }
            catalog.coverage = thinned;
            for (number, (state, timeline, keep)) in nights.into_iter().enumerate() {
                let number = u16::try_from(number).unwrap();
                let mut taken = backup(number, 1 + timeline % 3, f64::from(number), 11 * u64::from(number));
                taken.damaged = state == 0;
                taken.keep = keep && state == 1;
                taken.status = match state {
                    2 => BackupStatus::Running,
                    3 => BackupStatus::Failed,
                    _ if catalog.missing_wal_of(&taken).is_some() => BackupStatus::WaitingForWal,
                    _ => BackupStatus::Ok,
                };
                catalog.backups.push(taken);
            }
            catalog
        },
    )
}

fn is_clean(backup: &Backup) -> bool {
    backup.status == BackupStatus::Ok && !backup.damaged
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_kept_can_still_be_restored(catalog in catalogs(), policy in policies(), now in 0..30_u32) {
        let now = at(f64::from(now));
        let verdicts = decide(&catalog, &policy, now);
        let plan = plan(&catalog, &policy, &verdicts, now);
        let after = applied(&catalog, &plan);
        for backup in after.backups.iter().filter(|backup| backup.status == BackupStatus::Ok) {
            prop_assert_eq!(after.missing_wal_of(backup), None, "{:?}", backup.id);
        }
        if catalog.backups.iter().any(is_clean) {
            prop_assert!(after.backups.iter().any(is_clean), "the last clean backup is gone");
        }
        prop_assert!(catalog.backups.iter().filter(|b| b.keep || b.status == BackupStatus::Running).all(|b| after.backups.contains(b)));
    }

    #[test]
    fn kept_backups_reach_as_far_as_before(catalog in catalogs(), policy in policies(), now in 0..30_u32) {
        let now = at(f64::from(now));
        let policy = Policy { wal_window: None, ..policy };
        let plan = plan(&catalog, &policy, &decide(&catalog, &policy, now), now);
        let after = applied(&catalog, &plan);
        for timeline in catalog.timelines() {
            let (before, later) = (Branch::new(&catalog, timeline), Branch::new(&after, timeline));
            for backup in after.backups.iter().filter(|b| b.status == BackupStatus::Ok && before.holds(b)) {
                prop_assert_eq!(before.reachable_end(backup.start_lsn), later.reachable_end(backup.start_lsn));
            }
        }
    }

    #[test]
    fn every_position_of_the_window_stays_recoverable(catalog in catalogs(), policy in policies(), now in 0..30_u32) {
        let now = at(f64::from(now));
        let window = policy.recovery_window.unwrap_or(days(3));
        let policy = Policy { recovery_window: Some(window), ..policy };
        let plan = plan(&catalog, &policy, &decide(&catalog, &policy, now), now);
        let after = applied(&catalog, &plan);
        let live = live_timeline(&catalog).unwrap();
        let (before, later) = (Branch::new(&catalog, live), Branch::new(&after, live));
        let start = before_now(now, window);
        // What was done by the time the window starts: the newest backup that had finished. From its end on all stays.
        let finished = catalog.backups.iter().filter(|b| is_clean(b) && before.holds(b) && b.stopped_at <= start);
        let from = finished.map(|backup| backup.stop_lsn).max().unwrap_or(Lsn::INVALID);
        for mib in from.as_u64() / MIB..150 {
            let lsn = Lsn::new(mib * MIB + MIB / 2).max(from);
            prop_assert_eq!(is_recoverable(&before, lsn), is_recoverable(&later, lsn), "at {}", lsn);
        }
    }

    #[test]
    fn a_further_rule_never_takes_away(catalog in catalogs(), policy in policies(), more in policies(), now in 0..30_u32) {
        let now = at(f64::from(now));
        prop_assume!(policy.forgets_backups());
        let both = Policy {
            recovery_window: policy.recovery_window.max(more.recovery_window),
            redundancy: policy.redundancy.max(more.redundancy),
            keep_daily: policy.keep_daily.max(more.keep_daily),
            keep_weekly: policy.keep_weekly.max(more.keep_weekly),
            keep_monthly: policy.keep_monthly.max(more.keep_monthly),
            keep_yearly: policy.keep_yearly.max(more.keep_yearly),
            wal_window: policy.wal_window,
        };
        let few: BTreeSet<usize> = kept(&catalog, policy, now).into_iter().collect();
        let many: BTreeSet<usize> = kept(&catalog, both, now).into_iter().collect();
        prop_assert!(few.is_subset(&many), "{:?} {:?}", few, many);
    }

    #[test]
    fn applying_twice_takes_nothing_more(catalog in catalogs(), policy in policies(), now in 0..30_u32) {
        let now = at(f64::from(now));
        let first = plan(&catalog, &policy, &decide(&catalog, &policy, now), now);
        let after = applied(&catalog, &first);
        let second = plan(&after, &policy, &decide(&after, &policy, now), now);
        prop_assert_eq!((second.backups, second.wal), (Vec::new(), Vec::new()));
    }

    #[test]
    fn every_verdict_has_a_reason(catalog in catalogs(), policy in policies(), now in 0..30_u32) {
        let verdicts = decide(&catalog, &policy, at(f64::from(now)));
        prop_assert_eq!(verdicts.len(), catalog.backups.len());
        prop_assert!(verdicts.iter().all(|verdict| !verdict.reasons.is_empty()));
    }
}

/// Whether some clean backup of the branch can be replayed to `lsn`.
fn is_recoverable(branch: &Branch<'_>, lsn: Lsn) -> bool {
    branch.stretches().iter().any(|stretch| {
        lsn < stretch.end && stretch.backups.iter().any(|backup| is_clean(backup) && backup.stop_lsn <= lsn)
    })
}
