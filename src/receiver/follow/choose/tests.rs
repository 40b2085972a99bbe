mod properties;

use wal::{Lsn, SegmentNumber, TimelineId};

use super::*;
use crate::primary::TargetSessionAttrs::{Any, PreferStandby, Primary, ReadWrite, Standby};
use crate::receiver::follow::twins::Apart;

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const SEG: u64 = 16 << 20;
const US: SystemIdentifier = SystemIdentifier::new(7);

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn history(timeline: u32, entries: &[(u32, u64)]) -> TimelineHistory {
    let text: String = entries.iter().map(|&(parent, at)| format!("{parent}\t{}\tbecause\n", Lsn::new(at))).collect();
    TimelineHistory::parse(tli(timeline), text.as_bytes()).unwrap()
}

fn ours(timeline: u32, entries: &[(u32, u64)], end: u64) -> Ours {
    let end = Lsn::new(end);
    let segment_start = SegmentNumber::containing(end, SIZE).start(SIZE);
    Ours {
        system_identifier: Some(US),
        held: Some(Position { timeline: tli(timeline), end, segment_start }),
        history: history(timeline, entries),
        segment_size: SIZE,
    }
}

fn seen(in_recovery: bool, timeline: u32, entries: &[(u32, u64)], end: u64) -> Option<Seen> {
    let position = ServerPosition { history: history(timeline, entries), end: Lsn::new(end) };
    Some(Seen { system_identifier: US, in_recovery, position })
}

fn writes(timeline: u32, entries: &[(u32, u64)], end: u64) -> Option<Seen> {
    seen(false, timeline, entries, end)
}

fn follows(timeline: u32, entries: &[(u32, u64)], end: u64) -> Option<Seen> {
    seen(true, timeline, entries, end)
}

fn decide(members: &[Option<Seen>], ours: &Ours, leaning: Leaning, wanted: TargetSessionAttrs) -> Decision {
    let members: Vec<Option<&Seen>> = members.iter().map(Option::as_ref).collect();
    choose(&members, ours, leaning, &Apart::default(), wanted)
}

const PATIENT: Leaning = Leaning { loyal_to: None, last: None, leader: None, standby_will_do: true };

fn loyal_to(member: usize) -> Leaning {
    Leaning { loyal_to: Some(member), ..PATIENT }
}

fn led_by(member: usize) -> Leaning {
    Leaning { leader: Some(member), ..PATIENT }
}

/// Name, members, what is held, leaning, and then the choice and the rivals.
type Case<'a> = (&'static str, Vec<Option<Seen>>, &'a Ours, Leaning, Choice, Vec<usize>);

