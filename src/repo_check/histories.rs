//! Timeline history files have no checksum, because they are PostgreSQL's byte for byte. What they say is proven by what else
//! says it: the histories of later timelines repeat it, and the WAL of a timeline begins where its history says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use wal::{Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId, WalEvent, WalReader};

use super::{RepoReport, documents};
use crate::error::Result;
use crate::repository::layout::{LineageObject, ObjectName, Parsed};
use crate::repository::{LineageRepository, RepositoryError};
use crate::storage::ObjectInfo;

/// `XLOG_BLCKSZ`, and the lengths of page headers: what would start where a page does lies behind its header.
const PAGE: u64 = 8192;
const HEADERS: [u64; 2] = [24, 40];

/// Records that a server may write on its new timeline before the one that says so: XLOG_FPW_CHANGE and
/// XLOG_OVERWRITE_CONTRECORD of the resource manager XLOG (`StartupXLOG` in xlog.c).
const XLOG: u8 = 0;
const BEFORE_IT_SAYS_SO: [u8; 2] = [0xA0, 0xD0];

/// Compares every history of the lineage with the others, and with the first WAL of its timeline where that is stored whole.
pub(super) async fn look(lineage: &LineageRepository, listed: &[ObjectInfo], report: &mut RepoReport) -> Result<()> {
    let stored = Stored::of(lineage, listed);
    let mut histories: BTreeMap<TimelineId, TimelineHistory> = BTreeMap::new();
    for timeline in stored.histories.iter().copied() {
        let key = lineage.keys().key(&LineageObject::History(timeline));
        let bytes = match lineage.history_bytes(timeline).await {
            Ok(Some(bytes)) => bytes,
            // Listed, and gone since.
            Ok(None) => continue,
            Err(error) => {
                report.problem(&key, documents::damage(error)?);
                continue;
            }
        };
        match TimelineHistory::parse(timeline, &bytes) {
            Ok(history) => drop(histories.insert(timeline, history)),
            Err(error) => report.problem(&key, error.to_string()),
        }
    }
    for history in histories.values() {
        let key = lineage.keys().key(&LineageObject::History(history.timeline()));
        if history.parent().is_none() {
            report.problem(&key, "it names no timeline that it came from");
        }
        for other in histories.values().filter(|other| contradicts(history, other)) {
            let other = lineage.keys().key(&LineageObject::History(other.timeline()));
            report.problem(&key, format!("{other} tells its ancestry otherwise: one of the two is damaged"));
        }
        let Some(first) = first_segment(lineage, history) else { continue };
        match stored.first_of(history.timeline()) {
            // Its beginning was lost, or nothing of it has come yet.
            None => continue,
            // What came before is gone with the parent's: it was no longer needed.
            Some(lowest) if lowest > first && !stored.has_of_parent(history, first, lineage) => continue,
            Some(lowest) if lowest != first => {
                report.problem(&key, format!("it says that the timeline begins in {first}; its first WAL is {lowest}"));
                continue;
            }
            Some(_) if !stored.segments.contains(&first) => continue,
            Some(_) => {}
        }
        match begins(lineage, history, first).await {
            Ok(None) => {}
            Ok(Some(what)) => report.problem(&key, what),
            // A damaged segment is told where WAL is looked at.
            Err(RepositoryError::Damaged { .. } | RepositoryError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What matters of a listing.
struct Stored {
    histories: Vec<TimelineId>,
    /// Whole segments.
    segments: BTreeSet<SegmentName>,
    /// The same, and those of which a tail is stored.
    any: BTreeSet<SegmentName>,
    /// Timelines of which WAL was lost.
    lost: BTreeSet<TimelineId>,
}

impl Stored {
    fn of(lineage: &LineageRepository, listed: &[ObjectInfo]) -> Self {
        let mut stored =
            Self { histories: Vec::new(), segments: BTreeSet::new(), any: BTreeSet::new(), lost: BTreeSet::new() };
        for object in listed {
            match ObjectName::parse(object.key.as_str()) {
                Parsed::Known(ObjectName::InLineage(keys, _)) if keys != *lineage.keys() => {}
                Parsed::Known(ObjectName::InLineage(_, LineageObject::History(timeline))) => {
                    stored.histories.push(timeline);
                }
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Segment(name))) => {
                    stored.segments.insert(name);
                    stored.any.insert(name);
                }
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Tail(tail))) => {
                    stored.any.insert(tail.segment);
                }
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Gap(gap))) => {
                    stored.lost.insert(gap.timeline);
                }
                _ => {}
            }
        }
        stored
    }

    /// The lowest segment of a timeline; `None` where there is none, or its beginning may be lost.
    fn first_of(&self, timeline: TimelineId) -> Option<SegmentName> {
        let mut of_it = self.any.iter().copied().filter(|name| name.timeline() == timeline);
        of_it.next().filter(|_| !self.lost.contains(&timeline))
    }

    /// Whether the parent's WAL is stored up to where the timeline is said to begin, which is in `first`.
    fn has_of_parent(&self, history: &TimelineHistory, first: SegmentName, lineage: &LineageRepository) -> bool {
        let size = lineage.segment_size();
        let parent = history.parent().zip(first.number(size));
        parent.is_some_and(|(parent, number)| self.any.contains(&SegmentName::new(parent.parent, number, size)))
    }
}

