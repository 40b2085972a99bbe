//! One backup of a data directory, from `pg_backup_start` to `pg_backup_stop`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::fstat;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use wal::Lsn;

use super::control::Control;
use super::directory::{ControlFile, DataDirectory, OpenTablespace, Unreadable};
use super::label::{Label, tablespaces};
use super::noted::{Noted, Trace};
use super::source::FilesSource;
use super::walk::{Terms, Walk, data_path};
use crate::backup::cut::{Cutter, EntryHead};
use crate::backup::error::CopyError;
use crate::backup::progress::{BackupPhase, ProgressSender};
use crate::backup::read::{Began, ReadAll};
use crate::backup::reference::Reference;
use crate::repository::manifest::TablespacePath;

/// How often the session is looked at while files are copied, and every how many looks it is asked something.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ASK_EVERY: u32 = 15;

/// How the files are read.
#[derive(Debug)]
pub(in crate::backup) struct FilesPlan {
    pub(in crate::backup) label: String,
    /// A fast checkpoint.
    pub(in crate::backup) fast: bool,
    /// What is compared with what was noted; `None`: every file is read.
    pub(in crate::backup) noted: Option<(Arc<Noted>, Arc<Reference>)>,
    /// Files of that backup with damaged pages.
    pub(in crate::backup) damaged: HashSet<String>,
    /// Files that changed last before this moment are noted. It lies before `pg_backup_start`.
    pub(in crate::backup) settled_before: DateTime<Utc>,
}

/// Reads the whole data directory into the cutter. `began` is told of the start before any file is given to it.
///
/// The order is that of BASE_BACKUP: the start, every file, `pg_control` after all of them (on a standby its minimum recovery
/// point must not lie before any page that was read), the stop. Whatever ends this before the stop ends the session as well,
/// with which the server leaves backup mode.
pub(in crate::backup) async fn read_files(
    source: Arc<FilesSource>,
    plan: FilesPlan,
    mut cutter: Cutter,
    began: oneshot::Sender<Lsn>,
    progress: ProgressSender,
) -> Result<ReadAll, CopyError> {
    let session = &source.session;
    let start = session.backup_start(&plan.label, plan.fast).await?;
    let before = control(&source).await?;
    check_live(&before.control, start)?;
    progress.send_modify(|progress| progress.phase = BackupPhase::Copy);
    began.send(start).map_err(|_| CopyError::Stopped)?;

    let opened = on_directory(&source, move |directory| directory.tablespaces(&before.control)).await?;
    let (links, traces) = tokio::select! {
        biased;
        lost = watch(&source) => return Err(lost),
        copied = copy_all(&source, plan, opened, &mut cutter, &progress) => copied?,
    };
    let control_file = control(&source).await?;
    let stopped = session.backup_stop().await?;
    let after = control(&source).await?;

    let label = Label::parse(&stopped.label).ok_or_else(|| odd("pg_backup_stop returned no backup_label"))?;
    check_stop(&source, &label, start, stopped.stop, &after.control).await?;
    let (mode, mtime) = (control_file.mode, control_file.mtime);
    let head = |path: &[u8]| Ok::<_, CopyError>(EntryHead { path: data_path(path)?, mode, mtime });
    cutter.known_file(head(b"backup_label")?, &stopped.label).await?;
    if !stopped.tablespace_map.is_empty() {
        cutter.known_file(head(b"tablespace_map")?, &stopped.tablespace_map).await?;
    }
    cutter.known_file(head(b"global/pg_control")?, &control_file.bytes).await?;
    let (totals, _) = cutter.finish().await?;
    progress.send_modify(|progress| (progress.done_bytes, progress.files) = (totals.bytes, totals.files));

    let tablespaces = both(links, tablespaces(&stopped.tablespace_map));
    let began = Began { start, timeline: label.timeline, tablespaces };
    Ok(ReadAll { began, stop: stopped.stop, totals, manifest: None, traces: Some(traces) })
}