#[test]
fn who_is_streamed_from_and_who_is_a_rival() {
    use Choice::{Nobody, Primary as From, Refused, Standby as FromStandby};
    let on_1 = ours(1, &[], 5 * SEG + 100);
    let on_2 = ours(2, &[(1, 5 * SEG)], 6 * SEG + 100);
    let now = 9 * SEG;
    let root: &[(u32, u64)] = &[];
    let two: &[(u32, u64)] = &[(1, 5 * SEG)];
    let cases: Vec<Case<'_>> = vec![
        (
            "the primary among standbys",
            vec![follows(1, root, now), writes(1, root, now)],
            &on_1,
            PATIENT,
            From(1),
            vec![],
        ),
        ("a silent member", vec![None, writes(1, root, now)], &on_1, PATIENT, From(1), vec![]),
        ("all silent", vec![None, None], &on_1, PATIENT, Nobody, vec![]),
        ("a new primary", vec![None, writes(2, two, now)], &on_1, PATIENT, From(1), vec![]),
        ("behind what we hold", vec![None, writes(2, &[(1, 4 * SEG)], 4 * SEG + 9)], &on_1, PATIENT, From(1), vec![]),
        ("numbers are skipped", vec![None, writes(3, two, now)], &on_1, PATIENT, From(1), vec![]),
        (
            "two promotions later",
            vec![None, writes(0x11, &[(1, 5 * SEG), (9, 7 * SEG)], now)],
            &on_1,
            PATIENT,
            From(1),
            vec![],
        ),
        ("a former primary is back", vec![writes(1, root, now), writes(2, two, now)], &on_2, PATIENT, From(1), vec![0]),
        ("the former primary alone", vec![writes(1, root, now), None], &on_2, PATIENT, Refused(0), vec![0]),
        (
            "the former primary, and a standby",
            vec![writes(1, root, now), follows(2, two, now)],
            &on_2,
            PATIENT,
            FromStandby(1),
            vec![0],
        ),
        (
            "a former primary as standby",
            vec![follows(1, root, now), writes(2, two, now)],
            &on_2,
            PATIENT,
            From(1),
            vec![],
        ),
        ("two, while we choose", vec![writes(1, root, now), writes(2, two, now)], &on_1, PATIENT, From(1), vec![0]),
        ("a second beside ours", vec![writes(1, root, now), writes(2, two, now)], &on_1, loyal_to(0), From(0), vec![1]),
        ("ours is gone", vec![None, writes(2, two, now)], &on_1, loyal_to(0), From(1), vec![]),
        (
            "ours is a standby now",
            vec![follows(1, root, now), writes(2, two, now)],
            &on_1,
            loyal_to(0),
            From(1),
            vec![],
        ),
        (
            "a witness decides for the new one",
            vec![writes(1, root, now), writes(2, two, now)],
            &on_1,
            Leaning { leader: Some(1), ..loyal_to(0) },
            From(1),
            vec![0],
        ),
        (
            "a witness decides for the old one",
            vec![writes(1, root, now), writes(2, two, now)],
            &on_1,
            led_by(0),
            From(0),
            vec![1],
        ),
        ("a witness cannot undo", vec![writes(1, root, now), writes(2, two, now)], &on_2, led_by(0), From(1), vec![0]),
        (
            "a witness names a standby",
            vec![writes(1, root, now), follows(1, root, now)],
            &on_1,
            led_by(1),
            From(0),
            vec![],
        ),
        (
            "the same number twice, from ours",
            vec![writes(2, two, now), writes(2, &[(1, 6 * SEG)], now)],
            &on_1,
            PATIENT,
            Nobody,
            vec![0, 1],
        ),
        (
            "and ours is there",
            vec![writes(2, two, now), writes(2, &[(1, 6 * SEG)], now), writes(1, root, now)],
            &on_1,
            PATIENT,
            From(2),
            vec![0, 1],
        ),
        (
            "and a witness",
            vec![writes(2, two, now), writes(2, &[(1, 6 * SEG)], now)],
            &on_1,
            led_by(1),
            From(1),
            vec![0],
        ),
        (
            "our number with another history",
            vec![writes(2, &[(1, 4 * SEG)], now), None],
            &on_2,
            PATIENT,
            Refused(0),
            vec![0],
        ),
        (
            "another branch, higher",
            vec![writes(3, &[(1, 4 * SEG)], now), writes(2, two, now)],
            &on_2,
            PATIENT,
            From(1),
            vec![0],
        ),
        (
            "two branches of ours",
            vec![writes(3, &[(1, 6 * SEG)], now), writes(2, two, now)],
            &on_1,
            PATIENT,
            From(0),
            vec![1],
        ),
        (
            "listed by two names",
            vec![writes(1, root, now), writes(1, root, now + 8)],
            &on_1,
            loyal_to(1),
            From(1),
            vec![],
        ),
        (
            "no primary: the furthest standby",
            vec![follows(1, root, 7 * SEG), follows(1, root, now)],
            &on_1,
            PATIENT,
            FromStandby(1),
            vec![],
        ),
        (
            "no primary: a standby that knows of a promotion",
            vec![follows(1, root, now), follows(2, two, 6 * SEG)],
            &on_1,
            PATIENT,
            FromStandby(1),
            vec![],
        ),
        (
            "no primary: behind us is better than nothing",
            vec![None, follows(1, root, 4 * SEG)],
            &on_1,
            PATIENT,
            FromStandby(1),
            vec![],
        ),
        (
            "no primary: ours is kept",
            vec![follows(1, root, now), follows(1, root, now + 9)],
            &on_1,
            loyal_to(0),
            FromStandby(0),
            vec![],
        ),
        (
            "no primary: ours is left far behind",
            vec![follows(1, root, now), follows(1, root, now + SEG + 9)],
            &on_1,
            loyal_to(0),
            FromStandby(1),
            vec![],
        ),
        ("no primary: not at once", vec![follows(1, root, now), None], &on_1, Leaning::default(), Nobody, vec![]),
        (
            "rolled back, and a good one",
            vec![writes(1, root, 4 * SEG), writes(2, two, now)],
            &on_1,
            loyal_to(0),
            From(1),
            vec![0],
        ),
        ("rolled back, alone", vec![writes(1, root, 4 * SEG), None], &on_1, PATIENT, From(0), vec![]),
    ];
    for (name, members, ours, leaning, choice, rivals) in cases {
        let decision = decide(&members, ours, leaning, Any);
        assert_eq!((decision.choice, decision.rivals, decision.strangers), (choice, rivals, vec![]), "{name}");
    }
}

