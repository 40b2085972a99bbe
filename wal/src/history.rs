//! Timeline history files: where each timeline left its parent.

use crate::{Lsn, TimelineId};

/// One line of a history file, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub parent: TimelineId,
    /// Where the next timeline began. The ancestor may have been left earlier: see [`TimelineHistory::switch_point_of`].
    pub switch_point: Lsn,
    /// Why the switch happened, in PostgreSQL's words; may be empty.
    pub reason: String,
}

/// The ancestry of one timeline, oldest ancestor first: the content of `0000000N.history` (timeline.c).
///
/// Timeline 1 has no history file; its history is [`TimelineHistory::root`].
///
/// Switch points may go *back* from line to line. Recovery towards timeline 2 that stops before timeline 2 had begun writes
/// `2  <where it stopped>` under timeline 1's line (`writeTimeLineHistory` gets the target timeline as the parent): then
/// timeline 1 was left there, and nothing of timeline 2 is in the history. `tliOfPointInHistory` finds the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
    /// Where each ancestor was really left: the lowest switch point from its line on. Never decreasing.
    left: Vec<Lsn>,
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
        Self { timeline, entries: Vec::new(), left: Vec::new() }
    }

    /// Reads the history file of `timeline` as PostgreSQL does (`readTimeLineHistory`): comments and empty lines are
    /// skipped, the ancestors' numbers must increase and be lower than the timeline's own.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, ParseHistoryError> {
        let error = |line: usize, problem: &str| ParseHistoryError { timeline, line, problem: problem.to_owned() };
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (parent, rest) = first_word(line);
            let (switch_point, reason) = first_word(rest);
            let (Ok(parent), Ok(switch_point)) = (parent.parse(), switch_point.parse()) else {
                return Err(error(index + 1, "expected a timeline number, a switch point and a reason"));
            };
            if parent >= timeline {
                return Err(error(index + 1, "an ancestor's number must be lower than the timeline's"));
            }
            if entries.last().is_some_and(|last| parent <= last.parent) {
                return Err(error(index + 1, "ancestors must be in increasing order"));
            }
            entries.push(HistoryEntry { parent, switch_point, reason: reason.to_owned() });
        }
        let mut left: Vec<Lsn> = entries.iter().map(|entry| entry.switch_point).collect();
        for index in (1..left.len()).rev() {
            left[index - 1] = left[index - 1].min(left[index]);
        }
        Ok(Self { timeline, entries, left })
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

    /// The last line: the parent by name and where this timeline began; `None` for a root.
    pub fn parent(&self) -> Option<&HistoryEntry> {
        self.entries.last()
    }

    /// The timeline on which the byte at `lsn` was written, following this history (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let index = self.left.partition_point(|&left| left <= lsn);
        self.entries.get(index).map_or(self.timeline, |entry| entry.parent)
    }

    /// Where this history leaves `ancestor` for good; `None` when it is the timeline itself or no ancestor. Not after the
    /// position where the ancestor began, when nothing of it is in the history.
    pub fn switch_point_of(&self, ancestor: TimelineId) -> Option<Lsn> {
        let index = self.entries.iter().position(|entry| entry.parent == ancestor)?;
        self.left.get(index).copied()
    }

    /// The ancestors with the position where each was left for good, oldest first; the positions never decrease.
    pub fn reigns(&self) -> impl Iterator<Item = (TimelineId, Lsn)> + '_ {
        self.entries.iter().zip(&self.left).map(|(entry, &left)| (entry.parent, left))
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
        match self.reigns().nth(shared) {
            None => self.timeline == older.timeline,
            Some((ancestor, left)) => ancestor == older.timeline && until <= left,
        }
    }
}