/// Every file but `pg_control`: first the tablespaces, then the data directory. Returns the tablespaces that have links, once
/// every byte was read.
async fn copy_all(
    source: &Arc<FilesSource>,
    plan: FilesPlan,
    opened: Vec<OpenTablespace>,
    cutter: &mut Cutter,
    progress: &ProgressSender,
) -> Result<(Vec<TablespacePath>, Vec<Trace>), CopyError> {
    let (local, opened) =
        on_directory(source, move |directory| Ok((directory.local_devices(&opened)?, opened))).await?;
    let (reading, mut read) = mpsc::channel(1);
    let terms = Arc::new(Terms {
        noted: plan.noted,
        damaged: plan.damaged,
        settled_before: plan.settled_before,
        local,
        inside: DataDirectory::inside(&opened).map_err(explain)?,
        major: source.directory.major,
        reading,
    });
    let mut walk = Walk { terms, cutter, progress, traces: Vec::new() };
    let version = before_version(source).await?;
    let mut links = Vec::new();
    for OpenTablespace { oid, link, version: directory } in opened {
        let place = format!("pg_tblspc/{oid}");
        let inner = format!("{place}/{version}");
        let stat = fstat(&directory).map_err(|errno| CopyError::File { path: inner.clone(), source: errno.into() })?;
        let (mode, mtime) = (stat.st_mode & 0o777, stat.st_mtime);
        match link {
            Some(path) => links.push(TablespacePath { oid, path }),
            None => walk.cutter.directory(EntryHead { path: data_path(place.as_bytes())?, mode, mtime }).await?,
        }
        walk.cutter.directory(EntryHead { path: data_path(inner.as_bytes())?, mode, mtime }).await?;
        walk.directory(Arc::new(directory), inner.into_bytes()).await?;
    }
    let root =
        source.directory.root.try_clone().map_err(|error| CopyError::File { path: ".".to_owned(), source: error })?;
    walk.directory(Arc::new(root), Vec::new()).await?;
    // The danger: files are read behind us, by whoever works on their chunks. What was read after pg_control, or after the
    // stop, could be newer than either knows. So every open file has a sender of this channel, the walk's own goes here, and
    // the channel ends when the last file was closed, which is after its last read.
    let Walk { traces, terms, cutter, .. } = walk;
    drop(terms);
    cutter.flush().await?;
    while read.recv().await.is_some() {}
    Ok((links, traces))
}

async fn before_version(source: &Arc<FilesSource>) -> Result<String, CopyError> {
    let control = control(source).await?.control;
    Ok(control.tablespace_directory(source.directory.major))
}

/// Tells when the backup is void before its end: the session is gone, or the server was promoted.
async fn watch(source: &FilesSource) -> CopyError {
    let mut looks = 0;
    loop {
        sleep(LOOK_EVERY).await;
        looks += 1;
        if !source.session.is_open() {
            return CopyError::DataDirectory(
                "the session that holds the server in backup mode has ended: the copy is void".to_owned(),
            );
        }
        if looks % ASK_EVERY == 0 {
            match source.session.is_in_recovery().await {
                Ok(in_recovery) if in_recovery == source.from_standby => {}
                Ok(_) => return CopyError::DataDirectory("the server was promoted meanwhile".to_owned()),
                Err(error) => return error.into(),
            }
        }
    }
}

/// The checkpoint of `pg_backup_start` must show in the directory: else it is a picture of it, not the directory.
fn check_live(control: &Control, start: Lsn) -> Result<(), CopyError> {
    if control.redo >= start {
        return Ok(());
    }
    let said = format!(
        "the server has begun the backup at {start}, and the directory's pg_control still says {}",
        control.redo
    );
    Err(CopyError::DataDirectory(said))
}

async fn check_stop(
    source: &Arc<FilesSource>,
    label: &Label,
    start: Lsn,
    stop: Lsn,
    after: &Control,
) -> Result<(), CopyError> {
    if label.start != start || label.from_standby != source.from_standby {
        return Err(odd("the backup that pg_backup_stop ended is another"));
    }
    if stop <= start {
        return Err(odd("its end does not lie after its start"));
    }
    // A standby that follows its primary to another timeline is not promoted, and its backup void all the same.
    let timeline = after.recovery_timeline.filter(|_| source.from_standby).unwrap_or(after.timeline);
    if timeline != label.timeline {
        return Err(CopyError::TimelineChanged { start: label.timeline, stop: timeline });
    }
    let now = on_directory(source, |directory| directory.postmaster()).await?;
    if now != source.postmaster || after.system_identifier != source.instance.system_identifier {
        return Err(odd("another server runs in the data directory"));
    }
    Ok(())
}

/// Those with links when they were opened, and those of the map: one that is dropped meanwhile is in one of them only.
fn both(opened: Vec<TablespacePath>, mapped: Vec<TablespacePath>) -> Vec<TablespacePath> {
    let mut all: HashMap<u32, TablespacePath> =
        opened.into_iter().map(|tablespace| (tablespace.oid, tablespace)).collect();
    for tablespace in mapped.into_iter().filter(|tablespace| !tablespace.path.starts_with(b"pg_tblspc/")) {
        all.insert(tablespace.oid, tablespace);
    }
    let mut all: Vec<TablespacePath> = all.into_values().collect();
    all.sort_unstable_by_key(|tablespace| tablespace.oid);
    all
}

async fn control(source: &Arc<FilesSource>) -> Result<ControlFile, CopyError> {
    on_directory(source, DataDirectory::control).await
}

/// Work that waits for the disk.
async fn on_directory<T: Send + 'static>(
    source: &Arc<FilesSource>,
    work: impl FnOnce(&DataDirectory) -> Result<T, Unreadable> + Send + 'static,
) -> Result<T, CopyError> {
    let source = Arc::clone(source);
    spawn_blocking(move || work(&source.directory)).await?.map_err(explain)
}

fn explain(error: Unreadable) -> CopyError {
    CopyError::File { path: error.what, source: error.source }
}

fn odd(what: &str) -> CopyError {
    CopyError::DataDirectory(what.to_owned())
}
