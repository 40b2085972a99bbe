//! What holds of every choice, whatever the members are.

use proptest::prelude::*;

use super::*;

/// A tree of timelines: each but the first has a parent with a lower number and a position where it left it.
fn family() -> impl Strategy<Value = Vec<TimelineHistory>> {
    prop::collection::vec((any::<prop::sample::Index>(), 0..8_u64), 0..5).prop_map(|steps| {
        let mut all = vec![TimelineHistory::root(TimelineId::FIRST)];
        for (number, (parent, segments)) in steps.into_iter().enumerate() {
            let parent = parent.get(&all).clone();
            let began = parent.parent().map_or(0, |entry| entry.switch_point.as_u64());
            let entry = format!("{}\t{}\tx\n", parent.timeline(), Lsn::new(began + segments * SEG / 2));
            let timeline = tli(u32::try_from(number).unwrap() + 2);
            all.push(TimelineHistory::parse(timeline, (parent.to_text() + &entry).as_bytes()).unwrap());
        }
        all
    })
}

fn scene() -> impl Strategy<Value = (Vec<Option<Seen>>, Ours, Leaning)> {
    let member = (any::<bool>(), any::<bool>(), any::<prop::sample::Index>(), 0..20_u64);
    let leaning = (prop::option::of(0..4_usize), prop::option::of(0..4_usize), any::<bool>());
    (family(), prop::collection::vec(member, 1..4), any::<prop::sample::Index>(), 1..20_u64, leaning).prop_map(
        |(family, members, held, end, (loyal_to, leader, standby_will_do))| {
            let seen = |(there, in_recovery, timeline, end): (bool, bool, prop::sample::Index, u64)| {
                let position = ServerPosition { history: timeline.get(&family).clone(), end: Lsn::new(end * SEG / 2) };
                there.then_some(Seen { system_identifier: US, in_recovery, position })
            };
            let members = members.into_iter().map(seen).collect();
            let history = held.get(&family).clone();
            let end = Lsn::new(end * SEG / 2);
            let segment_start = SegmentNumber::containing(end, SIZE).start(SIZE);
            let held = Position { timeline: history.timeline(), end, segment_start };
            let ours = Ours { system_identifier: Some(US), held: Some(held), history, segment_size: SIZE };
            (members, ours, Leaning { loyal_to, last: None, leader, standby_will_do })
        },
    )
}

proptest! {
    #[test]
    fn whoever_is_followed_continues_what_we_hold((members, ours, leaning) in scene()) {
        let decision = decide(&members, &ours, leaning, Any);
        if let Choice::Primary(member) | Choice::Standby(member) = decision.choice {
            let seen = members[member].as_ref().unwrap();
            let held = ours.held.unwrap();
            let theirs = &seen.position.history;
            prop_assert!(theirs.timeline() >= held.timeline, "a lower timeline is never followed");
            prop_assert!(theirs.includes(held.timeline));
            prop_assert_eq!(seen.in_recovery, matches!(decision.choice, Choice::Standby(_)));
            prop_assert!(!decision.rivals.contains(&member));
        }
    }

    #[test]
    fn no_higher_primary_is_passed_over_without_a_reason((members, ours, leaning) in scene()) {
        let decision = decide(&members, &ours, Leaning { loyal_to: None, leader: None, ..leaning }, Any);
        let Choice::Primary(chosen) = decision.choice else { return Ok(()) };
        let chosen = &members[chosen].as_ref().unwrap().position.history;
        for (other, seen) in members.iter().enumerate() {
            let Some(seen) = seen.as_ref().filter(|seen| !seen.in_recovery) else { continue };
            if seen.position.history != *chosen {
                prop_assert!(decision.rivals.contains(&other));
            }
            let better = seen.position.history.timeline() > chosen.timeline() && seen.position.history.includes(chosen.timeline());
            let continues = standing(seen, &ours) == Standing::Continues;
            prop_assert!(!better || !continues || standing_of(&members, chosen, &ours) < Standing::Continues);
        }
    }

    #[test]
    fn the_order_in_the_conninfo_decides_nothing_but_ties((members, ours, leaning) in scene()) {
        let mut reversed = members.clone();
        reversed.reverse();
        let mirror = |member: usize| members.len().checked_sub(member + 1);
        let leaning = Leaning {
            loyal_to: leaning.loyal_to.filter(|&member| member < members.len()),
            leader: leaning.leader.filter(|&member| member < members.len()),
            ..leaning
        };
        let mirrored = Leaning {
            loyal_to: leaning.loyal_to.and_then(mirror),
            leader: leaning.leader.and_then(mirror),
            ..leaning
        };
        let one = decide(&members, &ours, leaning, Any).choice;
        let other = decide(&reversed, &ours, mirrored, Any).choice;
        let place = |choice: Choice, members: &[Option<Seen>]| match choice {
            Choice::Primary(member) => Some(("primary", members[member].clone().unwrap().position.history)),
            Choice::Standby(member) => Some(("standby", members[member].clone().unwrap().position.history)),
            Choice::Refused(_) | Choice::Nobody => None,
        };
        prop_assert_eq!(place(one, &members), place(other, &reversed));
    }
}

fn standing_of(members: &[Option<Seen>], history: &TimelineHistory, ours: &Ours) -> Standing {
    members
        .iter()
        .flatten()
        .filter(|seen| seen.position.history == *history)
        .map(|seen| standing(seen, ours))
        .max()
        .unwrap()
}