/// The text up to the first white space, and what stands behind that.
fn first_word(text: &str) -> (&str, &str) {
    text.split_once(|c: char| c.is_ascii_whitespace()).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn history(number: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn files_are_read_as_postgresql_reads_them() {
        let cases = [
            ("as written", "1\t0/4000120\tat restore point \"x\"\n\n2\t0/5000000\tno recovery target specified\n"),
            ("without a last newline", "1\t0/4000120\n2\t0/5000000"),
            ("comments and empty lines", "# a comment\n\n  # another\n1 0/4000120 #x\n \t \n2 0/5000000"),
            ("carriage returns", "1\t0/4000120\tx\r\n2\t0/5000000\ty\r\n"),
            ("spaces and tabs", "  1   0/4000120 \t why\n\t2 \t 0/5000000"),
        ];
        for (name, text) in cases {
            let read = history(5, text);
            let found: Vec<(u32, Lsn)> = read.entries().iter().map(|e| (e.parent.get(), e.switch_point)).collect();
            assert_eq!(found, [(1, lsn("0/4000120")), (2, lsn("0/5000000"))], "{name}");
        }
        let read = history(5, "1\t0/4000120\tat restore point \"x y\"\n");
        assert_eq!(read.entries()[0].reason, "at restore point \"x y\"");
        assert_eq!(history(5, ""), TimelineHistory::root(timeline(5)));
    }

    #[test]
    fn what_postgresql_refuses_is_refused_with_its_line() {
        let cases = [
            ("no number", "x\t0/1\n", 1),
            ("no switch point", "1\n", 1),
            ("half a switch point", "1\t0\n", 1),
            ("timeline 0", "0\t0/1\n", 1),
            ("decreasing", "2\t0/1\n1\t0/2\n", 2),
            ("twice", "1\t0/1\n\n1\t0/2\n", 3),
            ("its own ancestor", "1\t0/1\n5\t0/2\n", 2),
            ("a younger ancestor", "6\t0/2\n", 1),
            ("a page of zeros", "\0\0\0\0", 1),
        ];
        for (name, text, line) in cases {
            let error = TimelineHistory::parse(timeline(5), text.as_bytes()).expect_err(name);
            assert_eq!(error.line, line, "{name}: {error}");
        }
    }

    #[test]
    fn numbers_may_be_skipped_and_pass_nine_and_sixteen() {
        let read = history(0x1F, "1\t0/1000000\ta\n9\t0/2000000\tb\n16\tA/FFFFFFF8\tc\n");
        assert_eq!(read.timeline_at(lsn("0/FFFFFF")), timeline(1));
        assert_eq!(read.timeline_at(lsn("0/1000000")), timeline(9));
        assert_eq!(read.timeline_at(lsn("A/FFFFFFF7")), timeline(16));
        assert_eq!(read.timeline_at(lsn("A/FFFFFFF8")), timeline(31));
        assert_eq!(read.switch_point_of(timeline(16)), Some(lsn("A/FFFFFFF8")));
        assert_eq!(read.switch_point_of(timeline(10)), None);
        assert!(read.includes(timeline(31)) && read.includes(timeline(9)) && !read.includes(timeline(2)));
        assert_eq!(read.parent().unwrap().parent, timeline(16));
    }

    #[test]
    fn switch_points_that_go_back_shorten_what_came_before() {
        // Written by PostgreSQL 17 after a recovery towards timeline 2 that stopped before timeline 2 had begun.
        let read = history(3, "1\t0/4000120\tat restore point \"x\"\n\n2\t0/3000150\tat restore point \"y\"\n");
        assert_eq!(read.timeline_at(lsn("0/300014F")), timeline(1));
        assert_eq!(read.timeline_at(lsn("0/3000150")), timeline(3));
        assert_eq!(read.timeline_at(lsn("0/4000000")), timeline(3));
        assert_eq!(read.switch_point_of(timeline(1)), Some(lsn("0/3000150")));
        let second = history(2, "1\t0/4000120\tat restore point \"x\"\n");
        assert!(read.is_continuation_of(&TimelineHistory::root(timeline(1)), lsn("0/3000150")));
        assert!(!read.is_continuation_of(&TimelineHistory::root(timeline(1)), lsn("0/3000151")));
        assert!(!read.is_continuation_of(&second, lsn("0/4000200")), "nothing of timeline 2 is in the history");
    }

    #[test]
    fn a_history_continues_another_up_to_where_it_left_it() {
        let root = TimelineHistory::root(timeline(1));
        let second = history(2, "1\t0/4000000\tx\n");
        let third = history(3, "1\t0/4000000\tother words\n2\t0/6000000\n");
        let other = history(3, "1\t0/5000000\n");
        let cases = [
            ("itself", &second, &second, "9/0", true),
            ("parent up to the switch", &second, &root, "0/4000000", true),
            ("parent beyond the switch", &second, &root, "0/4000001", false),
            ("grandparent", &third, &root, "0/4000000", true),
            ("parent of two", &third, &second, "0/6000000", true),
            ("parent of two, beyond", &third, &second, "0/6000001", false),
            ("the child is no ancestor", &root, &second, "0/0", false),
            ("a sibling is no ancestor", &other, &second, "0/0", false),
            ("same number, other fork", &other, &third, "0/0", false),
            ("another fork of the root", &other, &root, "0/5000000", true),
        ];
        for (name, newer, older, until, expected) in cases {
            assert_eq!(newer.is_continuation_of(older, lsn(until)), expected, "{name}");
        }
    }

    /// `tliOfPointInHistory` (timeline.c): newest first, the first whose range holds the position.
    fn as_postgresql(history: &TimelineHistory, at: Lsn) -> TimelineId {
        let mut begin = None;
        let mut list = Vec::new();
        for entry in history.entries() {
            list.push((entry.parent, begin, Some(entry.switch_point)));
            begin = Some(entry.switch_point);
        }
        list.push((history.timeline(), begin, None));
        let holds = |begin: Option<Lsn>, end: Option<Lsn>| begin.is_none_or(|b| b <= at) && end.is_none_or(|e| at < e);
        list.iter().rev().find(|&&(_, begin, end)| holds(begin, end)).unwrap().0
    }

    proptest! {
        #[test]
        fn every_position_is_on_the_timeline_that_postgresql_finds(
            steps in prop::collection::vec((1..5_u32, 1..60_u64), 0..6), at in 0..70_u64,
        ) {
            let mut number = 0;
            let mut text = String::new();
            for (step, point) in steps {
                number += step;
                text.push_str(&format!("{number}\t0/{point:X}\twhy\n"));
            }
            let read = history(number + 1, &text);
            prop_assert_eq!(read.timeline_at(Lsn::new(at)), as_postgresql(&read, Lsn::new(at)));
            prop_assert_eq!(read.to_text(), text);
            prop_assert_eq!(TimelineHistory::parse(read.timeline(), read.to_text().as_bytes()).unwrap(), read);
        }

        #[test]
        fn any_bytes_are_a_history_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(read) = TimelineHistory::parse(timeline(7), &bytes) {
                prop_assert!(read.entries().iter().all(|entry| entry.parent < timeline(7)));
            }
        }
    }
}
