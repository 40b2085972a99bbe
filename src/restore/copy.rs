//! Writing the files of a backup, many at a time, each proven.
//!
//! The file table is read part by part, so memory depends on the size of a part and the number of jobs, not on the size
//! of the cluster. Of each part the directories are made first, then ranges of packs are read in parallel and every chunk
//! is written at its place once its hash is right; each file as a whole is checked when its last chunk is there.

mod part;

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use recovery::DataPath;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::repository::chunk_reader::{ChunkError, ChunkReader, Fetched, PackRead, Unpacker, plan, wanted_chunks};
use crate::repository::file_table::{EntryKind, PartReader, TableEntry};
use crate::repository::layout::ObjectName;
use crate::repository::manifest::{Manifest, PartRef};
use crate::repository::{LineageRepository, RepositoryError};
use crate::storage::{ObjectKey, StorageErrorKind};

use super::keep::{Checksums, right_chunks};
use super::parallel;
use super::progress::RestoreProgressSender;
use super::roots::{Keep, PG_CONTROL, Roots};
use super::throttle::Throttle;

use part::{Part, Writer, content};

/// So many files that need nothing from the repository are made in one go.
const FILES_AT_ONCE: usize = 256;

/// What every read needs.
#[derive(Debug)]
struct Tools {
    reader: ChunkReader,
    roots: Arc<Roots>,
    /// Those that nobody uses, with their memory.
    unpackers: Mutex<Vec<Unpacker>>,
}

/// What a job does.
#[derive(Debug)]
enum Work {
    /// Fetches a range and writes its chunks.
    Read(PackRead),
    /// Makes and finishes files of which nothing is fetched.
    Files(Vec<usize>),
}

/// What became of the files of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Those of them that were there and right, zeros left aside.
    pub(super) kept_bytes: u64,
}

/// The jobs that are under way. Each holds `writing` for as long as it may write, and tells how many files it finished.
struct Jobs {
    running: JoinSet<Result<u64>>,
    writing: mpsc::Sender<Infallible>,
}

/// Writes every directory and file of the backup, `jobs` reads at a time. After an error nothing is written any more.
pub(super) async fn copy_files(
    lineage: &LineageRepository,
    manifest: &Manifest,
    roots: Arc<Roots>,
    jobs: usize,
    throttle: Throttle<'_>,
    progress: &RestoreProgressSender,
) -> Result<Copied> {
    let (writing, mut written) = mpsc::channel(1);
    let mut under_way = Jobs { running: JoinSet::new(), writing };
    let copied = copy_parts(lineage, manifest, roots, jobs, throttle, progress, &mut under_way).await;
    // What fetches can be ended, a thread that writes cannot: whoever is told of the error may remove the directory, or begin
    // again in it, so it is waited for. The channel closes with the last of them.
    under_way.running.shutdown().await;
    drop(under_way.writing);
    if let Some(never) = written.recv().await {
        match never {}
    }
    copied
}

