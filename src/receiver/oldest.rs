//! Where the WAL begins that a server still has.
//!
//! A server removes its oldest segments first and tells nobody which it has: it is asked for one and another until the first
//! that is there is found.

use tokio::time::{Duration, timeout};
use wal::{Lsn, SegmentNumber, SegmentSize, TimelineId, TimelinePath};

use super::start::ServerPosition;
use crate::primary::{ConnectOptions, PgError, ReplicationConnection, StreamEvent};

/// How long a server may take to send the first bytes of a segment.
const PATIENCE: Duration = Duration::from_secs(10);

/// A search for the first segment that is there, by halves: all before `missing` are gone, `there` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Search {
    missing: SegmentNumber,
    there: SegmentNumber,
}

impl Search {
    /// The segment to ask for next; `None` when `there` is the first one.
    fn next(self) -> Option<SegmentNumber> {
        let (missing, there) = (self.missing.get(), self.there.get());
        let between = there.checked_sub(missing).filter(|&between| between > 1)?;
        Some(SegmentNumber::new(missing + between / 2))
    }

    fn found(self, asked: SegmentNumber, is_there: bool) -> Self {
        if is_there { Self { there: asked, ..self } } else { Self { missing: asked, ..self } }
    }
}

/// The first segment after the one at `missing`, which the server has removed, that it can still send; it has the one at
/// `there`. When it cannot be asked that is the answer: a gap that is too large is still a true one.
pub(super) async fn oldest_after(
    options: &ConnectOptions,
    server: &ServerPosition,
    missing: Lsn,
    there: Lsn,
    size: SegmentSize,
) -> Lsn {
    let path = TimelinePath::new(&server.history, size);
    let containing = |lsn| SegmentNumber::containing(lsn, size);
    let mut search = Search { missing: containing(missing), there: containing(there) };
    while let Some(asked) = search.next() {
        let start = asked.start(size);
        match timeout(PATIENCE, has(options, path.timeline_at(start), start)).await {
            Ok(Ok(is_there)) => search = search.found(asked, is_there),
            Ok(Err(error)) => {
                tracing::debug!(%error, %start, "whether the server still has it cannot be told");
                break;
            }
            Err(_) => break,
        }
    }
    search.there.start(size)
}

/// Whether the server sends WAL from `start` on.
async fn has(options: &ConnectOptions, timeline: TimelineId, start: Lsn) -> Result<bool, PgError> {
    let connection = ReplicationConnection::connect(options).await?;
    // It says that WAL is gone when it begins to send, not before.
    let begun = async {
        let mut stream = connection.start_replication(None, start, timeline).await?;
        loop {
            match stream.next().await? {
                StreamEvent::Keepalive { .. } => {}
                StreamEvent::Wal { .. } | StreamEvent::EndOfTimeline { .. } => return Ok(true),
                other => return Err(PgError::Protocol(format!("{other:?}").chars().take(80).collect())),
            }
        }
    };
    match begun.await {
        Err(error) if error.is_wal_removed() => Ok(false),
        begun => begun,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_that_is_there_is_found_with_few_questions(missing in 0_u64..1000, lost in 0_u64..5000, more in 1_u64..5000) {
            let first = missing + 1 + lost;
            let mut search = Search { missing: SegmentNumber::new(missing), there: SegmentNumber::new(first + more - 1) };
            let mut questions = 0;
            while let Some(asked) = search.next() {
                prop_assert!(asked > search.missing && asked < search.there);
                search = search.found(asked, asked.get() >= first);
                questions += 1;
            }
            prop_assert_eq!(search.there.get(), first);
            prop_assert!(questions <= 14);
        }
    }

    #[test]
    fn nothing_is_asked_where_nothing_lies_between() {
        let at = SegmentNumber::new;
        for (missing, there) in [(5, 6), (5, 5), (6, 5)] {
            assert_eq!(Search { missing: at(missing), there: at(there) }.next(), None);
        }
    }
}
