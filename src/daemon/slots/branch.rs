//! How far two histories tell the same story. Pure.

use wal::{Lsn, TimelineHistory, TimelineId};

/// WAL up to a position, on the timeline of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The timeline and its ancestry.
    pub history: TimelineHistory,
    /// Where its WAL ends.
    pub end: Lsn,
}

/// How a member's WAL stands to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// One continues the other. Both hold the same WAL up to here: the lower of the two ends.
    Same(Lsn),
    /// The member went on where our branch had left its timeline: a former primary, or a standby of it.
    Left {
        /// Where it was left.
        at: Lsn,
    },
    /// The member is on another branch of the cluster's history, and we may yet have to follow it.
    Other,
}

impl Branch {
    /// How the WAL of `member` stands to this, which is ours.
    pub fn relation_to(&self, member: &Self) -> Relation {
        match self.relation_of_histories(member) {
            // A history may reach further than the WAL that is there.
            Relation::Same(common) => Relation::Same(common.min(self.end).min(member.end)),
            apart => apart,
        }
    }

    fn relation_of_histories(&self, member: &Self) -> Relation {
        let (ours, theirs) = (self.legs(), member.legs());
        for (index, (&(timeline, until), other)) in ours.iter().zip(theirs.iter()).enumerate() {
            let &(their_timeline, their_until) = other;
            let before = index.checked_sub(1).map_or(Lsn::new(0), |before| ours[before].1);
            if timeline != their_timeline {
                // Both left the same ancestor at the same place, for timelines of different numbers.
                return if their_timeline < timeline { Relation::Left { at: before } } else { Relation::Other };
            }
            let (last, their_last) = (index + 1 == ours.len(), index + 1 == theirs.len());
            match (last, their_last) {
                // Here one of them ends; the other goes on with the same WAL, or leaves this timeline later.
                (true, true) => return Relation::Same(until.min(their_until)),
                (true, false) if until <= their_until => return Relation::Same(until),
                // The member's history forks off behind our end: what we hold beyond it is an end that nobody follows.
                (true, false) => return Relation::Same(their_until),
                (false, true) if their_until <= until => return Relation::Same(their_until),
                (false, true) => return Relation::Left { at: until },
                (false, false) if until == their_until => {}
                (false, false) => {
                    return if their_until > until && member.history.timeline() < self.history.timeline() {
                        Relation::Left { at: until }
                    } else {
                        Relation::Other
                    };
                }
            }
        }
        Relation::Other
    }

    /// Timeline by timeline, oldest first, with where each was left; the last one with its end.
    fn legs(&self) -> Vec<(TimelineId, Lsn)> {
        let last = (self.history.timeline(), self.end);
        self.history.reigns().chain(std::iter::once(last)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(timeline: u32, history: &str, end: u64) -> Branch {
        let timeline = TimelineId::new(timeline).unwrap();
        Branch { history: TimelineHistory::parse(timeline, history.as_bytes()).unwrap(), end: Lsn::new(end) }
    }

    #[test]
    fn histories_are_compared_up_to_where_they_part() {
        use Relation::{Left, Other, Same};
        let at = Lsn::new;
        let forked = "1\t0/500\tx\n";
        let cases = [
            ("the same timeline, member behind", branch(1, "", 0x400), branch(1, "", 0x300), Same(at(0x300))),
            ("the same timeline, member ahead", branch(1, "", 0x400), branch(1, "", 0x900), Same(at(0x400))),
            ("promoted beyond our end", branch(1, "", 0x400), branch(2, forked, 0x900), Same(at(0x400))),
            ("promoted behind our end", branch(1, "", 0x800), branch(2, forked, 0x900), Same(at(0x500))),
            (
                "a standby that has not reached the fork",
                branch(2, forked, 0x900),
                branch(1, "", 0x480),
                Same(at(0x480)),
            ),
            ("a standby exactly at the fork", branch(2, forked, 0x900), branch(1, "", 0x500), Same(at(0x500))),
            (
                "the former primary beyond the fork",
                branch(2, forked, 0x900),
                branch(1, "", 0x510),
                Left { at: at(0x500) },
            ),
            ("both on the new timeline", branch(2, forked, 0x900), branch(2, forked, 0x700), Same(at(0x700))),
            ("the same number with another fork", branch(2, forked, 0x900), branch(2, "1\t0/600\tx\n", 0x900), Other),
            (
                "a lower number that forked off later",
                branch(3, forked, 0x900),
                branch(2, "1\t0/600\tx\n", 0x900),
                Left { at: at(0x500) },
            ),
            (
                "a higher number that forked off earlier",
                branch(2, forked, 0x900),
                branch(3, "1\t0/400\tx\n", 0x900),
                Other,
            ),
            (
                "siblings at one fork, theirs is lower",
                branch(3, forked, 0x900),
                branch(2, forked, 0x900),
                Left { at: at(0x500) },
            ),
            ("siblings at one fork, theirs is higher", branch(2, forked, 0x900), branch(3, forked, 0x900), Other),
            (
                "two timelines on, numbers skipped",
                branch(1, "", 0x400),
                branch(9, "1\t0/500\tx\n4\t0/800\ty\n", 0x900),
                Same(at(0x400)),
            ),
            (
                "the middle reign came and went",
                branch(9, "1\t0/500\tx\n4\t0/800\ty\n", 0x900),
                branch(4, forked, 0x850),
                Left { at: at(0x800) },
            ),
        ];
        for (name, ours, member, expected) in cases {
            assert_eq!(ours.relation_to(&member), expected, "{name}");
        }
    }

    #[test]
    fn what_both_hold_never_passes_either_end() {
        for (ours, member) in [(0x100, 0x200), (0x200, 0x100), (0x600, 0x700), (0x500, 0x500)] {
            for (a, b) in [("", ""), ("", "1\t0/500\tx\n"), ("1\t0/500\tx\n", "1\t0/500\tx\n")] {
                let number = |text: &str| if text.is_empty() { 1 } else { 2 };
                let (a, b) = (branch(number(a), a, ours), branch(number(b), b, member));
                if let Relation::Same(common) = a.relation_to(&b) {
                    assert!(common <= a.end && common <= b.end, "{a:?} {b:?}");
                }
            }
        }
    }
}