async fn copy_parts(
    lineage: &LineageRepository,
    manifest: &Manifest,
    roots: Arc<Roots>,
    jobs: usize,
    mut throttle: Throttle<'_>,
    progress: &RestoreProgressSender,
    under_way: &mut Jobs,
) -> Result<Copied> {
    let reader = chunk_reader(lineage, manifest);
    let tools = Arc::new(Tools { reader, roots, unpackers: Mutex::default() });
    let limit = Arc::new(Semaphore::new(jobs.max(1)));
    let mut copied = Copied::default();
    let mut has_control = false;
    let (mut files, mut finished) = (0, 0);
    for part in &manifest.parts {
        throttle.take(part.size).await;
        let entries = read_part(lineage, manifest, part).await?;
        has_control |= entries.iter().any(|entry| entry.path.as_bytes() == PG_CONTROL);
        let (part, work, of_part) = prepare(entries, &tools).await?;
        fault_point!("restore.prepared");
        progress.send_modify(|progress| progress.done_bytes += of_part.kept_bytes);
        files += part.files();
        copied.bytes += of_part.bytes;
        copied.kept_bytes += of_part.kept_bytes;
        for work in work {
            let permit = limit.clone().acquire_owned().await.map_err(stopped)?;
            if let Work::Read(read) = &work {
                throttle.take(read.stored_bytes()).await;
            }
            // One failure ends the restore.
            while let Some(ended) = under_way.running.try_join_next() {
                finished += ended.map_err(stopped)??;
            }
            let (tools, part, progress) = (tools.clone(), part.clone(), progress.clone());
            let writing = under_way.writing.clone();
            under_way.running.spawn(async move {
                let _permit = permit;
                do_work(work, tools, part, &progress, writing).await
            });
        }
    }
    while let Some(ended) = under_way.running.join_next().await {
        finished += ended.map_err(stopped)??;
    }
    if finished != files {
        return Err(damaged(format!("{finished} of {files} files of backup {} were completed", manifest.id)));
    }
    if !has_control {
        return Err(damaged(format!("backup {} has no global/pg_control", manifest.id)));
    }
    Ok(copied)
}

/// The entries of one part, checked against the manifest.
pub(super) async fn read_part(
    lineage: &LineageRepository,
    manifest: &Manifest,
    part: &PartRef,
) -> Result<Vec<TableEntry>> {
    let text = format!("{}{}", lineage.keys().backup_prefix(&manifest.id), part.name);
    let damaged = |what: String| damaged(format!("{text} is damaged: {what}"));
    let key = ObjectKey::new(text.clone()).map_err(|error| damaged(error.to_string()))?;
    let bytes = lineage.objects().get_checked(&key, &part.sha256).await?;
    let (entries, facts) = (part.entries, manifest.table_facts());
    let read = tokio::task::spawn_blocking(move || {
        PartReader::of_checked(bytes, entries, facts)?.collect::<std::result::Result<Vec<_>, _>>()
    });
    read.await.map_err(stopped)?.map_err(|error| damaged(error.to_string()))
}

/// A reader of the backup's packs.
pub(super) fn chunk_reader(lineage: &LineageRepository, manifest: &Manifest) -> ChunkReader {
    let pack =
        |pack: &crate::repository::manifest::PackRef| ObjectName::Pack(lineage.cluster().clone(), pack.sha256).key();
    let packs = manifest.packs.iter().map(pack).collect();
    ChunkReader::new(lineage.objects().storage().clone(), packs, manifest.chunk_size)
}

/// Makes the directories of a part, takes over what is kept of its files, and says what is to be done for the rest.
async fn prepare(entries: Vec<TableEntry>, tools: &Arc<Tools>) -> Result<(Arc<Part>, Vec<Work>, Copied)> {
    let tools = tools.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let roots = &tools.roots;
        let mut right: Checksums =
            entries.iter().map(|entry| vec![None; content(entry).map_or(0, |file| file.chunks.len())]).collect();
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Directory) {
            roots.make_directory(&entry.path, entry.mode).map_err(|error| cannot_write(&entry.path, &error))?;
        }
        let (are_made, kept_bytes) = match roots.keep() {
            Keep::Right => {
                let there = take_files(&entries, roots)?;
                (true, right_chunks(&entries, &there, roots, tools.reader.chunk_size(), &mut right)?)
            }
            Keep::New | Keep::Nothing => (false, 0),
        };
        let mut wanted = wanted_chunks(&entries);
        wanted.retain(|chunk| right[chunk.entry][chunk.index as usize].is_none());
        let bytes = entries.iter().filter_map(content).map(|file| file.size).sum();
        let part = Part::new(entries, right, are_made);
        let without = part.without_chunks();
        let files = without.chunks(FILES_AT_ONCE).map(|files| Work::Files(files.to_vec()));
        let work = files.chain(plan(wanted).into_iter().map(Work::Read)).collect();
        Ok((Arc::new(part), work, Copied { bytes, kept_bytes }))
    });
    prepared.await.map_err(stopped)?
}

