//! The contiguity ledger of one lineage: which WAL was proven to be there, and which is missing for ever.
//!
//! Pure: whoever holds a ledger persists [`Ledger::gaps`] before it goes on beyond a gap.

use chrono::{DateTime, Utc};
use wal::{Coverage, Gap, Lsn, TimelineId, WalRange};

/// WAL that is missing and that no server can send any more.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GapRecord {
    /// The timeline on which it is missing.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from: Lsn,
    /// First byte that is there again.
    pub to: Lsn,
    /// Why, in words for a person.
    pub reason: String,
    /// When it was found.
    pub at: DateTime<Utc>,
}

impl GapRecord {
    /// The range alone.
    pub fn range(&self) -> Gap {
        Gap { timeline: self.timeline, start: self.from, end: self.to }
    }
}

/// What was proven to be there, and what is missing.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    proven: Coverage,
    gaps: Vec<GapRecord>,
}

impl Ledger {
    /// A ledger with gaps that were recorded before.
    pub fn with_gaps(mut gaps: Vec<GapRecord>) -> Self {
        gaps.sort_by_key(|gap| (gap.timeline, gap.from));
        Self { proven: Coverage::new(), gaps }
    }

    /// Notes WAL that is there: durable in the spool or stored. A gap that it fills is forgotten.
    ///
    /// Returns whether the gaps changed.
    pub fn prove(&mut self, range: WalRange) -> bool {
        self.proven.insert(range);
        let before = self.gaps.len();
        let proven = &self.proven;
        self.gaps.retain(|gap| proven.contiguous_end(gap.timeline, gap.from).is_none_or(|end| end < gap.to));
        self.gaps.len() != before
    }

    /// Records missing WAL. What overlaps a recorded gap of the same timeline makes that one larger.
    ///
    /// Returns whether the gaps changed.
    pub fn record(&mut self, gap: GapRecord) -> bool {
        if gap.from >= gap.to {
            return false;
        }
        let overlaps = |g: &GapRecord| g.timeline == gap.timeline && g.from <= gap.to && gap.from <= g.to;
        if let Some(known) = self.gaps.iter_mut().find(|g| overlaps(g)) {
            let (from, to) = (known.from.min(gap.from), known.to.max(gap.to));
            let larger = (from, to) != (known.from, known.to);
            (known.from, known.to) = (from, to);
            if larger && !known.reason.contains(&gap.reason) {
                known.reason = format!("{}; {}", known.reason, gap.reason);
            }
            return larger;
        }
        self.gaps.push(gap);
        self.gaps.sort_by_key(|gap| (gap.timeline, gap.from));
        true
    }

    /// What is missing, by timeline and position.
    pub fn gaps(&self) -> &[GapRecord] {
        &self.gaps
    }

    /// What was proven.
    pub fn proven(&self) -> &Coverage {
        &self.proven
    }

    /// Holes between the ranges of each timeline: what a listing of stored WAL tells about gaps. Retention makes holes as
    /// well, where WAL between old backups is no longer kept: so these are not recorded, only shown.
    pub fn holes(coverage: &Coverage) -> Vec<Gap> {
        let mut holes = Vec::new();
        for timeline in coverage.timelines() {
            let ranges: Vec<WalRange> = coverage.ranges(timeline).collect();
            holes.extend(ranges.windows(2).map(|pair| Gap { timeline, start: pair[0].end, end: pair[1].start }));
        }
        holes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(at: u64) -> Lsn {
        Lsn::new(at)
    }

    fn gap(from: u64, to: u64) -> GapRecord {
        GapRecord {
            timeline: TimelineId::FIRST,
            from: lsn(from),
            to: lsn(to),
            reason: "removed".to_owned(),
            at: DateTime::UNIX_EPOCH,
        }
    }

    fn range(start: u64, end: u64) -> WalRange {
        WalRange { timeline: TimelineId::FIRST, start: lsn(start), end: lsn(end) }
    }

    #[test]
    fn a_gap_is_recorded_once() {
        let mut ledger = Ledger::default();
        assert!(ledger.record(gap(10, 20)));
        assert!(!ledger.record(gap(10, 20)));
        assert!(!ledger.record(gap(12, 18)));
        assert!(!ledger.record(gap(5, 5)));
        assert_eq!(ledger.gaps().len(), 1);
        assert!(ledger.record(gap(15, 30)));
        assert_eq!(ledger.gaps()[0].range(), gap(10, 30).range());
    }

    #[test]
    fn a_gap_stays_until_all_of_it_is_there() {
        let mut ledger = Ledger::with_gaps(vec![gap(10, 20)]);
        assert!(!ledger.prove(range(0, 12)));
        assert!(!ledger.prove(range(15, 40)));
        assert_eq!(ledger.gaps().len(), 1);
        assert!(ledger.prove(range(12, 15)));
        assert!(ledger.gaps().is_empty());
    }

    #[test]
    fn holes_lie_between_ranges_of_the_same_timeline() {
        let mut coverage = Coverage::new();
        coverage.insert(range(0, 10));
        coverage.insert(range(20, 30));
        let two = TimelineId::new(2).unwrap();
        coverage.insert(WalRange { timeline: two, start: lsn(40), end: lsn(50) });
        let holes = Ledger::holes(&coverage);
        assert_eq!(holes, [Gap { timeline: TimelineId::FIRST, start: lsn(10), end: lsn(20) }]);
    }
}
