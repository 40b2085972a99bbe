//! Puts that are repeated until they succeed.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use wal::{Lsn, SegmentName, TimelineId, XactIndex};

use super::STORE_AGAIN;
use super::alarms::{Alarms, Doing};
use crate::error::{Error, ErrorCode};
use crate::fault_point;
use crate::receiver::Backoff;
use crate::repository::{LineageRepository, PlainSource, RepositoryError, SegmentMeta, Stored};
use crate::spool::{Held, Spool, SpoolError};
use crate::storage::StorageErrorKind;
use crate::wal_pipeline::StatusBoard;

/// What was put and is not confirmed after so long, and as long as its bytes take at [`SLOW_LINE`], is told.
const EXPECTED: Duration = Duration::from_secs(7);
/// Bytes a second that are expected of the way to a store.
const SLOW_LINE: u64 = 8 << 20;

/// Space that a part gets. It costs nothing until it is written to, and is more than glibc's malloc ever keeps for later
/// (`DEFAULT_MMAP_THRESHOLD_MAX`): smaller buffers would stay with every thread that had one.
const PART_SPACE: usize = 33 << 20;

/// Where segments and tails go. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) spool: Spool,
    pub(super) repository: LineageRepository,
    pub(super) board: StatusBoard,
    pub(super) alarms: Alarms,
    /// Timelines whose history is known to be stored.
    pub(super) histories: Arc<Mutex<BTreeSet<TimelineId>>>,
}

/// A part of a segment that is not complete.
#[derive(Clone, Debug)]
pub(super) struct TailPiece {
    pub(super) segment: SegmentName,
    pub(super) from: Lsn,
    pub(super) to: Lsn,
    pub(super) index: XactIndex,
}

/// Why an attempt to store failed.
#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl Store {
    /// Stores a complete segment. Returns only when the repository has confirmed it.
    pub(super) async fn segment(self, name: SegmentName, index: XactIndex) -> Stored {
        let mut backoff = Backoff::up_to(STORE_AGAIN);
        loop {
            let size = self.spool.segment_size().bytes();
            match self.watched(&name, size, self.try_segment(name, &index)).await {
                Ok(stored) => {
                    fault_point!("archiver.put");
                    self.succeeded(name, &stored, size);
                    return stored;
                }
                Err(error) => {
                    self.raise(name, &error, &name.to_string());
                    pause(&error, &mut backoff).await;
                }
            }
        }
    }

    /// Stores a tail. Returns only when the repository has confirmed it.
    pub(super) async fn tail(self, piece: TailPiece) -> TailPiece {
        let mut backoff = Backoff::up_to(STORE_AGAIN);
        loop {
            let size = piece.to.bytes_since(piece.from);
            match self.watched(&piece.segment, size, self.try_tail(&piece)).await {
                Ok(Some(stored)) => {
                    fault_point!("archiver.tail_put");
                    self.succeeded(piece.segment, &stored, size);
                    return piece;
                }
                Ok(None) => {
                    self.alarms.over(piece.segment, Doing::Storing);
                    return piece;
                }
                Err(error) => {
                    self.raise(
                        piece.segment,
                        &error,
                        &format!("{} from {} to {}", piece.segment, piece.from, piece.to),
                    );
                    pause(&error, &mut backoff).await;
                }
            }
        }
    }

    /// Stores what is known of a timeline's ancestry. Returns only when the repository has confirmed it.
    pub(super) async fn history(self, timeline: TimelineId) {
        let mut backoff = Backoff::up_to(STORE_AGAIN);
        while let Err(error) = self.put_histories(timeline).await {
            // Whatever segment of the timeline is stored fails for the same reason, and stays told.
            let explained = self.count(&error, &timeline.history_file_name());
            self.board.update(|status| status.archive_error = Some(explained));
            pause(&error, &mut backoff).await;
        }
    }

    /// Tells when an attempt takes long, and lets it go on: a store that does not answer fails only after minutes.
    async fn watched<T>(&self, what: &SegmentName, size: u64, attempt: impl Future<Output = T>) -> T {
        tokio::pin!(attempt);
        let expected = EXPECTED + Duration::from_secs(size / SLOW_LINE);
        tokio::select! {
            done = &mut attempt => return done,
            () = tokio::time::sleep(expected) => {}
        }
        let seconds = expected.as_secs();
        tracing::warn!(%what, seconds, "not stored yet");
        let error =
            Error::new(ErrorCode::RepositoryDenied, format!("the store has not taken WAL {what} within {seconds} s"))
                .because("it does not answer, or is slow; the attempt goes on")
                .help("look at the store: pgvault repo check");
        self.alarms.raise(*what, Doing::Storing, error);
        attempt.await
    }

    async fn try_segment(&self, name: SegmentName, index: &XactIndex) -> Result<Stored, StoreError> {
        self.put_histories(name.timeline()).await?;
        let source = PlainSource::File(self.spool.path(name));
        Ok(self.repository.put_segment(&self.meta(name), index, source).await?)
    }

    /// Stores what there is of a piece; `None` when nothing of it is to be stored any more.
    async fn try_tail(&self, piece: &TailPiece) -> Result<Option<Stored>, StoreError> {
        self.put_histories(piece.segment.timeline()).await?;
        let (spool, name, from) = (self.spool.clone(), piece.segment, piece.from);
        // A segment that was left after a failed write may end before what was scanned of it: within a record.
        let to = match spool.get(name) {
            Some(Held::Left { end }) => piece.to.min(end),
            Some(Held::Open { .. } | Held::Complete) | None => piece.to,
        };
        if to <= from {
            return Ok(None);
        }
        let plain = tokio::task::spawn_blocking(move || read_part(&spool, name, from, to))
            .await
            .map_err(|error| SpoolError::Helper(error.to_string()))??;
        Ok(Some(self.repository.put_tail(&self.meta(name), from, plain, &piece.index).await?))
    }

    /// History files first: WAL of a timeline means nothing without its ancestry.
    async fn put_histories(&self, timeline: TimelineId) -> Result<(), StoreError> {
        let mut known = self.histories.lock().await;
        if known.contains(&timeline) {
            return Ok(());
        }
        let spool = self.spool.clone();
        let histories = tokio::task::spawn_blocking(move || spool.histories())
            .await
            .map_err(|error| SpoolError::Helper(error.to_string()))??;
        for &timeline in histories.keys() {
            if known.contains(&timeline) {
                continue;
            }
            if let Some(bytes) = self.spool.history_bytes(timeline)? {
                self.repository.put_history(timeline, &bytes).await?;
                fault_point!("archiver.history_put");
                known.insert(timeline);
            }
        }
        known.insert(timeline);
        Ok(())
    }

    fn meta(&self, name: SegmentName) -> SegmentMeta {
        let version = self.board.read(|status| status.postgres_version);
        SegmentMeta { name, postgres_version: version.unwrap_or(self.repository.document().postgres_version) }
    }

    fn succeeded(&self, segment: SegmentName, stored: &Stored, plain: u64) {
        self.alarms.over(segment, Doing::Storing);
        self.board.update(|status| {
            if !stored.already_there {
                status.counters.archived_raw_bytes += plain;
                status.counters.archived_stored_bytes += stored.size;
            }
        });
    }

    fn raise(&self, segment: SegmentName, error: &StoreError, what: &str) {
        let explained = self.count(error, what);
        self.alarms.raise(segment, Doing::Storing, explained);
    }

    /// Counts a failed attempt and puts it in words.
    fn count(&self, error: &StoreError, what: &str) -> Error {
        tracing::warn!(%what, %error, "not stored");
        let reason = reason(error);
        self.board.update(|status| *status.counters.archive_errors.entry(reason).or_default() += 1);
        explain(error, what)
    }
}

