//! Tails: what arrived so far of a segment that is not complete. FORMAT.md 4.3.

mod sink;

use std::io::Write as _;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use wal::{Lsn, SegmentName, XactIndex};

use crate::repository::header::WalPlace;
use crate::repository::layout::{LineageObject, ObjectName, Parsed, TailName};
use crate::repository::wal_read::{read_header, read_wal};
use crate::repository::{
    LineageRepository, PlainSource, RepositoryError, RepositoryResult, SegmentMeta, Stored, WalHeader,
};

use sink::Joint;
pub use sink::TailSink;

#[cfg(test)]
mod tests;

/// How many small pieces are read at once.
const PARALLEL: usize = 8;

/// Up to so many bytes a piece is read whole, beside others.
const SMALL: u64 = 512 << 10;

/// Up to so many pieces all are read, also those that lie within others: two writers must agree.
const READ_ALL: usize = 64;

/// How often a chain is listed anew when one of its pieces has gone in between.
const ATTEMPTS: usize = 3;

/// The stored pieces of one incomplete segment that together reach furthest from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailChain {
    /// The segment.
    pub segment: SegmentName,
    /// Its first byte.
    pub start: Lsn,
    /// First byte that is not stored.
    pub end: Lsn,
    /// Every piece that lies in the chain, by its first byte; several writers' pieces may overlap.
    pub pieces: Vec<TailName>,
}

impl TailChain {
    /// The chain that these pieces make from the segment's start; none when no piece starts there.
    ///
    /// A piece belongs to it when it starts no later than the ones before it reach.
    pub(super) fn of(segment: SegmentName, start: Lsn, mut pieces: Vec<TailName>) -> Option<Self> {
        pieces.sort_unstable();
        let mut end = start;
        let mut chain = Vec::new();
        for piece in pieces {
            if piece.from > end {
                break;
            }
            end = end.max(piece.to);
            chain.push(piece);
        }
        (end > start).then_some(Self { segment, start, end, pieces: chain })
    }

    /// Few pieces that hold all of the chain: from each the one that reaches furthest.
    ///
    /// A segment that filled slowly has thousands, most of which lie within larger ones that were stored later.
    pub(super) fn cover(&self) -> Vec<TailName> {
        let (mut cover, mut end) = (Vec::new(), self.start);
        let mut pieces = self.pieces.iter().copied().peekable();
        while end < self.end {
            let mut furthest: Option<TailName> = None;
            while let Some(piece) = pieces.next_if(|piece| piece.from <= end) {
                furthest = furthest.filter(|furthest| furthest.to >= piece.to).or(Some(piece));
            }
            // Pieces of a chain come by their first byte and each starts where those before it reach.
            let Some(piece) = furthest.filter(|piece| piece.to > end) else { break };
            end = piece.to;
            cover.push(piece);
        }
        cover
    }

    /// The same chain without these pieces; none unless others hold all that they held.
    fn without(&self, damaged: &[TailName]) -> Option<Self> {
        let sound = self.pieces.iter().copied().filter(|piece| !damaged.contains(piece)).collect();
        Self::of(self.segment, self.start, sound).filter(|chain| chain.end == self.end)
    }

    /// The piece that reaches to the end: its header has the running maximum of the whole chain.
    pub(super) fn last_piece(&self) -> Option<TailName> {
        self.pieces.iter().copied().find(|piece| piece.to == self.end)
    }
}

impl LineageRepository {
    /// Stores bytes `from` up to `from + plain.len()` of a segment that is not complete. The rules are those of
    /// [`LineageRepository::put_segment`].
    pub async fn put_tail(
        &self,
        meta: &SegmentMeta,
        from: Lsn,
        plain: Bytes,
        index: &XactIndex,
    ) -> RepositoryResult<Stored> {
        let to = from.saturating_add(plain.len() as u64);
        let place = WalPlace::tail(self, TailName { segment: meta.name, from, to })?;
        self.put_wal(place, meta.postgres_version, index, PlainSource::Bytes(plain)).await
    }

    /// What is stored of an incomplete segment, by the names of its tails; none when nothing from its start on is.
    pub async fn tail_chain(&self, segment: SegmentName) -> RepositoryResult<Option<TailChain>> {
        let start = WalPlace::segment(self, segment)?.start;
        let prefix = self.keys().tail_prefix(segment);
        let mut pieces = Vec::new();
        for object in self.objects().storage().list(&prefix, None, None).await? {
            match ObjectName::parse(object.key.as_str()) {
                Parsed::Known(ObjectName::InLineage(_, LineageObject::Tail(name))) => {
                    WalPlace::tail(self, name)?;
                    pieces.push(name);
                }
                Parsed::Encrypted(_) => return Err(encrypted(object.key)),
                Parsed::Known(_) | Parsed::Unknown => {}
            }
        }
        Ok(TailChain::of(segment, start, pieces))
    }

