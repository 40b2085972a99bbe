//! One file on that disk: what is durable of it, and what is only in the cache.

use super::disk::Survives;
use crate::support::attacked::Dice;

#[derive(Debug, Default)]
pub(super) struct FileNode {
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<(usize, Change)>,
    /// What a failed sync was to bring to the disk: in the cache at best, and of no sync's concern any more.
    pub(super) forgotten: Vec<(usize, Change)>,
    /// What everybody reads.
    pub(super) now: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Truncate(u64),
    Allocate(u64),
}

impl Change {
    fn overlaps(&self, other: &Self) -> bool {
        let range = |change: &Self| match change {
            Self::Write { at, bytes } => *at..at + bytes.len() as u64,
            Self::Truncate(_) | Self::Allocate(_) => 0..u64::MAX,
        };
        let (one, other) = (range(self), range(other));
        one.start < other.end && other.start < one.end
    }
}

impl FileNode {
    pub(super) fn sync(&mut self, data_only: bool, begun: usize) {
        let pending = std::mem::take(&mut self.pending);
        for (at, change) in pending {
            let grows = match &change {
                Change::Write { at, bytes } => at + bytes.len() as u64 > self.durable.len() as u64,
                Change::Truncate(_) | Change::Allocate(_) => true,
            };
            if at < begun && !(data_only && grows) {
                self.forgotten.retain(|(_, older)| !older.overlaps(&change));
                apply(&mut self.durable, &change);
            } else {
                self.pending.push((at, change));
            }
        }
    }

    /// What is in the cache and not known to be on disk, in order.
    fn unsynced(&self) -> Vec<&Change> {
        self.forgotten.iter().chain(&self.pending).map(|(_, change)| change).collect()
    }

    pub(super) fn after_power_loss(&self, survives: Survives, dice: &mut Dice) -> Vec<u8> {
        match survives {
            Survives::Nothing | Survives::Names => self.durable.clone(),
            Survives::Everything | Survives::Bytes => self.now.clone(),
            Survives::Torn { sector } => {
                let mut bytes = self.durable.clone();
                for change in self.unsynced() {
                    match change {
                        Change::Write { at, bytes: written } => {
                            for (at, piece) in sectors(*at, written, sector) {
                                if dice.below(2) == 0 {
                                    apply(&mut bytes, &Change::Write { at, bytes: piece.to_vec() });
                                }
                            }
                        }
                        other if dice.below(2) == 0 => apply(&mut bytes, other),
                        _ => {}
                    }
                }
                bytes
            }
        }
    }
}

/// The parts of a write that lie in one sector each.
fn sectors(at: u64, bytes: &[u8], sector: u64) -> Vec<(u64, &[u8])> {
    let (mut at, mut rest, mut pieces) = (at, bytes, Vec::new());
    while !rest.is_empty() {
        let room = usize::try_from(sector - at % sector).unwrap().min(rest.len());
        let (piece, more) = rest.split_at(room);
        pieces.push((at, piece));
        (at, rest) = (at + room as u64, more);
    }
    pieces
}

pub(super) fn apply(file: &mut Vec<u8>, change: &Change) {
    let size = |size: u64| usize::try_from(size).unwrap();
    match change {
        Change::Write { at, bytes } => {
            let (start, end) = (size(*at), size(*at) + bytes.len());
            if file.len() < end {
                file.resize(end, 0);
            }
            file[start..end].copy_from_slice(bytes);
        }
        Change::Truncate(len) => file.resize(size(*len), 0),
        Change::Allocate(end) => file.resize(file.len().max(size(*end)), 0),
    }
}
