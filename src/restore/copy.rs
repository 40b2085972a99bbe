//! Writing the files of a backup, many at a time, each proven.
//!
//! The file table is read part by part, so memory depends on the size of a part and the number of jobs, not on the size
//! of the cluster. Of each part the directories and files are made first, then ranges of packs are read in parallel and
//! every chunk is written at its place once its hash is right; the job that writes a part's last chunk checks that each
//! of the part's files as a whole has the checksum that the file table says.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crc32c::{crc32c, crc32c_combine};
use recovery::DataPath;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::codec::digest::crc32c_of_zeros;
use crate::error::{Error, ErrorCode, Result};
use crate::fault_point;
use crate::repository::chunk_reader::{ChunkError, ChunkReader, Fetched, PackRead, Unpacker, plan, wanted_chunks};
use crate::repository::file_table::{ChunkRef, EntryKind, FileContent, PartReader, TableEntry};
use crate::repository::layout::ObjectName;
use crate::repository::manifest::{Manifest, PartRef};
use crate::repository::{LineageRepository, RepositoryError};
use crate::storage::{ObjectKey, StorageErrorKind};

use super::keep::{Checksums, right_chunks};
use super::parallel;
use super::progress::RestoreProgressSender;
use super::roots::{Keep, PG_CONTROL, Roots};
use super::throttle::Throttle;

/// One part of the file table on its way to the disk.
#[derive(Debug)]
struct Part {
    entries: Vec<TableEntry>,
    /// CRC-32C of every chunk that is stored and lies at its place.
    checksums: Mutex<Checksums>,
    /// Reads that have not ended.
    open_reads: AtomicUsize,
}

/// What became of the files of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Those of them that were there and right, zeros left aside.
    pub(super) kept_bytes: u64,
}

/// The reads that are under way. Each holds `writing` for as long as it may write.
struct Reads {
    running: JoinSet<Result<()>>,
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
    let mut reads = Reads { running: JoinSet::new(), writing };
    let copied = copy_parts(lineage, manifest, roots, jobs, throttle, progress, &mut reads).await;
    // What fetches can be ended, a thread that writes cannot: whoever is told of the error may remove the directory, or begin
    // again in it, so it is waited for. The channel closes with the last of them.
    reads.running.shutdown().await;
    drop(reads.writing);
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
    under_way: &mut Reads,
) -> Result<Copied> {
    let reader = chunk_reader(lineage, manifest);
    let limit = Arc::new(Semaphore::new(jobs.max(1)));
    let mut copied = Copied::default();
    let mut has_control = false;
    for part in &manifest.parts {
        throttle.take(part.size).await;
        let entries = read_part(lineage, manifest, part).await?;
        has_control |= entries.iter().any(|entry| entry.path.as_bytes() == PG_CONTROL);
        let (part, reads, of_part) = prepare(entries, &roots, manifest.chunk_size).await?;
        fault_point!("restore.prepared");
        progress.send_modify(|progress| progress.done_bytes += of_part.kept_bytes);
        copied.bytes += of_part.bytes;
        copied.kept_bytes += of_part.kept_bytes;
        for read in reads {
            let permit = limit.clone().acquire_owned().await.map_err(stopped)?;
            throttle.take(read.stored_bytes()).await;
            // One failure ends the restore.
            while let Some(ended) = under_way.running.try_join_next() {
                ended.map_err(stopped)??;
            }
            let (reader, part, roots, progress) = (reader.clone(), part.clone(), roots.clone(), progress.clone());
            let writing = under_way.writing.clone();
            under_way.running.spawn(async move {
                let _permit = permit;
                copy_read(reader, read, part, roots, &progress, writing).await
            });
        }
    }
    while let Some(ended) = under_way.running.join_next().await {
        ended.map_err(stopped)??;
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

/// Makes the directories and files of a part, zeros where nothing is kept, and plans what to read for them.
async fn prepare(
    entries: Vec<TableEntry>,
    roots: &Arc<Roots>,
    chunk_size: u32,
) -> Result<(Arc<Part>, Vec<PackRead>, Copied)> {
    let roots = roots.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let mut checksums: Checksums =
            entries.iter().map(|entry| vec![None; content(entry).map_or(0, |file| file.chunks.len())]).collect();
        let there = make_entries(&entries, &roots)?;
        let kept_bytes = match roots.keep() {
            Keep::Right => right_chunks(&entries, &there, &roots, chunk_size, &mut checksums)?,
            Keep::New | Keep::Nothing => 0,
        };
        let mut wanted = wanted_chunks(&entries);
        wanted.retain(|chunk| checksums[chunk.entry][chunk.index as usize].is_none());
        let reads = plan(wanted);
        let bytes = entries.iter().filter_map(content).map(|file| file.size).sum();
        let open_reads = AtomicUsize::new(reads.len());
        let part = Part { entries, checksums: Mutex::new(checksums), open_reads };
        if reads.is_empty() {
            finish(&part, &roots)?;
        }
        Ok((Arc::new(part), reads, Copied { bytes, kept_bytes }))
    });
    prepared.await.map_err(stopped)?
}

