//! Is anything missing between what is stored?

use recovery::{Branch, branches};
use wal::{Gap, Lsn, SegmentName, SegmentNumber};

use super::survey::Survey;
use super::{KnownEnd, KnownGap, Problem, VerifyReport, VerifyRequest, gap};
use crate::repository::LineageRepository;
use crate::repository::layout::LineageObject;

/// So many missing segments of one hole are named one by one.
const NAMED: u64 = 1000;

/// Finds every hole from the oldest backup on, on every branch: those that were recorded are told, the others are problems.
pub(super) fn look(lineage: &LineageRepository, survey: &Survey, request: &VerifyRequest, report: &mut VerifyReport) {
    let mut holes: Vec<Gap> = Vec::new();
    for branch in branches(&survey.catalog) {
        for hole in holes_of(&branch, survey) {
            if let Some(hole) = wanted(hole, request)
                && !holes.contains(&hole)
            {
                holes.push(hole);
            }
        }
    }
    holes.sort_by_key(|hole| (hole.timeline, hole.start));
    for hole in holes {
        let rest = survey.catalog.unexplained(&hole);
        if rest.as_slice() != [hole] {
            report.gaps.push(KnownGap {
                timeline: hole.timeline,
                from_lsn: hole.start,
                to_lsn: hole.end,
                reason: survey.catalog.reason_of(&hole),
            });
        }
        report.problems.extend(rest.into_iter().flat_map(|part| missing(lineage, part)));
    }
    let end = end_is_missing(lineage, survey, request);
    report.lacks_known_end = end.is_some();
    report.problems.extend(end);
}

fn holes_of(branch: &Branch<'_>, survey: &Survey) -> Vec<Gap> {
    let size = branch.segment_size();
    let first_stored = branch.next_stored(Lsn::new(0)).map(|(_, lsn)| lsn);
    let oldest = survey.oldest_needed().map(|lsn| SegmentNumber::containing(lsn, size).start(size));
    // Without its history nobody knows from where a timeline's WAL is its own: that is a problem of the history.
    let oldest = oldest.filter(|_| !survey.catalog.lacks_history(branch.timeline()));
    let Some(start) = oldest.or(first_stored) else { return Vec::new() };
    branch.gaps_from(branch.reachable_end(start)).collect()
}

/// The part of a hole that was asked about.
fn wanted(hole: Gap, request: &VerifyRequest) -> Option<Gap> {
    let start = request.from.map_or(hole.start, |from| hole.start.max(from));
    let end = request.to.map_or(hole.end, |to| hole.end.min(to));
    let on_timeline = request.timeline.is_none_or(|timeline| timeline == hole.timeline);
    (start < end && on_timeline).then(|| gap(hole.timeline, start, end))
}

/// Names what is missing, segment by segment.
fn missing(lineage: &LineageRepository, hole: Gap) -> Vec<Problem> {
    let size = lineage.segment_size();
    let first = SegmentNumber::containing(hole.start, size).get();
    let last = SegmentNumber::containing_end(hole.end, size).get();
    let mut problems: Vec<Problem> = (first..=last.min(first.saturating_add(NAMED)))
        .map(|number| {
            let number = SegmentNumber::new(number);
            let (from, to) = (hole.start.max(number.start(size)), hole.end.min(number.end(size)));
            let key = lineage.keys().key(&LineageObject::Segment(SegmentName::new(hole.timeline, number, size)));
            let whole = from == number.start(size) && to == number.end(size);
            let what = if whole { "it is missing" } else { "it is missing, and its tail does not hold this part" };
            Problem {
                timeline: Some(hole.timeline),
                from_lsn: Some(from),
                to_lsn: Some(to),
                object: key.to_string(),
                what: what.to_owned(),
            }
        })
        .collect();
    let named = first.saturating_add(NAMED);
    if last > named {
        let from = SegmentNumber::new(named + 1).start(size);
        problems.push(Problem {
            timeline: Some(hole.timeline),
            from_lsn: Some(from),
            to_lsn: Some(hole.end),
            object: lineage.keys().wal_prefix(),
            what: format!("{} more segments are missing", last - named),
        });
    }
    problems
}

/// What was removed at the very end leaves no hole: a daemon that runs knows how far it has stored WAL, a backup what it needs.
fn end_is_missing(lineage: &LineageRepository, survey: &Survey, request: &VerifyRequest) -> Option<Problem> {
    let KnownEnd { timeline, lsn: known, because } = request.known_end?;
    let branch = Branch::new(&survey.catalog, timeline);
    if branch.next_stored(known.saturating_sub(1)).is_some() {
        return None;
    }
    let size = lineage.segment_size();
    let key =
        lineage.keys().key(&LineageObject::Segment(SegmentName::containing(timeline, known.saturating_sub(1), size)));
    Some(Problem {
        timeline: Some(timeline),
        from_lsn: None,
        to_lsn: Some(known),
        object: key.to_string(),
        what: format!("{because} up to {known}, and it is not there"),
    })
}
