//! Reads what the server sends: archives into files, files into the cutter, the manifest into the check.

use std::future::Future;
use std::sync::Arc;

use recovery::pg_manifest::ManifestFacts;
use tokio::sync::oneshot;
use wal::{Lsn, TimelineId};

use super::cut::{CutTotals, Cutter};
use super::error::CopyError;
use super::files::Trace;
use super::intake::Intake;
use super::manifest_check::{KeptManifest, ManifestCheck};
use super::members::{Archive, Members};
use super::pages::PageFacts;
use super::progress::{BackupPhase, ProgressSender};
use super::reference::Reference;
use super::tar::{Member, MemberKind, TarEvent, TarReader};
use crate::primary::{BackupEvent, BaseBackupStream, PgError};
use crate::repository::manifest::TablespacePath;

/// Progress is told every so many bytes.
const TELL_EVERY: u64 = 1 << 20;

/// A base backup that is being sent.
pub trait BackupStream: Send {
    /// The next event.
    fn next(&mut self) -> impl Future<Output = Result<BackupEvent<'_>, PgError>> + Send;
}

impl BackupStream for BaseBackupStream {
    async fn next(&mut self) -> Result<BackupEvent<'_>, PgError> {
        Self::next(self).await
    }
}

/// How a backup began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Began {
    pub(super) start: Lsn,
    pub(super) timeline: TimelineId,
    /// Those outside the data directory.
    pub(super) tablespaces: Vec<TablespacePath>,
}

/// Everything was read, and every file is as the server's manifest says where there is one.
#[derive(Debug)]
pub(super) struct ReadAll {
    pub(super) began: Began,
    pub(super) stop: Lsn,
    pub(super) totals: CutTotals,
    /// The server's manifest.
    pub(super) manifest: Option<(ManifestFacts, KeptManifest)>,
    /// What was noted of files read from the data directory.
    pub(super) traces: Option<Vec<Trace>>,
}

/// Reads the whole backup. `began` is told of the start before any file arrives.
pub(super) async fn read_stream(
    mut stream: impl BackupStream,
    cutter: Cutter,
    incremental: Option<(PageFacts, Arc<Reference>)>,
    began: oneshot::Sender<Lsn>,
    progress: ProgressSender,
) -> Result<ReadAll, CopyError> {
    let (start, members) = match stream.next().await.map_err(CopyError::NotStarted)? {
        BackupEvent::Started { start_lsn, timeline, tablespaces, base_size } => {
            let sizes = tablespaces.iter().map(|tablespace| tablespace.size).chain([base_size]);
            let total = sizes.sum::<Option<u64>>();
            progress.send_modify(|progress| (progress.phase, progress.total_bytes) = (BackupPhase::Copy, total));
            let members = Members::new(tablespaces.iter().map(|tablespace| tablespace.oid));
            let outside = tablespaces.into_iter().filter(|tablespace| !is_in_place(&tablespace.location));
            let tablespaces =
                outside.map(|tablespace| TablespacePath { oid: tablespace.oid, path: tablespace.location }).collect();
            (Began { start: start_lsn, timeline, tablespaces }, members)
        }
        _ => return Err(CopyError::OutOfTurn("it did not say where it starts")),
    };
    if began.send(start.start).is_err() {
        return Err(CopyError::Stopped);
    }
    let mut archives = Archives { intake: Intake::new(members, cutter, incremental), current: None };
    let (stop, timeline) = loop {
        match stream.next().await? {
            BackupEvent::Archive { tablespace } => archives.begin(tablespace, &start).await?,
            BackupEvent::Data(bytes) => {
                archives.data(bytes).await?;
                let CutTotals { files, bytes, .. } = archives.intake.cutter.totals();
                // Whoever looks does so a few times a second.
                progress.send_if_modified(|progress| {
                    let enough = bytes >= progress.done_bytes + TELL_EVERY;
                    if enough {
                        (progress.done_bytes, progress.files) = (bytes, files);
                    }
                    enough
                });
            }
            BackupEvent::Manifest(bytes) => {
                archives.end()?;
                archives.intake.cutter.manifest(bytes)?;
            }
            BackupEvent::Progress(_) => {}
            BackupEvent::Started { .. } => return Err(CopyError::OutOfTurn("it started twice")),
            BackupEvent::Finished { stop_lsn, timeline } => break (stop_lsn, timeline),
        }
    };
    archives.end()?;
    if timeline != start.timeline {
        return Err(CopyError::TimelineChanged { start: start.timeline, stop: timeline });
    }
    if stop <= start.start {
        return Err(CopyError::OutOfTurn("its end does not lie after its start"));
    }
    let (totals, check) = archives.intake.cutter.finish().await?;
    let manifest = check.map(ManifestCheck::finish).transpose()?;
    progress.send_modify(|progress| (progress.done_bytes, progress.files) = (totals.bytes, totals.files));
    Ok(ReadAll { began: start, stop, totals, manifest, traces: None })
}

/// PostgreSQL 16 and later send tablespaces that lie in `pg_tblspc` itself as archives of their own.
fn is_in_place(location: &[u8]) -> bool {
    location.starts_with(b"pg_tblspc/")
}

/// The archives, one after another.
struct Archives {
    intake: Intake,
    current: Option<(Archive, TarReader)>,
}

impl Archives {
    async fn begin(&mut self, tablespace: Option<u32>, began: &Began) -> Result<(), CopyError> {
        self.end()?;
        let archive = tablespace.map_or(Archive::Base, Archive::Tablespace);
        self.current = Some((archive, TarReader::new()));
        if let Some(oid) = tablespace
            && !began.tablespaces.iter().any(|outside| outside.oid == oid)
        {
            // In place: no link will stand for it, and its archive does not name it.
            let member = Member {
                path: recovery::DataPath::new(format!("pg_tblspc/{oid}").as_bytes())
                    .map_err(super::members::MemberError::from)?,
                kind: MemberKind::Directory,
                size: 0,
                mode: 0o700,
                mtime: 0,
            };
            self.intake.member(Archive::Base, member).await?;
        }
        Ok(())
    }

    /// The archive that is being read has ended, if there is one.
    fn end(&mut self) -> Result<(), CopyError> {
        match self.current.take() {
            Some((_, tar)) => Ok(tar.finish()?),
            None => Ok(()),
        }
    }

    async fn data(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        loop {
            let Some((archive, tar)) = &mut self.current else {
                return Err(CopyError::OutOfTurn("data outside of an archive"));
            };
            let archive = *archive;
            match tar.next(&mut bytes)? {
                None => return Ok(()),
                Some(TarEvent::Member(member)) => self.intake.member(archive, member).await?,
                Some(TarEvent::Data(data)) => self.intake.data(data).await?,
                Some(TarEvent::End) => {}
            }
        }
    }
}
