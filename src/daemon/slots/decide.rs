//! What to do with our slot on one member. Pure.
//!
//! A failover leaves no gap when the next primary has kept the WAL that we do not hold yet, so every member carries our
//! slot. The receiver cares for the slot that it streams through; this is about all the others.

use std::time::Duration;

use wal::{Lsn, SegmentNumber, SegmentSize};

use super::branch::{Branch, Relation};

/// How long the slot of a member that was left stays: as long as its last WAL may still be fetched.
pub const LEFT_FOR: Duration = Duration::from_secs(600);

/// What we hold, and through whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// The branch that we follow, up to what is durable with us.
    pub branch: Branch,
    /// Size of its segments: WAL is kept and removed by whole segments.
    pub segment_size: SegmentSize,
    /// Whether a stream runs, from whichever member.
    pub streaming: bool,
}

/// One member, by SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// The end of the WAL that it has flushed, or replayed: a slot cannot be advanced beyond.
    pub end: Lsn,
    /// Its slot of our name.
    pub slot: Option<SeenSlot>,
    /// Whether the receiver streams from it, or did last.
    pub is_source: bool,
    /// For how long it has been seen on a branch that we left.
    pub left_for: Duration,
    /// Whether the server gives up slots that are idle (`idle_replication_slot_timeout`, 18+) and this one has been for long.
    pub touch: bool,
}

/// A slot of our name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenSlot {
    /// Whether it is a physical one.
    pub physical: bool,
    /// Whether a connection uses it.
    pub active: bool,
    /// Whether it keeps nothing any more, or never did.
    pub lost: bool,
    /// First byte of WAL that it keeps.
    pub restart: Option<Lsn>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Leave(Why),
    /// Ask on which branch it is, then decide again.
    AskBranch,
    /// Make the slot, with WAL reserved.
    Create,
    /// It keeps nothing: drop it and make it anew.
    Renew,
    /// Let it keep less: from here on.
    Advance(Lsn),
    /// Advance it to where it stands: nothing changes but the server's clock of its idleness.
    Touch(Lsn),
    /// Nothing that we may need comes from this member: let it keep nothing.
    Drop,
}

/// Why nothing is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is in use: by us, or by whoever took our name.
    InUse,
    /// It is a logical one: not ours, whatever it is called.
    NotOurs,
    /// It keeps what it has to and no whole segment more.
    UpToDate,
    /// The receiver makes the slot of the server that it streams from, and finds out there what is lost.
    OfTheReceiver,
    /// It is on a branch that we left, and its last WAL may still be fetched.
    LeftLately,
    /// It is on a branch that we left, and keeps nothing for us.
    Left,
    /// It is on another branch, which we may have to follow yet.
    OtherBranch,
}

/// What to do with the slot. `branch` is where the member stands, asked in the round in which it is used: its end was read
/// while it was on this very timeline, so that all WAL before it belongs to this branch, whatever the member does next.
pub fn decide(ours: &Ours, seen: &Seen, branch: Option<&Branch>) -> Act {
    let kept = match &seen.slot {
        Some(slot) if !slot.physical => return Act::Leave(Why::NotOurs),
        Some(slot) if slot.active => return Act::Leave(Why::InUse),
        Some(slot) if !slot.lost => slot.restart,
        _ => None,
    };
    // A primary's missing or lost slot is news that belongs to the receiver: made here, it would look as if nothing had been
    // lost. Unless the receiver streams from elsewhere.
    let of_the_receiver = seen.is_source || (!seen.in_recovery && !ours.streaming);
    if kept.is_none() && of_the_receiver {
        return Act::Leave(Why::OfTheReceiver);
    }
    if let Some(kept) = kept
        && seen.left_for.is_zero()
        && !frees_a_segment(kept, ours.branch.end.min(seen.end), ours.segment_size)
    {
        return if seen.touch { Act::Touch(kept) } else { Act::Leave(Why::UpToDate) };
    }
    let Some(branch) = branch else { return Act::AskBranch };
    match (ours.branch.relation_to(branch), kept) {
        (Relation::Other, _) => Act::Leave(Why::OtherBranch),
        (Relation::Left { .. }, None) => Act::Leave(Why::Left),
        (Relation::Left { .. }, Some(_)) if seen.left_for < LEFT_FOR => Act::Leave(Why::LeftLately),
        (Relation::Left { .. }, Some(_)) => Act::Drop,
        (Relation::Same(_), None) if seen.slot.is_some() => Act::Renew,
        (Relation::Same(_), None) => Act::Create,
        // What both hold: never beyond what is durable here, never beyond what the member has, never past a fork.
        (Relation::Same(common), Some(kept)) => {
            let to = common.min(seen.end);
            if frees_a_segment(kept, to, ours.segment_size) { Act::Advance(to) } else { Act::Leave(Why::UpToDate) }
        }
    }
}

/// Whether a slot that keeps WAL from `kept` on would let go of a segment if it kept it from `to` on.
fn frees_a_segment(kept: Lsn, to: Lsn, size: SegmentSize) -> bool {
    SegmentNumber::containing(to, size) > SegmentNumber::containing(kept, size)
}

#[cfg(test)]
mod tests;