/// Takes over what is there of each file, or makes it; returns how many bytes of each entry were there before.
fn take_files(entries: &[TableEntry], roots: &Roots) -> Result<Vec<u64>> {
    let there: Vec<AtomicU64> = entries.iter().map(|_| AtomicU64::new(0)).collect();
    let numbered: Vec<(usize, &TableEntry)> = entries.iter().enumerate().collect();
    parallel::for_each(
        parallel::processors(),
        &numbered,
        || (),
        |(), (at, entry)| {
            let Some(file) = content(entry) else { return Ok(()) };
            let found = roots.take(&entry.path, file.size, entry.mode);
            there[*at].store(found.map_err(|error| cannot_write(&entry.path, &error))?, Ordering::Relaxed);
            Ok::<(), Error>(())
        },
    )?;
    Ok(there.into_iter().map(AtomicU64::into_inner).collect())
}

/// Does one thing of a part; returns how many files are complete by it.
async fn do_work(
    work: Work,
    tools: Arc<Tools>,
    part: Arc<Part>,
    progress: &RestoreProgressSender,
    writing: mpsc::Sender<Infallible>,
) -> Result<u64> {
    let fetched = match &work {
        Work::Read(read) => Some(tools.reader.fetch(read, &part.entries).await.map_err(chunk_failed)?),
        Work::Files(_) => None,
    };
    let written = tokio::task::spawn_blocking(move || {
        let written = match (&work, fetched) {
            (Work::Read(read), Some(fetched)) => write_chunks(&tools, read, &fetched, &part)?,
            (Work::Read(_), None) => (0, 0),
            (Work::Files(files), _) => {
                part.complete(files, &tools.roots)?;
                (files.len() as u64, 0)
            }
        };
        drop(writing);
        Ok::<(u64, u64), Error>(written)
    });
    let (finished, written) = written.await.map_err(stopped)??;
    progress.send_modify(|progress| progress.done_bytes += written);
    Ok(finished)
}

/// Proves the chunks of one read and writes them; returns how many files are complete by it, and the bytes.
fn write_chunks(tools: &Tools, read: &PackRead, fetched: &Fetched, part: &Part) -> Result<(u64, u64)> {
    let idle = || tools.unpackers.lock().unwrap_or_else(PoisonError::into_inner);
    let mut unpacker = idle().pop().unwrap_or_default();
    let mut writer = Writer::new(part, &tools.roots, tools.reader.chunk_size(), read);
    let mut write = |entry: usize, position: u64, plain: &[u8]| writer.write(entry, position, plain);
    let unpacked = unpacker.unpack(&tools.reader, read, fetched, &part.entries, &mut write);
    idle().push(unpacker);
    if let Some(error) = writer.failed {
        return Err(error);
    }
    unpacked.map_err(chunk_failed)?;
    fault_point!("restore.written");
    Ok((writer.finished, writer.written))
}

pub(super) fn cannot_write(path: &DataPath, error: &io::Error) -> Error {
    let failed = |code| Error::new(code, format!("cannot write \"{path}\": {error}"));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failed(ErrorCode::NoSpace).help("make room and run the same command again: it goes on from here")
        }
        _ => failed(ErrorCode::Unclassified),
    }
}

fn chunk_failed(error: ChunkError) -> Error {
    match error {
        ChunkError::Sink { file, source } => cannot_write(&file, &source),
        ChunkError::Storage(error) if error.kind != StorageErrorKind::Corrupt => RepositoryError::Storage(error).into(),
        error => damaged(error.to_string()),
    }
}

/// What is stored of a backup is not what it was.
pub(super) fn damaged(message: String) -> Error {
    Error::new(ErrorCode::Damaged, message)
        .help("restore another backup: --backup ID")
        .help("read everything that is stored: pgvault check --deep")
}

fn stopped(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Interrupted, format!("the restore was stopped: {error}"))
}
