use proptest::prelude::*;
use wal::{TimelineHistory, TimelineId};

use super::*;

const MB: u64 = 1 << 20;

fn branch(timeline: u32, history: &str, end: u64) -> Branch {
    let timeline = TimelineId::new(timeline).unwrap();
    Branch { history: TimelineHistory::parse(timeline, history.as_bytes()).unwrap(), end: Lsn::new(end) }
}

/// We hold 100 MB on timeline 2, which left timeline 1 at 50 MB, and stream.
fn ours() -> Ours {
    Ours { branch: branch(2, FORK, 100 * MB), segment_size: SegmentSize::new(16 << 20).unwrap(), streaming: true }
}

/// 50 MB.
const FORK: &str = "1\t0/3200000\tx\n";

fn standby(slot: Option<SeenSlot>) -> Seen {
    Seen { in_recovery: true, end: Lsn::new(1000 * MB), slot, is_source: false, left_for: Duration::ZERO, touch: false }
}

fn keeps(from: u64) -> Option<SeenSlot> {
    Some(SeenSlot { physical: true, active: false, lost: false, restart: Some(Lsn::new(from)) })
}

#[test]
fn every_case_has_one_answer() {
    let lost = Some(SeenSlot { lost: true, restart: None, ..keeps(0).unwrap() });
    let here = |end: u64| Some(branch(2, FORK, end));
    let left = Some(branch(1, "", 60 * MB));
    let primary = |slot| Seen { in_recovery: false, ..standby(slot) };
    let idle = Ours { streaming: false, ..ours() };
    let cases: &[(&str, Ours, Seen, Option<Branch>, Act)] = &[
        ("a standby without it", ours(), standby(None), None, Act::AskBranch),
        ("on our branch it is made", ours(), standby(None), here(90 * MB), Act::Create),
        ("also while nothing streams", idle.clone(), standby(None), here(90 * MB), Act::Create),
        ("a standby that lost it", ours(), standby(lost), None, Act::AskBranch),
        ("gets it anew", ours(), standby(lost), here(90 * MB), Act::Renew),
        ("no whole segment to free", ours(), standby(keeps(97 * MB)), None, Act::Leave(Why::UpToDate)),
        (
            "no segment to free, idle for long",
            ours(),
            Seen { touch: true, ..standby(keeps(97 * MB)) },
            None,
            Act::Touch(Lsn::new(97 * MB)),
        ),
        ("already ahead of us", ours(), standby(keeps(300 * MB)), None, Act::Leave(Why::UpToDate)),
        ("a segment to free", ours(), standby(keeps(70 * MB)), None, Act::AskBranch),
        ("up to what we hold", ours(), standby(keeps(70 * MB)), here(200 * MB), Act::Advance(Lsn::new(100 * MB))),
        ("up to what it has", ours(), standby(keeps(60 * MB)), here(90 * MB), Act::Advance(Lsn::new(90 * MB))),
        (
            "replay is delayed",
            ours(),
            Seen { end: Lsn::new(71 * MB), ..standby(keeps(70 * MB)) },
            None,
            Act::Leave(Why::UpToDate),
        ),
        (
            "up to what it has replayed",
            ours(),
            Seen { end: Lsn::new(85 * MB), ..standby(keeps(60 * MB)) },
            here(90 * MB),
            Act::Advance(Lsn::new(85 * MB)),
        ),
        ("it has too little", ours(), standby(keeps(81 * MB)), here(90 * MB), Act::Leave(Why::UpToDate)),
        (
            "a standby that has not reached the fork",
            ours(),
            standby(keeps(10 * MB)),
            Some(branch(1, "", 40 * MB)),
            Act::Advance(Lsn::new(40 * MB)),
        ),
        (
            "a primary that forked off behind our end",
            ours(),
            primary(keeps(40 * MB)),
            Some(branch(3, "1\t0/3200000\tx\n2\t0/5000000\ty\n", 200 * MB)),
            Act::Advance(Lsn::new(80 * MB)),
        ),
        ("a branch that was left, without it", ours(), standby(None), left.clone(), Act::Leave(Why::Left)),
        ("left lately", ours(), standby(keeps(40 * MB)), left.clone(), Act::Leave(Why::LeftLately)),
        ("left long ago", ours(), Seen { left_for: LEFT_FOR, ..standby(keeps(40 * MB)) }, left.clone(), Act::Drop),
        (
            "left long ago, and nothing to free",
            ours(),
            Seen { left_for: LEFT_FOR, ..standby(keeps(99 * MB)) },
            left.clone(),
            Act::Drop,
        ),
        (
            "rewound after it was left",
            ours(),
            Seen { left_for: LEFT_FOR, ..standby(keeps(99 * MB)) },
            here(100 * MB),
            Act::Leave(Why::UpToDate),
        ),
        ("the former primary is left too", ours(), primary(keeps(40 * MB)), left, Act::Leave(Why::LeftLately)),
        (
            "another branch of a higher number",
            ours(),
            primary(keeps(10 * MB)),
            Some(branch(3, "1\t0/100000\tx\n", 200 * MB)),
            Act::Leave(Why::OtherBranch),
        ),
        (
            "in use",
            ours(),
            standby(Some(SeenSlot { active: true, ..keeps(0).unwrap() })),
            here(90 * MB),
            Act::Leave(Why::InUse),
        ),
        (
            "a logical slot of our name",
            ours(),
            standby(Some(SeenSlot { physical: false, ..keeps(0).unwrap() })),
            here(90 * MB),
            Act::Leave(Why::NotOurs),
        ),
        (
            "the source's slot is gone",
            ours(),
            Seen { is_source: true, ..standby(None) },
            here(90 * MB),
            Act::Leave(Why::OfTheReceiver),
        ),
        (
            "the source's slot is lost",
            idle.clone(),
            Seen { is_source: true, ..primary(lost) },
            here(90 * MB),
            Act::Leave(Why::OfTheReceiver),
        ),
        (
            "a new primary that is not followed yet",
            idle.clone(),
            primary(None),
            here(90 * MB),
            Act::Leave(Why::OfTheReceiver),
        ),
        ("a primary while a standby is streamed from", ours(), primary(None), here(190 * MB), Act::Create),
        ("its slot is advanced", ours(), primary(keeps(50 * MB)), here(190 * MB), Act::Advance(Lsn::new(100 * MB))),
    ];
    for (name, ours, seen, branch, expected) in cases {
        assert_eq!(decide(ours, seen, branch.as_ref()), *expected, "{name}");
    }
}

