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
        for _ in 0..ATTEMPTS {
            sink.clear().map_err(RepositoryError::Sink)?;
            let Some(chain) = self.tail_chain(segment).await? else { return Ok(None) };
            match self.fetch_chain(&chain, sink).await {
                // Retention removed a piece after it was listed, because the segment is complete by now.
                Err(RepositoryError::NotFound(_)) => {}
                fetched => return fetched.map(|()| Some(chain.end)),
            }
        }
        let key = self.keys().key(&LineageObject::Segment(segment));
        Err(RepositoryError::damaged(&key, "pieces of its tail are listed, but are not there"))
    }

    async fn fetch_chain(&self, chain: &TailChain, sink: &mut dyn TailSink) -> RepositoryResult<()> {
        let mut filled = 0;
        let wanted = if chain.pieces.len() > READ_ALL { chain.cover() } else { chain.pieces.clone() };
        let mut pieces = stream::iter(wanted).map(|name| self.fetch_small(name)).buffered(PARALLEL);
        while let Some((name, small)) = pieces.try_next().await? {
            // Pieces come by their first byte, so everything before `filled` is there.
            let mut joint = Joint::new(sink, name.from.bytes_since(chain.start), filled);
            let joined = match small {
                Some(plain) => joint.write_all(&plain).map_err(RepositoryError::Sink),
                None => read_wal(self.objects(), &WalPlace::tail(self, name)?, &mut joint).await.map(|_| ()),
            };
            if joint.differs() {
                let key = self.keys().key(&LineageObject::Tail(name));
                return Err(RepositoryError::damaged(
                    &key,
                    "another piece of this segment's tail has other bytes there",
                ));
            }
            joined?;
            filled = filled.max(name.to.bytes_since(chain.start));
        }
        Ok(())
    }

    /// A small piece; none for a large one, which is read straight into the sink when its turn comes.
    async fn fetch_small(&self, name: TailName) -> RepositoryResult<(TailName, Option<Vec<u8>>)> {
        if name.to.bytes_since(name.from) > SMALL {
            return Ok((name, None));
        }
        let mut plain = Vec::new();
        read_wal(self.objects(), &WalPlace::tail(self, name)?, &mut plain).await?;
        Ok((name, Some(plain)))
    }
}

/// Encrypted objects must not be taken for absent.
pub(super) fn encrypted(key: crate::storage::ObjectKey) -> RepositoryError {
    RepositoryError::TooNew { key, what: "it is encrypted".to_owned() }
}
