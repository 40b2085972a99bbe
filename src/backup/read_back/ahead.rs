//! What is read at once, where chunk after chunk is wanted: neighbours in a file are neighbours in their pack.
//!
//! The first chunk is read alone. One that begins where another ended is taken for the second of many, and read with what
//! follows it; so are two more windows, before anybody asks for them. Large chunks are always read alone: a request for one is
//! worth while, and several are under way at once as it is.

use std::collections::VecDeque;
use std::ops::Range;

use crate::storage::Sha256;

/// What is read at once.
pub(super) const WINDOW: u64 = 1 << 20;

/// Longer chunks are read alone.
const ALONE: u64 = WINDOW / 4;

/// A chunk that begins so many bytes behind another comes after it: one in between may be on its way, or be no concern.
const NEAR: u64 = 64 << 10;

/// So many windows stay, and the ends of so many chunks and windows are remembered. Batches are worked on side by side, so
/// chunks are not asked for quite in their order.
const WINDOWS: usize = 6;
const ENDS: usize = 16;

/// Which windows there are; `W` is what is known of one.
#[derive(Debug)]
pub(super) struct Ahead<W> {
    windows: VecDeque<Window<W>>,
    ends: VecDeque<(Sha256, u64)>,
}

#[derive(Debug)]
struct Window<W> {
    pack: Sha256,
    range: Range<u64>,
    what: W,
}

/// How a chunk is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read<W> {
    /// On its own.
    Alone,
    /// It lies in this window, so many bytes from its start.
    Within(W, u64),
    /// It begins so; what lies beyond its first so many bytes is the beginning of the other window.
    Across(W, u64, W, u64),
}

impl<W> Default for Ahead<W> {
    fn default() -> Self {
        Self { windows: VecDeque::new(), ends: VecDeque::new() }
    }
}

impl<W: Clone> Ahead<W> {
    /// How the chunk at `chunk` in a pack of `size` bytes is read. `begin` begins to read a window.
    pub(super) fn read(
        &mut self,
        pack: &Sha256,
        chunk: Range<u64>,
        size: u64,
        mut begin: impl FnMut(Range<u64>) -> W,
    ) -> Read<W> {
        if chunk.end.saturating_sub(chunk.start) > ALONE {
            return Read::Alone;
        }
        if let Some((range, what)) = self.holding(pack, chunk.start) {
            let at = chunk.start - range.start;
            // What follows is fetched while this window is made use of.
            let next = self.following(pack, range.end, size, &mut begin);
            if let Some((next, _)) = &next {
                self.following(pack, next.end, size, &mut begin);
            }
            match next {
                _ if chunk.end <= range.end => return Read::Within(what, at),
                Some((next, then)) if chunk.end <= next.end => {
                    return Read::Across(what, at, then, range.end - chunk.start);
                }
                _ => {}
            }
        }
        let follows = |&(of, end): &(Sha256, u64)| of == *pack && (end..=end + NEAR).contains(&chunk.start);
        let in_a_row = self.ends.iter().any(follows);
        self.remember(pack, chunk.end);
        match in_a_row.then(|| self.begin(pack, chunk.start, size, &mut begin)).flatten() {
            Some((_, what)) => Read::Within(what, 0),
            None => Read::Alone,
        }
    }

    /// Forgets the windows in which this byte lies: they cannot be read, or not soon.
    pub(super) fn forget(&mut self, pack: &Sha256, at: u64) {
        self.windows.retain(|window| window.pack != *pack || !window.range.contains(&at));
    }

    /// The newest window in which this byte lies.
    fn holding(&self, pack: &Sha256, at: u64) -> Option<(Range<u64>, W)> {
        let found = self.windows.iter().rfind(|window| window.pack == *pack && window.range.contains(&at))?;
        Some((found.range.clone(), found.what.clone()))
    }

    /// The window that begins there; `None` where another lies across, or the pack ends.
    fn following(
        &mut self,
        pack: &Sha256,
        start: u64,
        size: u64,
        begin: &mut impl FnMut(Range<u64>) -> W,
    ) -> Option<(Range<u64>, W)> {
        match self.holding(pack, start) {
            Some((next, what)) => (next.start == start).then_some((next, what)),
            None => self.begin(pack, start, size, begin),
        }
    }

    fn begin(
        &mut self,
        pack: &Sha256,
        start: u64,
        size: u64,
        begin: &mut impl FnMut(Range<u64>) -> W,
    ) -> Option<(Range<u64>, W)> {
        let range = start..size.min(start.saturating_add(WINDOW));
        if range.is_empty() {
            return None;
        }
        let what = begin(range.clone());
        self.windows.push_back(Window { pack: *pack, range: range.clone(), what: what.clone() });
        if self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
        self.remember(pack, range.end);
        Some((range, what))
    }