/// Whether a later history, which has this timeline among its ancestors, tells how it came to be otherwise.
fn contradicts(history: &TimelineHistory, other: &TimelineHistory) -> bool {
    let Some(at) = other.entries().iter().position(|entry| entry.parent == history.timeline()) else { return false };
    other.entries().get(..at) != Some(history.entries())
}

/// The segment in which the timeline begins.
fn first_segment(lineage: &LineageRepository, history: &TimelineHistory) -> Option<SegmentName> {
    let size = lineage.segment_size();
    let begins = history.parent()?.switch_point;
    Some(SegmentName::new(history.timeline(), SegmentNumber::containing(begins, size), size))
}

/// Whether the first record of the timeline lies where its history says; what is wrong when it does not.
///
/// A timeline begins with XLOG_END_OF_RECOVERY or a shutdown checkpoint that names one that was left (`StartupXLOG`,
/// `PerformRecoveryXLogAction` in xlog.c), and the history has the position at which it was written.
async fn begins(
    lineage: &LineageRepository,
    history: &TimelineHistory,
    first: SegmentName,
) -> std::result::Result<Option<String>, RepositoryError> {
    let size = lineage.segment_size();
    let (Some(parent), Some(number)) = (history.parent(), first.number(size)) else { return Ok(None) };
    let reader = WalReader::new(size, number.start(size)).expecting(lineage.system_identifier()).with_all_records();
    let mut scan = Scan { reader, timeline: history.timeline(), leading: None, before: None, began: None };
    lineage.fetch_segment(first, &mut scan).await?;
    let said = format!("it says that timeline {} began at {}", history.timeline(), parent.switch_point);
    Ok(match scan.began {
        Some(began) if began.fits(history, parent.switch_point) => None,
        Some(Began { left, lsn, .. }) => Some(format!("{said}; its WAL says at {lsn}, and that {left} was left")),
        None => Some(format!("{said}; in {first} it does not begin")),
    })
}

/// The record with which a timeline begins.
#[derive(Clone, Copy, Debug)]
struct Began {
    /// The timeline whose record was the last that was replayed: the parent, or an ancestor when recovery ended before it.
    left: TimelineId,
    lsn: Lsn,
    /// Where the records start that may belong to the beginning.
    leading: Option<Lsn>,
}

impl Began {
    fn fits(&self, history: &TimelineHistory, switch_point: Lsn) -> bool {
        let starts_at = |lsn: Lsn| {
            let behind_a_header = || HEADERS.iter().any(|&header| switch_point.saturating_add(header) == lsn);
            lsn == switch_point || switch_point.as_u64().is_multiple_of(PAGE) && behind_a_header()
        };
        let known = history.entries().iter().any(|entry| entry.parent == self.left);
        known && (starts_at(self.lsn) || self.leading.is_some_and(starts_at))
    }
}

/// Looks for the record with which a timeline begins, as the segment comes by.
struct Scan {
    reader: WalReader,
    timeline: TimelineId,
    /// Where the last run of records starts that may come before it.
    leading: Option<Lsn>,
    /// The same before the record at hand.
    before: Option<Lsn>,
    began: Option<Began>,
}

impl Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { reader, timeline, leading, before, began } = self;
        let mut note = |event: WalEvent| {
            let (lsn, begins, left) = match event {
                WalEvent::Record(record) => {
                    *before = *leading;
                    let may_lead = record.resource_manager == XLOG && BEFORE_IT_SAYS_SO.contains(&(record.info & 0xF0));
                    *leading = may_lead.then(|| leading.unwrap_or(record.lsn));
                    return;
                }
                WalEvent::EndOfRecovery(end) => (end.lsn, end.timeline, end.previous_timeline),
                WalEvent::Checkpoint(checkpoint) => (checkpoint.lsn, checkpoint.timeline, checkpoint.previous_timeline),
                _ => return,
            };
            if begins == *timeline && left != begins {
                began.get_or_insert(Began { left, lsn, leading: *before });
            }
        };
        // WAL that cannot be read further is the business of whoever looks at WAL.
        drop(reader.push(bytes, &mut note));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