#[test]
fn two_servers_that_tell_the_same_of_themselves_are_rivals() {
    use Choice::{Nobody, Primary as From};
    let on_1 = ours(1, &[], 5 * SEG + 100);
    let on_2 = ours(2, &[(1, 5 * SEG)], 6 * SEG + 100);
    let now = 9 * SEG;
    let last = |member| Leaning { last: Some(member), ..PATIENT };
    let copies = vec![writes(1, &[], now), None, writes(1, &[], now)];
    let promoted = vec![writes(2, &[(1, 5 * SEG)], now), None, writes(2, &[(1, 5 * SEG)], now)];
    let and_ours = [promoted.clone(), vec![writes(1, &[], now)]].concat();
    let cases = [
        ("a copied volume", &copies, &on_1, PATIENT, Nobody, vec![0, 2]),
        ("and we streamed from one", &copies, &on_1, last(2), From(2), vec![0]),
        ("and stay with one", &copies, &on_1, loyal_to(0), From(0), vec![2]),
        ("and a witness", &copies, &on_1, Leaning { leader: Some(2), ..last(0) }, From(2), vec![0]),
        ("promoted at one position", &promoted, &on_1, PATIENT, Nobody, vec![0, 2]),
        ("and followed", &promoted, &on_2, last(0), From(0), vec![2]),
        ("and ours is still there", &and_ours, &on_1, PATIENT, From(3), vec![0, 2]),
    ];
    for (name, members, ours, leaning, choice, rivals) in cases {
        let members: Vec<Option<&Seen>> = members.iter().map(Option::as_ref).collect();
        let two = Apart { pairs: vec![(0, 2)] };
        let decision = choose(&members, ours, leaning, &two, Any);
        assert_eq!((decision.choice, decision.rivals), (choice, rivals), "{name}");
        let decision = choose(&members, ours, leaning, &Apart::default(), Any);
        assert!(matches!(decision.choice, From(_)), "{name}: one server by two names");
    }
}

#[test]
fn a_member_of_another_cluster_is_named_and_never_followed() {
    let mut other = writes(9, &[(1, SEG)], 99 * SEG);
    other.as_mut().unwrap().system_identifier = SystemIdentifier::new(8);
    let ours = ours(1, &[], 5 * SEG);
    let decision = decide(&[other.clone(), writes(1, &[], 6 * SEG)], &ours, led_by(0), Any);
    assert_eq!((decision.choice, decision.rivals, decision.strangers), (Choice::Primary(1), vec![], vec![0]));
    assert_eq!(decide(&[other, None], &ours, PATIENT, Any).choice, Choice::Refused(0));
}

#[test]
fn target_session_attrs_limits_the_choice() {
    let ours = ours(1, &[], 5 * SEG);
    let both = [writes(1, &[], 6 * SEG), follows(1, &[], 6 * SEG)];
    let only_standby = [None, follows(1, &[], 6 * SEG)];
    let only_primary = [writes(1, &[], 6 * SEG), None];
    let cases = [
        (&both, ReadWrite, Choice::Primary(0)),
        (&both, Primary, Choice::Primary(0)),
        (&both, Standby, Choice::Standby(1)),
        (&both, PreferStandby, Choice::Standby(1)),
        (&only_standby, Primary, Choice::Nobody),
        (&only_standby, ReadWrite, Choice::Nobody),
        (&only_primary, Standby, Choice::Nobody),
        (&only_primary, PreferStandby, Choice::Primary(0)),
    ];
    for (members, wanted, choice) in cases {
        let decision = decide(members, &ours, PATIENT, wanted);
        assert_eq!((decision.choice, decision.rivals), (choice, vec![]), "{wanted} of {members:?}");
    }
}

#[test]
fn a_primary_that_streams_and_is_too_full_to_be_asked_is_not_left() {
    let decision = |choice| Decision { choice, rivals: vec![], strangers: vec![] };
    let stays = |choice| decision(choice).staying_with(0);
    assert_eq!(stays(Choice::Standby(1)), decision(Choice::Primary(0)));
    assert_eq!(stays(Choice::Nobody), decision(Choice::Primary(0)));
    assert_eq!(stays(Choice::Primary(0)), decision(Choice::Primary(0)));
    assert_eq!(stays(Choice::Primary(1)), Decision { rivals: vec![1], ..decision(Choice::Primary(0)) });
}
