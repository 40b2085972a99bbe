//! On which branch a standby is made, so that it can follow the server that it is for.

use wal::{Lsn, TimelineHistory, TimelineId};

use crate::Catalog;
use crate::branch::live_timeline;

/// Why no standby can be made for a primary from what is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoStandby {
    /// The repository holds nothing of the lineage.
    #[error("nothing is stored yet")]
    NothingStored,
    /// The primary continues what is stored, and its timeline is not stored yet: a standby would not find its way there.
    #[error(
        "the primary is on timeline {timeline}, of which nothing is stored yet; the stored history ends on timeline {live}"
    )]
    NotStoredYet {
        /// The primary's timeline.
        timeline: TimelineId,
        /// The newest that is stored.
        live: TimelineId,
    },
    /// A standby would replay what the branch has left behind: the timeline's history is stored and none of its WAL, but WAL
    /// of the timeline before it beyond the switch point.
    #[error(
        "no WAL of timeline {timeline} is stored yet, but WAL of timeline {ancestor} beyond {left}, where it was left"
    )]
    NoWalYet {
        /// The timeline.
        timeline: TimelineId,
        /// The one that it left.
        ancestor: TimelineId,
        /// Where.
        left: Lsn,
    },
    /// The stored history went on to another timeline: this is a former primary.
    #[error(
        "the primary is on timeline {timeline}, which the stored history left at {left}; it goes on on timeline {live}"
    )]
    Left {
        /// Its timeline.
        timeline: TimelineId,
        /// The newest that is stored.
        live: TimelineId,
        /// Where its timeline was left.
        left: Lsn,
    },
    /// The server tells another history.
    #[error("the primary's history of timeline {timeline} does not continue the stored one of timeline {live}")]
    OtherHistory {
        /// Its timeline.
        timeline: TimelineId,
        /// The newest that is stored.
        live: TimelineId,
    },
}

/// The timeline on which a standby of `primary` is made: the primary's own, which must be the newest that is stored. Without a
/// primary that answers it is the newest.
///
/// A standby's `recovery_target_timeline` is `latest`, and PostgreSQL looks for that in the archive: were anything newer stored,
/// or not enough, it would end on another branch than its primary.
pub fn standby_timeline(catalog: &Catalog, primary: Option<&TimelineHistory>) -> Result<TimelineId, NoStandby> {
    let live = live_timeline(catalog).ok_or(NoStandby::NothingStored)?;
    let stored = catalog.history(live);
    if let Some(history) = primary {
        let timeline = history.timeline();
        let nowhere = Lsn::new(0);
        if timeline > live && history.is_continuation_of(&stored, nowhere) {
            return Err(NoStandby::NotStoredYet { timeline, live });
        }
        if timeline < live && stored.is_continuation_of(history, nowhere) {
            let left = stored.switch_point_of(timeline).unwrap_or(nowhere);
            return Err(NoStandby::Left { timeline, live, left });
        }
        if timeline != live || !history.is_continuation_of(&stored, nowhere) {
            return Err(NoStandby::OtherHistory { timeline, live });
        }
    }
    let own_wal = catalog.coverage.ranges(live).next().is_some();
    let beyond =
        |&(ancestor, left): &(TimelineId, Lsn)| catalog.coverage.ranges(ancestor).any(|range| range.end > left);
    match stored.reigns().last().filter(beyond) {
        Some((ancestor, left)) if !own_wal => Err(NoStandby::NoWalYet { timeline: live, ancestor, left }),
        _ => Ok(live),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wal::{Coverage, SegmentSize, SystemIdentifier, WalRange};

    use super::*;
    use crate::LineageId;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn history(number: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(tli(number), text.as_bytes()).unwrap()
    }

    fn catalog(histories: &[(u32, &str)], wal: &[(u32, u64, u64)]) -> Catalog {
        let mut coverage = Coverage::new();
        for &(timeline, start, end) in wal {
            coverage.insert(WalRange { timeline: tli(timeline), start: Lsn::new(start), end: Lsn::new(end) });
        }
        Catalog {
            cluster: "main".to_owned(),
            lineage: LineageId { system_identifier: SystemIdentifier::new(1), number: 1 },
            segment_size: SegmentSize::DEFAULT,
            backups: Vec::new(),
            unreadable: Vec::new(),
            coverage,
            tails: Vec::new(),
            histories: histories.iter().map(|&(n, text)| (tli(n), history(n, text))).collect::<BTreeMap<_, _>>(),
            lost: Vec::new(),
        }
    }

    #[test]
    fn a_standby_is_made_on_the_timeline_that_its_primary_writes() {
        let one = catalog(&[], &[(1, 0x100, 0x500)]);
        let two = catalog(&[(2, "1 0/400 x\n")], &[(1, 0x100, 0x500), (2, 0x400, 0x900)]);
        assert_eq!(standby_timeline(&catalog(&[], &[]), None), Err(NoStandby::NothingStored));
        assert_eq!(standby_timeline(&one, None), Ok(tli(1)));
        assert_eq!(standby_timeline(&one, Some(&TimelineHistory::root(tli(1)))), Ok(tli(1)));
        assert_eq!(standby_timeline(&two, None), Ok(tli(2)));
        assert_eq!(standby_timeline(&two, Some(&history(2, "1 0/400 x\n"))), Ok(tli(2)));
    }

    #[test]
    fn a_failover_that_is_not_stored_yet_is_waited_for() {
        let one = catalog(&[], &[(1, 0x100, 0x500)]);
        let refused = NoStandby::NotStoredYet { timeline: tli(3), live: tli(1) };
        assert_eq!(standby_timeline(&one, Some(&history(3, "1 0/400 x\n2 0/450 y\n"))), Err(refused));
        // The history alone is not enough where WAL is stored that the failover left behind.
        let beyond = catalog(&[(2, "1 0/400 x\n")], &[(1, 0x100, 0x500)]);
        let refused = NoStandby::NoWalYet { timeline: tli(2), ancestor: tli(1), left: Lsn::new(0x400) };
        assert_eq!(standby_timeline(&beyond, None), Err(refused));
        let up_to = catalog(&[(2, "1 0/400 x\n")], &[(1, 0x100, 0x400)]);
        assert_eq!(standby_timeline(&up_to, None), Ok(tli(2)));
    }

    #[test]
    fn a_former_primary_and_another_history_are_refused() {
        let two = catalog(&[(2, "1 0/400 x\n")], &[(1, 0x100, 0x500), (2, 0x400, 0x900)]);
        let former = NoStandby::Left { timeline: tli(1), live: tli(2), left: Lsn::new(0x400) };
        assert_eq!(standby_timeline(&two, Some(&TimelineHistory::root(tli(1)))), Err(former));
        for (number, text) in [(2, "1 0/300 x\n"), (3, "1 0/450 x\n"), (2, "")] {
            let refused = NoStandby::OtherHistory { timeline: tli(number), live: tli(2) };
            assert_eq!(standby_timeline(&two, Some(&history(number, text))), Err(refused), "{number} {text}");
        }
    }
}
