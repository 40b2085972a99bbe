//! The questions, one function each. Ranges are of positions where records start: from the first up to, but not
//! including, the last.

use std::pin::pin;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use recovery::{CommitsAround, LastSettled, RecordSpan, WalEnd};
use wal::{Lsn, PgTime, RestorePoint, SegmentNumber, WalEvent, XactEnd, XactIndex, XactMark};

use super::WalSearch;
use super::segments::{PARALLEL, Scanned};
use crate::repository::{RepositoryError, RepositoryResult};

/// How much WAL is read to find the last record that settled something.
const SETTLED_REACH: u64 = 1 << 30;

impl WalSearch<'_> {
    /// The latest time of all transaction ends whose records end at `lsn` or before, since the lineage began.
    pub async fn max_time(&self, lsn: Lsn) -> RepositoryResult<Option<PgTime>> {
        let mut number = self.containing_end(lsn);
        let at_start_of = self.containing(lsn);
        if number != at_start_of && !self.is_stored(number) {
            number = at_start_of;
        }
        let at_end = self.max_time_of(number).await?;
        if lsn >= self.stored_end(number)? {
            return Ok(at_end);
        }
        let latest_until = async |until: Lsn| {
            let fold = |max: &mut Option<PgTime>, event: WalEvent| *max = (*max).max(xact(&event).map(|x| x.time));
            Ok::<_, RepositoryError>(self.scan(number, until, false, || None, fold).await?.state)
        };
        match number.previous().filter(|&previous| self.is_stored(previous)) {
            Some(previous) => {
                let before = self.max_time_of(previous).await?;
                if before == at_end { Ok(before) } else { Ok(before.max(latest_until(lsn).await?)) }
            }
            // What came before is not stored. When its maximum was greater than any time in this segment, the header has it.
            None if at_end > latest_until(Lsn::new(u64::MAX)).await? => Ok(at_end),
            None => latest_until(lsn).await,
        }
    }

    /// Where the whole records of the unbroken WAL from `from` to `to` end.
    pub async fn end(&self, from: Lsn, to: Lsn) -> RepositoryResult<WalEnd> {
        if from >= to {
            return Ok(WalEnd { last_record: None, end: from });
        }
        let fold = |last: &mut Option<Lsn>, event: WalEvent| {
            if matches!(event, WalEvent::Record(_)) && event.lsn() >= from {
                *last = Some(event.lsn());
            }
        };
        for number in (self.containing(from).get()..=self.containing_end(to).get()).rev().map(SegmentNumber::new) {
            let Scanned { state, valid_end } = self.scan(number, to, true, || None, fold).await?;
            if state.is_some() {
                return Ok(WalEnd { last_record: state, end: valid_end });
            }
        }
        Ok(WalEnd { last_record: None, end: from })
    }

    /// The first transaction end that is later than `than` (or equal, with `or_equal`): the record before which recovery to
    /// that time stops (`recoveryStopsBefore` in xlogrecovery.c; aborts count there too). Without `than`, the first of all.
    pub async fn first_later(
        &self,
        from: Lsn,
        to: Lsn,
        than: Option<PgTime>,
        or_equal: bool,
    ) -> RepositoryResult<Option<XactEnd>> {
        let is_later = |time: PgTime| than.is_none_or(|than| time > than || or_equal && time == than);
        let last = self.containing_end(to);
        let mut number = self.containing(from);
        while from < to && number <= last {
            if !self.max_time_of(number).await?.is_some_and(is_later) {
                // Nothing up to here is later, so the running maximum decides from here on.
                match self.first_with_later(number.next(), last, is_later).await? {
                    Some(found) => number = found,
                    None => return Ok(None),
                }
            }
            // A maximum from before `from` may be the later one: then this segment holds no stop, and the next may.
            if self.index(number).await?.commits > 0
                && let Some(stop) = self.first_xact_in(number, from, to, |xact| is_later(xact.time)).await?
            {
                return Ok(Some(stop));
            }
            number = number.next();
        }
        Ok(None)
    }

    /// The first segment in `low..=last` whose running maximum is later. It never falls, so halving finds it.
    async fn first_with_later(
        &self,
        low: SegmentNumber,
        last: SegmentNumber,
        is_later: impl Fn(PgTime) -> bool,
    ) -> RepositoryResult<Option<SegmentNumber>> {
        let (mut low, mut high) = (low.get(), last.get().saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.max_time_of(SegmentNumber::new(middle)).await?.is_some_and(&is_later) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok((low <= last.get()).then(|| SegmentNumber::new(low)))
    }

    async fn first_xact_in(
        &self,
        number: SegmentNumber,
        from: Lsn,
        to: Lsn,
        wanted: impl Fn(&XactEnd) -> bool + Send + Sync,
    ) -> RepositoryResult<Option<XactEnd>> {
        let fold = |first: &mut Option<XactEnd>, event: WalEvent| {
            *first = first.or(xact(&event).filter(|x| x.lsn >= from && x.lsn < to && wanted(x)));
        };
        Ok(self.scan(number, Lsn::new(u64::MAX), false, || None, fold).await?.state)
    }

    /// The indexes of these segments, in this order, several read at once.
    fn indexes(
        &self,
        numbers: impl Iterator<Item = u64>,
    ) -> impl Stream<Item = RepositoryResult<(SegmentNumber, XactIndex)>> {
        let numbers = stream::iter(numbers).map(SegmentNumber::new);
        numbers.map(async |number| Ok((number, self.index(number).await?))).buffered(PARALLEL)
    }

    /// The last transaction end.
    pub async fn last_xact(&self, from: Lsn, to: Lsn) -> RepositoryResult<Option<XactMark>> {
        self.last_in(from, to, self.containing_end(to), false).await
    }

    /// The last transaction end, or the last commit, that lies in the range, from segment `highest` downwards.
    async fn last_in(
        &self,
        from: Lsn,
        to: Lsn,
        highest: SegmentNumber,
        commits_only: bool,
    ) -> RepositoryResult<Option<XactMark>> {
        if from >= to {
            return Ok(None);
        }
        let numbers = (self.containing(from).get()..=highest.get()).rev();
        let mut indexes = pin!(self.indexes(numbers));
        while let Some((number, index)) = indexes.try_next().await? {
            let Some(last) = (if commits_only { index.last_commit } else { index.last }) else { continue };
            if last.lsn < from {
                return Ok(None);
            }
            if last.lsn < to {
                return Ok(Some(last));
            }
            let wanted = |event: &WalEvent| xact(event).filter(|_| !commits_only || is_commit(event));
            let fold = |last: &mut Option<XactMark>, event: WalEvent| {
                *last = wanted(&event).filter(|x| x.lsn >= from && x.lsn < to).map(|x| XactMark::from(&x)).or(*last);
            };
            let found = self.scan(number, Lsn::new(u64::MAX), false, || None, fold).await?.state;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The last record that ended or prepared a transaction. No header tells of prepared ones: segments are read from the
    /// last one down, as far as [`SETTLED_REACH`] goes.
    pub async fn last_settled(&self, from: Lsn, to: Lsn) -> RepositoryResult<LastSettled> {
        if from >= to {
            return Ok(LastSettled::Nothing);
        }
        let (lowest, highest) = (self.containing(from).get(), self.containing(to).get());
        let reach = SETTLED_REACH / self.lineage.segment_size().bytes();
        for number in (lowest..=highest).rev() {
            if highest - number > reach.max(1) {
                return Ok(LastSettled::TooFar);
            }
            let fold = |last: &mut Option<Lsn>, event: WalEvent| {
                let lsn = match event {
                    WalEvent::Prepare(ref prepared) => Some(prepared.lsn),
                    ref other => xact(other).map(|end| end.lsn),
                };
                *last = lsn.filter(|&lsn| from <= lsn && lsn < to).or(*last);
            };
            let number = SegmentNumber::new(number);
            if let Some(lsn) = self.scan(number, Lsn::new(u64::MAX), false, || None, fold).await?.state {
                return Ok(LastSettled::At(lsn));
            }
        }
        Ok(LastSettled::Nothing)
    }

    /// The first whole record.
    pub async fn first_record(&self, from: Lsn, to: Lsn) -> RepositoryResult<Option<RecordSpan>> {
        let mut number = self.containing(from);
        while from < to && number <= self.containing_end(to) {
            let fold = |first: &mut Option<RecordSpan>, event: WalEvent| {
                let (lsn, end) = (event.lsn(), event.end());
                if first.is_none() && lsn >= from && lsn < to {
                    *first = Some(RecordSpan { lsn, end });
                }
            };
            let found = self.scan(number, Lsn::new(u64::MAX), true, || None, fold).await?.state;
            if found.is_some() {
                return Ok(found);
            }
            number = number.next();
        }
        Ok(None)
    }

    /// Every transaction end of transaction `xid`: its number comes back after four billion others.
    pub async fn xid(&self, from: Lsn, to: Lsn, xid: u32) -> RepositoryResult<Vec<XactEnd>> {
        let mut found = Vec::new();
        if from >= to {
            return Ok(found);
        }
        let mut indexes = pin!(self.indexes(self.containing(from).get()..=self.containing_end(to).get()));
        while let Some((number, index)) = indexes.try_next().await? {
            if index.xid_min.is_none_or(|min| xid < min) || index.xid_max.is_none_or(|max| xid > max) {
                continue;
            }
            let fold = |all: &mut Vec<XactEnd>, event: WalEvent| {
                all.extend(xact(&event).filter(|x| x.xid == xid && x.lsn >= from && x.lsn < to));
            };
            found.append(&mut self.scan(number, Lsn::new(u64::MAX), false, Vec::new, fold).await?.state);
        }
        Ok(found)
    }

    /// Every restore point of this name.
    pub async fn restore_points(&self, from: Lsn, to: Lsn, name: &str) -> RepositoryResult<Vec<RestorePoint>> {
        let mut found = Vec::new();
        if from >= to {
            return Ok(found);
        }
        let mut indexes = pin!(self.indexes(self.containing(from).get()..=self.containing_end(to).get()));
        while let Some((number, index)) = indexes.try_next().await? {
            if !index.restore_points.iter().any(|point| point.name == name) {
                continue;
            }
            let fold = |all: &mut Vec<RestorePoint>, event: WalEvent| {
                if let WalEvent::RestorePoint(point) = event
                    && point.name == name
                    && point.lsn >= from
                    && point.lsn < to
                {
                    all.push(point);
                }
            };
            found.append(&mut self.scan(number, Lsn::new(u64::MAX), false, Vec::new, fold).await?.state);
        }
        Ok(found)
    }

    /// The last commit before `lsn` and the first from it on.
    pub async fn commits_around(&self, from: Lsn, to: Lsn, lsn: Lsn) -> RepositoryResult<CommitsAround> {
        let last = self.containing_end(to);
        let here = self.containing(lsn.max(from)).min(last);
        // A record that starts before `lsn` may end in the next segment, whose index counts it.
        let before = self.last_in(from, to.min(lsn), here.next().min(last), true).await?;
        let mut after = None;
        let mut number = here;
        while after.is_none() && from < to && number <= last {
            if self.index(number).await?.last_commit.is_some_and(|commit| commit.lsn >= lsn) {
                let fold = |first: &mut Option<XactMark>, event: WalEvent| {
                    let commit = xact(&event).filter(|x| is_commit(&event) && x.lsn >= lsn.max(from) && x.lsn < to);
                    *first = first.or(commit.map(|x| XactMark::from(&x)));
                };
                after = self.scan(number, Lsn::new(u64::MAX), false, || None, fold).await?.state;
            }
            number = number.next();
        }
        Ok(CommitsAround { before, after })
    }
}

/// The transaction end that an event is.
fn xact(event: &WalEvent) -> Option<XactEnd> {
    match event {
        WalEvent::Commit(xact) | WalEvent::Abort(xact) => Some(*xact),
        _ => None,
    }
}

fn is_commit(event: &WalEvent) -> bool {
    matches!(event, WalEvent::Commit(_))
}
