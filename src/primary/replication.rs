//! A connection that speaks the physical replication protocol.

use std::io::{self, Read};
use std::str::FromStr;

use bytes::Bytes;
use wal::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

use super::base_backup::{BaseBackupOptions, BaseBackupStream};
use super::connect::{self, ConnectOptions, Deadlines, Session};
use super::conninfo::Host;
use super::error::PgError;
use super::slot::{SlotName, SlotPosition};
use super::stream::WalStream;
use super::version::ServerVersion;
use super::wire::{Row, Wire};

/// Bytes of a manifest in one message.
const UPLOAD_PIECE: usize = 64 << 10;

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifySystem {
    /// The cluster's number from initdb; restored clones share it.
    pub system_identifier: SystemIdentifier,
    /// The timeline that the server writes or, in recovery, replays.
    pub timeline: TimelineId,
    /// End of flushed WAL on a primary; of replayed or received WAL on a standby.
    pub flush_lsn: Lsn,
}

/// One walsender session. Commands take `&mut self`: one at a time.
#[derive(Debug)]
pub struct ReplicationConnection {
    pub(super) wire: Wire,
    pub(super) server: Server,
}

/// What is known about the other end.
#[derive(Debug)]
pub(super) struct Server {
    host: Host,
    pub(super) version: ServerVersion,
    warning: Option<String>,
    pub(super) deadlines: Deadlines,
}