/// Ancestries that fork from each other here and there.
fn any_branch() -> impl Strategy<Value = Branch> {
    let histories = prop::sample::select(vec![
        (1, ""),
        (2, "1\t0/3000000\tx\n"),
        (2, "1\t0/5000000\tx\n"),
        (3, "1\t0/3000000\tx\n"),
        (3, "1\t0/3000000\tx\n2\t0/6000000\ty\n"),
        (4, "1\t0/3000000\tx\n2\t0/6000000\ty\n3\t0/7000000\tz\n"),
    ]);
    (histories, 0u64..0xA00_0000).prop_map(|((timeline, history), end)| branch(timeline, history, end))
}

proptest! {
    #[test]
    fn a_slot_never_lets_go_of_wal_that_we_do_not_hold(
        ours in any_branch(), member in any_branch(), kept in 0u64..0xA00_0000, streaming: bool, in_recovery: bool,
    ) {
        let ours = Ours { branch: ours, segment_size: SegmentSize::new(1 << 20).unwrap(), streaming };
        let seen = Seen { in_recovery, ..standby(keeps(kept)) };
        if let Act::Advance(to) = decide(&ours, &seen, Some(&member)) {
            prop_assert!(to > Lsn::new(kept), "only forwards");
            prop_assert!(to <= ours.branch.end && to <= member.end);
            // Up to there the same timelines wrote the same bytes in both histories.
            let before = Lsn::new(to.as_u64() - 1);
            prop_assert_eq!(timeline_of(&ours.branch, before), timeline_of(&member, before));
        }
    }
}

fn timeline_of(branch: &Branch, lsn: Lsn) -> TimelineId {
    branch.history.timeline_at(lsn)
}
