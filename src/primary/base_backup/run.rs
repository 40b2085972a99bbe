//! The conversation of a base backup (basebackup.c, basebackup_copy.c).

use std::time::Duration;

use postgres_protocol::message::frontend;
use wal::{Lsn, TimelineId};

use super::{BackupEvent, BaseBackupOptions, Tablespace};
use crate::primary::error::{PgError, ServerError};
use crate::primary::replication::{ReplicationConnection, field, optional};
use crate::primary::wire::{Frame, Row, body, unexpected};

/// How long the server may checkpoint before it answers: TCP keepalive watches over the connection meanwhile.
const UNTIL_CHECKPOINTED: Duration = Duration::from_secs(7 * 24 * 3600);
/// What ends a tar archive: two empty blocks. Servers of 14 leave them to the client.
static ARCHIVE_END: [u8; 1024] = [0; 1024];
/// No cluster has so many tablespaces; a hostile server could send rows without end.
const MAX_TABLESPACES: usize = 100_000;

const DOING: &str = "receiving a base backup";

/// Where the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// First result: where the backup starts.
    Start,
    /// Second result: tablespaces.
    Tablespaces,
    /// Between copies, or before the last result.
    Between,
    /// 14: one copy per archive, then one for the manifest.
    Archive,
    Manifest,
    /// 15 and later: one copy, each message with a kind.
    Tagged {
        in_manifest: bool,
    },
    /// Last result: where the backup stops.
    Stop,
    /// Nothing more.
    Ended,
}

/// A running base backup. Dropping it ends the connection, and with it the backup on the server.
#[derive(Debug)]
pub struct BaseBackupStream {
    connection: ReplicationConnection,
    phase: Phase,
    start: Option<(Lsn, TimelineId)>,
    stop: Option<(Lsn, TimelineId)>,
    /// Archives in the order in which 14 sends them; `None` is the data directory.
    archives: Vec<Option<u32>>,
    tablespaces: Vec<Tablespace>,
    base_size: Option<u64>,
    /// How many archives have begun.
    begun: usize,
}

/// What to do after a message.
enum Step {
    /// Nothing to tell yet.
    Continue,
    Started,
    Archive(Option<u32>),
    /// The message's body from this byte on.
    Data(usize),
    ArchiveEnd,
    ManifestData(usize),
    Progress(u64),
    Finished(Lsn, TimelineId),
}

impl BaseBackupStream {
    pub(in crate::primary) async fn start(
        mut connection: ReplicationConnection,
        options: &BaseBackupOptions,
    ) -> Result<Self, PgError> {
        let command = options.command(connection.server.version);
        let limit = connection.server.deadlines.reply;
        connection.wire.reader.notices.clear();
        connection.wire.reader.expect_stream();
        connection.wire.send(limit, |out| frontend::query(&command, out)).await?;
        Ok(Self {
            connection,
            phase: Phase::Start,
            start: None,
            stop: None,
            archives: Vec::new(),
            tablespaces: Vec::new(),
            base_size: None,
            begun: 0,
        })
    }