impl ReplicationConnection {
    /// Connects with `replication=true` to the first suitable host.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, PgError> {
        let connected = connect::connect(options, Session::Replication).await?;
        let server = Server {
            host: connected.host,
            version: connected.version,
            warning: connected.warning,
            deadlines: options.deadlines,
        };
        Ok(Self { wire: connected.wire, server })
    }

    /// The host that answered.
    pub fn host(&self) -> &Host {
        &self.server.host
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        self.server.version
    }

    /// What to warn about when the server is newer than this program.
    pub fn version_warning(&self) -> Option<&str> {
        self.server.warning.as_deref()
    }

    /// Whether the server is in recovery: `in_hot_standby`, as the server last reported it (it does so with its answer to
    /// a command), or as it says when asked, where a proxy swallows what servers report.
    pub async fn in_recovery(&mut self) -> Result<bool, PgError> {
        match self.wire.reader.parameters.get("in_hot_standby") {
            Some(value) => Ok(value == "on"),
            None => Ok(self.show("in_hot_standby").await? == "on"),
        }
    }

    /// Asks who the server is (IDENTIFY_SYSTEM).
    pub async fn identify_system(&mut self) -> Result<IdentifySystem, PgError> {
        let row = self.single_row("IDENTIFY_SYSTEM").await?;
        Ok(IdentifySystem {
            system_identifier: field(&row, 0, "the system identifier")?,
            timeline: field(&row, 1, "the timeline")?,
            flush_lsn: field(&row, 2, "the WAL position")?,
        })
    }

    /// The value of a setting, as SHOW prints it.
    pub async fn show(&mut self, name: &str) -> Result<String, PgError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(PgError::Protocol(format!("\"{name}\" is not the name of a setting")));
        }
        let row = self.single_row(&format!("SHOW {name}")).await?;
        field(&row, 0, "the setting")
    }

    /// `wal_segment_size`.
    pub async fn wal_segment_size(&mut self) -> Result<SegmentSize, PgError> {
        let text = self.show("wal_segment_size").await?;
        SegmentSize::from_setting(&text)
            .map_err(|error| PgError::Protocol(format!("wal_segment_size is \"{text}\": {error}")))
    }

    /// Creates a permanent physical slot that reserves WAL at once. An error with [`PgError::is_duplicate_slot`] when it
    /// exists.
    pub async fn create_physical_slot(&mut self, name: &SlotName) -> Result<(), PgError> {
        // Without RESERVE_WAL nothing is held until the first use, and WAL between now and then could go.
        let reserve = if self.server.version.major() >= 15 { "(RESERVE_WAL)" } else { "RESERVE_WAL" };
        self.query(&format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL {reserve}")).await.map(drop)
    }

    /// Makes a slot that keeps no WAL and is gone with this connection. [`PgError::is_duplicate_slot`] when the server has one
    /// of this name, whoever made it.
    pub async fn create_temporary_slot(&mut self, name: &SlotName) -> Result<(), PgError> {
        self.query(&format!("CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY PHYSICAL")).await.map(drop)
    }

    /// Where a slot stands: `None` when there is no such slot. PostgreSQL 15 and later; on 14 an error with SQLSTATE
    /// 0A000 or 42601 (use SQL).
    pub async fn read_slot(&mut self, name: &SlotName) -> Result<Option<SlotPosition>, PgError> {
        let row = self.single_row(&format!("READ_REPLICATION_SLOT \"{name}\"")).await?;
        match optional::<String>(&row, 0)? {
            None => Ok(None),
            Some(kind) if kind == "physical" => {
                Ok(Some(SlotPosition { restart_lsn: optional(&row, 1)?, restart_timeline: optional(&row, 2)? }))
            }
            Some(kind) => Err(PgError::Protocol(format!("the slot {name} is {kind}, not physical"))),
        }
    }

    /// Drops a slot. Fails at once when it is in use.
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<(), PgError> {
        self.query(&format!("DROP_REPLICATION_SLOT \"{name}\"")).await.map(drop)
    }

    /// The history file of a timeline: its name and bytes. [`PgError::is_wal_removed`] when the server has none.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<(String, Bytes), PgError> {
        let mut row = self.single_row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let name: String = field(&row, 0, "the history file's name")?;
        if name != timeline.history_file_name() {
            return Err(PgError::Protocol(format!(
                "the history of timeline {timeline} comes under the name \"{name}\""
            )));
        }
        match row.get_mut(1).and_then(Option::take) {
            Some(content) => Ok((name, content.into())),
            None => Err(PgError::Protocol("a timeline history without content".to_owned())),
        }
    }

    /// Starts streaming at `start` (a segment start, in practice) on `timeline`.
    ///
    /// WAL that is gone (58P01) or not there yet is an error of the first [`WalStream::next`], because the server
    /// answers before it looks. A `start` at the very end of a timeline that the server has left gives
    /// [`super::StreamEvent::EndOfTimeline`] at once.
    pub async fn start_replication(
        self,
        slot: Option<&SlotName>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<WalStream, PgError> {
        let slot = slot.map(|name| format!("SLOT \"{name}\" ")).unwrap_or_default();
        let command = format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}");
        WalStream::start(self, &command).await
    }

    /// Starts a base backup. Waits for the server's checkpoint without a deadline: a spread one takes minutes.
    pub async fn base_backup(self, options: &BaseBackupOptions) -> Result<BaseBackupStream, PgError> {
        BaseBackupStream::start(self, options).await
    }

    /// Tells the server which backup the next one shall be incremental to (UPLOAD_MANIFEST, 17 and later): `manifest` is
    /// what the server itself sent with that backup, byte for byte. An error of the server leaves the connection usable.
    pub async fn upload_manifest(&mut self, mut manifest: impl Read + Send) -> Result<(), PgError> {
        let limit = self.server.deadlines.reply;
        let unreadable =
            |error: io::Error| PgError::Protocol(format!("the manifest to upload cannot be read: {error}"));
        self.wire.begin_copy_in("UPLOAD_MANIFEST", limit).await?;
        let mut piece = vec![0; UPLOAD_PIECE];
        loop {
            let len = manifest.read(&mut piece).map_err(unreadable)?;
            if len == 0 {
                // The server parses all of it before it answers.
                return self.wire.end_copy_in(self.server.deadlines.silence.max(limit)).await;
            }
            self.wire.send_copy_data(&piece[..len], limit).await?;
        }
    }

    async fn query(&mut self, command: &str) -> Result<Vec<Row>, PgError> {
        self.wire.query(command, self.server.deadlines.reply).await
    }

    async fn single_row(&mut self, command: &str) -> Result<Row, PgError> {
        let mut rows = self.query(command).await?;
        match rows.len() {
            1 => Ok(rows.swap_remove(0)),
            count => Err(PgError::Protocol(format!("{count} rows in answer to {command}"))),
        }
    }
}

/// A column as a value; `None` for NULL.
pub(super) fn optional<T: FromStr>(row: &Row, column: usize) -> Result<Option<T>, PgError> {
    let Some(value) = row.get(column).and_then(Option::as_ref) else { return Ok(None) };
    let text = String::from_utf8_lossy(value);
    text.parse().map(Some).map_err(|_| PgError::Protocol(format!("column {column} of the answer is \"{text}\"")))
}

/// A column that must have a value.
pub(super) fn field<T: FromStr>(row: &Row, column: usize, what: &str) -> Result<T, PgError> {
    optional(row, column)?.ok_or_else(|| PgError::Protocol(format!("an answer without {what}")))
}
