//! Does what one unit begins with follow what another ends with?

use std::collections::BTreeMap;

use wal::{Lsn, SegmentName, SegmentNumber, TimelineId};

use super::Problem;
use super::survey::Survey;
use super::units::UnitRead;
use crate::repository::LineageRepository;
use crate::repository::layout::LineageObject;

/// Where units end: the last record before that position, on that timeline.
#[derive(Debug, Default)]
pub(super) struct Chain {
    ends: BTreeMap<(TimelineId, Lsn), Lsn>,
}

impl Chain {
    /// Compares the beginning of a unit with the end of the one before it, and keeps its own end. Units come by timeline and
    /// position, so a timeline's parent was read before it.
    pub(super) fn join(&mut self, lineage: &LineageRepository, survey: &Survey, read: &UnitRead) -> Option<Problem> {
        let size = lineage.segment_size();
        let unit = &read.unit;
        let start = SegmentNumber::new(unit.first).start(size);
        let end = SegmentNumber::new(unit.first + unit.count).start(size);
        if let Some(last) = read.last {
            self.ends.insert((unit.timeline, end), last);
        }
        let path = survey.catalog.path_to(unit.timeline);
        let before = path.timeline_at(start.saturating_sub(1));
        let known = self.ends.get(&(unit.timeline, start)).or_else(|| self.ends.get(&(before, start)));
        let (Some(&last), Some((lsn, previous))) = (known, read.first) else { return None };
        if unit.first == 0 || previous == last {
            return None;
        }
        let name = SegmentName::containing(unit.timeline, lsn, size);
        Some(Problem {
            timeline: Some(unit.timeline),
            from_lsn: Some(start),
            to_lsn: Some(lsn),
            object: lineage.keys().key(&LineageObject::Segment(name)).to_string(),
            what: format!("its first record follows one at {previous}; the last one stored before it is at {last}"),
        })
    }
}
