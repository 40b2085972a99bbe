//! Which segments are fetched ahead.

use wal::{SegmentName, SegmentSize};

/// How far ahead of what was asked for is fetched.
///
/// It begins with one segment and doubles with every one that was asked for in order, up to its limit: a single request
/// costs little, a long recovery is ahead soon. Where the store had nothing, it stops until that segment itself was
/// asked for and found.
#[derive(Clone, Debug)]
pub(super) struct Window {
    segment_size: SegmentSize,
    limit: u64,
    ahead: u64,
    last: Option<SegmentName>,
    missing: Option<SegmentName>,
}

impl Window {
    /// At most `bytes` ahead, and one segment at least unless that is nothing.
    pub(super) fn new(bytes: u64, segment_size: SegmentSize) -> Self {
        let limit = if bytes == 0 { 0 } else { (bytes / segment_size.bytes()).max(1) };
        Self { segment_size, limit, ahead: 0, last: None, missing: None }
    }

    /// Nothing more is fetched ahead.
    pub(super) fn close(&mut self) {
        self.limit = 0;
    }

    /// The segment was asked for and found whole.
    pub(super) fn found(&mut self, segment: SegmentName) {
        let in_order = self.last.and_then(|last| self.after(last)) == Some(segment);
        self.ahead = if in_order { (self.ahead * 2).clamp(1, self.limit.max(1)) } else { 1 };
        if self.missing.is_some_and(|missing| missing == segment || missing.timeline() != segment.timeline()) {
            self.missing = None;
            self.ahead = 1;
        }
        self.last = Some(segment);
    }

    /// The segment was not there when it was fetched ahead: the WAL ends before it, for now.
    pub(super) fn missing(&mut self, segment: SegmentName) {
        if self.missing.is_none_or(|missing| segment < missing) {
            self.missing = Some(segment);
        }
    }

    /// What should be there or on its way, in the order in which it will be asked for: of the same timeline only, because
    /// nothing but a history tells where another one begins.
    pub(super) fn wanted(&self) -> Vec<SegmentName> {
        let mut wanted = Vec::new();
        let mut next = self.last.and_then(|last| self.after(last));
        while let Some(segment) = next.filter(|_| (wanted.len() as u64) < self.ahead.min(self.limit)) {
            if self.missing.is_some_and(|missing| missing.timeline() == segment.timeline() && missing <= segment) {
                break;
            }
            wanted.push(segment);
            next = self.after(segment);
        }
        wanted
    }

    fn after(&self, segment: SegmentName) -> Option<SegmentName> {
        let number = segment.number(self.segment_size)?;
        Some(SegmentName::new(segment.timeline(), number.next(), self.segment_size))
    }
}

#[cfg(test)]
mod tests {
    use wal::{SegmentName, SegmentNumber, SegmentSize, TimelineId};

    use super::Window;

    const MIB: u64 = 1 << 20;

    fn name(timeline: u32, number: u64) -> SegmentName {
        let size = SegmentSize::new(MIB).unwrap();
        SegmentName::new(TimelineId::new(timeline).unwrap(), SegmentNumber::new(number), size)
    }

    fn window(bytes: u64) -> Window {
        Window::new(bytes, SegmentSize::new(MIB).unwrap())
    }

    fn numbers(window: &Window) -> Vec<u64> {
        let size = SegmentSize::new(MIB).unwrap();
        window.wanted().iter().map(|name| name.number(size).unwrap().get()).collect()
    }

    #[test]
    fn it_grows_while_segments_are_asked_for_in_order() {
        let mut window = window(5 * MIB);
        assert_eq!(numbers(&window), [0; 0]);
        let mut sizes = Vec::new();
        for number in 0xFD..0x102 {
            window.found(name(1, number));
            assert_eq!(numbers(&window).first(), Some(&(number + 1)), "over the end of a log file as well");
            sizes.push(numbers(&window).len());
        }
        assert_eq!(sizes, [1, 2, 4, 5, 5]);
        window.found(name(1, 7));
        assert_eq!(numbers(&window), [8], "asked for something else: it begins again");
    }

    #[test]
    fn it_ends_where_the_store_had_nothing_until_that_is_found() {
        let mut window = window(8 * MIB);
        for number in 1..5 {
            window.found(name(1, number));
        }
        window.missing(name(1, 8));
        window.missing(name(1, 7));
        window.missing(name(1, 9));
        assert_eq!(numbers(&window), [5, 6]);
        for number in 5..7 {
            window.found(name(1, number));
        }
        assert_eq!(numbers(&window), [0; 0], "no request for what is known not to be there");
        window.found(name(1, 7));
        assert_eq!(numbers(&window), [8], "now it may be");
    }

    #[test]
    fn another_timeline_begins_anew() {
        let mut window = window(8 * MIB);
        for number in 1..5 {
            window.found(name(1, number));
        }
        window.missing(name(1, 5));
        window.found(name(2, 5));
        assert_eq!(window.wanted(), [name(2, 6)]);
    }

    #[test]
    fn a_limit_of_nothing_fetches_nothing_and_a_small_one_a_segment() {
        let mut none = window(0);
        let mut small = window(10);
        for number in 1..9 {
            none.found(name(1, number));
            small.found(name(1, number));
        }
        assert_eq!(numbers(&none), [0; 0]);
        assert_eq!(numbers(&small), [9]);
        small.close();
        assert_eq!(numbers(&small), [0; 0]);
    }
}
