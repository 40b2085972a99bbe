//! A model: bytes are written and synced on a disk that remembers what a power loss would leave.

use proptest::prelude::*;

use super::*;

const SEGMENT: u64 = 100;

/// A disk that loses what was not synced.
#[derive(Debug, Default)]
struct FakeDisk {
    written: u64,
    synced: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64),
    Want,
    Begin,
    End,
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..250).prop_map(Step::Write),
        2 => Just(Step::Want),
        4 => Just(Step::Begin),
        4 => Just(Step::End),
        1 => Just(Step::Fail),
    ]
}

proptest! {
    #[test]
    fn durable_is_never_ahead_of_the_disk_and_reaches_what_is_wanted(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let mut disk = FakeDisk::default();
        let mut commit: GroupCommit<u64> = GroupCommit::new(Lsn::new(0));
        // What the sync in flight will have made durable: what was written when it began.
        let mut running: Option<(SyncJob<u64, ()>, u64)> = None;
        let mut broken = false;
        for step in steps {
            match step {
                Step::Write(count) => {
                    for _ in 0..count {
                        disk.written += 1;
                        if disk.written % SEGMENT == 0 {
                            commit.segment_complete(disk.written, Lsn::new(disk.written));
                        }
                    }
                    commit.written(Lsn::new(disk.written));
                }
                Step::Want => commit.want(),
                Step::Begin => {
                    let open = (disk.written % SEGMENT != 0).then_some(((), Lsn::new(disk.written)));
                    if let Some(job) = commit.next_job(|| open) {
                        prop_assert!(running.is_none(), "two syncs in flight");
                        prop_assert!(!broken, "a sync after a failed one");
                        prop_assert!(job.complete.is_sorted());
                        // A job never promises more than was written when it was made.
                        prop_assert!(job.end.as_u64() <= disk.written);
                        let covers = job.open.map_or(job.complete.last().copied().unwrap_or(0), |()| disk.written);
                        prop_assert_eq!(job.end.as_u64(), covers);
                        running = Some((job, covers));
                    }
                }
                Step::End => if let Some((job, covers)) = running.take() {
                    disk.synced = disk.synced.max(covers);
                    commit.succeeded(job.end);
                },
                Step::Fail => if running.take().is_some() {
                    commit.failed();
                    broken = true;
                },
            }
            prop_assert!(commit.durable().as_u64() <= disk.synced, "reported {} of {}", commit.durable(), disk.synced);
            prop_assert!(commit.durable() <= commit.received());
        }
        if !broken {
            if let Some((job, covers)) = running.take() {
                disk.synced = disk.synced.max(covers);
                commit.succeeded(job.end);
            }
            commit.want();
            let open = (disk.written % SEGMENT != 0).then_some(((), Lsn::new(disk.written)));
            while let Some(job) = commit.next_job(|| open) {
                disk.synced = disk.synced.max(job.end.as_u64());
                commit.succeeded(job.end);
                commit.want();
            }
            prop_assert!(commit.is_clean());
            prop_assert_eq!(commit.durable().as_u64(), disk.written);
        }
    }
}

#[test]
fn what_arrives_during_a_sync_is_not_part_of_it() {
    let mut commit: GroupCommit<()> = GroupCommit::new(Lsn::new(0));
    commit.written(Lsn::new(10));
    commit.want();
    let job = commit.next_job(|| Some(((), Lsn::new(10)))).unwrap();
    commit.written(Lsn::new(30));
    commit.want();
    assert!(commit.next_job(|| Some(((), Lsn::new(30)))).is_none(), "one at a time");
    commit.succeeded(job.end);
    assert_eq!(commit.durable(), Lsn::new(10));
    let job = commit.next_job(|| Some(((), Lsn::new(30)))).unwrap();
    commit.succeeded(job.end);
    assert_eq!(commit.durable(), Lsn::new(30));
}

#[test]
fn after_a_failed_sync_nothing_is_synced_or_reported() {
    let mut commit: GroupCommit<()> = GroupCommit::new(Lsn::new(0));
    commit.written(Lsn::new(10));
    commit.want();
    commit.next_job(|| Some(((), Lsn::new(10)))).unwrap();
    commit.failed();
    commit.want();
    assert!(commit.next_job(|| Some(((), Lsn::new(10)))).is_none());
    assert_eq!(commit.durable(), Lsn::new(0));
}