async fn pause(error: &StoreError, backoff: &mut Backoff) {
    let pause = match error {
        StoreError::Repository(error) if error.is_transient() => backoff.pause(rand::random()),
        StoreError::Repository(RepositoryError::Storage(_)) | StoreError::Spool(_) => backoff.pause(rand::random()),
        // Only a person can change it.
        StoreError::Repository(_) => backoff.longest(rand::random()),
    };
    tokio::time::sleep(pause).await;
}

pub(super) fn read_part(spool: &Spool, name: SegmentName, from: Lsn, to: Lsn) -> Result<Bytes, SpoolError> {
    let io = |source| SpoolError::Io { path: spool.path(name), source };
    let len = usize::try_from(to.bytes_since(from)).map_err(|error| io(std::io::Error::other(error)))?;
    let mut plain = Vec::with_capacity(len.max(PART_SPACE));
    plain.resize(len, 0);
    let file = spool.open_for_reading(name)?;
    file.read_exact_at(&mut plain, from.bytes_since(spool.start_of(name))).map_err(io)?;
    // Asked after the read: a file that is made anew after a failed write holds zeros where the other one held WAL, and
    // the spool says that it holds nothing before that happens (`Spool::verify_again`).
    if spool.get(name).is_none_or(|held| spool.end_of(name, held) < to) {
        return Err(io(std::io::Error::other(
            "it holds less than before, after a failed write; the rest is received again",
        )));
    }
    Ok(plain.into())
}

fn explain(error: &StoreError, what: &str) -> Error {
    let (code, help) = match error {
        StoreError::Repository(error) if error.is_no_key() => {
            (ErrorCode::NoKey, "see which keys there are and whom they are for: pgvault key list")
        }
        StoreError::Repository(RepositoryError::Storage(error)) => {
            let code =
                if error.kind == StorageErrorKind::Corrupt { ErrorCode::Damaged } else { ErrorCode::RepositoryDenied };
            (code, "it is tried again by itself; look at the store: pgvault repo check")
        }
        StoreError::Repository(RepositoryError::Conflict { .. }) => {
            (ErrorCode::Conflict, "find out which of the two is the right WAL: both are kept")
        }
        StoreError::Repository(_) => (ErrorCode::Damaged, "look at the repository: pgvault repo check"),
        StoreError::Spool(_) => (ErrorCode::Spool, "look at the spool's file system"),
    };
    Error::new(code, format!("cannot store WAL {what}")).caused_by(error).help(help)
}

fn reason(error: &StoreError) -> &'static str {
    match error {
        StoreError::Spool(_) => "spool",
        StoreError::Repository(RepositoryError::Storage(error)) => match error.kind {
            StorageErrorKind::Denied => "denied",
            StorageErrorKind::Transient => "transient",
            StorageErrorKind::Full => "full",
            StorageErrorKind::Corrupt => "corrupt",
            StorageErrorKind::NoKey => "no_key",
            StorageErrorKind::NotFound | StorageErrorKind::Other => "other",
        },
        StoreError::Repository(RepositoryError::Key(_)) => "no_key",
        StoreError::Repository(RepositoryError::Conflict { .. }) => "conflict",
        StoreError::Repository(RepositoryError::Damaged { .. } | RepositoryError::Mismatch { .. }) => "damaged",
        StoreError::Repository(_) => "other",
    }
}