    /// The next event. Cancel-safe. After [`BackupEvent::Finished`] or an error there is no further event.
    pub async fn next(&mut self) -> Result<BackupEvent<'_>, PgError> {
        if self.phase == Phase::Ended {
            return Err(PgError::Protocol("the base backup has ended, and was asked for more".to_owned()));
        }
        // Cancel-safe: `frame` is, and `step` does not wait.
        let (frame, step) = loop {
            let frame = self.connection.wire.reader.frame(self.limit(), DOING).await?;
            match self.step(&frame) {
                Ok(Step::Continue) => {}
                Ok(step) => break (frame, step),
                Err(error) => {
                    self.phase = Phase::Ended;
                    return Err(error);
                }
            }
        };
        let rest = |from: usize| self.connection.wire.reader.body(&frame).get(from..).unwrap_or_default();
        Ok(match step {
            Step::Started => {
                let (start_lsn, timeline) =
                    self.start.ok_or_else(|| PgError::Protocol("a backup without a start".to_owned()))?;
                let tablespaces = self.tablespaces.clone();
                BackupEvent::Started { start_lsn, timeline, tablespaces, base_size: self.base_size }
            }
            Step::Archive(tablespace) => BackupEvent::Archive { tablespace },
            Step::Data(from) => BackupEvent::Data(rest(from)),
            Step::Continue | Step::ArchiveEnd => BackupEvent::Data(&ARCHIVE_END),
            Step::ManifestData(from) => BackupEvent::Manifest(rest(from)),
            Step::Progress(bytes) => BackupEvent::Progress(bytes),
            Step::Finished(stop_lsn, timeline) => BackupEvent::Finished { stop_lsn, timeline },
        })
    }

    /// Warnings of the server so far (at most 100 are kept): pages with a wrong checksum, for one.
    pub fn notices(&self) -> &[ServerError] {
        &self.connection.wire.reader.notices
    }

    fn limit(&self) -> Duration {
        match self.phase {
            Phase::Start => UNTIL_CHECKPOINTED,
            _ => self.connection.server.deadlines.silence,
        }
    }

    /// Takes in one message. Never waits.
    fn step(&mut self, frame: &Frame) -> Result<Step, PgError> {
        let body = self.connection.wire.reader.body(frame);
        match (self.phase, frame.tag) {
            (_, b'E') => Err(PgError::Server(Box::new(body::error_fields(body)))),
            (Phase::Start | Phase::Tablespaces | Phase::Stop, b'T') => Ok(Step::Continue),
            (Phase::Start, b'D') => {
                self.start = Some(position(&row(body)?)?);
                Ok(Step::Continue)
            }
            (Phase::Start, b'C') => {
                self.phase = Phase::Tablespaces;
                Ok(Step::Continue)
            }
            (Phase::Tablespaces, b'D') => {
                let row = row(body)?;
                self.take_tablespace(&row)?;
                Ok(Step::Continue)
            }
            (Phase::Tablespaces, b'C') => {
                self.phase = Phase::Between;
                Ok(Step::Started)
            }
            (Phase::Between, b'H') => self.begin_copy(),
            (Phase::Between, b'T') => {
                self.phase = Phase::Stop;
                Ok(Step::Continue)
            }
            (Phase::Archive | Phase::Manifest, b'd') if body.is_empty() => Ok(Step::Continue),
            (Phase::Archive, b'd') => Ok(Step::Data(0)),
            (Phase::Archive, b'c') => {
                self.phase = Phase::Between;
                Ok(Step::ArchiveEnd)
            }
            (Phase::Manifest, b'd') => Ok(Step::ManifestData(0)),
            (Phase::Manifest | Phase::Tagged { .. }, b'c') => {
                self.phase = Phase::Between;
                Ok(Step::Continue)
            }
            (Phase::Tagged { in_manifest }, b'd') => {
                let content = tagged(body, in_manifest)?;
                self.take_tagged(content)
            }
            (Phase::Stop, b'D') => {
                self.stop = Some(position(&row(body)?)?);
                Ok(Step::Continue)
            }
            (Phase::Stop, b'C') => Ok(Step::Continue),
            // Only now: page checksum failures are an error after the last result.
            (Phase::Stop, b'Z') => {
                self.phase = Phase::Ended;
                let (lsn, timeline) =
                    self.stop.ok_or_else(|| PgError::Protocol("a backup without a stop position".to_owned()))?;
                Ok(Step::Finished(lsn, timeline))
            }
            (_, other) => Err(unexpected(other, DOING)),
        }
    }

    fn take_tablespace(&mut self, row: &Row) -> Result<(), PgError> {
        if self.archives.len() >= MAX_TABLESPACES {
            return Err(PgError::Protocol(format!("more than {MAX_TABLESPACES} tablespaces")));
        }
        let oid: Option<u32> = optional(row, 0)?;
        let size = optional::<u64>(row, 2)?.map(|kib| kib.saturating_mul(1024));
        match (oid, row.get(1).cloned().flatten()) {
            (None, _) => self.base_size = size,
            (Some(oid), Some(location)) => self.tablespaces.push(Tablespace { oid, location, size }),
            (Some(oid), None) => return Err(PgError::Protocol(format!("tablespace {oid} without a location"))),
        }
        self.archives.push(oid);
        Ok(())
    }

    /// A copy begins: one of many in 14, the only one later.
    fn begin_copy(&mut self) -> Result<Step, PgError> {
        if self.connection.server.version.major() >= 15 {
            self.phase = Phase::Tagged { in_manifest: false };
            return Ok(Step::Continue);
        }
        match self.archives.get(self.begun) {
            Some(&tablespace) => {
                self.begun += 1;
                self.phase = Phase::Archive;
                Ok(Step::Archive(tablespace))
            }
            None => {
                self.phase = Phase::Manifest;
                Ok(Step::Continue)
            }
        }
    }

    fn take_tagged(&mut self, content: Tagged) -> Result<Step, PgError> {
        Ok(match content {
            Tagged::Archive(tablespace) if !self.archives.contains(&tablespace) => {
                return Err(PgError::Protocol(format!(
                    "an archive of a tablespace that was not announced ({tablespace:?})"
                )));
            }
            Tagged::Archive(tablespace) => {
                self.begun += 1;
                self.phase = Phase::Tagged { in_manifest: false };
                Step::Archive(tablespace)
            }
            Tagged::Data if self.begun == 0 => {
                return Err(PgError::Protocol("data before the first archive".to_owned()));
            }
            Tagged::Data => Step::Data(1),
            Tagged::Nothing => Step::Continue,
            Tagged::ManifestData => Step::ManifestData(1),
            Tagged::ManifestBegins => {
                self.phase = Phase::Tagged { in_manifest: true };
                Step::Continue
            }
            Tagged::Progress(bytes) => Step::Progress(bytes),
        })
    }
}

