//! What one cluster's WAL pipeline tells the rest of the daemon: a snapshot, cheap to take at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use recovery::LineageId;
use tokio::sync::watch;
use wal::{Lsn, PgTime, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};

use super::GapRecord;
use crate::error::Error;

/// What the pipeline is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalState {
    /// Looks at what the spool and the repository hold.
    #[default]
    Starting,
    /// Is on its way to a server: connects, compares histories, or waits before the next attempt.
    Connecting,
    /// WAL is flowing, or would if the server wrote any.
    Streaming,
    /// The server is behind the WAL that we hold on its timeline: acknowledged WAL that may exist nowhere else.
    Held,
    /// The spool cannot take more WAL. The connection is closed, so that the primary is not slowed; its slot retains.
    Stalled,
    /// The server sends other bytes for positions that we already hold. Both are kept; nothing more is received.
    Diverged,
    /// The server is not one whose WAL may be joined to this lineage.
    Refused,
    /// The slot did not keep what is needed next: a member that does not answer, and may have it, is waited for.
    SlotLost,
    /// Ended on request.
    Stopped,
}

impl WalState {
    /// The word for people and for JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connecting => "connecting",
            Self::Streaming => "streaming",
            Self::Held => "held",
            Self::Stalled => "stalled",
            Self::Diverged => "diverged",
            Self::Refused => "refused",
            Self::SlotLost => "slot_lost",
            Self::Stopped => "stopped",
        }
    }

    /// Whether nothing moves until a person has looked.
    pub const fn needs_a_person(self) -> bool {
        matches!(self, Self::Held | Self::Diverged | Self::Refused | Self::SlotLost)
    }
}

/// How full the spool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpoolLevel {
    /// Below the high-water mark.
    #[default]
    Normal,
    /// At 80 % or more: time to look why archiving lags.
    High,
    /// At 95 % or more: WAL is no longer received.
    Full,
}

/// A position and the primary's time of what happened there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Where the record starts.
    pub lsn: Lsn,
    /// The primary's wall clock when it was written.
    pub time: PgTime,
}

/// The branch that is followed, and what of it is durable: the two always belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowedBranch {
    /// The timeline that is received, and its ancestry.
    pub history: TimelineHistory,
    /// First byte of it that is not durable in the spool.
    pub durable: Lsn,
}

/// A timeline switch that was followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// When.
    pub at: DateTime<Utc>,
    /// Host and port that were streamed from before.
    pub from: Option<(String, u16)>,
    /// Host and port that are streamed from now.
    pub to: (String, u16),
    /// Where the timeline before was left.
    pub lsn: Option<Lsn>,
    /// The new timeline.
    pub timeline: TimelineId,
    /// Whether WAL is missing at the switch.
    pub gap: bool,
}

/// Everything that only grows. Counts since this process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalCounters {
    /// Bytes of WAL that came from the server, re-sent ones included.
    pub received_bytes: u64,
    /// Complete segments that are confirmed in the repository.
    pub segments_archived: u64,
    /// Plaintext bytes of stored segments and tails.
    pub archived_raw_bytes: u64,
    /// The same as stored: compressed, with their headers.
    pub archived_stored_bytes: u64,
    /// Failed attempts to store, by reason: `denied`, `transient`, `full`, `corrupt`, `conflict`, `damaged`, `other`.
    pub archive_errors: BTreeMap<&'static str, u64>,
    /// Ends of a connection, by reason: `network`, `timeline`, `elsewhere`, `slot`, `server_shutdown`, `auth`, `spool`, `other`.
    pub reconnects: BTreeMap<&'static str, u64>,
    /// Timeline switches that were followed.
    pub timeline_switches: u64,
}

/// A snapshot of one cluster's WAL pipeline.
#[derive(Clone, Debug, Default)]
pub struct WalStatus {
    /// What it is doing.
    pub state: WalState,
    /// Why it is not streaming, or the last thing that went wrong; `None` once WAL flows again.
    pub error: Option<Error>,
    /// What is wrong with archiving; `None` once a put has succeeded again.
    pub archive_error: Option<Error>,

