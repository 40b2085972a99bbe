//! Which member to stream from. Pure: observations in, a decision out.
//!
//! The source is the primary of the highest timeline whose history contains ours. Not being in recovery makes a primary;
//! who *ought* to be one is for others to say, and several may claim it:
//!
//! * A server on a timeline lower than ours, or whose history does not contain ours, is never followed.
//! * A stream from a primary that still is one is not given up for another primary, whatever its timeline: a promotion
//!   beside a living primary is a mistake more often than not, and following it cannot be undone, while the slot on the other
//!   member keeps its WAL until a person, or a witness such as Patroni, has decided.
//! * Of two primaries that tell the same of themselves and are two servers all the same ([`Apart`]), the one that was streamed
//!   from is ours; when nobody knows, neither.
//! * Without any primary, the standby that is furthest goes on sending what it has.

use wal::{SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};

use super::twins::Apart;
use crate::primary::TargetSessionAttrs;
use crate::receiver::start::{self, Position, ServerPosition, Start};

#[cfg(test)]
mod tests;

/// What a member said when it was asked last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::receiver) struct Seen {
    /// Number of its cluster.
    pub(in crate::receiver) system_identifier: SystemIdentifier,
    /// Whether it is a standby.
    pub(in crate::receiver) in_recovery: bool,
    /// Its timeline's ancestry, and where its WAL ends.
    pub(in crate::receiver) position: ServerPosition,
}

/// What the members are measured by: what we hold.
#[derive(Clone, Debug)]
pub(in crate::receiver) struct Ours {
    /// Whose WAL it is; `None` before anything is known of the cluster.
    pub(in crate::receiver) system_identifier: Option<SystemIdentifier>,
    /// What is held of it.
    pub(in crate::receiver) held: Option<Position>,
    /// The ancestry of the timeline that is held.
    pub(in crate::receiver) history: TimelineHistory,
    /// Size of its segments.
    pub(in crate::receiver) segment_size: SegmentSize,
}

/// What makes one of several possible sources the better one. Members are numbered as in the conninfo.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::receiver) struct Leaning {
    /// The member that we stream from, or streamed from when a second primary appeared beside it.
    pub(in crate::receiver) loyal_to: Option<usize>,
    /// The member that was streamed from last: ours, where nothing else tells two servers apart.
    pub(in crate::receiver) last: Option<usize>,
    /// Whom a second witness (Patroni) calls the leader.
    pub(in crate::receiver) leader: Option<usize>,
    /// Whether a standby will do: not at once, since a primary that restarts is back in a moment.
    pub(in crate::receiver) standby_will_do: bool,
}

/// Whom to stream from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::receiver) enum Choice {
    /// From this primary.
    Primary(usize),
    /// There is no primary: from this standby.
    Standby(usize),
    /// From nobody, though this member would have us: its WAL does not continue ours.
    Refused(usize),
    /// From nobody for now.
    Nobody,
}

/// A choice, and who else claims to be the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::receiver) struct Decision {
    /// Whom to stream from.
    pub(in crate::receiver) choice: Choice,
    /// Members that take writes on another history than the primary to follow: a conflict.
    pub(in crate::receiver) rivals: Vec<usize>,
    /// Members that belong to another cluster altogether.
    pub(in crate::receiver) strangers: Vec<usize>,
}

impl Decision {
    /// The same, but a primary that streams is not left: it did not let us ask, being full perhaps, and so says nothing
    /// against itself. Whoever takes writes beside it is a rival.
    pub(in crate::receiver) fn staying_with(mut self, source: usize) -> Self {
        if let Choice::Primary(other) = self.choice
            && other != source
        {
            self.rivals.push(other);
        }
        Self { choice: Choice::Primary(source), ..self }
    }
}

/// How far a member's WAL suits ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It does not continue ours.
    Refused,
    /// It is ours, and ends before what we need next.
    Behind,
    /// It continues ours.
    Continues,
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    member: usize,
    seen: &'a Seen,
    standing: Standing,
}

/// Decides. `seen` has an entry for each member: what it said, or nothing when it said nothing (in time).
pub(in crate::receiver) fn choose(
    seen: &[Option<&Seen>],
    ours: &Ours,
    leaning: Leaning,
    apart: &Apart,
    wanted: TargetSessionAttrs,
) -> Decision {
    let all: Vec<Candidate<'_>> = seen
        .iter()
        .enumerate()
        .filter_map(|(member, seen)| seen.map(|seen| Candidate { member, seen, standing: standing(seen, ours) }))
        .collect();
    let stranger =
        |candidate: &&Candidate<'_>| ours.system_identifier.is_some_and(|id| id != candidate.seen.system_identifier);
    let strangers = all.iter().filter(stranger).map(|candidate| candidate.member).collect();
    let primary = primary(&all, ours, leaning, apart);
    let standby = || standby(&all, ours, leaning);
    let chosen = match wanted {
        TargetSessionAttrs::Any if leaning.standby_will_do => primary.or_else(|| {
            // Of two primaries that nobody can tell apart, no standby is to be trusted more.
            if has_primary(&all) { None } else { standby() }
        }),
        TargetSessionAttrs::Any | TargetSessionAttrs::ReadWrite | TargetSessionAttrs::Primary => primary,
        TargetSessionAttrs::Standby | TargetSessionAttrs::ReadOnly => standby(),
        TargetSessionAttrs::PreferStandby => standby().or(primary),
    };
    let choice = match chosen {
        Some(source) if source.seen.in_recovery => Choice::Standby(source.member),
        Some(source) => Choice::Primary(source.member),
        None if has_primary(&all) => Choice::Nobody,
        // Whoever takes writes says best why nobody is followed.
        None => all
            .iter()
            .filter(|candidate| candidate.standing == Standing::Refused && !candidate.seen.in_recovery)
            .max_by_key(|candidate| candidate.seen.position.history.timeline())
            .map_or(Choice::Nobody, |candidate| Choice::Refused(candidate.member)),
    };
    Decision { choice, rivals: rivals(&all, primary, ours, apart), strangers }
}