    fn remember(&mut self, pack: &Sha256, end: u64) {
        self.ends.push_back((*pack, end));
        if self.ends.len() > ENDS {
            self.ends.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: Sha256 = [1; 32];
    const SIZE: u64 = 32 << 20;
    const KIB: u64 = 1 << 10;

    /// Reads chunks one after another; how each was read, and which windows that took.
    fn reads(chunks: impl IntoIterator<Item = (Sha256, Range<u64>)>) -> (Vec<Option<u64>>, Vec<Range<u64>>) {
        let (mut ahead, mut begun) = (Ahead::default(), Vec::new());
        let mut how = Vec::new();
        for (pack, chunk) in chunks {
            let read = ahead.read(&pack, chunk.clone(), SIZE, |range| {
                begun.push(range);
                begun.len() - 1
            });
            how.push(match read {
                Read::Alone => None,
                Read::Within(window, at) => {
                    let window: &Range<u64> = &begun[window];
                    assert!(window.start + at == chunk.start && chunk.end <= window.end, "{chunk:?} in {window:?}");
                    Some(at)
                }
                Read::Across(first, at, second, split) => {
                    let (first, second) = (&begun[first], &begun[second]);
                    assert!(first.start + at == chunk.start && first.end == second.start, "{chunk:?} from {first:?}");
                    assert!(chunk.start + split == first.end && (first.end..second.end).contains(&(chunk.end - 1)));
                    Some(at)
                }
            });
        }
        (how, begun)
    }

    fn row(from: u64, each: u64, count: u64) -> impl Iterator<Item = (Sha256, Range<u64>)> {
        (0..count).map(move |at| (PACK, from + at * each..from + (at + 1) * each))
    }

    #[test]
    fn chunks_in_a_row_are_read_together_and_each_byte_once() {
        let (how, begun) = reads(row(0, 24 * KIB, 1000));
        assert_eq!(how[..3], [None, Some(0), Some(24 * KIB)]);
        assert!(how[1..].iter().all(Option::is_some));
        let read: u64 = begun.iter().map(|range| range.end - range.start).sum();
        let wanted = 24 * KIB * 1000;
        assert!(begun.len() < 30 && read < wanted + 3 * WINDOW, "{} windows, {read} bytes of {wanted}", begun.len());
    }

    #[test]
    fn what_comes_in_another_order_is_in_a_row_all_the_same() {
        let mut chunks: Vec<_> = row(0, 24 * KIB, 200).collect();
        chunks.chunks_mut(4).for_each(<[_]>::reverse);
        let (how, _) = reads(chunks);
        assert!(how.iter().filter(|how| how.is_none()).count() <= 8, "{how:?}");
    }

    #[test]
    fn scattered_large_and_foreign_chunks_are_read_alone() {
        let scattered = (0..100).map(|at| (PACK, at * 300 * KIB..at * 300 * KIB + 24 * KIB));
        assert_eq!(reads(scattered).1, []);
        assert_eq!(reads(row(0, ALONE + 1, 20)).1, []);
        let packs = (0..20).map(|at| ([at; 32], u64::from(at) * 24 * KIB..(u64::from(at) + 1) * 24 * KIB));
        assert_eq!(reads(packs).1, []);
    }

    #[test]
    fn nothing_is_read_beyond_the_end_of_a_pack() {
        let (how, begun) = reads(row(SIZE - 100 * KIB, 25 * KIB, 4));
        assert_eq!(how, [None, Some(0), Some(25 * KIB), Some(50 * KIB)]);
        assert!(begun.len() == 1 && begun[0] == (SIZE - 75 * KIB..SIZE), "{begun:?}");
    }

    #[test]
    fn a_window_that_was_forgotten_is_begun_again() {
        let mut ahead = Ahead::default();
        let mut begun = 0;
        let mut read = |ahead: &mut Ahead<u32>, at: u64| {
            ahead.read(&PACK, at * KIB..(at + 1) * KIB, SIZE, |_| {
                begun += 1;
                begun
            })
        };
        assert_eq!(read(&mut ahead, 0), Read::Alone);
        assert_eq!(read(&mut ahead, 1), Read::Within(1, 0));
        ahead.forget(&PACK, 3 * KIB);
        assert_eq!(read(&mut ahead, 1), Read::Within(2, 0));
    }
}
