//! Timeline history files: where each timeline left its parent.

use crate::{Lsn, TimelineId};

/// One line of a history file: `parent` was followed up to `switch_point`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub parent: TimelineId,
    /// First position that is no longer on the ancestor.
    pub switch_point: Lsn,
    /// Why the switch happened, in PostgreSQL's words; may be empty.
    pub reason: String,
}

/// The ancestry of one timeline, oldest ancestor first: the content of `0000000N.history` (timeline.c).
///
/// Timeline 1 has no history file; its history is [`TimelineHistory::root`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
}

/// The file is not a timeline history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timeline history of {timeline}, line {line}: {problem}")]
pub struct ParseHistoryError {
    timeline: TimelineId,
    line: usize,
    problem: String,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, entries: Vec::new() }
    }

    /// Reads the history file of `timeline` as PostgreSQL does: comments and empty lines are skipped, the ancestors'
    /// numbers must increase and their switch points must not go back.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, ParseHistoryError> {
        let error = |line: usize, problem: &str| ParseHistoryError { timeline, line, problem: problem.to_owned() };
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.splitn(3, |c: char| c.is_ascii_whitespace());
            let parent = words.next().and_then(|word| word.parse().ok());
            let switch_point = words.next().and_then(|word| word.parse().ok());
            let (Some(parent), Some(switch_point)) = (parent, switch_point) else {
                return Err(error(index + 1, "expected a timeline number, a switch point and a reason"));
            };
            if parent >= timeline {
                return Err(error(index + 1, "an ancestor's number must be lower than the timeline's"));
            }
            if let Some(last) = entries.last() {
                if parent <= last.parent {
                    return Err(error(index + 1, "ancestors must be in increasing order"));
                }
                if switch_point < last.switch_point {
                    return Err(error(index + 1, "switch points must not go back"));
                }
            }
            let reason = words.next().unwrap_or_default().trim().to_owned();
            entries.push(HistoryEntry { parent, switch_point, reason });
        }
        Ok(Self { timeline, entries })
    }

    /// The text of the history file, as PostgreSQL writes it (without comments).
    pub fn to_text(&self) -> String {
        self.entries.iter().map(|e| format!("{}\t{}\t{}\n", e.parent, e.switch_point, e.reason)).collect()
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The ancestors, oldest first.
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// The immediate parent and where it was left; `None` for a root.
    pub fn parent(&self) -> Option<&HistoryEntry> {
        self.entries.last()
    }

    /// The timeline on which the byte at `lsn` was written, following this history (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.entries.iter().find(|e| lsn < e.switch_point).map_or(self.timeline, |e| e.parent)
    }

    /// Where this history leaves `ancestor`; `None` when it is the timeline itself or no ancestor.
    pub fn switch_point_of(&self, ancestor: TimelineId) -> Option<Lsn> {
        self.entries.iter().find(|e| e.parent == ancestor).map(|e| e.switch_point)
    }

    /// Whether `timeline` is this timeline or one of its ancestors.
    pub fn includes(&self, timeline: TimelineId) -> bool {
        self.timeline == timeline || self.switch_point_of(timeline).is_some()
    }

    /// Whether WAL of `older` up to `until` is also this history's WAL: `older`'s timeline is this one or an ancestor,
    /// both tell the same ancestry below it, and this history leaves it at `until` or later.
    pub fn is_continuation_of(&self, older: &Self, until: Lsn) -> bool {
        let shared = older.entries.len();
        let same_place = |a: &HistoryEntry, b: &HistoryEntry| a.parent == b.parent && a.switch_point == b.switch_point;
        if self.entries.len() < shared || !self.entries.iter().zip(&older.entries).all(|(a, b)| same_place(a, b)) {
            return false;
        }
        match self.entries.get(shared) {
            None => self.timeline == older.timeline,
            Some(left) => left.parent == older.timeline && until <= left.switch_point,
        }
    }
}