/// The meaning of one CopyData message of 15 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tagged {
    Archive(Option<u32>),
    Data,
    ManifestBegins,
    ManifestData,
    Progress(u64),
    Nothing,
}

/// Reads the kind of a message: pure.
fn tagged(body: &[u8], in_manifest: bool) -> Result<Tagged, PgError> {
    let torn = || PgError::Protocol("a torn message in a base backup".to_owned());
    match body.split_first() {
        None => Ok(Tagged::Nothing),
        Some((b'd', [])) => Ok(Tagged::Nothing),
        Some((b'd', _)) if in_manifest => Ok(Tagged::ManifestData),
        Some((b'd', _)) => Ok(Tagged::Data),
        Some((b'm', _)) => Ok(Tagged::ManifestBegins),
        Some((b'n', rest)) => {
            let (name, _) = body::take_string(rest).ok_or_else(torn)?;
            let stem = str::from_utf8(name).ok().and_then(|name| name.strip_suffix(".tar")).ok_or_else(torn)?;
            if stem == "base" {
                return Ok(Tagged::Archive(None));
            }
            stem.parse().map(|oid| Tagged::Archive(Some(oid))).map_err(|_| torn())
        }
        Some((b'p', rest)) => {
            let done = i64::from_be_bytes(*rest.first_chunk().ok_or_else(torn)?);
            Ok(Tagged::Progress(u64::try_from(done).unwrap_or(0)))
        }
        Some((other, _)) => Err(unexpected(*other, DOING)),
    }
}

fn row(body: &[u8]) -> Result<Row, PgError> {
    body::data_row(body).ok_or_else(|| PgError::Protocol("a torn row".to_owned()))
}

/// A WAL position and its timeline.
fn position(row: &Row) -> Result<(Lsn, TimelineId), PgError> {
    Ok((field(row, 0, "a WAL position")?, field(row, 1, "a timeline")?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Tagged, tagged};

    #[test]
    fn messages_of_a_backup_are_told_apart() {
        let cases: [(&[u8], bool, Tagged); 9] = [
            (b"nbase.tar\0\0", false, Tagged::Archive(None)),
            (b"n16384.tar\0/mnt/ts\0", false, Tagged::Archive(Some(16384))),
            (b"dxyz", false, Tagged::Data),
            (b"dxyz", true, Tagged::ManifestData),
            (b"d", false, Tagged::Nothing),
            (b"", false, Tagged::Nothing),
            (b"m", false, Tagged::ManifestBegins),
            (b"p\0\0\0\0\0\0\0\x07", true, Tagged::Progress(7)),
            (b"p\xff\xff\xff\xff\xff\xff\xff\xff", true, Tagged::Progress(0)),
        ];
        for (bytes, in_manifest, expected) in cases {
            assert_eq!(tagged(bytes, in_manifest).unwrap(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn hostile_messages_are_errors() {
        for bytes in
            [&b"n"[..], b"nbase.tar", b"n../../x.tar\0\0", b"n\xff.tar\0\0", b"n99999999999.tar\0\0", b"p123", b"x"]
        {
            assert!(tagged(bytes, false).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), in_manifest in any::<bool>()) {
            drop(tagged(&bytes, in_manifest));
        }
    }
}
