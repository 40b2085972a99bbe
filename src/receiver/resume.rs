//! Where streaming goes on, and what is recorded when WAL was lost on the way.

use std::collections::BTreeMap;

use wal::{Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId, TimelinePath};

use tokio::time::Instant;

use super::Receiver;
use super::follow::Source;
use super::oldest::oldest_after;
use super::slot::{SlotFate, SlotFound, SlotUse};
use super::start::{self, BeyondFork, Position, ServerPosition, Start};
use super::trouble::Trouble;
use crate::error::{Error, ErrorCode};
use crate::primary::ConnectOptions;
use crate::spool::{Held, HeldPrefix, SentAgain, Spool};
use crate::wal_pipeline::GapRecord;

/// How often the same WAL may be missing on the server, though its slot claims to keep it, before we go on without it.
const PATIENCE_WITH_MISSING_WAL: u32 = 3;

/// A page of WAL: its header says nothing about its history, its records do.
const PAGE: u64 = 8192;

/// WAL that was asked for in vain.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) times: u32,
    /// When that was found.
    pub(super) since: Instant,
    /// How often each member was asked for it in vain, the server that we follow included.
    pub(super) asked: BTreeMap<usize, u32>,
}

/// The slot was made anew: what had become of it, and where what we held ended then.
#[derive(Clone, Debug)]
pub(crate) struct SlotMadeAnew {
    fate: SlotFate,
    held: Option<Lsn>,
}

/// Where to go on.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// Here.
    At(TimelineId, Lsn),
    /// After what we hold, which the server has removed.
    After(Removed, Position),
}

/// Where else to look for WAL that the server that we follow has removed.
#[derive(Clone, Debug)]
pub(super) struct Elsewhere {
    /// How to connect to that server, without being taken for the stream.
    pub(super) options: ConnectOptions,
    /// Members that do not answer, and may have it.
    pub(super) silent: Vec<String>,
}

