//! Where streaming goes on, and what is recorded when WAL was lost on the way.

use std::collections::BTreeMap;

use wal::{Lsn, SegmentName, SegmentNumber, TimelineId, TimelinePath};

use super::Receiver;
use super::follow::Source;
use super::slot::{SlotFate, SlotFound, SlotUse};
use super::start::{self, BeyondFork, Position, ServerPosition, Start};
use super::trouble::Trouble;
use crate::spool::{Held, HeldPrefix};
use crate::wal_pipeline::GapRecord;

/// How often the same WAL may be missing on the server, though its slot claims to keep it, before we go on without it.
const PATIENCE_WITH_MISSING_WAL: u32 = 3;

/// WAL that was asked for in vain.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) times: u32,
    /// How often each member was asked for it in vain, the server that we follow included.
    pub(super) asked: BTreeMap<usize, u32>,
}

/// The slot was made anew: what had become of it, and where what we held ended then.
#[derive(Clone, Debug)]
pub(crate) struct SlotMadeAnew {
    fate: SlotFate,
    held: Option<Lsn>,
}

impl Receiver {
    /// Where to go on: after what we hold, or beyond a gap when the server has that no more.
    pub(super) fn decide(
        &mut self,
        server: &ServerPosition,
        kept_from: Option<Lsn>,
        source: Source,
    ) -> Result<(TimelineId, Lsn), Trouble> {
        let size = self.spool.segment_size();
        let held = self.held();
        let ours = match held {
            Some(held) => self.spool.history(held.timeline)?,
            None => server.history.clone(),
        };
        let (timeline, start) = match start::decide(held, &ours, server, size) {
            Start::First => return Ok(start::after_gap(server, kept_from.unwrap_or(server.end), size)),
            Start::Ahead { server_end } => {
                return Err(Trouble::Held { server_end, held: held.map_or(server_end, |held| held.end) });
            }
            Start::Conflict(conflict) => return Err(conflict.into()),
            Start::At { timeline, start, beyond_fork } => {
                if let Some(beyond) = beyond_fork {
                    self.note_beyond_fork(beyond);
                }
                (timeline, start)
            }
        };
        match (&self.removed, held) {
            (Some(removed), Some(held))
                if (removed.timeline, removed.start) == (timeline, start) && source.until.is_none() =>
            {
                self.go_on_without(removed, held, server, kept_from)
            }
            _ => Ok((timeline, start)),
        }
    }

    /// Where streaming goes on elsewhere (a fork behind what we hold, a gap), nothing more comes for the segment held in part.
    pub(super) fn leave_all_but(&self, next: SegmentName) -> Result<(), Trouble> {
        match self.spool.last() {
            Some((name, _)) if name != next => Ok(self.spool.leave(name)?),
            Some(_) | None => Ok(()),
        }
    }

    /// The server has no more what we need next: the loss is recorded, exactly, before anything after it is taken in.
    fn go_on_without(
        &self,
        removed: &Removed,
        held: Position,
        server: &ServerPosition,
        kept_from: Option<Lsn>,
    ) -> Result<(TimelineId, Lsn), Trouble> {
        let size = self.spool.segment_size();
        if let Some(fork) = server.history.switch_point_of(removed.timeline) {
            // The segment in which the next timeline begins has a copy of what is missing.
            let successor = start::after_gap(server, fork, size);
            if successor.1 == removed.start && successor.0 > removed.timeline {
                return Ok(successor);
            }
        }
        let kept_from = kept_from.filter(|&lsn| lsn > removed.start || removed.times < PATIENCE_WITH_MISSING_WAL);
        let (timeline, start) = start::after_gap(server, kept_from.unwrap_or(server.end), size);
        if start <= removed.start {
            // The slot claims to keep it: ask again.
            return Ok((removed.timeline, removed.start));
        }
        let at = self.clock.now();
        let reason = self.why_removed(held.end, kept_from);
        tracing::error!(from = %held.end, to = %start, reason, "WAL is lost: a gap is recorded");
        let gaps = TimelinePath::new(&server.history, size)
            .legs(held.end, start)
            .map(|leg| GapRecord { timeline: leg.timeline, from: leg.start, to: leg.end, reason: reason.clone(), at })
            .collect();
        self.gaps.record(gaps).map_err(Trouble::Own)?;
        Ok((timeline, start))
    }

    pub(super) fn slot_use(&self) -> SlotUse {
        SlotUse { create: self.settings.create_slot, refused: self.slot_refused }
    }

    /// Keeps in mind what had become of the slot: once it is made anew, nobody else can tell.
    pub(super) fn note_slot(&mut self, found: SlotFound) -> Option<Lsn> {
        if let Some(fate) = found.fate {
            self.slot_fate = Some(SlotMadeAnew { fate, held: self.held().map(|held| held.end) });
        }
        found.kept_from
    }

    /// Why the server has no more what follows `held`, in words for a person.
    fn why_removed(&self, held: Lsn, kept_from: Option<Lsn>) -> String {
        let removed = "the server removed the WAL before it was received";
        match (&self.slot_fate, kept_from) {
            _ if self.settings.slot.is_none() => format!("{removed}: no replication slot kept it"),
            (Some(SlotMadeAnew { fate, held: then }), _) if *then == Some(held) => format!("{fate}, and {removed}"),
            (_, Some(kept_from)) if kept_from > held => {
                format!("{removed}: the replication slot was made anew and keeps WAL from {kept_from} on only")
            }
            _ => format!("{removed}, which the replication slot should have kept"),
        }
    }

    /// What we hold without a gap: the later of spool and repository.
    pub(super) fn held(&self) -> Option<Position> {
        let size = self.spool.segment_size();
        let spooled = self.spool.last().map(|(name, held)| {
            let end = self.spool.end_of(name, held);
            let segment_start = if held == Held::Complete { end } else { self.spool.start_of(name) };
            Position { timeline: name.timeline(), end, segment_start }
        });
        let stored = self.stored.map(|(timeline, end)| {
            let segment_start = SegmentNumber::containing(end, size).start(size);
            Position { timeline, end: segment_start, segment_start }
        });
        spooled.into_iter().chain(stored).max_by_key(|position| (position.timeline, position.end))
    }

    /// What we hold of the beginning of a segment that a new timeline shares with its parent.
    pub(super) fn prefix_of(
        &self,
        server: &ServerPosition,
        timeline: TimelineId,
        start: Lsn,
    ) -> Result<Option<HeldPrefix>, Trouble> {
        let size = self.spool.segment_size();
        let parent = server.history.entries().iter().rev().find(|entry| entry.parent < timeline);
        let Some(parent) = parent.filter(|parent| parent.switch_point > start) else { return Ok(None) };
        let name = SegmentName::containing(parent.parent, start, size);
        let Some(held) = self.spool.get(name) else { return Ok(None) };
        let until = parent.switch_point.min(self.spool.end_of(name, held));
        Ok(Some(HeldPrefix::new(self.spool.open_for_reading(name)?, until)))
    }

    fn note_beyond_fork(&self, beyond: BeyondFork) {
        let range = wal::WalRange { timeline: beyond.timeline, start: beyond.fork, end: beyond.end };
        tracing::warn!(timeline = %beyond.timeline, from = %beyond.fork, to = %beyond.end, "WAL beyond a fork is kept");
        self.board.update(|status| {
            if !status.beyond_fork.contains(&range) {
                status.beyond_fork.push(range);
            }
        });
    }
}
