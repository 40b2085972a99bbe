//! Where streaming starts. Pure.
//!
//! Only our own stores say from where we need WAL; the server's history says on which timeline it has it.

use wal::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, TimelinePath};

/// What we hold: everything before `end`, without a gap, on `timeline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The timeline.
    pub timeline: TimelineId,
    /// First byte that we do not hold.
    pub end: Lsn,
    /// First byte of the segment in which to go on: `end`'s, or the one before when that is not complete.
    pub segment_start: Lsn,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPosition {
    /// History of its timeline.
    pub history: TimelineHistory,
    /// End of its WAL.
    pub end: Lsn,
}

/// From where to stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// We hold nothing: the server's slot, or its present position, decides.
    First,
    /// From this segment start on this timeline.
    At {
        /// The timeline.
        timeline: TimelineId,
        /// A segment's first byte.
        start: Lsn,
        /// WAL of the timeline that is left, beyond the fork: acknowledged perhaps, and now only here.
        beyond_fork: Option<BeyondFork>,
    },
    /// The server's WAL ends before what we need next.
    Ahead {
        /// Where the server's WAL ends.
        server_end: Lsn,
    },
    /// This server's WAL does not continue ours.
    Conflict(Conflict),
}

/// WAL that we hold of a timeline, beyond where its successor left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeyondFork {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// Where it was left.
    pub fork: Lsn,
    /// Where ours ends.
    pub end: Lsn,
}

/// Why a server's WAL does not continue ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A former primary that came back, or a clone.
    #[error("the server is on timeline {server}, we already follow timeline {ours}")]
    LowerTimeline {
        /// The server's.
        server: TimelineId,
        /// Ours.
        ours: TimelineId,
    },
    /// The server's timeline does not descend from ours.
    #[error("the server's timeline {server} does not descend from timeline {ours}, which we hold up to {end}")]
    NotAnAncestor {
        /// The server's.
        server: TimelineId,
        /// Ours.
        ours: TimelineId,
        /// Where ours ends.
        end: Lsn,
    },
}

/// Decides where to go on.
pub(crate) fn decide(
    held: Option<Position>,
    ours: &TimelineHistory,
    server: &ServerPosition,
    size: SegmentSize,
) -> Start {
    let Some(held) = held else { return Start::First };
    let server_timeline = server.history.timeline();
    if server_timeline < held.timeline {
        return Start::Conflict(Conflict::LowerTimeline { server: server_timeline, ours: held.timeline });
    }
    let fork = server.history.switch_point_of(held.timeline);
    // Up to the fork both must tell the same story; beyond it ours is an end that nobody follows.
    let shared = fork.map_or(held.end, |fork| fork.min(held.end));
    if !server.history.is_continuation_of(ours, shared) {
        return Start::Conflict(Conflict::NotAnAncestor {
            server: server_timeline,
            ours: held.timeline,
            end: held.end,
        });
    }
    match fork {
        Some(fork) if held.end >= fork => successor(held, fork, server, size),
        _ if held.segment_start > server.end => Start::Ahead { server_end: server.end },
        _ => Start::At { timeline: held.timeline, start: held.segment_start, beyond_fork: None },
    }
}

/// On the timeline that left ours at `fork`, at the start of the segment that it has a copy of.
fn successor(held: Position, fork: Lsn, server: &ServerPosition, size: SegmentSize) -> Start {
    let start = SegmentNumber::containing(fork, size).start(size);
    // The next ancestor in the server's history, never `+ 1`: numbers may be skipped. Of those that forked in the same
    // segment the last has the copy, which is how recovery reads it too.
    let next = TimelinePath::new(&server.history, size).timeline_at(start);
    let beyond_fork = (held.end > fork).then_some(BeyondFork { timeline: held.timeline, fork, end: held.end });
    Start::At { timeline: next, start, beyond_fork }
}

/// Where to go on without the WAL that the server no longer has: on its path, at the segment of what it still keeps.
pub(super) fn after_gap(server: &ServerPosition, kept_from: Lsn, size: SegmentSize) -> (TimelineId, Lsn) {
    let start = SegmentNumber::containing(kept_from, size).start(size);
    (TimelinePath::new(&server.history, size).timeline_at(start), start)
}

#[cfg(test)]
mod tests;