/// Makes directories, then files; returns how many bytes of each entry were there before.
fn make_entries(entries: &[TableEntry], roots: &Roots) -> Result<Vec<u64>> {
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Directory) {
        roots.make_directory(&entry.path, entry.mode).map_err(|error| cannot_write(&entry.path, &error))?;
    }
    let there: Vec<AtomicU64> = entries.iter().map(|_| AtomicU64::new(0)).collect();
    let numbered: Vec<(usize, &TableEntry)> = entries.iter().enumerate().collect();
    parallel::for_each(
        parallel::processors(),
        &numbered,
        || (),
        |(), (at, entry)| {
            let Some(file) = content(entry) else { return Ok(()) };
            let found = roots.create(&entry.path, file.size, entry.mode);
            there[*at].store(found.map_err(|error| cannot_write(&entry.path, &error))?, Ordering::Relaxed);
            Ok::<(), Error>(())
        },
    )?;
    Ok(there.into_iter().map(AtomicU64::into_inner).collect())
}

/// Fetches one range, proves its chunks and writes them.
async fn copy_read(
    reader: ChunkReader,
    read: PackRead,
    part: Arc<Part>,
    roots: Arc<Roots>,
    progress: &RestoreProgressSender,
    writing: mpsc::Sender<Infallible>,
) -> Result<()> {
    let bytes = reader.fetch(&read, &part.entries).await.map_err(chunk_failed)?;
    let written = tokio::task::spawn_blocking(move || {
        let written = write_chunks(&reader, &read, &bytes, &part, &roots)?;
        // The last one to get here sees every checksum: they were entered under the lock before.
        if part.open_reads.fetch_sub(1, Ordering::AcqRel) == 1 {
            finish(&part, &roots)?;
        }
        drop(writing);
        Ok::<u64, Error>(written)
    });
    let written = written.await.map_err(stopped)??;
    progress.send_modify(|progress| progress.done_bytes += written);
    Ok(())
}

fn write_chunks(reader: &ChunkReader, read: &PackRead, bytes: &Fetched, part: &Part, roots: &Roots) -> Result<u64> {
    let chunk_size = u64::from(reader.chunk_size());
    let mut open: Option<(usize, File)> = None;
    let mut found: Vec<(usize, usize, u32)> = Vec::with_capacity(read.chunks.len());
    let mut written = 0;
    let mut write = |entry: usize, position: u64, plain: &[u8]| -> io::Result<()> {
        let file = match &open {
            Some((index, file)) if *index == entry => file,
            _ => &open.insert((entry, roots.open_file(&part.entries[entry].path)?)).1,
        };
        file.write_all_at(plain, position)?;
        let index = usize::try_from(position / chunk_size).map_err(io::Error::other)?;
        found.push((entry, index, crc32c(plain)));
        written += plain.len() as u64;
        Ok(())
    };
    Unpacker::new().unpack(reader, read, bytes, &part.entries, &mut write).map_err(chunk_failed)?;
    let mut checksums = part.checksums.lock().unwrap_or_else(PoisonError::into_inner);
    for (entry, index, checksum) in found {
        checksums[entry][index] = Some(checksum);
    }
    fault_point!("restore.written");
    Ok(written)
}

/// All chunks of the part are written: is each file, as a whole, what the file table says?
fn finish(part: &Part, roots: &Roots) -> Result<()> {
    let checksums = part.checksums.lock().unwrap_or_else(PoisonError::into_inner);
    for (entry, checksums) in part.entries.iter().zip(checksums.iter()) {
        let Some(file) = content(entry) else { continue };
        let (path, said) = (&entry.path, file.crc32c);
        match checksum_of(file, checksums) {
            Some(found) if found == said => {}
            Some(found) => {
                return Err(damaged(format!("\"{path}\" has CRC-32C {found:08x}, the file table says {said:08x}")));
            }
            None => return Err(damaged(format!("not every chunk of \"{path}\" was written"))),
        }
        roots.finish_file(path, entry.mode, entry.mtime).map_err(|error| cannot_write(path, &error))?;
    }
    Ok(())
}

/// CRC-32C of a file from those of its chunks; `None` when one is missing.
fn checksum_of(file: &FileContent, checksums: &[Option<u32>]) -> Option<u32> {
    file.chunks.iter().zip(checksums).try_fold(0, |crc, (chunk, &checksum)| {
        let of_chunk = match *chunk {
            ChunkRef::Zeros { plain } => crc32c_of_zeros(plain as usize),
            ChunkRef::Stored(_) | ChunkRef::Patched(_) => checksum?,
        };
        Some(crc32c_combine(crc, of_chunk, chunk.plain() as usize))
    })
}

fn content(entry: &TableEntry) -> Option<&FileContent> {
    match &entry.kind {
        EntryKind::File(file) => Some(file),
        EntryKind::Directory => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::file_table::{ChunkHash, StoredChunk};

    #[test]
    fn checksums_of_chunks_make_that_of_the_file() {
        let bytes: Vec<u8> = [vec![7; 100_000], vec![0; 100_000], (0..=255).collect()].concat();
        let stored =
            |plain| ChunkRef::Stored(StoredChunk { pack: 0, offset: 0, stored: 1, plain, hash: ChunkHash([0; 32]) });
        let chunks = vec![stored(100_000), ChunkRef::Zeros { plain: 100_000 }, stored(256)];
        let file = FileContent { size: bytes.len() as u64, crc32c: 0, chunks };
        let parts = [Some(crc32c(&bytes[..100_000])), None, Some(crc32c(&bytes[200_000..]))];
        assert_eq!(checksum_of(&file, &parts), Some(crc32c(&bytes)));
        assert_eq!(checksum_of(&file, &[parts[0], None, None]), None, "one was not written");
        assert_eq!(checksum_of(&FileContent { size: 0, crc32c: 0, chunks: Vec::new() }, &[]), Some(crc32c(b"")));
    }
}