/// How far a member's WAL suits ours.
fn standing(seen: &Seen, ours: &Ours) -> Standing {
    if ours.system_identifier.is_some_and(|id| id != seen.system_identifier) {
        return Standing::Refused;
    }
    match start::decide(ours.held, &ours.history, &seen.position, ours.segment_size) {
        Start::First | Start::At { .. } => Standing::Continues,
        Start::Ahead { .. } => Standing::Behind,
        Start::Conflict(_) => Standing::Refused,
    }
}

fn has_primary(all: &[Candidate<'_>]) -> bool {
    all.iter().any(|candidate| candidate.standing != Standing::Refused && !candidate.seen.in_recovery)
}

/// The primary to follow; `None` when there is none, or when two claim the same timeline and nobody knows which is ours.
fn primary<'a>(all: &[Candidate<'a>], ours: &Ours, leaning: Leaning, apart: &Apart) -> Option<Candidate<'a>> {
    let primaries = || all.iter().copied().filter(|candidate| !candidate.seen.in_recovery);
    let best =
        primaries().map(|candidate| candidate.standing).filter(|&standing| standing > Standing::Refused).max()?;
    let suitable: Vec<Candidate<'a>> = primaries().filter(|candidate| candidate.standing == best).collect();
    let is = |member: Option<usize>| suitable.iter().copied().find(|candidate| Some(candidate.member) == member);
    if let Some(decided) = is(leaning.leader).or_else(|| is(leaning.loyal_to)) {
        return Some(decided);
    }
    let timeline = |candidate: &Candidate<'_>| candidate.seen.position.history.timeline();
    let highest = suitable.iter().map(timeline).max();
    // Two promotions to the same number: neither is more ours than the other, but who stayed where we are is ours.
    let on_ours = ours.held.map(|held| held.timeline);
    let the_one_on = |number: Option<TimelineId>| {
        let there: Vec<Candidate<'a>> = suitable.iter().copied().filter(|one| Some(timeline(one)) == number).collect();
        let one_server = there.iter().all(|other| same_server(&there[0], other, apart));
        there.first().copied().filter(|_| one_server)
    };
    the_one_on(highest).or_else(|| the_one_on(on_ours)).or_else(|| is(leaning.last))
}

/// Whether two members are one server that is listed by two names, for all that is known.
fn same_server(one: &Candidate<'_>, other: &Candidate<'_>, apart: &Apart) -> bool {
    one.seen.position.history == other.seen.position.history && !apart.are(one.member, other.member)
}

/// The standby that is furthest. The one that we stream from is kept unless another is on a higher timeline, or has a
/// segment more: at each change the open segment is sent once more.
fn standby<'a>(all: &[Candidate<'a>], ours: &Ours, leaning: Leaning) -> Option<Candidate<'a>> {
    let standbys =
        || all.iter().copied().filter(|candidate| candidate.seen.in_recovery && candidate.standing > Standing::Refused);
    let place = |candidate: &Candidate<'_>| (candidate.seen.position.history.timeline(), candidate.seen.position.end);
    // Of equals the first that is listed.
    let furthest = standbys().rev().max_by_key(place)?;
    let kept = standbys().find(|candidate| Some(candidate.member) == leaning.loyal_to).filter(|kept| {
        let (timeline, end) = place(kept);
        let (highest, furthest) = place(&furthest);
        timeline == highest && furthest <= end.saturating_add(ours.segment_size.bytes())
    });
    kept.or(Some(furthest))
}

/// Who takes writes on another history than the primary that we would follow. A member that is listed twice, by two names,
/// is no rival of itself.
fn rivals(all: &[Candidate<'_>], primary: Option<Candidate<'_>>, ours: &Ours, apart: &Apart) -> Vec<usize> {
    let same_cluster =
        |candidate: &&Candidate<'_>| ours.system_identifier.is_none_or(|id| id == candidate.seen.system_identifier);
    // Without one, whoever takes writes is a rival of what we hold.
    let another = |candidate: &&Candidate<'_>| primary.is_none_or(|primary| !same_server(candidate, &primary, apart));
    let writes = all.iter().filter(|candidate| !candidate.seen.in_recovery);
    writes.filter(same_cluster).filter(another).map(|candidate| candidate.member).collect()
}