    /// The header of one tail.
    pub async fn tail_header(&self, name: TailName) -> RepositoryResult<WalHeader> {
        read_header(self.objects(), &WalPlace::tail(self, name)?).await
    }

    /// Reads what is stored of an incomplete segment into `sink`, from the segment's first byte on, and returns its end;
    /// none when nothing is stored. Only when it returns `Ok` is what `sink` has the WAL that was stored.
    ///
    /// What is read is verified: of up to 64 pieces all, of more those that hold the chain. Where two writers' pieces
    /// overlap, they must agree: `Damaged` otherwise. Memory is a few small pieces, whatever the size of segments.
    pub async fn fetch_tail(&self, segment: SegmentName, sink: &mut dyn TailSink) -> RepositoryResult<Option<Lsn>> {
        self.fetch_pieces(segment, sink, false).await
    }

    /// As [`LineageRepository::fetch_tail`], for whoever needs the WAL and not the state of every object: a damaged piece is
    /// done without where others hold all of its bytes. Nothing shorter is given for what is stored: that is `Damaged`.
    pub async fn fetch_sound_tail(
        &self,
        segment: SegmentName,
        sink: &mut dyn TailSink,
    ) -> RepositoryResult<Option<Lsn>> {
        self.fetch_pieces(segment, sink, true).await
    }

    async fn fetch_pieces(
        &self,
        segment: SegmentName,
        sink: &mut dyn TailSink,
        around_damage: bool,
    ) -> RepositoryResult<Option<Lsn>> {
        let mut damaged: Vec<TailName> = Vec::new();
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            sink.clear().map_err(RepositoryError::Sink)?;
            let Some(listed) = self.tail_chain(segment).await? else { return Ok(None) };
            // What is listed only grows, as long as the segment is not complete: the others still hold all of it.
            let Some(chain) = listed.without(&damaged) else { break };
            match self.fetch_chain(&chain, sink).await {
                Ok(()) => return Ok(Some(chain.end)),
                // Retention removed a piece after it was listed, because the segment is complete by now.
                Err(Failure::Piece(_, RepositoryError::NotFound(_))) => attempts += 1,
                Err(Failure::Piece(name, error @ RepositoryError::Damaged { .. })) if around_damage => {
                    damaged.push(name);
                    if listed.without(&damaged).is_none() {
                        return Err(error);
                    }
                    tracing::warn!(%error, "a piece of a tail is damaged: others hold its bytes");
                }
                Err(Failure::Piece(_, error) | Failure::Other(error)) => return Err(error),
            }
        }
        let key = self.keys().key(&LineageObject::Segment(segment));
        Err(RepositoryError::damaged(&key, "pieces of its tail are listed, but are not there"))
    }

    async fn fetch_chain(&self, chain: &TailChain, sink: &mut dyn TailSink) -> Result<(), Failure> {
        let mut filled = 0;
        let wanted = if chain.pieces.len() > READ_ALL { chain.cover() } else { chain.pieces.clone() };
        let mut pieces = stream::iter(wanted).map(|name| self.fetch_small(name)).buffered(PARALLEL);
        while let Some((name, small)) = pieces.try_next().await? {
            // Pieces come by their first byte, so everything before `filled` is there.
            let mut joint = Joint::new(sink, name.from.bytes_since(chain.start), filled);
            let joined = match small {
                Some(plain) => joint.write_all(&plain).map_err(|error| Failure::Other(RepositoryError::Sink(error))),
                None => self.read_piece(name, &mut joint).await,
            };
            if joint.differs() {
                let key = self.keys().key(&LineageObject::Tail(name));
                let what = "another piece of this segment's tail has other bytes there";
                return Err(Failure::Other(RepositoryError::damaged(&key, what)));
            }
            joined?;
            filled = filled.max(name.to.bytes_since(chain.start));
        }
        Ok(())
    }

    async fn read_piece(&self, name: TailName, sink: &mut (dyn std::io::Write + Send)) -> Result<(), Failure> {
        let place = WalPlace::tail(self, name).map_err(Failure::Other)?;
        let read = read_wal(self.objects(), &place, sink).await;
        read.map(drop).map_err(|error| Failure::Piece(name, error))
    }

    /// A small piece; none for a large one, which is read straight into the sink when its turn comes.
    async fn fetch_small(&self, name: TailName) -> Result<(TailName, Option<Vec<u8>>), Failure> {
        if name.to.bytes_since(name.from) > SMALL {
            return Ok((name, None));
        }
        let mut plain = Vec::new();
        self.read_piece(name, &mut plain).await?;
        Ok((name, Some(plain)))
    }
}

/// Why a chain could not be read.
enum Failure {
    /// This piece could not.
    Piece(TailName, RepositoryError),
    /// Something else, such as two pieces that disagree: nobody knows which is right.
    Other(RepositoryError),
}

/// Encrypted objects must not be taken for absent.
pub(super) fn encrypted(key: crate::storage::ObjectKey) -> RepositoryError {
    RepositoryError::TooNew { key, what: "it is encrypted".to_owned() }
}