impl Receiver {
    /// Where to go on: after what we hold, unless the server has said that it has that no more.
    pub(super) fn decide(
        &mut self,
        server: &ServerPosition,
        kept_from: Option<Lsn>,
        source: Source,
    ) -> Result<Next, Trouble> {
        let size = self.spool.segment_size();
        let held = self.held();
        let ours = match held {
            Some(held) => self.spool.history(held.timeline)?,
            None => server.history.clone(),
        };
        let (timeline, start) = match start::decide(held, &ours, server, size) {
            Start::First => {
                let (timeline, start) = start::after_gap(server, kept_from.unwrap_or(server.end), size);
                return Ok(Next::At(timeline, start));
            }
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
                Ok(Next::After(removed.clone(), held))
            }
            _ => Ok(Next::At(timeline, start)),
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
    pub(super) async fn go_on_without(
        &self,
        (removed, held): (Removed, Position),
        server: &ServerPosition,
        kept_from: Option<Lsn>,
        elsewhere: Elsewhere,
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
        let (_, there) = start::after_gap(server, kept_from.unwrap_or(server.end), size);
        if there <= removed.start {
            // The slot claims to keep it: ask again.
            return Ok((removed.timeline, removed.start));
        }
        self.wait_for_the_silent(&removed, &elsewhere.silent)?;
        let oldest = oldest_after(&elsewhere.options, server, removed.start, there, size).await;
        let (timeline, start) = start::after_gap(server, oldest, size);
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

    /// A member that is down at this moment may be the one that has it. Only where a slot keeps what the server writes
    /// meanwhile: else waiting would lose more.
    fn wait_for_the_silent(&self, removed: &Removed, silent: &[String]) -> Result<(), Trouble> {
        let limit = self.settings.wait_for_silent;
        if silent.is_empty() || self.settings.slot.is_none() || removed.since.elapsed() >= limit {
            return Ok(());
        }
        let silent = silent.join(", ");
        let said = format!("the server has removed WAL that is needed next, from {} on", removed.start);
        Err(Trouble::Removed(
            Error::new(ErrorCode::WalLost, said)
                .because(format!(
                    "{silent} may still have it and does not answer: waited for, {} s at most",
                    limit.as_secs()
                ))
                .help(format!("start {silent}; without it a gap is recorded and streaming goes on behind it")),
        ))
    }

    pub(super) fn slot_use(&self) -> SlotUse {
        SlotUse { create: self.settings.create_slot, refused: self.slot_refused }
    }

    /// Keeps in mind what had become of the slot: once it is made anew, nobody else can tell.
    pub(super) fn note_slot(&mut self, found: &SlotFound) -> Option<Lsn> {
        if let Some(fate) = found.fate.clone() {
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

    /// What we hold of the beginning of a segment that a new timeline shares with its ancestors: of several that were left in
    /// it, the one of which most is held.
    pub(super) fn prefix_of(
        &self,
        server: &ServerPosition,
        timeline: TimelineId,
        start: Lsn,
    ) -> Result<Option<HeldPrefix>, Trouble> {
        let Some((until, name)) = shared_with_ancestors(&self.spool, &server.history, timeline, start) else {
            return Ok(None);
        };
        Ok(Some(HeldPrefix::new(self.spool.open_for_reading(name)?, until)))
    }

    /// Where streaming goes on at a segment's first page, nothing would be sent again of what we hold, and a server with
    /// another history under the same timeline could not be told: the segment before is sent again as well, where it is held.
    pub(super) fn sent_again_before(&self, timeline: TimelineId, start: Lsn) -> Result<Option<SentAgain>, Trouble> {
        let size = self.spool.segment_size();
        let number = SegmentNumber::containing(start, size);
        let name = SegmentName::new(timeline, number, size);
        let enough = self.spool.get(name).is_some_and(|held| self.spool.end_of(name, held).bytes_since(start) > PAGE);
        let before = number.previous().filter(|_| !enough && self.unprovable != Some((timeline, start)));
        let Some(before) = before else { return Ok(None) };
        Ok(self.spool.sent_again(SegmentName::new(timeline, before, size))?)
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

/// What is held of the beginning of `timeline`'s segment at `start` under an ancestor's name: up to where, and the name.
fn shared_with_ancestors(
    spool: &Spool,
    history: &TimelineHistory,
    timeline: TimelineId,
    start: Lsn,
) -> Option<(Lsn, SegmentName)> {
    let ancestors = history.reigns().take_while(|&(ancestor, _)| ancestor < timeline);
    let held = ancestors.filter_map(|(ancestor, left)| {
        let name = SegmentName::containing(ancestor, start, spool.segment_size());
        let until = left.min(spool.end_of(name, spool.get(name)?));
        (until > start).then_some((until, name))
    });
    held.max()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wal::{SegmentSize, SystemIdentifier};

    use super::*;
    use crate::spool::SpoolOptions;

    #[test]
    fn of_several_forks_in_one_segment_the_longest_shared_beginning_is_compared() {
        let dir = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let tli = |number| TimelineId::new(number).unwrap();
        let at = Lsn::new;
        let history = TimelineHistory::parse(tli(3), b"1\t0/100100\tx\n2\t0/100200\ty\n").unwrap();
        let name = |timeline| SegmentName::containing(tli(timeline), at(0x10_0000), segment_size);
        let shared = |held: &[u32]| {
            let dir = dir.path().join(format!("{held:?}"));
            fs::create_dir(&dir).unwrap();
            for &timeline in held {
                fs::write(dir.join(name(timeline).to_string()), vec![0; 1 << 20]).unwrap();
            }
            let system_identifier = SystemIdentifier::new(7);
            let spool = Spool::open(SpoolOptions { dir, segment_size, system_identifier, max_size: None }).unwrap();
            shared_with_ancestors(&spool, &history, tli(3), at(0x10_0000))
        };
        assert_eq!(shared(&[]), None);
        assert_eq!(shared(&[1]), Some((at(0x10_0100), name(1))), "the timeline between was never received");
        assert_eq!(shared(&[2]), Some((at(0x10_0200), name(2))));
        assert_eq!(shared(&[1, 2]), Some((at(0x10_0200), name(2))));
    }
}
