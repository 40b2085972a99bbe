//! WAL that the server we follow has removed may still be with another member. Pure.

use wal::{Lsn, SystemIdentifier, TimelineId};

use super::Seen;

/// A member other than those `asked` already that should have the byte at `start` of `timeline`: it is on that timeline and
/// further, or descends from it beyond that position. What it wrote later is of no interest, so it may be a former primary.
pub(super) fn lender(
    seen: &[Option<&Seen>],
    asked: &[usize],
    cluster: SystemIdentifier,
    timeline: TimelineId,
    start: Lsn,
) -> Option<usize> {
    let has = |seen: &Seen| {
        let history = &seen.position.history;
        let end =
            if history.timeline() == timeline { Some(seen.position.end) } else { history.switch_point_of(timeline) };
        seen.system_identifier == cluster && end.is_some_and(|end| end > start)
    };
    let mut able = seen.iter().enumerate().filter(|(_, seen)| seen.is_some_and(has)).map(|(member, _)| member);
    able.find(|member| !asked.contains(member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::start::ServerPosition;
    use wal::TimelineHistory;

    fn seen(cluster: u64, timeline: u32, text: &str, end: u64) -> Seen {
        let history = TimelineHistory::parse(TimelineId::new(timeline).unwrap(), text.as_bytes()).unwrap();
        let position = ServerPosition { history, end: Lsn::new(end) };
        Seen { system_identifier: SystemIdentifier::new(cluster), in_recovery: false, position }
    }

    #[test]
    fn whoever_was_on_the_timeline_for_long_enough_may_have_the_wal() {
        let old = seen(7, 1, "", 0x500);
        let short = seen(7, 1, "", 0x100);
        let new = seen(7, 2, "1\t0/300\tx\n", 0x900);
        let foreign = seen(8, 1, "", 0x500);
        let all = [None, Some(&foreign), Some(&short), Some(&new), Some(&old)];
        let ask = |asked: &[usize], timeline: u32, start: u64| {
            lender(&all, asked, SystemIdentifier::new(7), TimelineId::new(timeline).unwrap(), Lsn::new(start))
        };
        assert_eq!(ask(&[], 1, 0x200), Some(3));
        assert_eq!(ask(&[3], 1, 0x200), Some(4));
        assert_eq!(ask(&[3, 4], 1, 0x200), None);
        assert_eq!(ask(&[], 1, 0x400), Some(4));
        assert_eq!(ask(&[], 2, 0x400), Some(3));
        assert_eq!(ask(&[3], 2, 0x400), None);
        assert_eq!(ask(&[], 1, 0x80), Some(2));
    }
}