    /// The cluster's number, once known.
    pub system_identifier: Option<SystemIdentifier>,
    /// Under which lineage its WAL is stored.
    pub lineage: Option<LineageId>,
    /// `server_version_num` of the server last seen, such as 150018.
    pub postgres_version: Option<u32>,
    /// Size of its WAL segments.
    pub segment_size: Option<SegmentSize>,
    /// The timeline that is received.
    pub timeline: Option<TimelineId>,
    /// Host and port of the server that we stream from, or streamed from last.
    pub source: Option<(String, u16)>,
    /// The same when that was a primary when the stream began; `None` when it was a standby.
    pub primary: Option<(String, u16)>,
    /// Another server claims to be the cluster as well: two take writes, or a member belongs to another cluster.
    pub conflict: Option<Error>,
    /// Timeline switches that were followed since this process started, the last ones.
    pub failovers: Vec<Failover>,
    /// The replication slot in use; `None` when streaming without one.
    pub slot: Option<String>,
    /// Why the slot is unusable, when it is: gone or lost.
    pub slot_lost: Option<String>,

    /// First byte that has not been received.
    pub received: Option<Lsn>,
    /// First byte that is not durable in the spool: what is reported to the server as flushed.
    pub flushed: Option<Lsn>,
    /// End of the whole segments in the repository, without a gap up to it.
    pub archived: Option<Lsn>,
    /// End of what the repository holds, tails included.
    pub shipped: Option<Lsn>,
    /// The branch that is followed, since the first stream of this process.
    pub followed: Option<FollowedBranch>,
    /// How far the server has told that its WAL reaches.
    pub server_end: Option<Lsn>,
    /// When the server last told anything, by the wall clock of this machine.
    pub last_message: Option<PgTime>,

    /// How far this machine's wall clock was ahead of the server's at its last message, travel time included.
    pub clock_offset_micros: Option<i64>,

    /// Files in the spool that are not yet confirmed in the repository.
    pub spool_segments: u64,
    /// Bytes that the spool takes on disk.
    pub spool_bytes: u64,
    /// Bytes that the spool may still take: by `max_size` and by what the file system has.
    pub spool_free_bytes: Option<u64>,
    /// How full it is.
    pub spool_level: SpoolLevel,
    /// When it will be full if it goes on filling as it does; `None` while it does not fill.
    pub spool_time_left: Option<Duration>,

    /// The last commit that is durable in the spool.
    pub last_commit: Option<Fact>,
    /// The last commit that the repository holds.
    pub last_archived_commit: Option<Fact>,
    /// Age of the oldest commit that we have and the repository does not; zero when there is none.
    pub rpo_seconds: f64,
    /// Missing WAL of this lineage, oldest first. Moments beyond a gap need a base backup taken after it.
    pub gaps: Vec<GapRecord>,
    /// WAL of a timeline that was left, beyond where its successor forked off: kept, and perhaps nowhere else.
    pub beyond_fork: Vec<wal::WalRange>,

    /// Everything that only grows.
    pub counters: WalCounters,
}

impl WalStatus {
    /// Whether WAL is flowing, or would if the server wrote any.
    pub fn streaming(&self) -> bool {
        self.state == WalState::Streaming
    }
}

/// Where the stations of one pipeline write what they know, and everyone else reads it.
#[derive(Clone, Debug)]
pub struct StatusBoard {
    sender: Arc<watch::Sender<WalStatus>>,
}

impl Default for StatusBoard {
    fn default() -> Self {
        Self { sender: Arc::new(watch::Sender::new(WalStatus::default())) }
    }
}

impl StatusBoard {
    /// An empty board.
    pub fn new() -> Self {
        Self::default()
    }

    /// A reader: `borrow()` for a snapshot, `changed()` to wait for the next one.
    pub fn subscribe(&self) -> watch::Receiver<WalStatus> {
        self.sender.subscribe()
    }

    /// Changes the snapshot in place.
    pub fn update(&self, change: impl FnOnce(&mut WalStatus)) {
        self.sender.send_modify(change);
    }

    /// Changes the snapshot without waking those who wait for a change: for what changes with every message.
    pub fn update_quietly(&self, change: impl FnOnce(&mut WalStatus)) {
        self.sender.send_if_modified(|status| {
            change(status);
            false
        });
    }

    /// Reads from the snapshot.
    pub fn read<T>(&self, of: impl FnOnce(&WalStatus) -> T) -> T {
        of(&self.sender.borrow())
    }
}
